"""kNN accuracy of embeddings files, against loops; and `mocoembed knn`."""

import json

import numpy as np
import pytest

from mocoembed import memory
from mocoembed.config import EmbedConfig, IndexConfig, KnnConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError, MocoembedError, UsageError
from mocoembed.evaluate.folds import few_of_each
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.evaluate.knn.suspects import suspects_sheet
from mocoembed.model.encoder_file import save_encoder
from mocoembed.search.build import build_index
from mocoembed.search.sheet import Sheet


def clouds(classes: str, seed: int = 0) -> np.ndarray:
    """(N, 6): every class around a direction of its own, far from length 1, near enough to be mistaken."""
    random = np.random.default_rng(seed)
    centres = {name: np.random.default_rng(ord(name)).standard_normal(6) for name in sorted(set(classes))}
    return np.stack([(centres[name] + random.standard_normal(6)) * random.uniform(0.1, 9) for name in classes])


def top1_by_loops(queries, query_classes, bank, bank_classes, k, temperature, leave_one_out=False):
    right = []
    for i, query in enumerate(queries):
        cosines = [query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in bank]
        rows = sorted((j for j in range(len(bank)) if not (leave_one_out and i == j)), key=lambda j: -cosines[j])
        votes = dict.fromkeys(bank_classes, 0.0)
        for j in rows[:k]:
            votes[bank_classes[j]] += np.exp(cosines[j] / temperature)
        right.append(max(votes, key=votes.get) == query_classes[i])
    return 100 * np.mean(right)


def test_two_files_are_joined_by_name(make_embeddings):
    """The queries' classes b and d have other numbers than in the bank, and e is not there at all."""
    bank_classes, query_classes = "aabbbccdddd" * 3, "bdbddbe"
    bank, queries = clouds(bank_classes), clouds(query_classes, 1)
    result = knn_accuracy(KnnConfig(bank=make_embeddings("bank", bank, bank_classes),
                                    queries=make_embeddings("queries", queries, query_classes), k=(1, 5, 500),
                                    temperature=(0.07, 0.5)))
    assert [(one.k, one.asked_k, one.temperature) for one in result.scores] == [
        (1, 1, 0.07), (1, 1, 0.5), (5, 5, 0.07), (5, 5, 0.5), (33, 500, 0.07), (33, 500, 0.5)]
    for one in result.scores:
        expected = top1_by_loops(queries, query_classes, bank, bank_classes, one.k, one.temperature)
        assert one.top1 == pytest.approx(expected)
        assert one.top5 is None  # four classes in the bank: all but e would be right
    assert result.per_class["e"] == (1, 0.0)
    assert sum(count * top1 for count, top1 in result.per_class.values()) / 7 == pytest.approx(result.scores[0].top1)
    assert any("only 33" in note for note in result.notes())
    assert any(note.endswith(": e") for note in result.notes())


def test_one_file_leaves_each_row_out_and_the_unlabelled_away(make_embeddings):
    classes = "aab?bb?ccc" * 3
    vectors = clouds(classes, 3)
    result = knn_accuracy(KnnConfig(bank=make_embeddings("bank", vectors, classes), k=(4,), temperature=(0.2,)))
    known = [row for row, name in enumerate(classes) if name != "?"]
    labels = [classes[row] for row in known]
    expected = top1_by_loops(vectors[known], labels, vectors[known], labels, 4, 0.2, leave_one_out=True)
    assert result.scores[0].top1 == pytest.approx(expected)
    assert 0 < expected < 100
    assert result.as_json()["bank"]["count"] == result.as_json()["queries"]["count"] == 24
    assert result.bank.unlabelled == 6
    assert "6 rows" in result.notes()[0]


def test_one_image_and_two_classes(make_embeddings):
    bank, queries = make_embeddings("bank", [[1, 0], [0, 1]], "ab"), make_embeddings("queries", [[9, 1]], "a")
    result = knn_accuracy(KnnConfig(bank=bank, queries=queries))
    assert (result.scores[0].top1, result.scores[0].top5, result.scores[0].k) == (100.0, None, 2)


