"""Retrieval measures against loops and scikit-learn; pairs, copies and bad input; and `mocoembed retrieval`."""

import json
import math
import shutil
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mocoembed.config import EmbedConfig, RetrievalConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.evaluate.retrieval import measure as retrieval
from mocoembed.evaluate.retrieval import ranked
from mocoembed.evaluate.retrieval.measure import measure_retrieval

AT = (1, 3, 10)


def clouds(classes: str, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = {name: np.random.default_rng(ord(name)).standard_normal(6) for name in sorted(set(classes))}
    return np.stack([centres[name] + noise * random.standard_normal(6) for name in classes])


def by_loops(relevant: list[bool]) -> dict[str, float]:
    """Every measure of one ranking, as the definitions say it."""
    total = sum(relevant)
    precision = [sum(relevant[:i + 1]) / (i + 1) for i in range(len(relevant))]
    found = {"map": sum(p for p, one in zip(precision, relevant) if one) / total,
             "map_at_r": sum(p for p, one in list(zip(precision, relevant))[:total] if one) / total,
             "r_precision": sum(relevant[:total]) / total}
    for k in AT:
        hits, summed = sum(relevant[:k]), sum(p for p, one in list(zip(precision, relevant))[:k] if one)
        found[f"precision_at_{k}_over_k"] = hits / k
        found[f"recall_at_{k}_over_r"] = hits / total
        found[f"hit_at_{k}"] = float(hits > 0)
        found[f"ap_at_{k}_over_r"] = summed / total
        found[f"ap_at_{k}_over_min_r_k"] = summed / min(total, k)
        found[f"ap_at_{k}_over_hits"] = summed / hits if hits else 0.0
    return found


def revisitops(ranks: list[int], total: int) -> float:
    """`compute_ap` of revisitop's evaluate.py: ranks of what is relevant, from 0."""
    ap = 0.0
    for j, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else j / rank
        ap += (before + (j + 1) / (rank + 1)) / total / 2
    return ap


def rankings_by_loops(vectors, names, bank, bank_names, leave_one_out):
    """For each query, whether each image of its ranking is relevant."""
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (vectors, bank)]
    for i, query in enumerate(unit[0]):
        rows = [j for j in range(len(bank)) if not (leave_one_out and i == j)]
        rows.sort(key=lambda j: -(query @ unit[1][j]))
        yield [bank_names[j] == names[i] for j in rows]


def test_two_files_against_loops_and_scikit_learn(make_embeddings, monkeypatch):
    bank_names, names = "aabbbccdddd" * 2, "bdbcadbe"
    bank, vectors = clouds(bank_names), clouds(names, 1)
    files = {"bank": make_embeddings("bank", bank, bank_names), "queries": make_embeddings("queries", vectors, names)}
    whole = measure_retrieval(RetrievalConfig(**files, at=AT))
    monkeypatch.setattr(retrieval, "ELEMENTS", 50)  # two queries at a time
    result = measure_retrieval(RetrievalConfig(**files, at=AT))
    assert result.values == whole.values
    # rows of the files are sorted by class
    rankings = [one for one in rankings_by_loops(vectors, names, bank, bank_names, False) if any(one)]
    expected = [by_loops(one) for one in rankings]
    assert len(expected) == 7  # nothing to find for e
    assert result.nothing_to_find == 1
    for name, value in result.values.items():
        assert value.value == pytest.approx(100 * np.mean([one[name] for one in expected]), abs=1e-10), name
        assert value.n == 7
    scikit = [average_precision_score(one, -np.arange(len(one))) for one in rankings]
    assert result.values["map"].value == pytest.approx(100 * np.mean(scikit), abs=1e-10)
    assert any("1 queries have nothing" in note for note in result.notes())
    assert {name: one["count"] for name, one in result.per_class.items()} == {"a": 1, "b": 3, "c": 1, "d": 2}


def test_one_file_never_finds_the_query_itself(make_embeddings):
    names = "aabbbb?ccc"
    vectors = clouds(names, 3)
    result = measure_retrieval(RetrievalConfig(bank=make_embeddings("bank", vectors, names), at=AT))
    known = [i for i, name in enumerate(names) if name != "?"]
    labels = [names[i] for i in known]
    expected = [by_loops(one) for one in rankings_by_loops(vectors[known], labels, vectors[known], labels, True)]
    for name, value in result.values.items():
        assert value.value == pytest.approx(100 * np.mean([one[name] for one in expected]), abs=1e-10), name
    assert "skipped 1 row of the bank" in result.notes()[0]


@pytest.mark.parametrize("levels", [2, 4, 50])
def test_equal_similarities_are_one_step_as_in_scikit_learn(levels):
    random = np.random.default_rng(levels)
    similarities = random.integers(0, levels, (40, 30)) / levels
    relevant = random.random((40, 30)) < 0.3
    relevant[:, 3] = True
    found = ranked.measures_of(ranked.places_of(similarities, relevant), (5,), "steps")
    expected = [average_precision_score(*one) for one in zip(relevant, similarities)]
    assert found["map"] == pytest.approx(expected, abs=1e-12)
    order = [sorted(range(30), key=lambda j: (-row[j], j)) for row in similarities]  # all others: the lower row
    assert found["precision_at_5_over_k"] == pytest.approx(
        [relevant[i, one[:5]].mean() for i, one in enumerate(order)])


