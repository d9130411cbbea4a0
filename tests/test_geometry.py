"""RankMe, uniformity and alignment against loops in NumPy, and what they are where there is little to measure."""

import json
import math

import numpy as np
import pytest
import torch

from mocoembed import geometry
from mocoembed.config import RankmeConfig
from mocoembed.errors import CollectionError, FormatError, UsageError
from mocoembed.evaluate.unlabelled import log_mean, measure_unlabelled, values_of


def unit(vectors):
    return [row / max(np.linalg.norm(row), 1e-12) for row in np.asarray(vectors, np.float64)]


def slow_rankme(vectors):
    singular = np.linalg.svd(np.array(unit(vectors)), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    return math.exp(-sum(one * math.log(one) for one in p))


def slow_uniformity(vectors):
    rows = unit(vectors)
    pairs = [math.exp(-2 * np.sum((one - other) ** 2)) for i, one in enumerate(rows)
             for j, other in enumerate(rows) if i != j]
    return math.log(sum(pairs) / len(pairs))


def clouds(count, dimension, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((count, dimension)) * np.geomspace(1, 0.01, dimension) + 0.3


@pytest.mark.parametrize(("count", "dimension"), [(40, 6), (6, 40), (12, 12), (2, 3), (1, 4)])
def test_rankme_is_the_formula_of_the_paper(count, dimension):
    vectors = clouds(count, dimension)
    assert geometry.rankme(torch.tensor(vectors).float()) == pytest.approx(slow_rankme(np.float32(vectors)), rel=1e-6)
    assert geometry.rankme(torch.tensor(7 * vectors)) == pytest.approx(slow_rankme(vectors), rel=1e-6)


def test_rankme_of_many_blocks(monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 7)
    vectors = clouds(40, 6)
    assert geometry.rankme(torch.tensor(vectors)) == pytest.approx(slow_rankme(vectors), rel=1e-9)


def test_rankme_counts_directions():
    assert geometry.rankme(torch.eye(16).repeat(3, 1)) == pytest.approx(16, rel=1e-4)
    assert geometry.rankme(torch.eye(16)[:, :5].repeat(3, 1)) == pytest.approx(5, rel=1e-4)  # with rows of zeros
    assert geometry.rankme(torch.ones(30, 512)) == pytest.approx(slow_rankme(np.ones((30, 512))), rel=1e-6)
    assert geometry.rankme(torch.ones(30, 512)) == pytest.approx(1, abs=1e-3)
    assert geometry.rankme(torch.zeros(30, 8)) == 0
    assert math.isnan(geometry.rankme(torch.zeros(0, 8)))


@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
def test_uniformity_is_the_mean_over_all_pairs(monkeypatch, elements):
    monkeypatch.setattr(geometry, "ELEMENTS", elements)
    vectors = clouds(30, 5)
    vectors[3] = 0
    assert geometry.uniformity(torch.tensor(vectors)) == pytest.approx(slow_uniformity(vectors), abs=1e-6)


def test_uniformity_of_few_and_of_equal_vectors():
    assert geometry.uniformity(torch.ones(20, 8)) == pytest.approx(0, abs=1e-6)
    assert geometry.uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    assert math.isnan(geometry.uniformity(torch.ones(1, 8)))
    random = torch.randn(3000, 128, generator=torch.Generator().manual_seed(0))
    assert geometry.uniformity(random) == pytest.approx(-4 + 8 / 128, abs=0.01)


def test_alignment_is_the_mean_squared_distance():
    one, other = clouds(9, 4), clouds(9, 4, seed=1)
    slow = np.mean([np.sum((a - b) ** 2) for a, b in zip(unit(one), unit(other))])
    assert geometry.alignment(torch.tensor(one), torch.tensor(other)) == pytest.approx(slow)
    assert geometry.alignment(torch.tensor(one), torch.tensor(3 * one)) == pytest.approx(0)
    assert geometry.alignment(torch.tensor(one), torch.tensor(-one)) == pytest.approx(4)
    assert math.isnan(geometry.alignment(torch.zeros(0, 4), torch.zeros(0, 4)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_gives_no_number(value):
    vectors = torch.randn(5, 3)
    vectors[2, 1] = value
    assert math.isnan(geometry.rankme(vectors))
    assert math.isnan(geometry.uniformity(vectors))
    assert math.isnan(geometry.alignment(vectors, torch.ones(5, 3)))


def test_the_sample_is_fixed_and_without_repetition():
    rows = geometry.sample(1000, 100)
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert (rows == geometry.sample(1000, 100)).all()
    assert (rows != geometry.sample(1000, 100, seed=1)).any()
    assert (geometry.sample(5, 100) == np.arange(5)).all()


def test_the_interval_is_the_jackknife_and_covers():
    vectors = torch.tensor(clouds(40, 5))
    found = log_mean(geometry.kernel_means(vectors).numpy())
    assert found.value == pytest.approx(slow_uniformity(vectors), abs=1e-6)
    without = [slow_uniformity(np.delete(vectors.numpy(), i, axis=0)) for i in range(40)]
    error = math.sqrt(39 / 40 * sum((one - np.mean(without)) ** 2 for one in without))
    assert found.ci95 == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), abs=1e-4)
    truth = geometry.uniformity(torch.tensor(clouds(4000, 5, seed=99)))
    intervals = [log_mean(geometry.kernel_means(torch.tensor(clouds(60, 5, seed))).numpy()).ci95 for seed in range(60)]
    assert sum(low <= truth <= high for low, high in intervals) >= 51
    assert log_mean(np.full(3, 0.5)).ci95 is None


def test_of_a_file(make_embeddings):
    vectors = clouds(40, 6)
    path = make_embeddings("one", vectors, "aab?" * 10)  # labels play no part
    result = measure_unlabelled(RankmeConfig(path, baselines=False))
    assert result.values["rankme"].value == pytest.approx(slow_rankme(np.float32(vectors)), rel=1e-6)
    assert result.values["uniformity"].value == pytest.approx(slow_uniformity(np.float32(vectors)), abs=1e-6)
    value = result.as_json()
    assert (value["task"], value["unit"], value["protocol"]["settings"]["n"]) == ("rankme", None, 40)
    assert value["results"][0]["rankme"]["unit"] == "directions"
    fewer = measure_unlabelled(RankmeConfig(path, images=10, baselines=False))
    assert fewer.protocol.settings["n"] == fewer.values["rankme"].n == 10
    assert fewer.protocol.settings["drawn_by_seed"] == 0
    assert fewer.protocol.digest != result.protocol.digest
    rows = geometry.sample(40, 10)
    stored = np.float32(vectors)[fewer_order(path)]
    assert fewer.values["rankme"].value == pytest.approx(slow_rankme(stored[rows]), rel=1e-6)


def fewer_order(path):
    """The row of each vector as it was made up, in the order of the file: its name has the number."""
    from mocoembed.embed.store import EmbeddingFile

    with EmbeddingFile(path) as file:
        return [int(name[-8:-4]) for name in file.paths[:]]


def test_command(make_embeddings, run_cli):
    path = make_embeddings("one", clouds(40, 6), "ab" * 20)
    status, out, err = run_cli("rankme", path)
    assert status == 0
    assert out.splitlines()[0].split() == ["vectors", "RankMe", "uniformity"]
    assert "no baselines" in err
    value = json.loads(run_cli("rankme", path, "--json", "--images", 30)[1])
    assert (value["kind"], value["results"][0]["rankme"]["n"]) == ("mocoembed evaluation", 30)
    same = make_embeddings("same", np.ones((9, 6)), "a" * 9)
    assert "all vectors are the same (collapse)" in run_cli("rankme", same)[2]
    assert "fewer than the 6 dimensions" in run_cli("rankme", make_embeddings("few", clouds(4, 6), "aaaa"))[2]
    status, out, err = run_cli("rankme", path, "--images", 1)
    assert (status, out) == (2, "")
    assert "2 or more" in err


def test_what_cannot_be_measured(make_embeddings):
    with pytest.raises(UsageError, match="does not exist"):
        measure_unlabelled(RankmeConfig("nothing.h5"))
    with pytest.raises(CollectionError, match="has 1 images; RankMe needs 2 or more"):
        measure_unlabelled(RankmeConfig(make_embeddings("one", np.ones((1, 3)), "a")))
    broken = np.ones((4, 3))
    broken[2, 0] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        measure_unlabelled(RankmeConfig(make_embeddings("nan", broken, "aabb")))


def test_the_baselines_are_measured_alike(workspace):
    result = measure_unlabelled(RankmeConfig(workspace=str(workspace)))
    assert set(result.baselines.found) == {"raw pixels", "colour histogram", "HOG", "untrained encoder"}
    assert all(1 <= one.values["rankme"].value <= 24 for one in result.baselines.found.values())
    assert result.baselines.without == []
    made = result.as_json()
    assert [{name: one[name]["unit"] for name in ("rankme", "uniformity")} for one in (
        *made["results"], *made["baselines"])] == [{"rankme": "directions", "uniformity": "log"}] * 5
    assert values_of(result.side.vectors) == result.values
