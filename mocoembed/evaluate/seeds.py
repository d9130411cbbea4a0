"""Repeats with several seeds: what each says of the test images -> the measures, as means where there are several.

In: for each seed the probabilities (Q, C) of the same test images. The outcome of an image is the share of the seeds
that are right, so that the mean over the images is the number that is printed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mocoembed.evaluate import measures
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.result import per_class_json


@dataclass(frozen=True)
class Shares:
    """What the classifier of one seed says of the test images."""

    seed: int
    learned: int
    """Images that were learned from."""
    truth: np.ndarray
    """(Q,) int64 classes."""
    shares: np.ndarray
    """(Q, C) float32 probabilities."""

    @cached_property
    def values(self) -> dict[str, Measured]:
        """top1, top5 (six classes or more), balanced, ap."""
        return measures.of_classifier(self.truth, self.shares, self.shares.shape[1])

    @property
    def right(self) -> np.ndarray:
        """(Q,) bool."""
        return self.shares.argmax(axis=1) == self.truth

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: true class x predicted class."""
        return measures.confusion(self.truth, self.shares.argmax(axis=1), self.shares.shape[1])

    def per_class(self, names: list[str]) -> dict:
        """Class -> count, top1, precision, ap; `names` (C,) are those of the classes."""
        return per_class_json(names, self.matrix, measures.class_precision(self.shares, self.truth)[0])

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"seed": self.seed, "train": self.learned, "test": len(self.truth),
                **{name: one.value for name, one in self.values.items()}}


def mean_values(repeats: Sequence[Shares]) -> dict[str, Measured]:
    """The measures of a single seed with their intervals over the images, or the means over several seeds."""
    if len(repeats) == 1:
        return repeats[0].values
    return {name: measures.over_repeats([one.values[name].value for one in repeats]) for name in repeats[0].values}


def mean_right(repeats: Sequence[Shares]) -> np.ndarray:
    """(Q,) which images are right, bool; of several seeds, the share of them, float."""
    return repeats[0].right if len(repeats) == 1 else np.mean([one.right for one in repeats], axis=0)


def learned_from(counts: Iterable[int], seeds: int) -> str:
    """How many images: `80`, or `80, 5 seeds`, or `79 to 81, 5 seeds`."""
    rising = sorted(set(counts))
    many = f"{rising[0]} to {rising[-1]}" if len(rising) > 1 else f"{rising[0]}"
    return many + (f", {seeds} seeds" if seeds > 1 else "")
