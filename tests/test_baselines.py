"""Baselines beside every number: the same protocol, on by default for few images, honest when images have gone."""

import json

import numpy as np
import pytest

from mocoembed.config import EmbedConfig, KnnConfig, RetrievalConfig
from mocoembed.embed.extract import embed_images
from mocoembed.errors import CollectionError
from mocoembed.evaluate import baselines
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.evaluate.retrieval.measure import measure_retrieval

NAMES = ["majority class", "raw pixels", "colour histogram", "HOG", "untrained encoder"]


def test_knn_of_a_folder_has_them(workspace, run_cli):
    result = knn_accuracy(KnnConfig(workspace=str(workspace), k=(3,)))
    assert list(result.baselines.found) == NAMES
    assert result.baselines.found["majority class"].values["top1"].value == pytest.approx(100 / 3)
    assert result.baselines.found["colour histogram"].values["top1"].value == 100  # the classes are colours
    value = json.loads(run_cli("knn", "--workspace", workspace, "-k", "3", "--json")[1])["baselines"]
    assert [one["name"] for one in value] == NAMES
    assert value[2]["top1"]["value"] == 100
    _, out, err = run_cli("knn", "--workspace", workspace, "-k", "3")
    assert "colour histogram   100.00" in out
    assert "is no better than these baselines: raw pixels (100.00), colour histogram (100.00)" in err


def test_the_untrained_encoder_is_that_of_the_same_architecture(workspace, monkeypatch):
    """The tests' own encoder has had no training, and was drawn with the same seed."""
    config = KnnConfig(workspace=str(workspace), k=(3,))
    result = knn_accuracy(config)
    assert result.baselines.found["untrained encoder"].values["top1"].value == result.scores[0].top1 < 100
    monkeypatch.setattr(baselines, "CHEAP", 1000)
    dear = knn_accuracy(config)
    assert list(dear.baselines.found) == NAMES[:-1]
    assert any("untrained encoder is left out" in note for note in dear.notes())
    assert list(knn_accuracy(KnnConfig(workspace=str(workspace), baselines=True)).baselines.found) == NAMES


def test_two_sides_and_the_majority_of_the_bank(fresh_workspace, make_images, tmp_path):
    folder, bank, query = make_images(tmp_path / "held-out", per_class=4, seed=7), tmp_path / "b.h5", tmp_path / "q.h5"
    settings = {"workspace": str(fresh_workspace), "workers": 0, "device": "cpu"}
    embed_images(EmbedConfig(str(folder), output=str(query), **settings))
    for i in range(3):
        (folder / "red" / f"00{i}.{'jpg' if i % 2 else 'png'}").unlink()
    embed_images(EmbedConfig(str(folder), output=str(bank), **settings))
    result = knn_accuracy(KnnConfig(str(fresh_workspace / "embeddings.h5"), str(bank), k=(3,)))
    assert list(result.baselines.found) == NAMES
    majority = result.baselines.found["majority class"].values["top1"]
    assert majority.value == pytest.approx(100 * 4 / 9)  # blue, the first of equals
    assert majority.n == 9


def test_retrieval_has_them(workspace, run_cli):
    result = measure_retrieval(RetrievalConfig(workspace=str(workspace)))
    assert list(result.baselines.found) == NAMES[1:]
    histogram, gradients = (result.baselines.found[name].values for name in ("colour histogram", "HOG"))
    assert set(gradients) == {"map", "map_at_r", "r_precision"}
    assert histogram["map"].value > gradients["map"].value
    assert "colour histogram" in run_cli("retrieval", "--workspace", workspace)[1]
    assert "baseline" not in run_cli("retrieval", "--workspace", workspace, "--no-baselines")[1]


def test_many_images_are_read_only_when_asked(workspace, monkeypatch):
    monkeypatch.setattr(baselines, "AUTOMATIC", 10)
    result = knn_accuracy(KnnConfig(workspace=str(workspace)))
    assert list(result.baselines.found) == NAMES[:1]
    assert "no baselines: 24 images would have to be read; give --baselines" in result.notes()
    assert list(knn_accuracy(KnnConfig(workspace=str(workspace), baselines=True)).baselines.found) == NAMES
    assert list(knn_accuracy(KnnConfig(workspace=str(workspace), baselines=False)).baselines.found) == NAMES[:1]


def test_images_that_cannot_be_read_cost_the_baselines_alone(make_embeddings):
    path = make_embeddings("bank", np.eye(4), "aabb")  # of files without any bytes
    result = knn_accuracy(KnnConfig(bank=path))
    assert list(result.baselines.found) == NAMES[:1]
    assert any(note.startswith("no baselines: cannot read") for note in result.notes())
    with pytest.raises(CollectionError, match=r"--baselines: cannot read .*0000.png"):
        knn_accuracy(KnnConfig(bank=path, baselines=True))
