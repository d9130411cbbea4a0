"""Measures of a ranking, for every query: similarities and what is relevant -> AP, mAP@R, R-precision, P@k, recall@k.

In: similarities (q, N) of a block of queries and which of the N are relevant. Out: for each measure (q,) float64 from 0
to 1. R is the number of relevant images of a query, k the number of first hits that are looked at; every name says what
is divided by. Sources: AP as in scikit-learn's `average_precision_score`; mAP@R and R-precision of Musgrave et al.,
"A Metric Learning Reality Check" (2020); revisitop's trapezoids of Radenovic et al. (2018), `compute_map`.

Only the places of the relevant images are needed. They are looked up among the sorted similarities, which is many times
faster than sorting the rows with them. Images left out of a ranking have the similarity -inf and are not relevant; so
they come last and change nothing.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Places:
    """Where the relevant images of a block of queries stand, query by query and from the first place on; all (T,)."""

    query: np.ndarray
    """Number of the query in the block, rising."""
    place: np.ndarray
    """From 1; among equally similar images, the lower row comes first."""
    last_equal: np.ndarray
    """Place of the last image that is as similar."""
    number: np.ndarray
    """How many relevant images stand here or before."""
    count: np.ndarray
    """(q,) relevant images of every query, R."""


def places_of(similarities: np.ndarray, relevant: np.ndarray) -> Places:
    """The places of what is `relevant` (q, N) bool in the rankings by `similarities` (q, N), the highest first."""
    width = similarities.shape[1]
    query, column = np.nonzero(relevant)
    count = np.bincount(query, minlength=len(relevant))
    ends, rising = np.cumsum(count), np.sort(similarities, axis=1)
    place, last_equal = np.empty(len(query), np.int64), np.empty(len(query), np.int64)
    for row, end in enumerate(ends):
        own = slice(end - count[row], end)
        values = similarities[row, column[own]]
        place[own] = width + 1 - np.searchsorted(rising[row], values, "right")
        last_equal[own] = width - np.searchsorted(rising[row], values, "left")
        if (last_equal[own] > place[own]).any():
            order = np.empty(width, np.int64)
            order[np.argsort(-similarities[row], kind="stable")] = np.arange(1, width + 1)
            place[own] = order[column[own]]
    order = np.lexsort((place, query))
    number = np.arange(1, len(query) + 1) - np.repeat(ends - count, count)
    return Places(query, place[order], last_equal[order], number, count)


def measures_of(places: Places, at: tuple[int, ...], definition: str) -> dict[str, np.ndarray]:
    """Every measure of the queries (q,), each of which has one relevant image or more."""
    count = places.count
    gained = places.number / places.place  # precision at every relevant image

    def summed(values, within=None):  # by query, over all or over the relevant images within these places
        return np.bincount(places.query, values if within is None else np.where(places.place <= within, values, 0),
                           minlength=len(count))

    every = np.ones(len(gained))
    ap = _by_groups(places) if definition == "steps" else _trapezoids(places)
    own_r = count[places.query]
    found = {"map": summed(ap) / count, "map_at_r": summed(gained, own_r) / count,
             "r_precision": summed(every, own_r) / count}
    for k in at:
        good, precision = summed(every, k), summed(gained, k)
        found[precision_name(k, definition)] = good / (k if definition == "steps" else np.minimum(_last(places), k))
        found[f"recall_at_{k}_over_r"] = good / count
        found[f"hit_at_{k}"] = (good > 0).astype(float)
        found[f"ap_at_{k}_over_r"] = precision / count
        found[f"ap_at_{k}_over_min_r_k"] = precision / np.minimum(count, k)
        found[f"ap_at_{k}_over_hits"] = precision / np.maximum(good, 1)
    return found


def precision_name(k: int, definition: str) -> str:
    """The key of P@k: what the hits are divided by differs."""
    return f"precision_at_{k}_over_k" if definition == "steps" else f"precision_at_{k}_over_min_k_last"


def _last(places: Places) -> np.ndarray:
    """(q,) place of the last relevant image: revisitop divides P@k by it where it is below k."""
    return places.place[np.cumsum(places.count) - 1]


def _trapezoids(places: Places) -> np.ndarray:
    """(T,) the mean of the precision just before each relevant image and at it."""
    before = np.where(places.place > 1, (places.number - 1) / np.maximum(places.place - 1, 1), 1)
    return (before + places.number / places.place) / 2


def _by_groups(places: Places) -> np.ndarray:
    """(T,) precision at every relevant image, where equally similar images are one step: after all of them."""
    is_end = np.ones(len(places.query), bool)
    is_end[:-1] = (np.diff(places.query) != 0) | (np.diff(places.last_equal) != 0)
    ends = np.flatnonzero(is_end)
    group = np.cumsum(is_end) - is_end
    return places.number[ends[group]] / places.last_equal  # the last of a group has the number of all


def chance(relevant: np.ndarray, ranked: np.ndarray, at: tuple[int, ...], definition: str) -> dict[str, float]:
    """Expected value, in percent, of each measure when every order of a query's ranking is as likely as any other.

    relevant, ranked (Q,): how many relevant images a query has, and how many are ranked for it. Measures whose
    expectation has no simple form are not there.
    """
    r, n = relevant.astype(np.float64), ranked.astype(np.float64)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, int(n.max()) + 1))])
    others = (r - 1) / np.maximum(n - 1, 1)  # share of the other images that are relevant

    def summed(places):  # expected sum of the precisions at the relevant images within the first places, by R / N
        return harmonic[places.astype(int)] * (1 - others) + others * places

    found = {"map_at_r": summed(r) / n, "r_precision": r / n}
    if definition == "steps":
        found["map"] = summed(n) / n
    for k in at:
        first = np.minimum(k, n)
        if definition == "steps":
            found[precision_name(k, definition)] = first * r / n / k
        found[f"recall_at_{k}_over_r"] = first / n
        found[f"hit_at_{k}"] = 1 - np.exp(_log_none(r, n, first))
        found[f"ap_at_{k}_over_r"] = summed(first) / n
        found[f"ap_at_{k}_over_min_r_k"] = summed(first) * r / n / np.minimum(r, k)
    return {name: 100 * float(values.mean()) for name, values in found.items()}


def _log_none(relevant: np.ndarray, ranked: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Logarithm of the probability that none of the first is relevant; -inf where some must be."""
    rest, gamma = ranked - relevant, np.vectorize(math.lgamma)
    possible = np.maximum(rest - first, 0)
    value = gamma(rest + 1) - gamma(possible + 1) - gamma(ranked + 1) + gamma(ranked - first + 1)
    return np.where(rest >= first, value, -np.inf)
