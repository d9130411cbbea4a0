"""Measures of a ranking, for every query: similarities and what is relevant -> AP, mAP@R, R-precision, P@k, recall@k.

In: similarities (q, N) of a block of queries and which of the N are relevant. Out: for each measure (q,) float64 from 0
to 1. R is the number of relevant images of a query, k the number of first hits that are looked at; every name says what
is divided by. Sources: AP as in scikit-learn's `average_precision_score`; mAP@R and R-precision of Musgrave et al.,
"A Metric Learning Reality Check" (2020); revisitop's trapezoids of Radenovic et al. (2018), `compute_map`.

Images left out of a ranking have the similarity -inf and are not relevant; so they come last and change nothing.
"""

import math
from typing import NamedTuple

import numpy as np
import torch


class Rankings(NamedTuple):
    """The rankings of a block of queries; the highest similarity first, among equals the lower row first."""

    similarities: torch.Tensor
    """(q, N) falling."""
    relevant: torch.Tensor
    """(q, N) bool, in that order."""


def rank(similarities: torch.Tensor, relevant: torch.Tensor) -> Rankings:
    """The rankings by `similarities` (q, N), where `relevant` (q, N) bool says what should come first."""
    ordered, order = similarities.sort(dim=1, descending=True, stable=True)
    return Rankings(ordered, relevant.gather(1, order))


def measures_of(rankings: Rankings, at: tuple[int, ...], definition: str) -> dict[str, np.ndarray]:
    """Every measure of the queries (q,), each of which has one relevant image or more."""
    relevant = rankings.relevant
    width = relevant.shape[1]
    hits = relevant.cumsum(dim=1, dtype=torch.float64)  # q x N
    places = torch.arange(1, width + 1, device=relevant.device, dtype=torch.float64)
    gained = torch.where(relevant, hits / places, 0)  # precision at every relevant image
    summed = gained.cumsum(dim=1)
    count = hits[:, -1]
    last = count.long() - 1
    found = {"map": summed[:, -1] / count if definition == "steps" else _trapezoids(relevant, hits, places) / count,
             "map_at_r": summed.gather(1, last[:, None]).squeeze(1) / count,
             "r_precision": hits.gather(1, last[:, None]).squeeze(1) / count}
    if definition == "steps":
        tied = _with_ties(rankings)
        found["map"][tied] = _by_groups(Rankings(rankings.similarities[tied], relevant[tied]))
    for k in at:
        first = min(k, width) - 1
        good, precision = hits[:, first], summed[:, first]
        found[precision_name(k, definition)] = good / (k if definition == "steps" else _last_or(relevant, k))
        found[f"recall_at_{k}_over_r"] = good / count
        found[f"hit_at_{k}"] = (good > 0).double()
        found[f"ap_at_{k}_over_r"] = precision / count
        found[f"ap_at_{k}_over_min_r_k"] = precision / count.clamp(max=k)
        found[f"ap_at_{k}_over_hits"] = precision / good.clamp(min=1)
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def precision_name(k: int, definition: str) -> str:
    """The key of P@k: what the hits are divided by differs."""
    return f"precision_at_{k}_over_k" if definition == "steps" else f"precision_at_{k}_over_min_k_last"


def _last_or(relevant: torch.Tensor, k: int) -> torch.Tensor:
    """(q,) the rank of the last relevant image, k at most: what revisitop divides P@k by."""
    width = relevant.shape[1]
    last = width - relevant.flip(1).int().argmax(dim=1)  # from 1
    return last.clamp(max=k)


def _trapezoids(relevant: torch.Tensor, hits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(q,) sum over the relevant images of the mean of the precision just before each and at it."""
    before = torch.where(places > 1, (hits - 1) / (places - 1).clamp(min=1), 1)
    return torch.where(relevant, (before + hits / places) / 2, 0).sum(dim=1)


def _with_ties(rankings: Rankings) -> torch.Tensor:
    """Numbers of the queries with a relevant image that is as similar as another image."""
    ordered = rankings.similarities
    equal = (ordered[:, 1:] == ordered[:, :-1]) & (rankings.relevant[:, 1:] | rankings.relevant[:, :-1])
    return equal.any(dim=1).nonzero().squeeze(1)


def _by_groups(rankings: Rankings) -> torch.Tensor:
    """(q,) AP where equally similar images are one step: each counts with the precision after all of them."""
    ordered, relevant = rankings
    if not len(ordered):
        return ordered.new_zeros(0, dtype=torch.float64)
    width = ordered.shape[1]
    places = torch.arange(width, device=ordered.device).expand_as(ordered)
    is_end = torch.ones_like(relevant)
    is_end[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    end = torch.where(is_end, places, width).flip(1).cummin(dim=1).values.flip(1)  # of the group that each is in
    hits = relevant.cumsum(dim=1)
    precision = hits.gather(1, end).double() / (end + 1)
    return torch.where(relevant, precision, 0).sum(dim=1) / hits[:, -1]


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
