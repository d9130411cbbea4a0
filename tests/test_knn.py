"""mocoembed.knn against loops over NumPy arrays."""

import math

import numpy as np
import pytest
import torch

from mocoembed import knn
from mocoembed.errors import CollectionError


def unit(rows: int, length: int = 8, seed: int = 0) -> torch.Tensor:
    vectors = np.random.default_rng(seed).standard_normal((rows, length))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def neighbours_by_loops(queries, bank, k, leave_one_out=False):
    """[[(similarity, row), ...], ...]: the nearest first, the lower row first among equals."""
    found = []
    for i, query in enumerate(queries.numpy()):
        pairs = [(float(query @ row), j) for j, row in enumerate(bank.numpy()) if not (leave_one_out and i == j)]
        found.append(sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:k])
    return found


def best_by_loops(queries, bank, labels, k, temperature, leave_one_out=False):
    """Up to five class numbers per query, the highest score first, the lower number first among equals."""
    classes, best = int(labels.max()) + 1, []
    for neighbours in neighbours_by_loops(queries, bank, k, leave_one_out):
        scores = [0.0] * classes
        for similarity, row in neighbours:
            scores[labels[row]] += math.exp(similarity / temperature)
        best.append(sorted(range(classes), key=lambda number: (-scores[number], number))[:5])
    return best


def check_neighbours(queries, bank, k, **more):
    similarities, rows = knn.nearest(queries, bank, k, **more)
    more.pop("chunk", None)
    expected = neighbours_by_loops(queries, bank, k, **more)
    assert rows.tolist() == [[row for _, row in neighbours] for neighbours in expected]
    np.testing.assert_allclose(similarities, [[s for s, _ in neighbours] for neighbours in expected], atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_nearest_is_brute_force(chunk, leave_one_out):
    bank = unit(23)
    check_neighbours(bank if leave_one_out else unit(9, seed=1), bank, 5, leave_one_out=leave_one_out, chunk=chunk)


def test_k_larger_than_the_bank_gives_the_whole_bank():
    check_neighbours(unit(4, seed=1), unit(7), 50)
    similarities, rows = knn.nearest(unit(7), unit(7), 50, leave_one_out=True)
    assert rows.shape == (7, 6)
    assert torch.isfinite(similarities).all()
    assert not (rows == torch.arange(7)[:, None]).any()


def test_one_query_and_a_bank_of_one():
    check_neighbours(unit(1, seed=3), unit(30), 4)
    assert knn.nearest(unit(1), unit(1, seed=2), 3)[1].tolist() == [[0]]


def test_no_query():
    similarities, rows = knn.nearest(unit(0), unit(5), 3)
    assert similarities.shape == rows.shape == (0, 3)


def test_leave_one_out_needs_the_same_rows():
    with pytest.raises(ValueError, match="3 and 5"):
        knn.nearest(unit(3), unit(5), 1, leave_one_out=True)


@pytest.mark.parametrize("k", [1, 3, 8, 11, 40])
def test_ties_go_to_the_lower_row(k):
    """40 rows in four directions, so that every query has ten equal neighbours in each."""
    directions = torch.eye(4, dtype=torch.float64)
    bank = directions[torch.randperm(40, generator=torch.Generator().manual_seed(0)) % 4]
    check_neighbours(directions, bank, k)
    check_neighbours(bank, bank, k, leave_one_out=True)


def test_vote_of_a_known_case():
    scores = knn.weighted_vote(torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[2, 0, 0]]), 3, 0.5)
    expected = np.array([2 * math.exp(1.0), 0.0, math.exp(1.8)]) / math.exp(1.8)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)


def test_a_small_temperature_does_not_overflow():
    scores = knn.weighted_vote(torch.tensor([[1.0, 0.5]]), torch.tensor([[1, 0]]), 2, 1e-4)
    assert scores.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(("classes", "k", "leave_one_out"), [(3, 10, False), (7, 5, True), (12, 200, False),
                                                             (1500, 20, False), (1500, 200, True)])
def test_classes_are_those_of_loops(classes, k, leave_one_out):
    bank = unit(120, seed=4)
    labels = torch.from_numpy(np.random.default_rng(5).integers(0, classes, 120))
    labels[0] = classes - 1
    queries = bank if leave_one_out else unit(11, seed=6)
    predicted, = knn.classify(queries, bank, labels, [(k, 0.1)], leave_one_out)
    assert predicted.tolist() == best_by_loops(queries, bank, labels, k, 0.1, leave_one_out)


def test_several_settings_are_those_alone(monkeypatch):
    """Also when the pieces are small."""
    bank, labels, settings = unit(50), torch.arange(50) % 6, [(3, 0.07), (20, 0.07), (1, 1.0), (99, 0.2)]
    done = []
    monkeypatch.setattr(knn, "ELEMENTS", 350)
    together = knn.classify(bank, bank, labels, settings, True, lambda *counts: done.append(counts))
    assert done[0] == (7, 50)
    assert done[-1] == (50, 50)
    for (k, temperature), predicted in zip(settings, together):
        assert predicted.tolist() == best_by_loops(bank, bank, labels, k, temperature, True)


def test_accuracy_counts():
    predicted = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 2, 1]])
    assert knn.accuracy(predicted, torch.tensor([0, 0, 0, 3])) == (25.0, 75.0)
    assert knn.accuracy(predicted[:1], torch.tensor([2])) == (0.0, 100.0)


def test_a_class_of_the_queries_alone_is_wrong():
    bank = torch.eye(2, dtype=torch.float64)
    predicted, = knn.classify(bank, bank, torch.tensor([0, 1]), [(1, 0.1)])
    assert knn.accuracy(predicted, torch.tensor([0, 2])) == (50.0, 50.0)


def test_a_class_of_the_bank_alone_can_be_predicted():
    bank = torch.eye(3, dtype=torch.float64)
    predicted, = knn.classify(bank[:2], bank[[2, 0, 1]], torch.tensor([1, 2, 0]), [(1, 0.1)])
    assert predicted[:, 0].tolist() == [2, 0]
    assert predicted.shape == (2, 3)


def test_of_features_leaves_out_itself_and_the_unlabelled():
    """Rows 0 and 1 find each other, row 3 finds 2 (and 5, a tie); 2 and 5 find each other and are wrong."""
    features = torch.tensor([[9.0, 0], [1, 0.1], [0, 1], [0.1, 5], [1, 0.05], [0, 3]])
    labels = torch.tensor([7, 7, 900_000, 900_000, -1, 7])
    assert knn.knn_accuracy_of(features, labels, 1, 0.1) == 60.0
    assert knn.knn_accuracy_of(features[:4], labels[:4], 1, 0.1) == 100.0


def test_of_features_needs_two_labels():
    with pytest.raises(CollectionError, match="1 labelled"):
        knn.knn_accuracy_of(unit(3), torch.tensor([-1, 2, -1]), 1, 0.1)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_shares_of_several_processes_add_up_to_the_whole(size):
    torch.manual_seed(0)
    features, labels = torch.randn(30, 4), torch.randint(-1, 3, (30,))
    found = [knn.leave_one_out(features, labels, 5, 0.1, rank, size) for rank in range(size)]
    count = int((labels >= 0).sum())
    assert {labelled for _, labelled in found} == {count}
    assert 100 * sum(right for right, _ in found) / count == knn.knn_accuracy_of(features, labels, 5, 0.1)
