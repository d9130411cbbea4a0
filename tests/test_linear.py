"""Linear evaluation: folds, test files, few labels; nothing is chosen on what is classified; and `mocoembed linear`."""

import json

import numpy as np
import pytest

from mocoembed.config import LinearConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.evaluate.linear import linear_accuracy
from mocoembed.evaluate.logistic import Problem

QUICK = {"penalty": (1e-2, 1e-4), "baselines": False, "device": "cpu"}


def clouds(classes: str, seed: int = 0, spread: float = 1.0, length: int = 8) -> np.ndarray:
    """A vector of length 1 for each letter, about the centre of its class."""
    centres, random = np.random.default_rng(7).normal(size=(26, length)), np.random.default_rng(seed)
    vectors = np.stack([centres[ord(one) % 26] + spread * random.normal(size=length) for one in classes])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_folds_classify_every_image_once(make_embeddings):
    classes = "abc" * 20
    path = make_embeddings("train", clouds(classes), classes, normalized=True)
    result = linear_accuracy(LinearConfig(path, folds=4, **QUICK))
    run, = result.runs
    assert sorted(run.rows.tolist()) == list(range(60))
    assert [one.test for one in run.fitted] == [15] * 4
    assert result.values["top1"].value == pytest.approx(100 * np.mean(run.predicted == run.truth))
    assert result.values["top1"].value > 75
    assert "top5" not in result.values
    assert result.converged
    value = result.as_json()
    assert value["task"] == "linear"
    assert value["results"][0]["top1"]["value"] == result.values["top1"].value
    assert value["solver"]["converged"] is True
    assert len(value["outcomes"]["top1"]) == 60
    assert np.mean(value["outcomes"]["top1"]) * 100 == pytest.approx(result.values["top1"].value)
    assert [one["fold"] for one in value["repeats"][0]["fits"]] == [0, 1, 2, 3]
    assert json.loads(json.dumps(value)) == value


def test_a_test_file_is_classified_as_by_hand(make_embeddings):
    train, test = "abcd" * 15, "abcd" * 8
    one = make_embeddings("train", clouds(train), train, normalized=True)
    other = make_embeddings("test", clouds(test, 1), test, normalized=True)
    result = linear_accuracy(LinearConfig(one, other, **{**QUICK, "penalty": (1e-3,)}))
    run, = result.runs
    with EmbeddingFile(one) as file, EmbeddingFile(other) as asked:
        import torch

        fit = Problem(torch.from_numpy(file.embeddings()), torch.from_numpy(file.labels()).long(), 4).fit(1e-3)
        scores = fit.scores(torch.from_numpy(asked.embeddings())).softmax(dim=1).numpy()
        truth = asked.labels()
    np.testing.assert_allclose(run.shares, scores, atol=1e-5)
    assert (run.truth == truth).all()
    assert run.fitted[0].classifier.held_out == 0  # a single penalty: nothing was chosen


def test_the_labels_that_are_tested_have_no_say(make_embeddings):
    """The same penalty, scores and weights, whatever the labels of the test images are."""
    train, test = "abc" * 20, "abc" * 9
    one, vectors = make_embeddings("train", clouds(train, spread=1.5), train, normalized=True), clouds(test, 1)
    chosen = []
    for number, labels in enumerate((test, "".join(np.random.default_rng(0).permutation(list(test))))):
        other = make_embeddings(f"test{number}", vectors, labels, normalized=True)
        result = linear_accuracy(LinearConfig(one, other, baselines=False, device="cpu"))
        classifier = result.runs[0].fitted[0].classifier
        chosen.append((classifier.tried, classifier.fit.weights.tolist(), result.protocol.digest))
    assert chosen[0] == chosen[1]


def test_among_equals_the_stronger_penalty_is_chosen(make_embeddings):
    """Classes far apart: every penalty is right about all of them."""
    classes = "ab" * 20
    path = make_embeddings("train", clouds(classes, spread=0.01), classes, normalized=True)
    result = linear_accuracy(LinearConfig(path, folds=2, penalty=(1e-5, 1e-2, 1e-3), baselines=False, device="cpu"))
    assert all(one.fit.penalty == 1e-2 for one in result.classifiers)
    assert all(one.at_edge for one in result.classifiers)
    assert result.values["top1"].value == 100
    assert any("stands at the edge of the grid" in note for note in result.notes())


