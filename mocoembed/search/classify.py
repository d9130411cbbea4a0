"""Classifying images: files and folders -> labels with their probabilities, by a classifier that `finetune` made.

As for searching, the network is the classifier's graph on ONNX Runtime, and torch is loaded only where that cannot be
used: the graph is missing or of another classifier, or a GPU is asked for.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mocoembed.checks import is_gpu
from mocoembed.config import ClassifyConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import CollectionError, MocoembedError
from mocoembed.model.encoder_metadata import read_classifier_metadata
from mocoembed.model.graph import CLASSIFIER_KIND, GraphEncoder
from mocoembed.notes import say_nothing
from mocoembed.search.encoding import require_device
from mocoembed.search.left_out import LeftOut
from mocoembed.search.pair import query_pixels, readable
from mocoembed.search.queries import query_names, read_bytes, shown
from mocoembed.workspace import Workspace

BATCH = 32  # images at a time


@dataclass(frozen=True)
class Classified:
    """What is found for one image."""

    image: str
    labels: tuple[tuple[str, float], ...]
    """(label, probability), the most probable first."""

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"image": self.image, "labels": [{"rank": rank, "label": label, "probability": probability}
                                                for rank, (label, probability) in enumerate(self.labels, 1)]}


class Network(Protocol):
    """A classifier's network, what it takes and what it gives."""

    transform: EvaluationTransform
    labels: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, C) float32 from pixels (N, S, S, 3) uint8."""


def classify_images(config: ClassifyConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                    note: Callable[[str], None] = say_nothing) -> Iterator[Classified]:
    """The most probable labels of each image, one after the other, as soon as they are there.

    Of several images, those that cannot be read are left out and told to `note`; after the last one `CollectionError`
    is raised. Raises `UsageError` for a missing file, `FormatError` for one that is no classifier or is damaged.
    """
    require_device(config.device)
    path = Workspace(config.workspace).classifier(config.classifier)
    fingerprint = read_classifier_metadata(path)["fingerprint"]
    names = query_names(config.images, note, "mocoembed classify IMAGE...")
    network = network_of(config, path, fingerprint, note)
    if config.k > (count := len(network.labels)):
        note(f"-k {config.k}: the classifier has {count} labels; all of them are given")
    left_out = LeftOut(len(names), note, "image")
    for first in range(0, len(names), BATCH):
        some = names[first:first + BATCH]
        read, pixels = readable_images(some, network, left_out)
        if read:
            yield from labelled(read, network(np.stack(pixels)), network.labels, config.k)
        progress(first + len(some), len(names))
    left_out.raise_if_any()


def readable_images(names: list[str], network: Network, left_out: LeftOut) -> tuple[list[str], list[np.ndarray]]:
    """The images that can be read, and their pixels, (S, S, 3) uint8 each; the others go to `left_out`."""
    read, pixels, with_torch = [], [], not isinstance(network, GraphEncoder)
    for name in names:
        try:
            with readable(shown(name)):
                data = read_bytes(name)
            pixels.append(query_pixels(data, name, network.transform, False, with_torch=with_torch))
            read.append(name)
        except CollectionError as error:
            left_out.add(error)
    return read, pixels


def labelled(names: list[str], logits: np.ndarray, labels: Sequence[str], k: int) -> Iterator[Classified]:
    """The k most probable labels of each image, by logits (N, C); among equals the first by name."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :k]
    for name, row, best in zip(names, shares, order):
        yield Classified(name, tuple((labels[place], float(row[place])) for place in best))


def network_of(config: ClassifyConfig, path: pathlib.Path, fingerprint: str, note: Callable[[str], None]) -> Network:
    """The graph of the classifier at `path`, beside it or in the workspace; else the classifier itself on torch.

    A graph that is damaged or of another classifier is not used. Where torch is used for want of a graph, `note` is
    told why, and the workspace gets one for the next time.
    """
    kept = Workspace(config.workspace).classifier_of(fingerprint).with_suffix(".onnx")
    if config.torch or is_gpu(config.device):
        return _TorchNetwork(path, config.device)
    problem = f"{path} has no ONNX graph."
    for graph in dict.fromkeys((path.with_suffix(".onnx"), kept)):
        try:
            return GraphEncoder(graph, fingerprint, "logits", False, CLASSIFIER_KIND)
        except FileNotFoundError:
            pass
        except (OSError, MocoembedError) as error:
            problem = str(error)
    note(f"{problem}\nThe images are classified by torch instead, which takes seconds to load.")
    network = _TorchNetwork(path, config.device)
    if kept.parent.is_dir():
        network.keep_graph(kept)
    return network


class _TorchNetwork:
    """A classifier on torch, called with NumPy's arrays."""

    def __init__(self, path: pathlib.Path, device: str):
        from mocoembed.model.classifier_file import load_classifier
        from mocoembed.model.embedder import Embedder
        from mocoembed.model.precision import Compute

        self._classifier = load_classifier(path)
        self.transform, self.labels = self._classifier.frozen.transform, self._classifier.labels
        self._embed = Embedder(self._classifier.frozen, Compute.of(device, "fp32"), "backbone", normalized=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        features = self._embed(torch.from_numpy(images).permute(0, 3, 1, 2))
        return self._classifier.logits(features).numpy()

    def keep_graph(self, path: pathlib.Path):
        """Write the graph that was missing."""
        from mocoembed.model.graph_export import keep_classifier_graph

        keep_classifier_graph(path, self._classifier)
