"""Means with t-intervals over seeds, paired differences, and what they say of a claim."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Two-sided 95 % quantiles of Student's t for 1, 2, 3 ... degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


class Mean(NamedTuple):
    """A mean and half the width of its 95 % interval (infinite with one value)."""

    mean: float
    half: float
    n: int

    def shown(self, digits: int = 1) -> str:
        """`36.2 ± 0.8 (n 3)`."""
        half = "" if math.isinf(self.half) else f" ± {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{half} (n {self.n})"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of independent values with its t-interval."""
    n = len(values)
    if n < 2:
        return Mean(values[0], math.inf, n)
    quantile = T95[n - 2] if n - 2 < len(T95) else 1.96 + 2.5 / (n - 1)
    return Mean(statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(n), n)


def paired(one: dict[int, float], other: dict[int, float]) -> Mean | None:
    """The mean of (one - other) over the seeds that both have; `None`: none."""
    seeds = sorted(set(one) & set(other))
    return mean_of([one[seed] - other[seed] for seed in seeds]) if seeds else None


def verdict(difference: Mean, above: float) -> str:
    """Whether the difference is above a number: `shows` if its whole interval is, `does not show` if it is below."""
    if difference.mean - difference.half > above:
        return "shows"
    if difference.mean + difference.half < above:
        return "does not show"
    return "cannot be told"


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's, of two or more pairs."""
    return statistics.correlation(x, y)