def test_top5_is_told_from_six_classes_on(make_embeddings):
    """The nearest five of seven corners of a cube are of five classes; its opposite corners are of the others."""
    bank = make_embeddings("bank", np.eye(7), "abcdefg")
    query = make_embeddings("query", [[7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7]], "ea")
    result = knn_accuracy(KnnConfig(bank=bank, queries=query, k=(7,)))
    assert (result.scores[0].top1, result.scores[0].top5) == (0.0, 50.0)
    assert result.as_json()["results"][0]["values"]["top5"]["value"] == 50.0


def test_one_file_on_both_sides_is_said(make_embeddings):
    path = make_embeddings("bank", clouds("aabb"), "aabb")
    result = knn_accuracy(KnnConfig(bank=path, queries=path, k=(1,)))
    assert result.scores[0].top1 == 100
    assert "votes on itself" in result.notes()[0]


@pytest.mark.parametrize(("more", "what"), [({"fingerprint": "e" * 64}, "encoders"),
                                            ({"features": "projection"}, "features")])
def test_different_vectors_are_refused(make_embeddings, more, what):
    bank, queries = make_embeddings("bank", np.eye(2), "ab"), make_embeddings("queries", np.eye(2), "ab", **more)
    with pytest.raises(MismatchError, match=f"Different {what}: .*bank.h5 has .*queries.h5 has"):
        knn_accuracy(KnnConfig(bank=bank, queries=queries))
    with pytest.raises(MismatchError, match=r"Different dimensions: .*bank.h5 has 2, .*wide.h5 has 3"):
        knn_accuracy(KnnConfig(bank=bank, queries=make_embeddings("wide", np.eye(3), "abc")))


@pytest.mark.parametrize(("preset", "features", "settings"), [
    ("moco", "projection", [(200, 0.1)]), ("lightly", "backbone", [(200, 0.1)]),
    ("dino", "backbone", [(10, 0.07), (20, 0.07), (100, 0.07), (200, 0.07)])])
def test_presets(make_embeddings, preset, features, settings):
    other = {"projection": "backbone", "backbone": "projection"}[features]
    with pytest.raises(MismatchError, match=f"holds {other} features.*--features {features}"):
        knn_accuracy(KnnConfig(bank=make_embeddings("other", np.eye(2), "ab", features=other), preset=preset))
    path = make_embeddings("right", np.eye(2), "ab", features=features)
    assert [(one.asked_k, one.temperature) for one in knn_accuracy(KnnConfig(bank=path, preset=preset)).scores
            ] == settings
    one, = knn_accuracy(KnnConfig(bank=path, preset=preset, k=(3,))).scores
    assert (one.asked_k, one.temperature) == (3, settings[0][1])


def test_what_cannot_be_measured(make_embeddings, tmp_path):
    with pytest.raises(CollectionError, match="has 0 labelled"):
        knn_accuracy(KnnConfig(bank=make_embeddings("none", np.eye(2), "??")))
    with pytest.raises(CollectionError, match="has 1 labelled"):
        knn_accuracy(KnnConfig(bank=make_embeddings("one", np.eye(2), "a?")))
    with pytest.raises(FormatError, match="not finite"):
        knn_accuracy(KnnConfig(bank=make_embeddings("nan", [[1, np.nan], [0, 1]], "ab")))
    with pytest.raises(UsageError, match="does not exist"):
        knn_accuracy(KnnConfig(bank=make_embeddings("bank", np.eye(2), "ab"), queries=str(tmp_path / "nothing.h5")))


