"""The threshold that a collection's own similarities give: copies are above it, other images below."""

import numpy as np
import pytest
from test_duplicates import made, rows_of

from mocoembed.config import DuplicatesConfig
from mocoembed.search import threshold as module
from mocoembed.search.duplicates import find_duplicates, unit
from mocoembed.search.threshold import choose_threshold


def spread_out(count: int, strength: float, seed: int = 0) -> np.ndarray:
    """(count, 64) of length 1; of `strength` 0.3 all are alike, of 3 hardly any: 12 directions vary about a mean."""
    random = np.random.default_rng(seed)
    return unit(1 + strength * random.standard_normal((count, 12)) @ random.standard_normal((12, 64)) / 12 ** 0.5)


def like(vectors: np.ndarray, distance: float) -> np.ndarray:
    """Copies with a cosine of about 1 - `distance`."""
    noise = np.random.default_rng(1).standard_normal(vectors.shape)
    noise -= (noise * vectors).sum(1, keepdims=True) * vectors
    return unit(vectors + np.sqrt(2 * distance) * unit(noise))


def chosen(vectors: np.ndarray, digests: np.ndarray | None = None) -> module.Threshold:
    none = np.zeros(len(vectors), "V32")
    return choose_threshold(len(vectors), lambda rows: vectors[rows], none if digests is None else digests)


def nearest(vectors: np.ndarray) -> np.ndarray:
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    return cosines.max(axis=1)


@pytest.mark.parametrize("strength", [0.1, 0.3, 1])
@pytest.mark.parametrize("copied", [0, 100, 1000])
def test_copies_are_above_and_others_below(strength, copied):
    vectors = spread_out(1000, strength)
    others = nearest(vectors)
    copies = like(vectors[:copied], (1 - np.median(others)) / 1000)
    found = chosen(np.concatenate([vectors, copies]))
    assert (others >= found.cosine).mean() < 0.01
    assert found.cosine == module.LOWEST or (others >= found.cosine - 3 * (1 - found.cosine)).any()  # not far above
    assert ((copies * vectors[:copied]).sum(axis=1) > found.cosine).all()


def test_a_sample_gives_nearly_the_same(monkeypatch):
    vectors = spread_out(4000, 0.3)
    whole = chosen(vectors).cosine
    read = []

    def vectors_of(rows):
        read.extend(rows)
        return vectors[rows]

    monkeypatch.setattr(module, "ROWS", 500)
    sampled = choose_threshold(4000, vectors_of, np.zeros(4000, "V32")).cosine
    assert len(read) == 500
    assert 0.5 < (1 - sampled) / (1 - whole) < 2
    assert choose_threshold(4000, vectors_of, np.zeros(4000, "V32")).cosine == sampled


def test_images_with_the_same_bytes_count_once():
    vectors, digests = spread_out(200, 0.3), np.arange(1, 201).astype("S32").astype("V32")
    twelve = chosen(np.repeat(vectors, 12, axis=0), np.repeat(digests, 12))
    assert twelve == chosen(vectors, digests)
    assert chosen(np.repeat(vectors, 12, axis=0)).cosine == module.HIGHEST  # nothing tells them from other images


def test_few_images_and_images_that_are_all_the_same():
    assert chosen(spread_out(49, 0.3)).cosine == 0.98
    assert "49 different images are too few" in chosen(spread_out(49, 0.3)).reason
    assert chosen(np.repeat(spread_out(1, 1), 60, axis=0)).cosine == module.HIGHEST


def test_exact_copies_are_found_whatever_the_threshold(tmp_path, run_cli):
    vectors = spread_out(300, 0.3)
    vectors[7] = -vectors[3]  # the same bytes, embedded otherwise
    vectors[9] = vectors[8]  # the same vector, other bytes
    digests = np.arange(1, 301).astype("S32").astype("V32")
    digests[7] = digests[3]
    path = made(tmp_path / "e.h5", vectors, digests)
    result = find_duplicates(DuplicatesConfig(path))
    assert {frozenset({3, 7}), frozenset({8, 9})} <= rows_of(result)
    assert result.threshold == chosen(vectors, digests).cosine
    status, out, _ = run_cli("duplicates", path)
    assert status == 0
    assert f"threshold {result.threshold:g} (auto): the nearest neighbours of these images have a cosine" in out
    status, given, _ = run_cli("duplicates", path, "--threshold", result.threshold)
    assert (status, "(auto)" in given) == (0, False)
    assert [line for line in out.splitlines() if "(auto)" not in line] == given.splitlines()