def test_revisitops_definition():
    random = np.random.default_rng(0)
    relevant = random.random((30, 25)) < 0.2
    relevant[:, 7] = True
    relevant[0], relevant[1] = False, False
    relevant[0, 0] = relevant[1, -1] = True
    places = ranked.places_of(np.tile(np.arange(25, 0, -1), (30, 1)), relevant)
    found = ranked.measures_of(places, (5, 20), "revisitop")
    for i, row in enumerate(relevant):
        ranks = np.flatnonzero(row)
        assert found["map"][i] == pytest.approx(revisitops(ranks.tolist(), len(ranks)), abs=1e-12)
        for k in (5, 20):
            least = min(ranks.max() + 1, k)
            assert found[f"precision_at_{k}_over_min_k_last"][i] == pytest.approx((ranks < least).sum() / least)


@pytest.mark.parametrize(("total", "size"), [(1, 1), (1, 6), (2, 5), (3, 6), (5, 6), (6, 6)])
def test_chance_is_the_mean_over_all_orders(total, size):
    orders = set(permutations([True] * total + [False] * (size - total)))
    expected = [by_loops(list(order)) for order in orders]
    found = ranked.chance(np.array([total]), np.array([size]), AT, "steps")
    assert set(expected[0]) - set(found) == {f"ap_at_{k}_over_hits" for k in AT}
    for name, value in found.items():
        mean = sum(Fraction(one[name]) for one in expected) / len(expected)
        assert value == pytest.approx(100 * float(mean), abs=1e-9), name


def test_a_collapsed_encoder_is_at_chance(make_embeddings):
    """All vectors equal: AP is what a random order gets (without the part of it that is luck), never what rows get."""
    result = measure_retrieval(RetrievalConfig(bank=make_embeddings("bank", np.ones((12, 3)), "aaaabbbbcccc")))
    assert result.values["map"].value == pytest.approx(100 * 3 / 11)


@pytest.fixture
def copies(tmp_path, fresh_workspace, make_images):
    """Embeddings of images where one of class red is there twice, the second time as blue."""
    folder = make_images(tmp_path / "photos", per_class=4)
    shutil.copy(folder / "red" / "000.png", folder / "blue" / "copy.png")
    embed_images(EmbedConfig(str(folder), workspace=str(fresh_workspace), output=str(tmp_path / "copies.h5"),
                             workers=0, device="cpu"))
    return tmp_path / "copies.h5"


def test_identical_images_are_told_and_can_be_left_out(copies, make_embeddings):
    result = measure_retrieval(RetrievalConfig(bank=str(copies)))
    assert (result.overlap.identical, result.overlap.bytes_known) == (2, True)
    assert "2 of the queries have the same bytes" in result.notes()[0]
    without = measure_retrieval(RetrievalConfig(bank=str(copies), exclude_identical=True))
    with EmbeddingFile(copies) as file:
        rows = file.embeddings().astype(float)
        names = [file.label_names[label] for label in file.labels()]
        digests = file.digest()
    expected = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if digests[j] != digests[i]]
        expected.append(average_precision_score([names[j] == names[i] for j in others],
                                                [round(row @ rows[j], 9) for j in others]))  # copies are equal
    assert without.values["map"].value == pytest.approx(100 * np.mean(expected))
    assert without.values["map"].value != result.values["map"].value
    assert without.protocol.digest != result.protocol.digest
    made_up = make_embeddings("made-up", np.eye(4), "aabb")
    with pytest.raises(UsageError, match=r"--exclude-identical: .*does not know the bytes"):
        measure_retrieval(RetrievalConfig(bank=made_up, exclude_identical=True))


def test_pairs_say_what_should_be_found(make_embeddings, tmp_path):
    vectors = clouds("aaaabbbb", 5)
    bank = make_embeddings("bank", vectors, "aaaabbb?")  # labels mean nothing here, and the unlabelled take part
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"match,query,junk\nb/0005.png,a/0000.png,\n?/0007.png,a/0000.png,0\na/0001.png,a/0000.png,1\n"
                     f"{tmp_path / 'bank-images' / 'a' / '0002.png'},b/0004.png,\n", encoding="utf-8")
    result = measure_retrieval(RetrievalConfig(bank=bank, pairs=str(pairs), at=AT))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    for query, matches, junk in ((0, {5, 7}, {1}), (4, {2}, set())):
        order = sorted(set(range(8)) - {query} - junk, key=lambda j: -(unit[query] @ unit[j]))
        expected.append(by_loops([j in matches for j in order]))
    for name, value in result.values.items():
        assert value.value == pytest.approx(100 * np.mean([one[name] for one in expected]), abs=1e-10), name
    assert result.nothing_to_find == 0
    assert result.summary().startswith("2 of 8 images, each among all the others; the pairs of a file")
    assert len(result.as_json()["outcomes"]["map"]) == 2