def test_too_little_memory_is_said_before(workspace, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(MocoembedError, match=r"kNN accuracy of .* needs"):
        knn_accuracy(KnnConfig(workspace=str(workspace)))


def test_a_flipped_bit_is_refused(fresh_workspace):
    path = fresh_workspace / "embeddings.h5"
    with EmbeddingFile(path) as file:
        vector = file.embeddings(slice(3, 4)).tobytes()
    data = bytearray(path.read_bytes())
    data[data.find(vector) + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="SHA-256"):
        knn_accuracy(KnnConfig(workspace=str(fresh_workspace)))


def test_command_on_a_workspace(workspace, run_cli):
    status, out, err = run_cli("knn", "--workspace", workspace, "-k", "3,200")
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [["k", "T"], ["3", "0.1"], ["23", "0.1"]]
    assert "only 23 images can vote" in err
    status, out, _ = run_cli("knn", "--workspace", workspace, "--json")
    value = json.loads(out)
    assert {"preset", "features", "leave_one_out", "bank", "queries", "results", "per_class", "encoder"} < set(value)
    assert value["bank"]["path"] == str(workspace / "embeddings.h5")
    (result,) = value["results"]
    assert (result["k"], result["T"], "top5" in result) == (23, 0.1, False)  # three classes
    assert result["values"]["top1"]["value"] == result["top1"]
    assert (value["kind"], value["schema"], value["task"]) == ("mocoembed evaluation", 1, "knn")
    assert np.sum(value["confusion"]["counts"]) == len(value["outcomes"]["queries"]) == 24
    assert sum(value["outcomes"]["top1"]) == round(24 * result["top1"] / 100)
    assert {name: one["count"] for name, one in value["per_class"].items()} == {"blue": 8, "green": 8, "red": 8}


def test_command_with_two_files_of_images(fresh_workspace, make_images, make_encoder, run_cli, tmp_path):
    """Held-out images of the same colours are recognised even by an untrained encoder, unlike by another one."""
    held_out = make_images(tmp_path / "held-out", per_class=4, seed=7)
    embed_images(EmbedConfig(str(held_out), workspace=str(fresh_workspace), output=str(tmp_path / "q.h5"), workers=0,
                             device="cpu"))
    arguments = ("knn", fresh_workspace / "embeddings.h5", tmp_path / "q.h5", "-k", "5", "--json")
    status, out, _ = run_cli(*arguments)
    assert status == 0
    assert json.loads(out)["results"][0]["top1"] > 60
    save_encoder(tmp_path / "other.safetensors", make_encoder(seed=5))
    embed_images(EmbedConfig(str(held_out), workspace=str(fresh_workspace), output=str(tmp_path / "q.h5"), workers=0,
                             device="cpu", encoder=str(tmp_path / "other.safetensors"), fresh=True))
    status, out, err = run_cli(*arguments)
    assert (status, out) == (1, "")
    assert "Different encoders" in err


def test_command_without_anything(tmp_path, run_cli):
    status, out, err = run_cli("knn", "--workspace", tmp_path)
    assert (status, out) == (2, "")
    assert "mocoembed embed" in err


def test_measures_of_uneven_classes_are_scikit_learns(make_embeddings):
    """Against scikit-learn's classifier: its vote by a function of the distances, without weights, and its metrics."""
    from sklearn import metrics
    from sklearn.neighbors import KNeighborsClassifier

    bank_classes, query_classes = "a" * 30 + "b" * 9 + "c" * 4, "a" * 40 + "b" * 12 + "c" * 5
    bank, queries = (clouds(classes, seed).astype(np.float32) for seed, classes in enumerate((bank_classes,
                                                                                              query_classes)))
    result = knn_accuracy(KnnConfig(bank=make_embeddings("bank", bank, bank_classes), k=(7,), temperature=(0.3,),
                                    queries=make_embeddings("queries", queries, query_classes)))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (bank.astype(float), queries.astype(float))]
    truth = np.array(list(query_classes))
    weighted, majority = (
        KNeighborsClassifier(7, weights=weights, algorithm="brute").fit(unit[0], list(bank_classes))
        for weights in (lambda distances: np.exp((1 - distances ** 2 / 2) / 0.3), "uniform"))
    predicted = weighted.predict(unit[1])
    values = result.scores[0].values
    assert values["top1"].value / 100 == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert values["majority"].value / 100 == pytest.approx(metrics.accuracy_score(truth, majority.predict(unit[1])))
    assert values["balanced"].value / 100 == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert values["top1"].value - values["balanced"].value > 2  # the small classes are harder
    shares = weighted.predict_proba(unit[1])
    ap = metrics.average_precision_score(truth[:, None] == weighted.classes_, shares, average=None)
    assert [one["ap"] / 100 for one in result.by_class.values()] == pytest.approx(ap, abs=1e-6)
    assert values["ap"].value / 100 == pytest.approx(ap.mean(), abs=1e-6)
    assert np.array_equal(result.matrix, metrics.confusion_matrix(truth, predicted))
    precision = metrics.precision_score(truth, predicted, average=None)
    assert [one["precision"] / 100 for one in result.by_class.values()] == pytest.approx(precision)


