"""Logistic regression against scikit-learn's Newton solver in float64: objective, predictions, what is stamped."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mocoembed.evaluate.logistic import PENALTIES, TOLERANCE, Problem


def clouds(count: int, dimension: int, classes: int, spread: float = 1.0, seed: int = 0):
    """(count, dimension) float32 about a centre for each class, far from the origin, and classes (count,) int64."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = random.normal(size=(classes, dimension))
    vectors = centres[labels] + spread * random.normal(size=(count, dimension)) * np.linspace(0.2, 3, dimension) + 5
    return torch.from_numpy(vectors.astype(np.float32)), torch.from_numpy(labels)


def theirs(problem: Problem, features: torch.Tensor, penalty: float, asked: torch.Tensor) -> tuple[float, np.ndarray]:
    """scikit-learn's objective and predictions, of features centred and scaled in the same way."""
    def scaled(some):
        return ((some.double() - problem.mean) / problem.scale).numpy()

    rows, labels = scaled(features[problem.rows]), problem.labels.numpy()
    model = LogisticRegression(C=1 / (len(rows) * penalty), solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit(rows, labels)
    weights = model.coef_ if len(model.classes_) > 2 else np.concatenate([-model.coef_ / 2, model.coef_ / 2])
    chances = model.predict_proba(rows)[np.arange(len(rows)), labels]
    objective = -np.log(chances).mean() + penalty / 2 * float((weights**2).sum())
    return objective, model.predict(scaled(asked))


@pytest.mark.parametrize(("count", "dimension", "classes"), [(400, 12, 4), (60, 90, 3), (300, 20, 30)])
@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_the_optimum_is_that_of_newtons_method(count, dimension, classes, penalty):
    features, labels = clouds(count, dimension, classes, 2.0)
    problem = Problem(features, labels, classes)
    fit = problem.fit(penalty)
    asked, _ = clouds(500, dimension, classes, 2.0, seed=1)
    objective, predicted = theirs(problem, features, penalty, asked)
    assert fit.converged
    assert objective * (1 - 1e-9) <= fit.objective <= objective * (1 + TOLERANCE)
    assert (fit.scores(asked).argmax(dim=1).numpy() == predicted).mean() >= 0.99


def test_two_classes_are_the_same_model():
    """Softmax over two classes, of which scikit-learn's binary loss is another parametrisation: half of its penalty."""
    features, labels = clouds(200, 6, 2, 3.0)
    problem = Problem(features, labels, 2)
    fit = problem.fit(1e-3)
    rows = ((features.double() - problem.mean) / problem.scale).numpy()
    model = LogisticRegression(C=2 / (200 * 1e-3), solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit(rows, labels.numpy())
    difference = (fit.weights[:, 1] - fit.weights[:, 0]).numpy() * problem.scale
    np.testing.assert_allclose(difference, model.coef_[0], rtol=1e-2, atol=1e-4)


def test_a_path_is_the_fits_one_by_one():
    features, labels = clouds(300, 10, 5, 2.0)
    problem = Problem(features, labels, 5)
    path = list(problem.path())
    assert [fit.penalty for fit in path] == sorted(PENALTIES, reverse=True)
    assert all(fit.converged for fit in path)
    assert np.diff([fit.objective for fit in path]).max() < 0
    for fit in path[::3]:
        alone = problem.fit(fit.penalty)
        assert fit.objective == pytest.approx(alone.objective, rel=2 * TOLERANCE)


def test_too_few_steps_are_told():
    features, labels = clouds(300, 10, 5, 2.0)
    fit = Problem(features, labels, 5).fit(1e-4, steps=2)
    assert not fit.converged
    assert fit.iterations == 2
    assert fit.gradient_norm > 1e-5


def test_a_hundred_classes_converge():
    features, labels = clouds(1000, 32, 100)
    problem = Problem(features, labels, 100)
    for penalty in (1e-2, 1e-5):
        assert problem.fit(penalty).converged


def test_only_the_chosen_rows_count(monkeypatch):
    """Also in pieces of a few rows."""
    features, labels = clouds(200, 8, 4, 2.0)
    rows = torch.arange(0, 200, 3)
    whole = Problem(features[rows], labels[rows], 4).fit(1e-3)
    monkeypatch.setattr("mocoembed.evaluate.logistic.PIECE", 50)
    fit = Problem(features, labels, 4, rows).fit(1e-3)
    torch.testing.assert_close(fit.weights, whole.weights, rtol=1e-3, atol=1e-4)
