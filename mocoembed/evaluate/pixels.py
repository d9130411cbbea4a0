"""What can be seen without an encoder: images of 32 pixels -> raw pixels, colour histogram, HOG; on NumPy alone.

In: pixels (N, S, S, 3) uint8. Out: (N, D) float32, not yet of length 1. `read_pixels` gets them from the images that an
embeddings file was made of.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterator

import numpy as np

from mocoembed.cores import cores
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import UNKNOWN
from mocoembed.data.shards import read_path
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError
from mocoembed.evaluate.sides import Side

AT_A_TIME = 64  # images
SIZE = 32  # of the shorter side, and of the crop from the middle
BINS = 8  # of each of hue, saturation and value
ORIENTATIONS, CELL, BLOCK = 9, 8, 2  # HOG: unsigned orientations, pixels of a cell, cells of a block
EPSILON, CLIPPED = 1e-5, 0.2
GREY = np.array([0.2125, 0.7154, 0.0721], np.float32)  # luminance, as in scikit-image


def raw_pixels(pixels: np.ndarray) -> np.ndarray:
    """(N, 3 S^2): the pixels minus their mean."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    return flat - flat.mean(axis=1, keepdims=True)


def colour_histogram(pixels: np.ndarray) -> np.ndarray:
    """(N, 512): square roots of the shares of 8 x 8 x 8 bins of hue, saturation and value.

    Of square roots, the cosine is the Bhattacharyya coefficient of two histograms.
    """
    counts = np.stack([np.bincount(_hsv_bins(image).ravel(), minlength=BINS ** 3) for image in pixels])
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def _hsv_bins(image: np.ndarray) -> np.ndarray:
    """(S, S) number of the bin of every pixel of (S, S, 3) uint8."""
    rgb = image.astype(np.float32) / 255
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    span = high - low
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.where(span > 0, span, 1)
    hue = np.where(high == red, (green - blue) / safe % 6,
                   np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)) / 6
    saturation = span / np.where(high > 0, high, 1)
    hue, saturation, value = (np.minimum((BINS * one).astype(int), BINS - 1) for one in (hue, saturation, high))
    return (hue * BINS + saturation) * BINS + value


def gradients_histogram(pixels: np.ndarray) -> np.ndarray:
    """(N, D): histograms of oriented gradients (Dalal and Triggs 2005) of the luminance, blocks scaled by L2-Hys.

    The same numbers as scikit-image's `hog`: central differences, no difference at the border, each gradient in one
    bin.
    """
    grey = pixels.astype(np.float32) @ GREY / 255  # N x S x S
    down, across = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    across[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    angle = np.rad2deg(np.arctan2(down, across)) % 180
    number = np.minimum((angle * (ORIENTATIONS / 180)).astype(int), ORIENTATIONS - 1)
    length, cells = np.hypot(down, across), grey.shape[1] // CELL
    counted = np.stack([np.where(number == one, length, 0) for one in range(ORIENTATIONS)], axis=-1)
    counted = counted[:, :cells * CELL, :cells * CELL].reshape(len(grey), cells, CELL, cells, CELL, ORIENTATIONS)
    histograms = counted.sum(axis=(2, 4)) / CELL ** 2  # N x cells x cells x orientations
    windows = range(cells - BLOCK + 1)
    blocks = np.stack([_l2_hys(histograms[:, i:i + BLOCK, j:j + BLOCK].reshape(len(grey), -1))
                       for i in windows for j in windows], axis=1)
    return blocks.reshape(len(grey), -1).astype(np.float32)


def _l2_hys(block: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, clipped, and scaled again."""
    clipped = np.minimum(_scaled(block), CLIPPED)
    return _scaled(clipped)


def _scaled(block: np.ndarray) -> np.ndarray:
    return block / np.sqrt((block ** 2).sum(axis=1, keepdims=True) + EPSILON ** 2)


def read_pixels(side: Side) -> np.ndarray:
    """(N, 32, 32, 3) uint8: the images of a side; see `images_of`."""
    return np.concatenate(list(images_of(side, EvaluationTransform(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3))))


def images_of(side: Side, transform: EvaluationTransform) -> Iterator[np.ndarray]:
    """The images of a side in the order of its rows, some at a time: (n, S, S, 3) uint8.

    Raises `CollectionError` for one that has gone, cannot be read or has other bytes than when it was embedded.
    """
    with EmbeddingFile(side.path) as file:
        value_range, paths = file.value_range, file.full_names(side.rows)[0]

    def read(path: bytes, digest: np.void) -> np.ndarray:
        try:
            data = read_path(path)
            if digest != np.void(UNKNOWN) and hashlib.sha256(data).digest() != digest.tobytes():
                raise ValueError("it has changed since it was embedded")
            return transform.pixels(EncodedImage(data, value_range=value_range))
        except Exception as error:  # whatever a decoder raises
            reason = "it is not there" if isinstance(error, FileNotFoundError) else error
            raise CollectionError(f"cannot read {os.fsdecode(path)!r}: {reason}.") from error

    with concurrent.futures.ThreadPoolExecutor(cores()) as threads:
        for first in range(0, len(paths), AT_A_TIME):
            some = slice(first, first + AT_A_TIME)
            yield np.stack(list(threads.map(read, paths[some], side.digests[some])))