def test_shares_that_do_not_fit_are_left_out(make_embeddings, monkeypatch):
    from mocoembed.evaluate.knn import votes

    path = make_embeddings("bank", clouds("aabbb" * 4), "aabbb" * 4)
    config = KnnConfig(bank=path, k=(3, 5), temperature=(0.1,), suspects=True)
    whole = knn_accuracy(config)
    monkeypatch.setattr(votes, "KEPT", 40)  # 20 queries and two classes: one setting
    part = knn_accuracy(config)
    assert [list(one.values) for one in part.scores] == [["top1", "majority", "balanced", "ap"],
                                                         ["top1", "majority", "balanced"]]
    monkeypatch.setattr(votes, "KEPT", 1)
    none = knn_accuracy(config)
    assert "ap" not in none.scores[0].values
    assert none.suspects == part.suspects == whole.suspects
    assert "ap" not in none.by_class["a"]


def test_wrong_labels_are_suspected(make_embeddings, run_cli, tmp_path, monkeypatch):
    """Two of thirty images have the label of another class, and are the two suspects, with those that say so."""
    classes = list("aaaaaaaaaabbbbbbbbbbcccccccccc")
    vectors = np.eye(3)[["abc".index(one) for one in classes]]
    vectors += 0.05 * np.random.default_rng(0).standard_normal((30, 3))
    classes[3], classes[17] = "c", "a"
    path = make_embeddings("bank", vectors, "".join(classes))
    result = knn_accuracy(KnnConfig(bank=path, k=(5,), suspects=True))
    assert {(one.label, one.suggested, one.path[-8:]) for one in result.suspects} == {
        ("c", "a", "0003.png"), ("a", "b", "0017.png")}
    for one in result.suspects:
        assert one.share > 99
        assert one.own_share < 1
        assert {near.label for near in one.neighbours[:5]} == {one.suggested}
        assert one.neighbours[0].score > 0.9
        with EmbeddingFile(path) as file:
            assert file.full_path(one.row).decode() == one.path
            assert file.full_path(one.neighbours[0].row).decode() == one.neighbours[0].path
    status, out, err = run_cli("knn", path, "-k", "5", "--suspects", "--sheet", tmp_path / "s.png")
    assert status == 0
    assert out.count("0003.png") == out.count("0017.png") == 1
    assert "sheet:" in err
    assert (tmp_path / "s.png").stat().st_size > 1000
    written = []
    monkeypatch.setattr(Sheet, "_caption", lambda sheet, left, top, heading, text: written.append(heading[0]))
    suspects_sheet(result.suspects, tmp_path / "s.png")
    assert written.count("c") == written.count("a") == 1  # the label that each suspect has
    assert "suspects" not in json.loads(run_cli("knn", path, "-k", "5", "--json")[1])
    assert len(json.loads(run_cli("knn", path, "-k", "5", "--suspects", "--json")[1])["suspects"]) == 2


def test_settings_are_chosen_without_the_queries(make_embeddings):
    classes = "aabbbccc" * 6
    bank = make_embeddings("bank", clouds(classes, 1), classes)
    queries = [make_embeddings(f"queries{i}", clouds(names, 2), names) for i, names in enumerate(
        ("abcabcab", "bcabcabc"))]  # the same vectors under other labels
    results = [knn_accuracy(KnnConfig(bank, one, k=(1, 5, 40), temperature=(0.05, 0.5), tune=True)) for one in queries]
    assert results[0].tuned == results[1].tuned
    assert results[0].protocol.digest == results[1].protocol.digest
    tuned = results[0].tuned
    assert len(results[0].scores) == 1
    assert (results[0].scores[0].asked_k, results[0].scores[0].temperature) == tuned.setting
    assert len(tuned.scores) == 6
    best = max(tuned.scores, key=lambda one: one["top1"])  # the first of the best
    assert (best["k"], best["T"]) == tuned.setting
    assert tuned.held_out == 10  # 2 of 12, 4 of 18, 4 of 18
    value = results[0].as_json()["protocol"]
    assert value["chosen"]["k"] == tuned.setting[0]
    assert value["at_edge"] == tuned.at_edge
    plain = knn_accuracy(KnnConfig(bank, queries[0], k=(tuned.setting[0],), temperature=(tuned.setting[1],)))
    assert plain.scores[0].top1 == results[0].scores[0].top1
    assert plain.protocol.digest != results[0].protocol.digest


