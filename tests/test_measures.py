"""Measures against scikit-learn and against resampling written out; results as JSON."""

import json

import numpy as np
import pytest
from sklearn import metrics

from mocoembed.errors import FormatError
from mocoembed.evaluate import measures
from mocoembed.evaluate.result import Protocol, plain, text_of
from mocoembed.evaluate.result_file import require_result, value_of


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_confusion_and_what_follows_from_it(random):
    truth, predicted = random.integers(0, 5, 200), random.integers(0, 5, 200)
    predicted[::2] = truth[::2]
    matrix = measures.confusion(truth, predicted, 5)
    assert np.array_equal(matrix, metrics.confusion_matrix(truth, predicted))
    assert measures.recalls(matrix) / 100 == pytest.approx(metrics.recall_score(truth, predicted, average=None))
    assert measures.precisions(matrix) / 100 == pytest.approx(metrics.precision_score(truth, predicted, average=None))
    assert measures.balanced(matrix).value / 100 == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))


def test_classes_without_queries_or_answers():
    matrix = measures.confusion(np.array([0, 0, 2]), np.array([0, 1, 1]), 3)
    assert np.array_equal(measures.recalls(matrix), [50, np.nan, 0], equal_nan=True)
    assert np.array_equal(measures.precisions(matrix), [100, 0, np.nan], equal_nan=True)
    assert measures.balanced(matrix).value == 25  # of the two classes that have queries


@pytest.mark.parametrize("levels", [3, 1000, None])  # with many ties, few and none
def test_average_precision_is_scikit_learns(random, levels):
    for count in (1, 2, 7, 300):
        relevant = random.random(count) < 0.3
        relevant[random.integers(count)] = True
        scores = random.random(count) if levels is None else random.integers(0, levels, count) / levels
        expected = metrics.average_precision_score(relevant, scores)
        assert measures.average_precision(scores, relevant) == pytest.approx(expected, abs=1e-12)
        weights = random.integers(0, 4, count)
        weights[relevant.argmax()] = 1
        repeated = np.repeat(np.arange(count), weights)  # a weight is a number of times
        assert measures.average_precision(scores, relevant, weights) == pytest.approx(
            metrics.average_precision_score(relevant[repeated], scores[repeated]), abs=1e-12)
    assert np.isnan(measures.average_precision(np.ones(3), np.zeros(3, bool)))


def test_average_precision_by_class(random):
    truth, scores = random.integers(0, 4, 100), random.random((100, 4))
    each, over_all = measures.class_precision(scores, truth)
    expected = metrics.average_precision_score(np.eye(4)[truth], scores, average=None)
    assert each / 100 == pytest.approx(expected, abs=1e-12)
    assert over_all.value / 100 == pytest.approx(expected.mean())
    low, high = over_all.ci95
    assert low < over_all.value < high
    each, over_all = measures.class_precision(scores, np.where(truth == 3, 7, truth))  # class 7 has no scores
    assert np.isnan(each[3])
    assert np.isfinite(over_all.value)


def test_too_many_queries_have_an_average_precision_without_an_interval(random, monkeypatch):
    monkeypatch.setattr(measures, "MOST_RANKED", 100)
    _, over_all = measures.class_precision(random.random((50, 3)), random.integers(0, 3, 50))
    assert (over_all.ci95, over_all.method) == (None, "")


def test_intervals_are_those_of_resampling(random):
    """Against resamples drawn one by one: the bounds agree within what 2,000 of them leave open."""
    truth, predicted = random.integers(0, 3, 300), random.integers(0, 3, 300)
    predicted[:200] = truth[:200]
    right, values = truth == predicted, random.random(300)
    drawn = [random.integers(0, 300, 300) for _ in range(4000)]
    for measured, statistic in [
            (measures.share(right), lambda rows: right[rows].mean()),
            (measures.means({"right": right, "values": values})["values"], lambda rows: values[rows].mean()),
            (measures.balanced(measures.confusion(truth, predicted, 3)),
             lambda rows: metrics.balanced_accuracy_score(truth[rows], predicted[rows]))]:
        expected = np.percentile([100 * statistic(rows) for rows in drawn], [2.5, 97.5])
        assert measured.value == pytest.approx(100 * statistic(np.arange(300)))
        assert measured.ci95 == pytest.approx(expected, abs=0.7)
        assert measured.n == 300


def test_intervals_are_the_same_every_time(random):
    right = random.random(100) < 0.8
    assert measures.share(right) == measures.share(right)
    assert measures.share(np.ones(5, bool)).ci95 == (100, 100)


def test_repeats_have_students_interval():
    measured = measures.over_repeats([80.0, 82.0, 81.0, 83.0, 79.0])
    assert measured.value == 81
    half = 2.776 * np.std([80, 82, 81, 83, 79], ddof=1) / np.sqrt(5)
    assert measured.ci95 == pytest.approx((81 - half, 81 + half), abs=1e-9)
    assert measures.over_repeats([80.0]).ci95 is None
    low, high = measures.over_repeats([99.0, 100.0]).ci95
    assert low == pytest.approx(99.5 - 12.706 * 0.5)
    assert high == 100
    assert measures.over_repeats([0.0, 1.0]).ci95[0] == 0
    assert measures.over_repeats([1.0] * 100).ci95 == (1, 1)


def test_the_text_of_a_result_is_its_json_with_short_lists_in_a_line():
    value = {"a": [1, 2, 3], "b": [{"c": [0.5, None]}, {"d": []}], "e": 'x"\n', "f": [[1, 2], [3, 4]], "g": ["\u2026"]}
    assert json.loads(text_of(value)) == value
    assert '"a": [1, 2, 3],\n' in text_of(value)
    assert "      [1, 2],\n" in text_of({"f": value})


def test_digest_is_of_the_settings_alone():
    one = Protocol("knn", {"k": 20}, {"k": 5}, [1], True)
    assert one.digest == Protocol("knn", {"k": 20}).digest
    assert len({one.digest, Protocol("knn", {"k": 21}).digest, Protocol("linear", {"k": 20}).digest}) == 3


def test_values_and_what_is_no_result():
    assert plain({"a": float("nan"), "b": [np.float32(0.5), np.int64(3)], "c": True}) == {"a": None, "b": [0.5, 3],
                                                                                          "c": True}
    assert value_of({"top1": 3.0, "values": {"top1": {"value": 3.0}}}, "top1") == {"value": 3.0}
    assert value_of({"map": {"value": 3.0}}, "map") == {"value": 3.0}
    assert value_of({"k": 3}, "k") is None
    with pytest.raises(FormatError, match="not a result"):
        require_result([], "x.json")
    with pytest.raises(FormatError, match="schema 99"):
        require_result({"kind": "mocoembed evaluation", "schema": 99}, "x.json")
