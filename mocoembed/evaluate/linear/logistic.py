"""Multinomial logistic regression on stored features: (n, D) and classes -> weights, and how near to the optimum.

    f(W, b) = mean over rows of -log softmax((x - mean) / scale W + b)[class] + penalty / 2 ||W||^2

is minimised by torch's LBFGS with its strong Wolfe line search, in float64. `mean` (D,) is that of the training rows,
`scale` one number: the root of their mean variance over the dimensions. It is scikit-learn's objective with C = 1 / (n
penalty), on the same features. The bias is not penalised.

As f is strongly convex in W, f - f* <= ||gradient||^2 / (2 penalty): a fit has converged when that bound is below
`TOLERANCE` of f, or below `FLOOR` where f itself is next to nothing, as with classes that are told apart without error
and hardly any penalty; for the bias, the mean curvature stands in place of the penalty. LBFGS moves in coordinates that
are divided by the root of the curvature (of the rows as they are told apart at the moment, the mean over the classes),
in which it takes tens of steps instead of thousands; the objective is the same. With few labels and hardly any penalty
even that does not get there, and the problem is small: after `PATIENCE` steps, Newton's method with the whole Hessian
takes over, whose steps cost a hundred times as much. Where there are more dimensions than rows, the rows are rotated to
their rank first, which is exact, as the rotation keeps ||W||.

Features are read in pieces and never copied whole, unless there are fewer rows than dimensions.
"""

import abc
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional

from mocoembed.evaluate.linear.fit import Fit, slices

TOLERANCE, FLOOR = 1e-7, 1e-12
HISTORY = 20
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
STEPS = 1000
PATIENCE = 100  # steps of LBFGS after which Newton's method takes over, if the problem is small
NEWTON_NUMBERS, NEWTON_ROWS = 2500, 10_000  # of W and b, and of rows, up to which the whole Hessian can be afforded
REFRESH = 30  # steps after which the curvature is computed again
RANK = 1e-12  # axes whose variance is a smaller share of the largest one are rounding errors


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Small matrices take less time than waiting for other threads does: a tenth of it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Value(NamedTuple):
    """A function at one point."""

    loss: float
    gradient: torch.Tensor
    """(r + 1, C) float64."""
    curvature: float
    """Mean of p (1 - p) over rows and classes."""


