"""`mocoembed linear`: what it chooses, splits and tells, against slow references; and wrong input."""

import json
import pathlib

import numpy as np
import pytest
import torch
from test_logistic import clusters

from mocoembed.config import LinearConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.evaluate.linear.accuracy import linear_accuracy
from mocoembed.evaluate.linear.logistic import Problem
from mocoembed.evaluate.linear.penalty import Rows, Search, learn, score_of

GRID = (1e-1, 1e-2, 1e-3)


def letters(labels) -> str:
    return "".join("abcdefgh"[label] for label in labels)


@pytest.fixture
def files(make_embeddings):
    """Training and test embeddings of three overlapping classes, and the letters of the test rows."""
    rows, labels = clusters(120, 8, 3, apart=0.7)
    text = letters(labels)
    return (make_embeddings("train", rows[:60].numpy(), text[:60]),
            make_embeddings("test", rows[60:].numpy(), text[60:]), rows, text)


def measured(*arguments, **options):
    return linear_accuracy(LinearConfig(*arguments, **{"penalty": GRID, "device": "cpu", "baselines": False,
                                                       **options}))


def test_the_number_is_that_of_a_fit_by_hand(files, make_embeddings):
    train, test, rows, text = files
    result = measured(train, test, penalty=(1e-2,))
    numbers = torch.tensor(["abc".index(one) for one in text])
    unit = torch.nn.functional.normalize(rows, dim=1)
    predicted = Problem(unit[:60], numbers[:60], 3).fit(1e-2).scores(unit[60:]).argmax(dim=1)
    assert np.isclose(result.values["top1"].value, 100 * (predicted == numbers[60:]).double().mean())
    assert result.values["top1"].n == 60
    assert "top5" not in result.values
    assert result.repeats[0][0].classifier.tried == []


def test_permuted_test_labels_change_nothing_that_was_chosen(files, make_embeddings):
    train, test, rows, text = files
    one = measured(train, test)
    mixed = "".join(np.random.default_rng(0).permutation(list(text[60:])))
    other = measured(train, make_embeddings("mixed", rows[60:].numpy(), mixed))
    fits = [result.repeats[0][0].classifier for result in (one, other)]
    assert fits[0].tried == fits[1].tried
    assert fits[0].fit.penalty == fits[1].fit.penalty
    assert torch.equal(fits[0].fit.weights, fits[1].fit.weights)
    assert one.values["top1"].value != other.values["top1"].value


def test_the_best_on_the_held_out_rows_is_chosen_and_refitted_on_all(files):
    text = files[3]
    rows, labels = clusters(120, 8, 3, apart=0.7)
    found = learn(Rows(rows[:60], list(text[:60]), np.arange(60)), np.arange(60), Search(penalties=GRID), 0)
    best = max(one["score"] for one in found.tried)
    assert found.fit.penalty == max(one["penalty"] for one in found.tried if one["score"] == best)  # tie: the stronger
    assert [one["penalty"] for one in found.tried] == sorted(GRID, reverse=True)
    assert found.held_out == sum(round(0.2 * text[:60].count(one)) for one in "abc")
    assert torch.equal(found.fit.weights, Problem(rows[:60], labels[:60], 3).fit(found.fit.penalty).weights)


def test_scores_that_penalties_are_chosen_by():
    scores, truth = torch.tensor([[3.0, 0], [2, 0], [1, 0], [0, 1]]), np.array([0, 0, 1, 1])
    assert score_of("top1", scores, truth) == 75
    assert score_of("balanced", scores[[0, 1, 2]], truth[[0, 1, 2]]) == 50
    assert score_of("ap", scores, truth) == 100


def test_folds_classify_every_image_once_and_by_others(files):
    result = measured(files[0], folds=4)
    assert sorted(np.concatenate([one.rows for one in result.repeats[0]])) == list(range(60))
    assert [one.learned + len(one.rows) for one in result.repeats[0]] == [60] * 4
    right = np.concatenate([one.right for one in result.repeats[0]])
    assert np.isclose(result.values["top1"].value, 100 * right.mean())


