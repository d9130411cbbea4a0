"""From which cosine on two images of a collection are copies: found from how alike its other images are.

How alike unrelated images are depends on the encoder: with a weak one the nearest neighbour of a photograph has a
cosine of 0.97, with a strong one 0.70. So the threshold is taken from the collection's own neighbours. log(1 - cosine)
of the nearest neighbours is close to a normal distribution (benchmarks/README.md); a copy is what is `DEVIATIONS`
standard deviations nearer than their middle.

A collection in which many images are copies must not hide them, so the nearest neighbour itself is not looked at.
Where the density about an image is smooth, the k-th neighbour's distance grows as a power of k / N; the power is seen
from the 5th to the 10th, and leads back to the first, and from the sample to the whole collection.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NEAR, FAR = 5, 10  # neighbours that are looked at
DEVIATIONS = 4.0
GUMBEL = math.pi / math.sqrt(6)  # standard deviation of the logarithm of the first distance, for a power of 1
UPPER_QUARTILE = 0.6745  # of the standard normal distribution
LOWEST, HIGHEST = 0.9, 0.9999
LEAST_ROWS, WITH_FEW = 50, 0.98
ROWS, QUERIES, BLOCK = 20_000, 1_000, 100  # of the sample


@dataclass(frozen=True)
class Threshold:
    """A least cosine of near-duplicates, and what to say about it."""

    cosine: float
    reason: str
    """Why it is this one; empty when it was given."""


def choose_threshold(count: int, vectors_of: Callable[[np.ndarray], np.ndarray], digests: np.ndarray) -> Threshold:
    """The threshold for a collection of `count` images.

    `vectors_of(rows)` gives the vectors (n, D) of length 1 of rising rows, `digests` (count,) are compared so that of
    images with the same bytes one is looked at. Takes a sample of `ROWS` rows, evenly spaced, so the same collection
    gives the same threshold.
    """
    rows = np.unique(np.linspace(0, count - 1, min(count, ROWS)).astype(np.int64))
    share = len(rows) / max(1, count)
    rows = rows[_first_of_each(digests[rows])]
    if len(rows) < LEAST_ROWS:
        return Threshold(WITH_FEW, f"{len(rows)} different images are too few to see how alike they are")
    near, far = _distances(vectors_of(rows))
    power = float(np.median(far - near)) / math.log(FAR / NEAR)
    middle = float(np.median(near)) - power * math.log(NEAR / share)
    spread = (float(np.percentile(near, 75)) - float(np.median(near))) / UPPER_QUARTILE
    cosine = 1 - math.exp(middle - DEVIATIONS * math.hypot(spread, GUMBEL * power))
    cosine = min(HIGHEST, max(LOWEST, math.floor(10_000 * cosine) / 10_000))
    return Threshold(cosine, "the nearest neighbours of these images have a cosine similarity of about "
                             f"{1 - math.exp(middle):.2f}")


def _first_of_each(digests: np.ndarray) -> np.ndarray:
    """Places of the first of every digest, and of all that are unknown."""
    unknown = np.flatnonzero(digests == np.void(bytes(digests.dtype.itemsize)))
    _, first = np.unique(digests, return_index=True)
    return np.union1d(unknown, first)


def _distances(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(1 - cosine) of up to `QUERIES` of the vectors (n, D), evenly spaced, to their near and far neighbour."""
    queries = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), QUERIES)).astype(np.int64))
    found = []
    for first in range(0, len(queries), BLOCK):
        block = queries[first:first + BLOCK]
        cosines = vectors[block] @ vectors.T  # BLOCK x n
        cosines[np.arange(len(block)), block] = -np.inf  # itself
        found.append(-np.partition(-cosines, (NEAR - 1, FAR - 1), axis=1)[:, [NEAR - 1, FAR - 1]])
    distances = np.log(np.maximum(1 - np.concatenate(found).astype(np.float64), 1e-7))  # float32 ends there
    return distances[:, 0], distances[:, 1]