class Problem:
    """The rows to fit; every penalty is another fit of them."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int, rows: torch.Tensor | None = None):
        """`features` (N, D); `labels` (N,) int64 from 0 to `classes` - 1; `rows` (n,) int64 are fitted, or all."""
        rows = torch.arange(len(features), device=features.device) if rows is None else rows
        self.features, self.rows, self.labels, self.classes = features, rows, labels[rows], classes
        self.count, self.dimension = len(rows), features.shape[1]
        self.axes: torch.Tensor | None = None
        """(D, r), orthonormal: the span of the rows, where there are more dimensions than rows."""
        self.rotated: torch.Tensor | None = None
        """(n, r) float64: (x - mean) / scale along the axes."""
        self.mean = torch.stack([piece.sum(dim=0) for piece, _ in self._pieces()]).sum(dim=0) / self.count
        squares = sum((piece - self.mean).square().sum().item() for piece, _ in self._pieces())
        smallest = max(1e-8 * self.mean.abs().max().item(), 1e-30)  # less is rounding
        self.scale = max((squares / self.count / self.dimension)**0.5, smallest)
        if self.dimension > self.count:
            self._rotate()

    @property
    def rank(self) -> int:
        """Dimensions r in which the rows are fitted."""
        return self.dimension if self.rotated is None else self.rotated.shape[1]

    def _pieces(self) -> Iterator[tuple[torch.Tensor, slice]]:
        """Features (m, D) float64 as they are stored, or as rotated, and their places among the rows."""
        for piece in slices(self.count, max(self.dimension, self.classes)):
            yield self.features[self.rows[piece]].double() if self.rotated is None else self.rotated[piece], piece

    def _rotate(self):
        """Put the rows into the axes that they span."""
        centred = self.features[self.rows].double() - self.mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        kept = values > RANK * values[-1]
        self.axes = centred.T @ vectors[:, kept] / values[kept].sqrt()
        self.rotated = centred @ self.axes / self.scale

    def _as_stored(self, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and bias of what `_pieces` gives, at W and b in `point` (r + 1, C)."""
        weights, bias = point[:-1], point[-1]
        if self.rotated is not None:
            return weights, bias
        weights = weights / self.scale
        return weights, bias - self.mean @ weights

    def _as_fitted(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of `_pieces`, centred and scaled."""
        return rows if self.rotated is not None else (rows - self.mean) / self.scale

    def loss(self, point: torch.Tensor) -> Value:
        """The mean loss, without the penalty, at W and b in `point` (r + 1, C)."""
        weights, bias = self._as_stored(point)
        slope, bias_slope = torch.zeros_like(weights), torch.zeros_like(bias)
        loss, curvature = bias.new_zeros(()), bias.new_zeros(())
        for rows, piece in self._pieces():
            scores, own = torch.addmm(bias, rows, weights), self.labels[piece, None]  # m x C, m x 1
            scores = functional.log_softmax(scores, dim=1)
            right = scores.gather(1, own)
            share = scores.exp_()
            curvature += share.sum() - share.square().sum()
            wrong = share.scatter_(1, own, 0.0).sum(dim=1, keepdim=True)  # 1 - p, however small
            loss -= torch.where(wrong < 0.5, (-wrong).log1p(), right).sum()
            share.scatter_(1, own, -wrong)
            slope.addmm_(rows.T, share)
            bias_slope += share.sum(dim=0)
        if self.rotated is None:
            slope = (slope - torch.outer(self.mean, bias_slope)) / self.scale
        gradient = torch.cat([slope, bias_slope[None]]) / self.count
        return Value(loss.item() / self.count, gradient, curvature.item() / self.count / self.classes)

    def curvature(self, point: torch.Tensor) -> torch.Tensor:
        """(r, r): the mean over rows and classes of p (1 - p) x x^T, x centred and scaled."""
        weights, bias = self._as_stored(point)
        total = weights.new_zeros(self.rank, self.rank)
        for rows, _ in self._pieces():
            spread = 1 - torch.addmm(bias, rows, weights).softmax(dim=1).square().sum(dim=1, keepdim=True)
            rows = self._as_fitted(rows)
            total.addmm_(rows.T, rows * spread.clamp_min(0))
        return total / self.count / self.classes

    def hessian(self, point: torch.Tensor) -> torch.Tensor:
        """((r + 1) C, (r + 1) C): of the mean loss at W and b in `point` (r + 1, C), row by row."""
        weights, bias = self._as_stored(point)
        size = self.rank + 1
        total = weights.new_zeros(size, self.classes, size, self.classes)
        for rows, _ in self._pieces():
            share = torch.addmm(bias, rows, weights).softmax(dim=1)
            rows = torch.cat([self._as_fitted(rows), rows.new_ones(len(rows), 1)], dim=1)
            for one in range(self.classes):
                for other in range(one, self.classes):
                    weight = share[:, one] * (float(one == other) - share[:, other])
                    block = (rows * weight[:, None]).T @ rows
                    total[:, one, :, other] += block
                    if other > one:
                        total[:, other, :, one] += block
        return total.view(size * self.classes, -1) / self.count

    def fit(self, penalty: float, start: torch.Tensor | None = None, steps: int = STEPS) -> Fit:
        """The weights that minimise f, after at most `steps` steps, from `start` of another fit or from 0."""
        point = self.mean.new_zeros(self.rank + 1, self.classes) if start is None else start
        iterations, moving = 0, True
        small = point.numel() <= NEWTON_NUMBERS and self.count <= NEWTON_ROWS
        with _one_thread() if small else contextlib.nullcontext():
            descent: _Minimum = _Descent(self, penalty, point)
            while moving and iterations < steps and not descent.converged():
                if small and iterations == PATIENCE:
                    descent = _Newton(self, penalty, descent.point())
                moving = descent.step()
                iterations += 1
            value, point = descent.value(), descent.point()
        weights = (point[:-1] if self.axes is None else self.axes @ point[:-1]) / self.scale
        return Fit(penalty, weights, point[-1] - self.mean @ weights, point, value.loss, iterations,
                   value.gradient.norm().item(), descent.converged())

    def path(self, penalties=PENALTIES, steps: int = STEPS) -> Iterator[Fit]:
        """A fit for each penalty, the strongest first, each from the one before."""
        start = None
        for penalty in sorted(penalties, reverse=True):
            fit = self.fit(penalty, start, steps)
            yield fit
            start = fit.start


class _Minimum(abc.ABC):
    """f for one penalty at the point that is being moved, and whether that is the minimum."""

    place: torch.Tensor
    """Where the point is, in the coordinates in which it moves; (r + 1, C)."""

    def __init__(self, problem: Problem, penalty: float):
        self.problem, self.penalty = problem, penalty
        self._known: tuple[torch.Tensor, Value] | None = None

    @abc.abstractmethod
    def point(self) -> torch.Tensor:
        """(r + 1, C): W and b now."""

    @abc.abstractmethod
    def step(self) -> bool:
        """One step; whether it led anywhere."""

    def value(self) -> Value:
        """f and its gradient now; not computed again where nothing has moved."""
        place = self.place.detach()
        if self._known is None or not torch.equal(self._known[0], place):
            self._known = place.clone(), self.value_at(self.point())
        return self._known[1]

    def value_at(self, point: torch.Tensor) -> Value:
        """f and its gradient at any point (r + 1, C)."""
        loss, gradient, curvature = self.problem.loss(point)
        gradient[:-1] += self.penalty * point[:-1]
        loss += self.penalty / 2 * point[:-1].square().sum().item()
        return Value(loss, gradient, curvature)

    def converged(self) -> bool:
        """Whether f is known to be near enough to its minimum."""
        value = self.value()
        weights, bias = value.gradient[:-1].square().sum().item(), value.gradient[-1].square().sum().item()
        gap = weights / (2 * self.penalty) + bias / (2 * max(value.curvature, 1e-30))
        return gap <= max(TOLERANCE * value.loss, FLOOR)


class _Newton(_Minimum):
    """Newton's method with the whole Hessian; a step is halved until f falls by a share of what its slope promises."""

    def __init__(self, problem: Problem, penalty: float, start: torch.Tensor):
        super().__init__(problem, penalty)
        self.place = start

    def point(self) -> torch.Tensor:
        """(r + 1, C): W and b now."""
        return self.place

    def step(self) -> bool:
        """One step, halved as often as it takes; whether it led anywhere."""
        point, value = self.place, self.value()
        hessian = self.problem.hessian(point)
        numbers, classes = point.numel(), point.shape[1]
        hessian.diagonal()[:numbers - classes] += self.penalty
        hessian.diagonal().add_(1e-14 * hessian.diagonal().max())  # adding a number to all biases changes nothing
        direction = torch.linalg.solve(hessian, -value.gradient.reshape(-1)).view_as(point)
        slope, length = (value.gradient * direction).sum().item(), 1.0
        while slope < 0 and length > 1e-10:
            there = point + length * direction
            if (found := self.value_at(there)).loss <= value.loss + 1e-4 * length * slope:
                self.place, self._known = there, (there, found)
                return True
            length /= 2
        return False


class _Descent(_Minimum):
    """LBFGS on f for one penalty, a step at a time, in coordinates in which the curvature is about the same all round.

    W = L^-T V with L L^T = curvature + penalty, from where it was computed last.
    """

    def __init__(self, problem: Problem, penalty: float, start: torch.Tensor):
        super().__init__(problem, penalty)
        self.steps = 0
        self._begin(start)

    def _begin(self, start: torch.Tensor):
        """Go on from W and b in `start` (r + 1, C), in the coordinates of the curvature there."""
        curvature = self.problem.curvature(start)
        bias = self.problem.loss(start).curvature + self.penalty
        curvature.diagonal().add_(self.penalty)
        self.factor, self.bias_factor = torch.linalg.cholesky(curvature), bias**0.5
        self.place = torch.nn.Parameter(torch.cat([self.factor.T @ start[:-1], self.bias_factor * start[-1:]]))
        self.optimizer = torch.optim.LBFGS([self.place], max_iter=1, max_eval=50, tolerance_grad=0,
                                           tolerance_change=1e-15, history_size=HISTORY,
                                           line_search_fn="strong_wolfe")
        self._known = None

    def point(self) -> torch.Tensor:
        """(r + 1, C): W and b now."""
        place = self.place.detach()
        return torch.cat([torch.linalg.solve_triangular(self.factor.T, place[:-1], upper=True),
                          place[-1:] / self.bias_factor])

    def step(self) -> bool:
        """One step with its line search; whether it led anywhere."""
        if self.steps and self.steps % REFRESH == 0:
            self._begin(self.point())
        self.steps += 1
        before = self.place.detach().clone()

        def closure() -> float:
            value = self.value()
            self.place.grad = torch.cat([torch.linalg.solve_triangular(self.factor, value.gradient[:-1], upper=False),
                                         value.gradient[-1:] / self.bias_factor])
            return value.loss

        self.optimizer.step(closure)
        return not torch.equal(before, self.place)