def test_the_edge_of_the_grid_is_told(make_embeddings):
    classes = "ab" * 30
    config = KnnConfig(make_embeddings("bank", clouds(classes), classes), make_embeddings("q", clouds("ab", 1), "ab"),
                       k=(1, 2, 30), temperature=(0.1,), tune=True)
    result = knn_accuracy(config)
    assert result.tuned.at_edge == (result.tuned.setting[0] == 30)
    assert any("edge of the grid" in note for note in result.notes()) == result.tuned.at_edge


def test_tuning_that_makes_no_sense(make_embeddings):
    with pytest.raises(UsageError, match="--tune: without QUERIES"):
        KnnConfig("bank.h5", tune=True)
    query = make_embeddings("q", np.eye(2), "ab")
    with pytest.raises(CollectionError, match="single image"):
        knn_accuracy(KnnConfig(make_embeddings("bank", np.eye(2), "ab"), query, tune=True))
    with pytest.raises(CollectionError, match="too few to choose"):
        knn_accuracy(KnnConfig(make_embeddings("one", np.eye(2)[:1], "a"), query, tune=True))


# ------------------------------------------------------------------------------------------- through an index


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def bank_with_index(make_embeddings, tmp_path):
    """`bank_with_index(kind)`: embeddings with unlabelled rows, more than half of them, and their index."""
    def make(kind: str) -> tuple[str, str]:
        classes = "ab??c?d???" * 40
        path = make_embeddings("bank", unit(clouds(classes, 3)), classes, normalized=True)
        build_index(IndexConfig(path, output=str(tmp_path / "bank.faiss"), type=kind, allow_lower_recall=True))
        return path, str(tmp_path / "bank.faiss")

    return make


def accuracies(result) -> list[tuple]:
    return [(one.k, one.temperature, one.top1, one.top5) for one in result.scores]


@pytest.mark.parametrize("queries", [False, True])
def test_an_exact_index_gives_the_same(bank_with_index, make_embeddings, queries, tmp_path):
    path, index = bank_with_index("flat")
    other = make_embeddings("queries", unit(clouds("abcd" * 9, 5)), "abcd" * 9, normalized=True) if queries else None
    ks = (1, 20, 150, 500)
    exact, through = (knn_accuracy(KnnConfig(path, other, k=ks, temperature=(0.07,), device="cpu", index=one,
                                             baselines=False)) for one in (None, index))
    assert accuracies(exact) == accuracies(through)
    np.testing.assert_array_equal(exact.matrix, through.matrix)
    assert exact.protocol.digest == through.protocol.digest
    assert exact.notes() == through.notes()


def test_an_approximate_index_comes_near_and_every_query_has_k_neighbours(bank_with_index):
    path, index = bank_with_index("ivf-flat")
    exact, through = (knn_accuracy(KnnConfig(path, k=(5, 159), temperature=(0.1,), device="cpu", index=one,
                                             baselines=False)) for one in (None, index))
    assert [one.k for one in through.scores] == [5, 159]
    for one, other in zip(exact.scores, through.scores):
        assert abs(one.top1 - other.top1) <= 10
    assert exact.scores[1].top1 == through.scores[1].top1  # all that can vote
    (told,) = [note for note in through.notes() if "by the index" in note]
    assert told.startswith("neighbours by the index: ivf-flat index, recall@10 ")
    assert exact.protocol.digest != through.protocol.digest


def test_an_index_of_other_rows_or_of_distances_is_refused(bank_with_index, make_embeddings, tmp_path):
    path, index = bank_with_index("flat")
    other = make_embeddings("other", unit(clouds("ab" * 9)), "ab" * 9, normalized=True)
    with pytest.raises(MismatchError, match=r"is the index of .*, not of .*other"):
        knn_accuracy(KnnConfig(other, k=(1,), index=index, device="cpu", baselines=False))
    with pytest.raises(UsageError, match=r"--index absent.faiss: is not a file"):
        knn_accuracy(KnnConfig(path, k=(1,), index="absent.faiss", device="cpu", baselines=False))
    far = make_embeddings("far", clouds("ab" * 9), "ab" * 9)
    build_index(IndexConfig(far, output=str(tmp_path / "far.faiss")))
    with pytest.raises(UsageError, match="goes by distance, not by cosine"):
        knn_accuracy(KnnConfig(far, k=(1,), index=str(tmp_path / "far.faiss"), device="cpu", baselines=False))


