"""Measures on arrays, in percent, and their intervals: confusion matrix, precision, recall, average precision.

In: numbers of classes (N,) int64 and scores. The definitions are scikit-learn's: average precision is the area under
the precision-recall curve by steps, and queries with equal scores are one step.

An interval is of 95 %: the percentiles 2.5 and 97.5 of a bootstrap over the queries, the bank or the fit unchanged. The
share of right queries in a resample is binomial and a resampled confusion matrix multinomial, so these are drawn as
such, which is exact and takes no time.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES, SEED = 2000, 0
WITHIN_RANKING = 200  # resamples when every one has to be ranked again
MOST_RANKED = 200_000  # queries times classes whose AP is given an interval, and a tenth of it queries
DRAWN = 1 << 22  # numbers drawn at a time
CI = (2.5, 97.5)
FEWEST_FOR_TOP5 = 6  # classes; with five, every answer is among the first five


@dataclass(frozen=True)
class Measured:
    """A number, in percent unless it has another unit, and how sure it is."""

    value: float
    ci95: tuple[float, float] | None
    """Bounds of the interval of 95 %; `None` where it was not computed."""
    method: str
    """How the interval was made; empty without one."""
    n: int
    """Queries (or folds, or seeds) that the value and its interval are over."""
    unit: str | None = None
    """Of a number that is not in percent."""

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"value": self.value, "ci95": list(self.ci95) if self.ci95 else None, "method": self.method,
                "n": self.n, **({"unit": self.unit} if self.unit else {})}

    @classmethod
    def of(cls, value: dict) -> "Measured":
        """What `as_json` wrote."""
        return cls(value["value"], tuple(value["ci95"]) if value["ci95"] else None, value["method"], value["n"],
                   value.get("unit"))


def method_of(resamples: int = RESAMPLES) -> str:
    """How the intervals here are made, in words."""
    return f"percentile bootstrap over the queries, {resamples} resamples, seed {SEED}"


def _random() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(SEED))


def _bounds(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(resampled, CI)
    return float(low), float(high)


def share(right: np.ndarray) -> Measured:
    """Percent of `right` (N,) bool that is true."""
    count, good = len(right), int(np.count_nonzero(right))
    resampled = _random().binomial(count, good / count, RESAMPLES)
    return Measured(100 * good / count, _bounds(100 * resampled / count), method_of(), count)


def means(values: dict[str, np.ndarray]) -> dict[str, Measured]:
    """The mean of each array (N,), one number for each query, times 100; all with the same resamples."""
    table = np.stack(list(values.values()), axis=1)  # N x measures
    count, random = len(table), _random()
    step = max(1, DRAWN // count)
    resampled = np.empty((RESAMPLES, table.shape[1]))
    for first in range(0, RESAMPLES, step):
        some = min(step, RESAMPLES - first)
        drawn = random.integers(0, count, (some, count)) + count * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        resampled[first:first + some] = times @ table / count
    return {name: Measured(100 * float(np.mean(table[:, i])), _bounds(100 * resampled[:, i]), method_of(), count)
            for i, name in enumerate(values)}


def over_repeats(values: list[float]) -> Measured:
    """The mean of repeats (folds or seeds) in percent, with the interval of Student's t, cut off at 0 and 100.

    There is none for a single repeat.
    """
    count, middle = len(values), float(np.mean(values))
    if count < 2:
        return Measured(middle, None, "", count)
    half = STUDENT[min(count - 1, len(STUDENT)) - 1] * float(np.std(values, ddof=1)) / count ** 0.5
    return Measured(middle, (max(0.0, middle - half), min(100.0, middle + half)), "Student's t over repeats", count)


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond 30 the last is at most 4 % too wide
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64: how many queries of class i (row) were classified as j (column)."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def recalls(matrix: np.ndarray) -> np.ndarray:
    """(C,) percent of each class that is classified rightly; NaN where there is no query of the class."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def precisions(matrix: np.ndarray) -> np.ndarray:
    """(C,) percent of what is classified as a class that belongs to it; NaN where nothing is."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)


def balanced(matrix: np.ndarray) -> Measured:
    """Balanced accuracy: the mean recall of the classes that have queries."""
    counts, right = matrix.sum(axis=1), np.diag(matrix)
    there = counts > 0
    counts, right, total = counts[there], right[there], int(counts.sum())
    cells = np.concatenate([right, counts - right]) / total
    drawn = _random().multinomial(total, cells, RESAMPLES)
    good, bad = drawn[:, :len(counts)], drawn[:, len(counts):]
    with np.errstate(invalid="ignore"):
        resampled = np.nanmean(good / np.where(good + bad > 0, good + bad, np.nan), axis=1)
    return Measured(float(np.mean(100 * right / counts)), _bounds(100 * resampled), method_of(), total)


def average_precision(scores: np.ndarray, relevant: np.ndarray, weights: np.ndarray | None = None) -> float:
    """AP of a ranking by `scores` (N,), highest first, where `relevant` (N,) is what is looked for; from 0 to 1.

    The sum over the distinct scores of (recall - recall before) x precision, as in scikit-learn. `weights` (N,) are
    numbers of times each one counts. NaN when nothing is relevant.
    """
    order = np.argsort(-scores, kind="stable")
    return float(_stepped(scores[order], relevant[order], np.ones((1, len(order))) if weights is None
                          else weights[None, order])[0])


def _stepped(scores: np.ndarray, relevant: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) AP for each row of `weights` (R, N); `scores` (N,) fall."""
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    hits, seen = np.cumsum(weights * relevant, axis=1)[:, ends], np.cumsum(weights, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nansum(gained * hits / seen, axis=1) / np.where(hits[:, -1] > 0, hits[:, -1], np.nan)


def class_precision(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, Measured]:
    """AP of every class, one against the rest, (C,) in percent, and their mean over the classes that have queries.

    scores (N, C): comparable between queries, such as the share of the vote; truth (N,) from 0; a number of C or more
    is a class that has no scores, relevant to none. NaN for a class without queries.
    """
    count, classes = scores.shape
    resamples = WITHIN_RANKING if count * max(10, classes) <= MOST_RANKED else 0
    drawn = _random().multinomial(count, np.full(count, 1 / count), resamples)
    weights = np.concatenate([np.ones((1, count)), drawn])
    resampled = np.full((1 + resamples, classes), np.nan)
    for number in np.intersect1d(np.unique(truth), np.arange(classes)):
        order = np.argsort(-scores[:, number], kind="stable")
        resampled[:, number] = _stepped(scores[order, number], truth[order] == number, weights[:, order])
    each = 100 * resampled[0]
    value = float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
    if not resamples:
        return each, Measured(value, None, "", count)
    return each, Measured(value, _bounds(100 * np.nanmean(resampled[1:], axis=1)), method_of(resamples), count)


def of_classifier(truth: np.ndarray, shares: np.ndarray, classes: int) -> dict[str, Measured]:
    """top1, top5 (six classes or more), balanced and ap of probabilities (N, C); truth (N,) from 0 to classes - 1."""
    values = {"top1": share(shares.argmax(axis=1) == truth)}
    if shares.shape[1] >= FEWEST_FOR_TOP5:
        first = np.argpartition(-shares, 4, axis=1)[:, :5]
        values["top5"] = share((first == truth[:, None]).any(axis=1))
    values["balanced"] = balanced(confusion(truth, shares.argmax(axis=1), classes))
    values["ap"] = class_precision(shares, truth)[1]
    return values