@pytest.mark.parametrize(("text", "said"), [
    ("a,b\n", "must name the columns query,match"), ("query\nx\n", "match is not there"),
    ("query,match\n", "has no pair"), ("query,match\na/0000.png,a/9999.png\n", "line 2: 'a/9999.png' is not an image"),
    ("query,match\na/0000.png\n", "line 2: None is not"),
    ("query,match,junk\na/0000.png,a/0001.png,maybe\n", "junk 'maybe' must be 0 or 1"),
    ("query,match,junk\na/0000.png,a/0001.png,1\na/0000.png,a/0001.png,0\n", "both a match and junk"),
    ("", "must name the columns")])
def test_pairs_that_cannot_be_read(make_embeddings, tmp_path, text, said):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(FormatError, match=said):
        measure_retrieval(RetrievalConfig(bank=make_embeddings("bank", np.eye(4), "aabb"),
                                          pairs=str(tmp_path / "pairs.csv")))


def test_what_cannot_be_measured(make_embeddings, tmp_path):
    bank = make_embeddings("bank", np.eye(4), "aabb")
    with pytest.raises(CollectionError, match="no two images have the same label"):
        measure_retrieval(RetrievalConfig(bank=make_embeddings("single", np.eye(3), "abc")))
    with pytest.raises(CollectionError, match="0 labelled images; retrieval needs 2"):
        measure_retrieval(RetrievalConfig(bank=make_embeddings("none", np.eye(2), "??")))
    with pytest.raises(CollectionError, match=r"no label of .* is in"):
        measure_retrieval(RetrievalConfig(bank=bank, queries=make_embeddings("others", np.eye(4), "cccd")))
    with pytest.raises(MismatchError, match="Different encoders"):
        measure_retrieval(RetrievalConfig(bank, make_embeddings("q", np.eye(4), "aabb", fingerprint="e" * 64)))
    with pytest.raises(FormatError, match="not finite"):
        measure_retrieval(RetrievalConfig(bank=make_embeddings("nan", [[1, math.nan], [0, 1]], "ab")))
    with pytest.raises(UsageError, match="does not exist"):
        measure_retrieval(RetrievalConfig(bank=bank, pairs=str(tmp_path / "nothing.csv")))
    (tmp_path / "self.csv").write_text("query,match\na/0000.png,a/0000.png\n")
    with pytest.raises(CollectionError, match="no query has anything"):
        measure_retrieval(RetrievalConfig(bank=bank, pairs=str(tmp_path / "self.csv")))
    with pytest.raises(UsageError, match="--at 0"):
        RetrievalConfig(at=(0,))
    with pytest.raises(UsageError, match="--definition trec"):
        RetrievalConfig(definition="trec")


def test_one_file_on_both_sides_is_said(make_embeddings):
    path = make_embeddings("bank", clouds("aabb"), "aabb")
    assert "finds itself" in measure_retrieval(RetrievalConfig(bank=path, queries=path)).notes()[0]


def test_command(workspace, run_cli):
    status, out, _ = run_cli("retrieval", "--workspace", workspace, "--at", "1,4", "--json")
    assert status == 0
    value = json.loads(out)
    assert (value["kind"], value["schema"], value["task"]) == ("mocoembed evaluation", 1, "retrieval")
    entry = value["results"][0]
    low, high = entry["map"]["ci95"]
    assert low <= entry["map"]["value"] <= high
    assert entry["map"]["n"] == 24
    assert entry["precision_at_4_over_k"]["chance"] == pytest.approx(100 * 7 / 23)
    assert np.mean(value["outcomes"]["map"]) == pytest.approx(entry["map"]["value"], abs=1e-5)
    status, out, _ = run_cli("retrieval", "--workspace", workspace)
    assert status == 0
    assert out.splitlines()[1].split()[:2] == ["mAP", f"{entry['map']['value']:.2f}"]
    assert "precision at 10, over k" in out
    status, out, err = run_cli("retrieval", "--workspace", workspace, "--at", "x")
    assert (status, out) == (2, "")
    assert "numbers" in err


def test_near_duplicates_across_a_split_are_counted(make_embeddings):
    """Five of the queries are images of the bank, slightly changed."""
    random = np.random.default_rng(0)
    names = "abcd" * 30
    bank = random.standard_normal((120, 32))
    vectors = random.standard_normal((20, 32))
    vectors[:5] = bank[:5] + 0.01 * random.standard_normal((5, 32))
    result = measure_retrieval(RetrievalConfig(make_embeddings("bank", bank, names),
                                               make_embeddings("queries", vectors, "abcd" * 5)))
    assert (result.overlap.identical, result.overlap.near, result.overlap.bytes_known) == (0, 5, False)
    assert result.as_json()["data"]["overlap"]["identical"] is None  # nobody knows the bytes
    assert any(note.startswith("5 of the queries are near-duplicates of an image of the bank")
               for note in result.notes())