# ------------------------------------------------------------------------------------------------- few labels


def test_few_labels_are_balanced_and_repeated(make_embeddings):
    """Each seed lets two of each class vote on all others; the mean of the seeds has Student's interval."""
    classes = "aaaaabbbbbbbccc"
    vectors = clouds(classes, 4)
    path = make_embeddings("bank", vectors, classes)
    result = knn_accuracy(KnnConfig(path, k=(1, 3), labels="2-per-class", seeds=3))
    assert [(one["seed"], one["bank"], one["queries"]) for one in result.repeats] == [(0, 6, 9), (1, 6, 9), (2, 6, 9)]
    chosen = [few_of_each(list(classes), np.arange(15), "2-per-class", seed) for seed in range(3)]
    for place, k in enumerate((1, 3)):
        expected = [top1_by_loops(vectors[~one], np.array(list(classes))[~one], vectors[one],
                                  np.array(list(classes))[one].tolist(), k, 0.1) for one in chosen]
        assert [one["results"][place]["top1"] for one in result.repeats] == pytest.approx(expected)
        assert result.scores[place].top1 == pytest.approx(np.mean(expected))
        assert result.scores[place].values["top1"].n == 3
    value = result.as_json()
    assert (value["protocol"]["settings"]["labels"], value["protocol"]["settings"]["seeds"]) == ("2-per-class", 3)
    assert "15 images" not in result.summary()
    assert "--labels 2-per-class, mean of 3 seeds" in result.summary()
    queries = make_embeddings("queries", clouds("abcabc", 5), "abcabc")
    on_both = knn_accuracy(KnnConfig(path, queries, k=(1,), labels="50%", seeds=2))
    assert [(one["bank"], one["queries"]) for one in on_both.repeats] == [(2 + 4 + 2, 6)] * 2


def test_labels_that_leave_nothing(make_embeddings):
    path = make_embeddings("bank", clouds("aaabbb"), "aaabbb")
    with pytest.raises(CollectionError, match="no image is left to classify"):
        knn_accuracy(KnnConfig(path, labels="100%"))
    with pytest.raises(CollectionError, match="--labels 9-per-class: class 'a' has 3 different images"):
        knn_accuracy(KnnConfig(path, labels="9-per-class"))
    with pytest.raises(UsageError, match="must be a share such as 1%"):
        knn_accuracy(KnnConfig(path, labels="few"))
    with pytest.raises(UsageError, match="--tune: not with --labels"):
        KnnConfig(path, path, labels="1%", tune=True)
    with pytest.raises(UsageError, match="--seeds 0"):
        KnnConfig(path, labels="1%", seeds=0)
    with pytest.raises(CollectionError, match="has one class, 'a'; kNN accuracy needs two or more"):
        knn_accuracy(KnnConfig(make_embeddings("one", np.eye(3), "aaa")))


def test_no_class_on_both_sides_is_refused_and_shares_that_are_rounded_up_are_told(make_embeddings):
    bank, other = make_embeddings("bank", np.eye(4), "aabb"), make_embeddings("other", np.eye(4), "ccdd")
    with pytest.raises(CollectionError, match=r"No class of .*other.* is in .*bank.*: 'c' there, 'a' here"):
        knn_accuracy(KnnConfig(bank=bank, queries=other))
    notes = knn_accuracy(KnnConfig(bank, make_embeddings("some", np.eye(4), "acbc"), k=(1,), baselines=False)).notes()
    assert "1 class is only in the queries (counted as wrong): c" in notes
    rounded = knn_accuracy(KnnConfig(bank=bank, labels="1%", baselines=False)).notes()
    assert any("2 of 2 classes have less than one image by that share" in text for text in rounded)
    assert not any("by that share" in text for text in
                   knn_accuracy(KnnConfig(bank=bank, labels="50%", baselines=False)).notes())