def test_near_duplicates_share_a_fold_and_all_others_stay(make_embeddings):
    random, names = np.random.default_rng(0), "abc" * 20
    rows = random.normal(size=(60, 32))
    alone = measured(make_embeddings("alone", rows, names), penalty=(1e-2,))
    pairs = [(0, 41), (41, 52), (7, 30)]  # a chain of three, and two
    for one, other in pairs:
        rows[other] = rows[one] + 1e-3 * random.normal(size=32)
    path = make_embeddings("near", rows, names)
    with EmbeddingFile(pathlib.Path(path)) as file:
        number = {int(name[-8:-4]): row for row, name in enumerate(file.paths())}
    result = measured(path, penalty=(1e-2,))
    before, after = ({row: one.fold for one in each.repeats[0] for row in one.rows.tolist()}
                     for each in (alone, result))
    assert all(after[number[one]] == after[number[other]] for one, other in pairs)
    assert any(before[number[one]] != before[number[other]] for one, other in pairs)
    moved = {number[row] for pair in pairs for row in pair}
    assert all(after[row] == before[row] for row in after if row not in moved)
    assert any(note.startswith("5 images are near-duplicates of another one") and note.endswith("share a fold")
               for note in result.notes())


def test_a_collapsed_encoder_has_folds_too(make_embeddings):
    rows = np.ones((60, 8)) + 1e-4 * np.random.default_rng(0).normal(size=(60, 8))
    result = measured(make_embeddings("collapsed", rows, "abc" * 20), penalty=(1e-2,))
    assert [len(one.rows) for one in result.repeats[0]] == [12] * 5
    assert any(note.startswith("60 images that are all alike to the encoder") for note in result.notes())


def test_few_labels_are_repeated_by_seed(files):
    result = measured(files[0], files[1], labels="4-per-class", seeds=3)
    assert [folds[0].learned for folds in result.repeats] == [12] * 3
    top1 = [100 * folds[0].right.mean() for folds in result.repeats]
    value = result.values["top1"]
    half = 4.303 * np.std(top1, ddof=1) / 3**0.5
    assert np.allclose([value.value, *value.ci95], [np.mean(top1), np.mean(top1) - half, np.mean(top1) + half])
    assert result.as_json()["protocol"]["settings"]["labels"] == "4-per-class"


def test_a_share_that_leaves_a_class_empty_takes_one_and_says_so(files):
    result = measured(files[0], files[1], labels="1%", seeds=1, penalty=(1e-2,))
    assert result.repeats[0][0].learned == 3
    assert any("3 of 3 classes have less than one image" in note for note in result.notes())
    with pytest.raises(CollectionError, match="one --penalty"):
        measured(files[0], files[1], labels="1%", seeds=1)


def test_classes_of_one_side_are_told(files, make_embeddings):
    train, _, rows, text = files
    other = make_embeddings("other", rows[60:].numpy(), "d" * 5 + text[65:].replace("c", "a"))
    result = measured(train, other)
    notes = "\n".join(result.notes())
    assert "1 class is only in the test file (counted as wrong): d" in notes
    assert "1 class is only in the training file (never right): c" in notes
    assert result.as_json()["per_class"]["d"]["top1"] == 0