def test_few_labels_are_repeated(make_embeddings):
    classes = "abc" * 20
    path = make_embeddings("train", clouds(classes), classes, normalized=True)
    result = linear_accuracy(LinearConfig(path, labels="4-per-class", seeds=3, **QUICK))
    assert [(run.fitted[0].train, len(run.rows)) for run in result.runs] == [(12, 48)] * 3
    each = [run.values()[0]["top1"].value for run in result.runs]
    assert result.values["top1"].value == pytest.approx(np.mean(each))
    assert result.values["top1"].n == 3
    assert len({tuple(run.rows.tolist()) for run in result.runs}) == 3
    assert "--labels 4-per-class), mean of 3 seeds" in result.summary()


@pytest.mark.parametrize("metric", ["top1", "balanced", "ap"])
def test_metrics_to_choose_by(make_embeddings, metric):
    classes = "a" * 30 + "b" * 10
    path = make_embeddings("train", clouds(classes, spread=2.0), classes, normalized=True)
    result = linear_accuracy(LinearConfig(path, folds=2, metric=metric, **QUICK))
    assert all(0 <= one["score"] <= 100 for classifier in result.classifiers for one in classifier.tried)
    assert metric in result.protocol.settings["chosen_by"]


def test_bad_input_is_named(make_embeddings):
    one = make_embeddings("one", clouds("a" * 9), "a" * 9, normalized=True)
    with pytest.raises(CollectionError, match="has one class, 'a'"):
        linear_accuracy(LinearConfig(one, **QUICK))
    few = make_embeddings("few", clouds("aaaaabb"), "aaaaabb", normalized=True)
    with pytest.raises(CollectionError, match="class 'b' has 2 different images, too few for 5 folds"):
        linear_accuracy(LinearConfig(few, **QUICK))
    with pytest.raises(CollectionError, match="--labels 3: class 'b' has 2"):
        linear_accuracy(LinearConfig(few, labels="3", **QUICK))
    with pytest.raises(CollectionError, match="no image is left"):
        linear_accuracy(LinearConfig(few, labels="100%", **QUICK))
    unlabelled = make_embeddings("none", clouds("ab"), "??", normalized=True)
    with pytest.raises(CollectionError, match="0 labelled images"):
        linear_accuracy(LinearConfig(unlabelled, **QUICK))
    foreign = make_embeddings("foreign", clouds("abab"), "abab", normalized=True, fingerprint="e" * 64)
    with pytest.raises(MismatchError, match="Different encoders"):
        linear_accuracy(LinearConfig(few, foreign, **QUICK))
    broken = clouds("aabb")
    broken[2, 1] = np.nan
    with pytest.raises(FormatError, match="finite"):
        linear_accuracy(LinearConfig(make_embeddings("broken", broken, "aabb"), **QUICK))
    for wrong in ({"folds": 1}, {"seeds": 0}, {"metric": "f1"}, {"penalty": (0.0,)}, {"labels": "some"}):
        with pytest.raises(UsageError):
            linear_accuracy(LinearConfig(few, **{**QUICK, **wrong}))
    with pytest.raises(UsageError, match="is not split into folds"):
        LinearConfig(few, few, folds=3)


def test_a_class_of_the_test_images_alone_counts_as_wrong(make_embeddings):
    one = make_embeddings("train", clouds("ab" * 10, spread=0.1), "ab" * 10, normalized=True)
    other = make_embeddings("test", clouds("abz" * 4, 1, spread=0.1), "abz" * 4, normalized=True)
    result = linear_accuracy(LinearConfig(one, other, **QUICK))
    assert result.values["top1"].value == pytest.approx(100 * 8 / 12)
    assert any("1 classes of the test images are not in the training images" in note for note in result.notes())


def test_command(make_embeddings, run_cli):
    classes = "abcdefg" * 10
    path = make_embeddings("train", clouds(classes, spread=0.3), classes, normalized=True)
    status, out, err = run_cli("linear", path, "--folds", "2", "--penalty", "1e-2,1e-3", "--no-baselines")
    assert status == 0, err
    assert out.splitlines()[0].split() == ["top-1", "top-5", "balanced", "AP"]
    assert "70 images in 2 folds; 7 classes, backbone features" in out
    status, out, _ = run_cli("linear", path, "--folds", "2", "--penalty", "1e-2", "--no-baselines", "--json")
    assert json.loads(out)["results"][0]["top5"]["value"] > 90
    status, _, err = run_cli("linear", path, "--folds", "2", "--steps", "1", "--no-baselines")
    assert status == 1
    assert "did not converge" in err
    assert "Do not report" in err
