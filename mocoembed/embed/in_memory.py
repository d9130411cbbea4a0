"""Embedding images from Python, without a collection or a file: `load_encoder(source).embed(images)`.

torch is imported unless the encoder runs on ONNX Runtime.
"""

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.config.commands import DEFAULT_WORKSPACE
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import Failure
from mocoembed.data.given import GivenImage
from mocoembed.data.shards import read_path
from mocoembed.errors import CollectionError, UsageError
from mocoembed.model.encoder_metadata import read_metadata
from mocoembed.model.graph import GraphEncoder
from mocoembed.notes import say_nothing
from mocoembed.workspace import Workspace

BATCH = 64  # images that are decoded, then embedded together
ONNX = "onnx"  # in place of a device

__all__ = ["ImageEncoder", "load_encoder"]


@dataclass(frozen=True)
class ImageEncoder:
    """A frozen encoder, ready for images in memory; `load_encoder` makes one.

    The path or the bytes of an image file give the vector that `embed_images` stores with the same settings, up to
    rounding. So do its pixels, but for a large JPEG file, of which only a smaller scale is decoded, at a little less
    quality: `embed_images` with `full_decode` is the same as giving the pixels.
    """

    dimension: int
    """Length D of the vectors."""
    fingerprint: str
    """SHA-256 of weights, architecture and transform, as in encoder, embeddings and index files."""
    transform: EvaluationTransform
    """How an image becomes the encoder's input: resize, crop, mean and standard deviation."""
    vectors: Callable[[np.ndarray], np.ndarray]
    """(N, D) float32 from pixels (N, S, S, 3) uint8."""
    with_torch: bool = True
    """Whether torch resizes the images, or Pillow."""

    def embed(self, images: Any) -> np.ndarray:
        """Vectors (N, D) float32 of N images; of a single image (D,).

        images: one image or an iterable of them, which may be a generator: no more than a batch is held at a time.
        An image is a path (str or PathLike), the bytes of an image file, a PIL image, or an array of uint8, (H, W, 3)
        RGB, (H, W) grey or (H, W, 4) RGBA. An array (N, H, W, C) is N images. Raises `CollectionError` for an image
        that cannot be read, and `UsageError` for what is no image; both name its position.
        """
        if _is_one(images):
            return self.embed([images])[0]
        if not isinstance(images, Iterable):
            raise UsageError(f"Not an image, but of type {type(images).__name__}. Give a path, bytes, a PIL image, "
                             "an array of uint8, or an iterable of these.")
        numbered, found = enumerate(images), [np.empty((0, self.dimension), np.float32)]
        while batch := list(itertools.islice(numbered, BATCH)):
            pixels = np.stack([self._pixels(at, image) for at, image in batch])  # N x S x S x 3
            found.append(self.vectors(pixels))
        return np.concatenate(found)

    def _pixels(self, at: int, image) -> np.ndarray:
        try:
            return self.transform.pixels(self._opened(image), self.with_torch)
        except UsageError as error:
            raise UsageError(f"Image {at}: {error}") from error
        except Exception as error:  # whatever a decoder raises
            name = f" ({os.fspath(image)!r})" if isinstance(image, str | os.PathLike) else ""
            raise CollectionError(f"Image {at}{name} cannot be read: {Failure.of(at, error).said}") from error

    def _opened(self, image) -> EncodedImage | GivenImage:
        if isinstance(image, str | os.PathLike):
            return EncodedImage(read_path(image), value_range=self.transform.value_range)
        if isinstance(image, bytes | bytearray | memoryview):
            return EncodedImage(bytes(image), value_range=self.transform.value_range)
        return GivenImage.of(image)


def _is_one(images) -> bool:
    """Whether it is an image, rather than several."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3)
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or GivenImage.is_pil(images)


def load_encoder(source=None, *, workspace: str = DEFAULT_WORKSPACE, features: str = "backbone",
                 normalize: bool = True, device: str = "auto", precision: str = "fp32",
                 note: Callable[[str], None] = say_nothing) -> ImageEncoder:
    """Load an encoder to embed images that are in memory.

    source: an encoder file, a checkpoint, a run folder, a published name or weights of another library, as for
    `mocoembed embed --encoder`; `None` for the workspace's newest. The other arguments are the options of
    `mocoembed embed` with the same names. `note(text)` is called with what a person should know.

    With the device `onnx`, ONNX Runtime embeds on the CPU, and torch is not imported. It takes encoder files whose
    graph is beside them, or was kept by the workspace when it used them.

    Raises `UsageError` for a source or a value that there is not, `FormatError` for a damaged file.
    """
    if features not in ("backbone", "projection"):
        raise UsageError(f"features {features!r}: must be backbone or projection.")
    given, places = None if source is None else os.fspath(source), Workspace(workspace)
    if device == ONNX:
        if precision != "fp32":
            raise UsageError(f"precision {precision!r}: must be fp32 with the device onnx.")
        return _on_onnxruntime(given, places, features, normalize)
    import torch

    from mocoembed.model.embedder import Embedder
    from mocoembed.model.precision import Compute
    from mocoembed.train.export import open_encoder

    frozen = open_encoder(given, places, note)
    embedder = Embedder(frozen, Compute.of(device, precision), features, normalize, note=note)
    return ImageEncoder(frozen.dimension(features), frozen.fingerprint(), frozen.transform,
                        lambda pixels: embedder(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy())


def _on_onnxruntime(given: str | None, places: Workspace, features: str, normalize: bool) -> ImageEncoder:
    """The encoder by the graph that is beside it, or that the workspace keeps of it."""
    path = places.encoder(given)
    fingerprint = read_metadata(path)["fingerprint"]
    graph = path.with_name(places.graph_of(fingerprint).name)  # beside the encoder, or in the workspace
    if not graph.is_file():
        graph = places.graph_of(fingerprint)
    if not graph.is_file():
        raise UsageError(f"{places.root} has no ONNX graph of {path}. Embedding any image makes one: mocoembed embed "
                         f"IMAGE --encoder {path}")
    encoder = GraphEncoder(graph, fingerprint, features, normalize)
    return ImageEncoder(encoder.dimension, fingerprint, encoder.transform, encoder, with_torch=False)
