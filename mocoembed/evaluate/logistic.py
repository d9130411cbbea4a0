"""Multinomial logistic regression on stored features: (n, D) and classes -> weights, and how near to the optimum.

    f(W, b) = mean over rows of -log softmax((x - mean) / scale W + b)[class] + penalty / 2 ||W||^2

is minimised by torch's LBFGS with its strong Wolfe line search, in float64. `mean` (D,) is that of the training rows,
`scale` one number: the root of their mean variance over the dimensions. It is scikit-learn's objective with C = 1 / (n
penalty), on the same features. The bias is not penalised.

As f is strongly convex in W, f - f* <= ||gradient||^2 / (2 penalty): a fit has converged when that bound is below
`TOLERANCE` of f; for the bias, the mean curvature stands in place of the penalty. LBFGS moves in the principal axes of
the features, each divided by the root of its curvature (c variance + penalty), where it takes tens of steps instead of
thousands; the objective is the same. Where there are more dimensions than rows, the rows are rotated to their rank
first, which is exact, as the rotation keeps ||W||.

Features are read in pieces and never copied whole, unless there are fewer rows than dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

TOLERANCE = 1e-6
PIECE = 1 << 21  # numbers in a piece of features or of scores: 16 MB in float64
HISTORY = 20
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
STEPS = 1000
RANK = 1e-12  # axes whose variance is a smaller share of the largest one are rounding errors


@dataclass(frozen=True)
class Fit:
    """Weights for one penalty, and how near they are to the best ones."""

    penalty: float
    weights: torch.Tensor
    """(D, C) float64: of features as they are stored, centring and scale included."""
    bias: torch.Tensor
    """(C,) float64."""
    start: torch.Tensor
    """(r + 1, C) float64: W in the principal axes, then b; another fit of the same rows can start from it."""
    objective: float
    iterations: int
    gradient_norm: float
    """Of f, by W and b."""
    converged: bool
    """Whether the objective is known to be within `TOLERANCE` (relative) of its minimum."""

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """(n, C) float32 logits of features (n, D)."""
        found = torch.empty(len(features), len(self.bias), device=features.device)
        for piece in _slices(len(features), max(self.weights.shape)):
            found[piece] = torch.addmm(self.bias, features[piece].double(), self.weights).float()
        return found

    def as_json(self) -> dict:
        """What is stamped on a result."""
        return {"penalty": self.penalty, "objective": self.objective, "iterations": self.iterations,
                "gradient_norm": self.gradient_norm, "converged": self.converged}


def _slices(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows, of about `PIECE` numbers each when a row has `width`."""
    size = max(1, PIECE // max(1, width))
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


class Value(NamedTuple):
    """A function at one point."""

    loss: float
    gradient: torch.Tensor
    """(r + 1, C) float64."""
    curvature: float
    """Mean of p (1 - p) over rows and classes."""


class Problem:
    """The rows to fit and their principal axes; every penalty is another fit of them."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int, rows: torch.Tensor | None = None):
        """`features` (N, D); `labels` (N,) int64 from 0 to `classes` - 1; `rows` (n,) int64 are fitted, or all."""
        rows = torch.arange(len(features), device=features.device) if rows is None else rows
        self.features, self.rows, self.labels, self.classes = features, rows, labels[rows], classes
        self.count, self.dimension = len(rows), features.shape[1]
        self.rotated: torch.Tensor | None = None
        """(n, r) float64: (x - mean) / scale along the axes, where there are more dimensions than rows."""
        self.mean = torch.stack([piece.sum(dim=0) for piece, _ in self._pieces()]).sum(dim=0) / self.count
        wide = self.dimension > self.count
        gram = self._gram() if wide else self._covariance()
        self.scale = max((gram.trace() / self.dimension).sqrt().item(), 1e-30)
        variances, self.axes = torch.linalg.eigh(gram)
        self.variances = variances.clamp_min(0) / self.scale**2
        """(r,) of (x - mean) / scale along the axes (D, r), which are orthonormal."""
        if wide:
            self._rotate(variances)

    def _pieces(self) -> Iterator[tuple[torch.Tensor, slice]]:
        """Features (m, D) float64 as they are stored, or as rotated, and their places among the rows."""
        for piece in _slices(self.count, max(self.dimension, self.classes)):
            yield self.features[self.rows[piece]].double() if self.rotated is None else self.rotated[piece], piece

    def _covariance(self) -> torch.Tensor:
        """(D, D)."""
        total = self.mean.new_zeros(self.dimension, self.dimension)
        for piece, _ in self._pieces():
            piece -= self.mean
            total.addmm_(piece.T, piece)
        return total / self.count

    def _gram(self) -> torch.Tensor:
        """(n, n): it has the eigenvalues of the covariance, without D - n that are 0."""
        centred = self.features[self.rows].double() - self.mean
        return centred @ centred.T / self.count

    def _rotate(self, variances: torch.Tensor):
        """Turn the eigenvectors (n, n) of `_gram` into axes (D, r), and put the rows into them."""
        kept = variances > RANK * variances[-1]
        centred = self.features[self.rows].double() - self.mean
        self.axes = centred.T @ self.axes[:, kept] / (variances[kept] * self.count).sqrt()
        self.variances = self.variances[kept]
        self.rotated = centred @ self.axes / self.scale

    def loss(self, point: torch.Tensor) -> Value:
        """The mean loss, without the penalty, at W and b in `point` (r + 1, C)."""
        weights, bias = point[:-1], point[-1]
        if self.rotated is None:
            weights = self.axes @ weights / self.scale  # D x C
            bias = bias - self.mean @ weights
        slope, bias_slope = torch.zeros_like(weights), torch.zeros_like(bias)
        loss, curvature = bias.new_zeros(()), bias.new_zeros(())
        for rows, piece in self._pieces():
            scores, own = torch.addmm(bias, rows, weights), self.labels[piece, None]  # m x C, m x 1
            scores = functional.log_softmax(scores, dim=1)
            loss -= scores.gather(1, own).sum()
            share = scores.exp_()
            curvature += share.sum() - share.square().sum()
            share.scatter_add_(1, own, share.new_full(own.shape, -1.0))
            slope.addmm_(rows.T, share)
            bias_slope += share.sum(dim=0)
        if self.rotated is None:
            slope = self.axes.T @ (slope - torch.outer(self.mean, bias_slope)) / self.scale
        gradient = torch.cat([slope, bias_slope[None]]) / self.count
        return Value(loss.item() / self.count, gradient, curvature.item() / self.count / self.classes)

    def fit(self, penalty: float, start: torch.Tensor | None = None, steps: int = STEPS) -> Fit:
        """The weights that minimise f, after at most `steps` steps, from `start` of another fit or from 0."""
        if start is None:
            start = self.mean.new_zeros(len(self.variances) + 1, self.classes)
        descent = _Descent(self, penalty, start)
        iterations = 0
        while iterations < steps and not descent.converged() and descent.step():
            iterations += 1
        value, point = descent.value(), descent.point()
        weights = self.axes @ point[:-1] / self.scale
        return Fit(penalty, weights, point[-1] - self.mean @ weights, point, value.loss, iterations,
                   value.gradient.norm().item(), descent.converged())

    def path(self, penalties=PENALTIES, steps: int = STEPS) -> Iterator[Fit]:
        """A fit for each penalty, the strongest first, each from the one before."""
        start = None
        for penalty in sorted(penalties, reverse=True):
            fit = self.fit(penalty, start, steps)
            yield fit
            start = fit.start


class _Descent:
    """LBFGS on f for one penalty, a step at a time, in axes that are divided by the root of their curvature."""

    def __init__(self, problem: Problem, penalty: float, start: torch.Tensor):
        self.problem, self.penalty = problem, penalty
        curvature = max(problem.loss(start).curvature, 1e-12)
        self.stretch = torch.cat([(curvature * problem.variances + penalty).rsqrt(),
                                  self.problem.mean.new_full((1,), (curvature + penalty)**-0.5)])[:, None]
        self.moved = torch.nn.Parameter(start / self.stretch, requires_grad=True)
        self.optimizer = torch.optim.LBFGS([self.moved], max_iter=1, max_eval=50, tolerance_grad=0,
                                           tolerance_change=1e-15, history_size=HISTORY,
                                           line_search_fn="strong_wolfe")
        self._known: tuple[torch.Tensor, Value] | None = None

    def point(self) -> torch.Tensor:
        """(r + 1, C): W and b now."""
        return self.moved.detach() * self.stretch

    def value(self) -> Value:
        """f and its gradient now; not computed again where nothing has moved."""
        point = self.point()
        if self._known is None or not torch.equal(self._known[0], point):
            loss, gradient, curvature = self.problem.loss(point)
            gradient[:-1] += self.penalty * point[:-1]
            loss += self.penalty / 2 * point[:-1].square().sum().item()
            self._known = point, Value(loss, gradient, curvature)
        return self._known[1]

    def converged(self) -> bool:
        """Whether f is known to be near enough to its minimum."""
        value = self.value()
        weights, bias = value.gradient[:-1].square().sum().item(), value.gradient[-1].square().sum().item()
        gap = weights / (2 * self.penalty) + bias / (2 * max(value.curvature, 1e-30))
        return gap <= TOLERANCE * value.loss

    def step(self) -> bool:
        """One step with its line search; whether it led anywhere."""
        before = self.moved.detach().clone()

        def closure() -> float:
            value = self.value()
            self.moved.grad = value.gradient * self.stretch
            return value.loss

        self.optimizer.step(closure)
        return not torch.equal(before, self.moved)
