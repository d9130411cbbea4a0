"""Choosing the penalty of a linear classifier on held-out training rows: rows -> a fit on all of them.

The test rows have no part in it. The held-out part is a stratified fifth of the training rows, copies of an image kept
together; the penalty with the highest score on it wins, among equals the stronger one; the fit that is handed back is
on all training rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed.errors import CollectionError
from mocoembed.evaluate.folds import held_out
from mocoembed.evaluate.linear.fit import Fit
from mocoembed.evaluate.linear.logistic import PENALTIES, STEPS, Problem
from mocoembed.evaluate.measures import average_precision, confusion, recalls

HELD_OUT = 0.2


@dataclass(frozen=True)
class Rows:
    """Labelled rows of which classifiers are made and on which they are tried."""

    features: torch.Tensor
    """(N, D) float32, on the device."""
    names: list[str]
    """(N,) labels."""
    groups: np.ndarray
    """(N,) int64: equal for copies of an image."""


@dataclass(frozen=True)
class Search:
    """How a penalty is chosen."""

    metric: str = "top1"
    """`top1`, `balanced` or `ap`."""
    penalties: tuple[float, ...] = PENALTIES
    steps: int = STEPS


@dataclass(frozen=True)
class Classifier:
    """What was learned from some rows."""

    classes: list[str]
    """(C,) names, sorted; the columns of scores."""
    fit: Fit
    tried: list[dict]
    """For each penalty, the strongest first: its score on the held-out rows in percent, and how its fit ended."""
    held_out: int
    """Rows that the penalty was chosen on."""

    @property
    def fits(self) -> list[dict]:
        """How every fit ended, the last one's included."""
        return [*self.tried, self.fit.as_json()]

    @property
    def at_edge(self) -> bool | None:
        """Whether the chosen penalty is the strongest or the weakest of several."""
        edges = [one["penalty"] for one in self.tried]
        return self.fit.penalty in (edges[0], edges[-1]) if edges else None


def learn(rows: Rows, chosen: np.ndarray, search: Search, seed: int,
          progress: Callable[[], None] = lambda: None) -> Classifier:
    """A classifier of the rows `chosen` (n,) int64, which have two classes or more; `progress` counts fits.

    Raises `CollectionError` when several penalties are given and no class has a second image to choose on.
    """
    names = [rows.names[row] for row in chosen]
    classes = sorted(set(names))
    number = {name: place for place, name in enumerate(classes)}
    truth = np.array([number[name] for name in names])
    labels = torch.full((len(rows.names),), -1, device=rows.features.device)
    labels[torch.from_numpy(chosen).to(labels.device)] = torch.from_numpy(truth).to(labels.device)
    penalties = sorted(set(search.penalties), reverse=True)
    best, tried, apart = penalties[0], [], np.zeros(len(chosen), bool)
    if len(penalties) > 1:
        try:
            apart = held_out(names, rows.groups[chosen], HELD_OUT, seed)
        except CollectionError as error:
            raise CollectionError("Every class has a single labelled image, so none can be held out to choose the "
                                  "penalty on. Give more labels, or one --penalty, for example 1e-2.") from error
        problem = Problem(rows.features, labels, len(classes), _on_device(rows, chosen[~apart]))
        asked = rows.features[_on_device(rows, chosen[apart])]
        for fit in problem.path(penalties, search.steps):
            score = score_of(search.metric, fit.scores(asked), truth[apart])
            tried.append({**fit.as_json(), "score": score})
            progress()
        best = max(tried, key=lambda one: (one["score"], one["penalty"]))["penalty"]
    fit = Problem(rows.features, labels, len(classes), _on_device(rows, chosen)).fit(best, steps=search.steps)
    progress()
    return Classifier(classes, fit, tried, int(apart.sum()))


def _on_device(rows: Rows, chosen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(chosen).to(rows.features.device)


def score_of(metric: str, scores: torch.Tensor, truth: np.ndarray) -> float:
    """The metric in percent of scores (n, C) on rows of the classes `truth` (n,)."""
    if metric == "ap":
        shares = scores.softmax(dim=1).cpu().numpy()
        return 100 * float(np.mean([average_precision(shares[:, one], truth == one) for one in np.unique(truth)]))
    predicted = scores.argmax(dim=1).cpu().numpy()
    if metric == "top1":
        return 100 * float(np.mean(predicted == truth))
    return float(np.nanmean(recalls(confusion(truth, predicted, scores.shape[1]))))