def test_wrong_input_is_a_clear_line(files, make_embeddings):
    train, test, rows, _ = files
    vectors = rows.numpy()
    with pytest.raises(CollectionError, match="one class, 'a'"):
        measured(make_embeddings("single", vectors[:9], "a" * 9), test)
    with pytest.raises(CollectionError, match="No class of"):
        measured(train, make_embeddings("foreign", vectors[:9], "h" * 9))
    with pytest.raises(CollectionError, match="labelled images"):
        measured(make_embeddings("none", vectors[:9], "?" * 9), test)
    with pytest.raises(CollectionError, match="too few for 5 folds"):
        measured(make_embeddings("few", vectors[:9], "aaabbbccc"))
    with pytest.raises(CollectionError, match="--labels 90"):
        measured(train, test, labels="90-per-class")
    with pytest.raises(MismatchError, match="Different encoders"):
        measured(train, make_embeddings("encoder", vectors[:9], "aaabbbccc", fingerprint="e" * 64))
    broken = vectors[:9].copy()
    broken[3, 2] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        measured(make_embeddings("nan", broken, "aaabbbccc"), test)


@pytest.mark.parametrize("wrong", [
    {"folds": 1}, {"seeds": 0}, {"metric": "loss"}, {"penalty": (0.0,)}, {"penalty": (float("nan"),)}, {"steps": 0},
    {"test": "t.h5", "folds": 5}])
def test_wrong_options(wrong):
    with pytest.raises(UsageError, match="--"):
        LinearConfig(**wrong)


def test_unlabelled_rows_are_left_out_and_told(files, make_embeddings):
    train, _, rows, text = files
    test = make_embeddings("partly", rows[60:].numpy(), "??" + text[62:])
    result = measured(train, test)
    assert result.values["top1"].n == 58
    assert any("skipped 2 rows of the test file" in note for note in result.notes())


def test_the_command_tells_json_and_ends_with_1_where_a_fit_did_not_converge(files, run_cli):
    train, test, *_ = files
    status, out, _ = run_cli("linear", train, test, "--json", "--device", "cpu")
    value = json.loads(out)
    assert status == 0
    assert value["task"] == "linear"
    assert 0 <= value["results"][0]["top1"]["value"] <= 100
    assert value["solver"]["converged"] is True
    assert value["solver"]["fits"] == 8
    assert len(value["outcomes"]["top1"]) == 60
    status, out, error = run_cli("linear", train, test, "--steps", 1, "--device", "cpu")
    assert status == 1
    assert "did not converge" in error
    assert "linear" in out


def test_the_command_shows_a_table(files, run_cli):
    status, out, _ = run_cli("linear", files[0], files[1], "--device", "cpu", "--penalty", "0.01")
    assert status == 0
    assert out.splitlines()[0].split() == ["top-1", "balanced", "AP"]
    assert "majority class" in out
    status, _, error = run_cli("linear", files[0], files[1], "--labels", "half")
    assert status == 2
    assert "--labels half" in error


def test_a_baseline_that_did_not_converge_says_so(workspace, run_cli):
    given = ["linear", "--workspace", workspace, "--device", "cpu"]
    status, out, error = run_cli(*given, "--steps", 1)
    assert status == 1
    assert "colour histogram (not converged)" in out
    assert "the baseline colour histogram: " in error
    found = json.loads(run_cli(*given, "--steps", 1, "--json")[1])["baselines"]
    assert [one.get("converged") for one in found] == [None, False, False, False, False]
    status, out, error = run_cli(*given, "--json")
    assert status == 0, error
    assert [one.get("converged") for one in json.loads(out)["baselines"]] == [None, True, True, True, True]
    assert "baseline colour histogram: " not in error


def test_the_progress_counts_the_fits_of_the_baselines_too(workspace):
    told = []
    result = linear_accuracy(LinearConfig(workspace=str(workspace), device="cpu", penalty=GRID, folds=3),
                             lambda done, total: told.append((done, total)))
    assert len(result.baselines.found) == 5
    assert told == [(done, 5 * 3 * 4) for done in range(1, 5 * 3 * 4 + 1)]
    told.clear()
    linear_accuracy(LinearConfig(workspace=str(workspace), device="cpu", penalty=GRID, folds=3, baselines=False),
                    lambda done, total: told.append((done, total)))
    assert told == [(done, 3 * 4) for done in range(1, 3 * 4 + 1)]
