"""Vectors that stay in their file give the same neighbours as a tensor, in memory that does not grow with the file."""

import sys

import numpy as np
import pytest
import torch
from own_process import found_by

from mocoembed import knn
from mocoembed.config import KnnConfig
from mocoembed.embed import store
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError
from mocoembed.evaluate import sides, stored
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.evaluate.stored import StoredVectors, fits
from mocoembed.search import threshold

CLASSES = "aabbbcccc" * 6


def clouds(classes: str, seed: int) -> np.ndarray:
    centres = 1.2 * np.eye(3)[["abc".index(one) for one in classes]]
    return centres + np.random.default_rng(seed).standard_normal(centres.shape)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of seven rows, and groups of a few queries."""
    monkeypatch.setattr(knn, "BANK_BLOCK", 7)
    monkeypatch.setattr(knn, "GROUP", 500)
    monkeypatch.setattr(knn, "ELEMENTS", 30)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("k", [1, 5, 20, 1000])
def test_neighbours_are_those_of_a_tensor(make_embeddings, small_blocks, leave_one_out, k):
    path = make_embeddings("bank", np.round(clouds(CLASSES, 0)), CLASSES)  # some are equal
    with EmbeddingFile(path) as file:
        rows = np.arange(0, len(file), 1)
        kept = StoredVectors(path, rows, 3, torch.device("cpu"))
        bank = kept[torch.from_numpy(rows)]
    queries = bank if leave_one_out else bank[::3]
    asked = kept if leave_one_out else kept[torch.arange(len(bank)) % 3 == 0]
    expected = knn.nearest(queries, bank, k, leave_one_out)
    found = [torch.cat(pieces) for pieces in zip(*knn.neighbours(asked, kept, k, leave_one_out))]
    assert found[0].shape == expected[0].shape
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    if k == 1000:  # the same rows, whatever rounding does to the order of those that are nearly equal
        assert torch.equal(found[1].sort(dim=1).values, expected[1].sort(dim=1).values)
    close = torch.isclose(expected[0][:, 1:], expected[0][:, :-1], atol=1e-6).any(dim=1)
    if k == 5:
        assert torch.equal(found[1][~close], expected[1][~close])


def test_progress_counts_queries(make_embeddings, small_blocks):
    path = make_embeddings("bank", clouds(CLASSES, 0), CLASSES)
    kept, told = StoredVectors(path, np.arange(54), 3, torch.device("cpu")), []
    list(knn.neighbours(kept, kept, 5, True, lambda done, total: told.append((done, total))))
    assert told == sorted(told)
    assert told[-1] == (54, 54)


@pytest.mark.parametrize("options", [{}, {"labels": "40%", "seeds": 2}, {"suspects": True}])
def test_an_accuracy_is_the_same(make_embeddings, small_blocks, monkeypatch, options):
    path = make_embeddings("bank", clouds(CLASSES, 0), CLASSES + "")
    queries = make_embeddings("queries", clouds("abcabcab", 1), "abcabcab")
    for config in (KnnConfig(path, k=(3, 9), **options), KnnConfig(path, queries, k=(3, 9), **options)):
        expected = knn_accuracy(config)
        with monkeypatch.context() as patch:
            patch.setattr(sides, "fits", lambda size, device: False)
            found = knn_accuracy(config)
        assert isinstance(found.bank.vectors, StoredVectors)
        assert [one.top1 for one in found.scores] == [one.top1 for one in expected.scores]
        assert found.outcomes["top1"].tolist() == expected.outcomes["top1"].tolist()
        assert found.suspects == expected.suspects


def test_settings_are_chosen_in_the_same_way(make_embeddings, small_blocks, monkeypatch):
    path = make_embeddings("bank", clouds(CLASSES, 0), CLASSES)
    config = KnnConfig(path, make_embeddings("queries", clouds("abcabcab", 1), "abcabcab"), k=(1, 9), tune=True)
    expected = knn_accuracy(config).tuned
    monkeypatch.setattr(sides, "fits", lambda size, device: False)
    assert knn_accuracy(config).tuned == expected


def test_what_fits_is_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(stored, "available_memory", lambda: 1000)
    assert fits(500, torch.device("cpu"))
    assert not fits(501, torch.device("cpu"))
    monkeypatch.setattr(stored, "available_memory", lambda: None)
    assert fits(1 << 50, torch.device("cpu"))


def test_vectors_that_are_not_finite_are_found_when_they_are_read(make_embeddings, monkeypatch):
    monkeypatch.setattr(sides, "fits", lambda size, device: False)
    with pytest.raises(FormatError, match="not finite"):
        knn_accuracy(KnnConfig(make_embeddings("nan", [[1, np.nan], [0, 1], [1, 1]], "aba")))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_file(make_embeddings):
    """What a kNN accuracy takes at its peak: the vectors' 64 MiB in memory, little of it from the file."""
    random = np.random.default_rng(0)
    bank = make_embeddings("bank", random.standard_normal((2048, 8192), np.float32), "ab" * 1024)
    few = make_embeddings("few", random.standard_normal((256, 8192), np.float32), "ab" * 128)
    queries = make_embeddings("queries", random.standard_normal((16, 8192), np.float32), "ab" * 8)
    in_memory, in_file = (found_by(__file__, way, few, bank, queries) for way in ("memory", "file"))
    assert in_memory > 50 * 1024
    assert in_file < 16 * 1024


def main(way: str, few: str, bank: str, queries: str):
    """Print by how many KiB the peak of a kNN accuracy with all of the bank is above that with an eighth of it."""
    knn.BANK_BLOCK = stored.AT_A_TIME = sides.BLOCK = threshold.ROWS = store.PIECE = 64
    sides.fits = lambda size, device: way == "memory"
    peaks = []
    for path in (few, bank):
        knn_accuracy(KnnConfig(path, queries, k=(5,), baselines=False))
        with open("/proc/self/status") as file:
            peaks += [int(line.split()[1]) for line in file if line.startswith("VmHWM")]
    print(peaks[1] - peaks[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
