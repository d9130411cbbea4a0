"""Logistic regression against scikit-learn in float64, and what a fit says of itself."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mocoembed.evaluate.linear import logistic
from mocoembed.evaluate.linear.logistic import PENALTIES, Problem


@pytest.fixture(autouse=True, params=["lbfgs", "newton"])
def method(request, monkeypatch) -> str:
    """Every test by either way to the minimum; 1,000 classes are too many for a whole Hessian."""
    if request.param == "lbfgs":
        monkeypatch.setattr(logistic, "NEWTON_NUMBERS", 0)
    else:
        monkeypatch.setattr(logistic, "PATIENCE", 0)
    return request.param


def clusters(count: int, dimension: int, classes: int, apart: float = 0.5, seed: int = 0):
    """Rows of length 1 in overlapping classes, and their classes; every class has a row."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    spread = np.arange(1, dimension + 1) ** -0.5
    rows = (apart * random.standard_normal((classes, dimension))[labels]
            + random.standard_normal((count, dimension))) * spread + 0.2
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels)


def theirs(rows: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    """Objective and predictions of scikit-learn's newton-cholesky, on rows that are centred and scaled."""
    classes = int(labels.max()) + 1
    model = LogisticRegression(C=1 / (len(rows) * penalty), solver="newton-cholesky", tol=1e-12, max_iter=300)
    model.fit(rows, labels)
    weights, bias = model.coef_.T, model.intercept_
    if classes == 2:  # one column: the difference of two that are each other's negatives
        weights, bias = np.hstack([-weights, weights]) / 2, np.append(-bias, bias) / 2
        model.C = 2 / (len(rows) * penalty)
        model.fit(rows, labels)
        weights, bias = np.hstack([-model.coef_.T, model.coef_.T]) / 2, np.append(-model.intercept_,
                                                                                 model.intercept_) / 2
    scores = rows @ weights + bias
    losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(rows)), labels]
    return losses.mean() + penalty / 2 * (weights ** 2).sum(), scores.argmax(axis=1)


@pytest.mark.parametrize(("count", "dimension", "classes"), [(300, 20, 4), (120, 10, 2), (40, 60, 3)])
def test_objective_and_predictions_are_those_of_scikit_learn(count, dimension, classes):
    rows, labels = clusters(count, dimension, classes)
    problem = Problem(rows, labels, classes)
    scaled = (rows.double() - problem.mean).numpy() / problem.scale
    assert np.allclose(problem.mean, rows.double().mean(dim=0))
    assert np.isclose((scaled ** 2).mean(), 1)
    for fit in problem.path(PENALTIES[:5]):
        objective, predicted = theirs(scaled, labels.numpy(), fit.penalty)
        assert abs(fit.objective - objective) <= 1e-6 * objective
        assert np.mean(fit.scores(rows).argmax(dim=1).numpy() == predicted) >= 0.99
        assert fit.converged


def test_more_dimensions_than_rows_are_rotated_to_the_same_answer():
    rows, labels = clusters(30, 50, 3)
    rotated, plain = Problem(rows, labels, 3), Problem(torch.cat([rows, rows]), torch.cat([labels, labels]), 3)
    assert rotated.rotated is not None
    assert plain.rotated is None
    one, other = rotated.fit(1e-3), plain.fit(1e-3)
    assert np.isclose(one.objective, other.objective, rtol=1e-6)
    assert torch.allclose(one.scores(rows), other.scores(rows), atol=1e-2)


def test_pieces_change_nothing(monkeypatch):
    rows, labels = clusters(100, 12, 3)
    whole = Problem(rows, labels, 3).fit(1e-2)
    monkeypatch.setattr("mocoembed.evaluate.linear.fit.PIECE", 7 * 12)
    assert torch.allclose(Problem(rows, labels, 3).fit(1e-2).weights, whole.weights)


def test_chosen_rows_are_fitted_alone():
    rows, labels = clusters(100, 12, 3)
    some = torch.arange(0, 100, 2)
    assert torch.allclose(Problem(rows, labels, 3, some).fit(1e-2).weights,
                          Problem(rows[some], labels[some], 3).fit(1e-2).weights)


def test_the_gradient_is_that_of_the_loss():
    rows, labels = clusters(30, 5, 3)
    problem = Problem(rows, labels, 3)
    point = torch.randn(6, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    gradient = problem.loss(point).gradient
    for place in ((0, 1), (4, 2), (5, 0)):
        moved = [point.clone(), point.clone()]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        slope = (problem.loss(moved[0]).loss - problem.loss(moved[1]).loss) / 2e-5
        assert np.isclose(slope, gradient[place], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("count", "dimension"), [(30, 5), (4, 9)])
def test_the_hessian_is_that_of_the_loss(count, dimension):
    rows, labels = clusters(count, dimension, 3)
    problem = Problem(rows, labels, 3)
    point = torch.randn(problem.rank + 1, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    hessian = problem.hessian(point)
    for at in range(point.numel()):
        step = torch.zeros_like(point)
        step.view(-1)[at] = 1e-6
        slope = (problem.loss(point + step).gradient - problem.loss(point - step).gradient) / 2e-6
        assert torch.allclose(hessian[at], slope.reshape(-1), rtol=1e-5, atol=1e-8)


def test_few_rows_and_hardly_any_penalty_converge_in_a_few_steps(method):
    if method == "lbfgs":
        pytest.skip("only the whole Hessian promises that")
    rows, labels = clusters(50, 200, 10)
    fits = list(Problem(rows, labels, 10).path())
    assert all(fit.converged and fit.iterations <= logistic.PATIENCE + 20 for fit in fits)


def test_newtons_method_takes_over_where_lbfgs_does_not_get_there(monkeypatch):
    monkeypatch.undo()
    rows, labels = clusters(50, 200, 10)
    alone = Problem(rows, labels, 10).fit(1e-7).iterations
    monkeypatch.setattr(logistic, "PATIENCE", 10)
    fit = Problem(rows, labels, 10).fit(1e-7)
    assert fit.converged
    assert 10 < fit.iterations < alone


def test_too_few_steps_are_told():
    rows, labels = clusters(300, 20, 4)
    fit = Problem(rows, labels, 4).fit(1e-5, steps=2)
    assert (fit.iterations, fit.converged) == (2, False)
    assert fit.gradient_norm > 1e-6


@pytest.mark.parametrize("classes", [100, 1000])
def test_many_classes_converge(classes):
    rows, labels = clusters(classes + 200, 8, classes, apart=2)
    assert all(fit.converged for fit in Problem(rows, labels, classes).path((1e-1, 1e-2)))


def test_rows_that_are_all_the_same_have_only_a_bias():
    rows, labels = torch.ones(6, 4), torch.tensor([0, 0, 0, 0, 1, 1])
    fit = Problem(rows, labels, 2).fit(1e-2)
    assert fit.converged
    assert torch.allclose(fit.scores(rows).softmax(dim=1)[0], torch.tensor([2 / 3, 1 / 3]), atol=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_that_are_told_apart_without_error_converge(classes):
    """The minimum is next to nothing then, and below what float64 can tell of its relative error."""
    rows, labels = clusters(40, 600, classes, apart=20)
    fits = list(Problem(rows, labels, classes).path())
    assert fits[-1].objective < 1e-5
    assert all(fit.converged for fit in fits)
