"""Filters and the choice of hits, against brute force over all rows; and their options on the command line."""

import json
import os
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mocoembed.config import EmbedConfig, IndexConfig, SearchConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, UsageError
from mocoembed.search import exact, ranking
from mocoembed.search.build import build_index
from mocoembed.search.exact import ExactRows
from mocoembed.search.filters import Filter
from mocoembed.search.index import SearchIndex
from mocoembed.search.query import Searcher, search_images
from mocoembed.search.ranking import Ranking, Wishes

ROWS, LENGTH = 2000, 16


def vectors_of(seed: int, count: int, normalized: bool) -> np.ndarray:
    """(count, 16) float32 about a few centres."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, LENGTH)) + 2 * random.normal(size=(7, LENGTH))[random.integers(0, 7, count)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalized else vectors).astype(np.float32)


@pytest.fixture(params=[True, False], ids=["cosine", "distance"])
def many_rows(request, make_embeddings):
    """(file, its index as a source of candidates) of 2,000 rows in three classes."""
    path = make_embeddings("many", vectors_of(0, ROWS, request.param), "abc" * (ROWS // 3) + "aa",
                           normalized=request.param)
    index = SearchIndex.open(build_index(IndexConfig(path)).path)
    with EmbeddingFile(path) as file:
        yield file, index.rows(file)


def brute_force(file, query, rows):
    """Rows, the nearest first, and their scores, in float64."""
    vectors, query = file.embeddings().astype(np.float64)[rows], query.astype(np.float64)
    scores = vectors @ query if file.normalized else -((vectors - query)**2).sum(axis=1)
    order = np.argsort(-scores, kind="stable")
    return np.asarray(rows)[order].tolist(), scores[order]


@pytest.mark.parametrize("count", [2000, 1000, 200, 20, 10, 2])
def test_filtered_hits_are_those_of_brute_force(many_rows, count, monkeypatch):
    """Through the index and without one, in blocks of 100 rows; k hits, or all that there are."""
    monkeypatch.setattr(exact, "BLOCK_ROWS", 100)
    file, index = many_rows
    selected = np.zeros(ROWS, bool)
    selected[np.random.default_rng(1).permutation(ROWS)[:count]] = True
    queries = vectors_of(2, 70, file.normalized)
    for source in (index, None):
        found = Ranking(file, source, Wishes(10, selected)).hits(queries)
        for query, hits in zip(queries, found):
            rows, scores = brute_force(file, query, np.flatnonzero(selected))
            assert [hit.row for hit in hits] == rows[:10]
            np.testing.assert_allclose([hit.score for hit in hits], scores[:10], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1999, 1900, 1000])
def test_rows_that_are_read_only_because_they_lie_between_others_do_not_count(many_rows, count, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_ROWS", 100)
    file, _ = many_rows
    selected = np.sort(np.random.default_rng(2).permutation(ROWS)[:count])
    others = np.setdiff1d(np.arange(ROWS), selected)
    queries = file.embeddings[others[:40]]  # the nearest of all are these themselves
    looked, exact_rows = [], ExactRows(file, selected)
    scores, found = exact_rows.nearest(queries, 10, lambda: looked.append(1))
    assert len(looked) == -(-count // 100)
    for query, its, its_scores in zip(queries, found, scores):
        rows, wanted = brute_force(file, query, selected)
        assert its.tolist() == rows[:10]
        np.testing.assert_allclose(its_scores, wanted[:10], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalized", [True, False], ids=["cosine", "distance"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_selected_may_hold_anything(make_embeddings, bad, normalized):
    """A vector that is not finite is an error where it is compared, and nothing where it lies between others."""
    vectors = vectors_of(0, 300, normalized)
    vectors[77] = bad
    with EmbeddingFile(make_embeddings("bad", vectors, "a" * 300, normalized=normalized)) as file:
        for selected in (np.delete(np.arange(300), 77), np.arange(0, 300, 10)):  # read in between, and picked around
            _, rows = ExactRows(file, selected).nearest(vectors[[0, 10]], 5)
            assert rows[:, 0].tolist() == [0, 10]
            assert 77 not in rows
        with pytest.raises(FormatError, match="not finite"):
            ExactRows(file, np.arange(60, 90)).nearest(vectors[:1], 5)


@pytest.mark.parametrize("queries", [2, 40])
@pytest.mark.parametrize("share", [1, 0.95, 0.5, 0.1])
def test_equal_scores_beyond_k_over_blocks_of_selected_rows(make_embeddings, monkeypatch, share, queries):
    """Many more equal scores than are kept, in every block, among rows that are picked or read with those between."""
    monkeypatch.setattr(exact, "BLOCK_ROWS", 97)
    random = np.random.default_rng(4)
    vectors = vectors_of(0, 3, True)[random.integers(0, 3, ROWS)]
    with EmbeddingFile(make_embeddings("few", vectors, "a" * ROWS, normalized=True)) as file:
        selected = np.flatnonzero(random.random(ROWS) < share)
        _, found = ExactRows(file, None if share == 1 else selected).nearest(vectors[:queries], 50)
        for query, rows in zip(vectors[:queries], found):
            order = np.argsort(-(vectors[selected] @ query).round(3), kind="stable")
            assert rows.tolist() == selected[order][:50].tolist()


def test_an_index_that_finds_all_is_all_that_is_asked(many_rows):
    file, index = many_rows
    selected = np.arange(ROWS) > 20
    (hits,) = Ranking(file, index, Wishes(10, selected), lambda rows: pytest.fail("asked")).hits(file.embeddings[[30]])
    assert len(hits) == 10


def test_equal_scores_go_to_the_lower_row(make_embeddings, monkeypatch):
    """Sixty equal vectors in each of five blocks, and a nearer one at the end."""
    monkeypatch.setattr(exact, "BLOCK_ROWS", 61)
    vectors = np.repeat(vectors_of(0, 1, True), 300, axis=0)
    vectors[299] = vectors_of(3, 1, True)
    with EmbeddingFile(make_embeddings("equal", vectors, "a" * 300, normalized=True)) as file:
        _, rows = ExactRows(file).nearest(vectors[[299, 0]], 5)
        assert rows.tolist() == [[299, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
        _, rows = ExactRows(file, np.array([7, 250])).nearest(vectors[:1], 5)
        assert rows.tolist() == [[7, 250]]
        assert ExactRows(file).nearest(vectors[:0], 5)[1].shape == (0, 5)


def test_least_scores_and_excluded_rows(many_rows):
    file, index = many_rows
    query = file.embeddings[[5]]
    rows, scores = brute_force(file, query[0], np.arange(ROWS))
    assert rows[0] == 5
    for source in (index, None):
        (hits,) = Ranking(file, source, Wishes(10)).hits(query, [np.array(rows[:3])])
        assert [hit.row for hit in hits] == rows[3:13]
        (hits,) = Ranking(file, source, Wishes(10, min_score=(scores[3] + scores[4]) / 2)).hits(query)
        assert [hit.row for hit in hits] == rows[:4]
        assert Ranking(file, source, Wishes(10, min_score=2.0)).hits(query) == [[]]


def test_unique_folds_copies(make_embeddings, monkeypatch):
    """Every tenth vector is one of 20, the others are copies of it: hits are distinct, as many as there are."""
    monkeypatch.setattr(ranking, "BLOCK", 7)
    base = vectors_of(0, 20, True)
    vectors = np.repeat(base, 10, axis=0)
    path = make_embeddings("copies", vectors, "a" * 200, normalized=True)
    index = SearchIndex.open(build_index(IndexConfig(path)).path)
    with EmbeddingFile(path) as file:
        for source in (index.rows(file), None):
            (hits,) = Ranking(file, source, Wishes(12, unique=0.9999)).hits(base[3:4])
            nearest = np.argsort(-(base @ base[3]))[:12]
            assert [hit.row // 10 for hit in hits] == nearest.tolist()
            assert [len(hit.folded) for hit in hits] == [9] * 12
            assert all({row // 10 for row in hit.folded} == {hit.row // 10} for hit in hits)
            assert all(hit.row not in hit.folded for hit in hits)
            (hits,) = Ranking(file, source, Wishes(50, unique=0.9999)).hits(base[3:4])
            assert len(hits) == 20
            assert sum(len(hit.folded) for hit in hits) == 180


def test_diverse_hits_are_those_of_the_paper(many_rows):
    """Maximal marginal relevance by loops, with the cosine."""
    file, index = many_rows
    query = file.embeddings[7]
    vectors = file.embeddings().astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pool = brute_force(file, query, np.arange(ROWS))[0][:50]
    chosen: list[int] = []
    while len(chosen) < 10:
        chosen.append(max((row for row in pool if row not in chosen), key=lambda row: 0.5 * vectors[row] @ vectors[7]
                          - 0.5 * max((vectors[row] @ vectors[other] for other in chosen), default=-1)))
    (hits,) = Ranking(file, index, Wishes(10, diverse=True)).hits(query[None])
    assert [hit.row for hit in hits] == chosen


def test_labels_and_paths(make_embeddings):
    with EmbeddingFile(make_embeddings("few", vectors_of(0, 9, True), "aabbcc???", normalized=True)) as file:
        names = [os.path.basename(path) for path in file.paths()]

        def rows(*given) -> list[str]:
            return [name.decode()[3] for name, one in zip(names, Filter(*given).mask(file)) if one]

        assert rows(("a",)) == ["0", "1"]
        assert rows(("a", "c")) == ["0", "1", "4", "5"]
        assert sorted(rows((), ("a", "c"))) == ["2", "3", "6", "7", "8"]
        assert rows(("",)) == ["6", "7", "8"]  # those without a label
        assert sorted(rows(("", "b"))) == ["2", "3", "6", "7", "8"]
        assert sorted(rows((), ("", "a"))) == ["2", "3", "4", "5"]
        assert rows((), (), ("b",)) == rows((), (), ("b/*",)) == ["2", "3"]
        assert rows(("a", "b"), ("b",), ("*1.png", "0003.png")) == ["1"]
        for given, message in [((("d",),), r"--label 'd': 0 of 9 images match\. The collection has 4 labels, such as "
                                           r"'\?', 'a', "),
                               (((), ("B",)), r"--not-label 'B': 0 of 9 images match\. The nearest labels: 'b'\."),
                               (((), (), ("0005.jpg",)), r"--path '0005\.jpg': 0 of 9 .* nearest names: '0005\.png'"),
                               (((), (), ("b", "b/0002.pgn")), r"The nearest names: 'b/0002\.png'"),
                               ((("a",), (), ("b",)), r"together: 0 of 9 images match")]:
            with pytest.raises(UsageError, match=message):
                Filter(*given).mask(file)


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def odd_labels(fresh_workspace, images, tmp_path):
    """(workspace, folder) with labels and names that a careless filter would stumble over."""
    folder = tmp_path / "odd"
    for label, source in (("say \"hi\"", "red"), ("{a,b}", "green"), ("[x]*", "blue")):
        shutil.copytree(images / source, folder / label)
    with open(os.path.join(os.fsencode(folder), b"{a,b}", b"caf\xe9.png"), "wb") as file:
        file.write((images / "red" / "000.png").read_bytes())
    embed_images(EmbedConfig(str(folder), workspace=str(fresh_workspace), workers=0, device="cpu", fresh=True))
    return fresh_workspace, folder


def test_odd_labels_and_names(odd_labels):
    workspace, folder = odd_labels

    def found(**more) -> list[str]:
        config = SearchConfig(row=(0,), workspace=str(workspace), k=99, device="cpu", **more)
        return sorted(os.path.relpath(hit.path, folder) for hit in search_images(config)[0].hits)

    for label in ('say "hi"', "{a,b}", "[x]*"):
        assert found(label=(label,)) == sorted(f"{label}/{name}" for name in os.listdir(folder / label))
    assert found(path=(os.fsdecode(b"caf\xe9.png"),)) == [os.fsdecode(b"{a,b}/caf\xe9.png")]
    assert found(path=("[[]x]*/000.png",)) == ["[x]*/000.png"]
    assert len(found(not_label=("{a,b}", "[x]*"))) == 8


def run(run_cli, workspace, *arguments):
    status, out, err = run_cli("search", *arguments, "--workspace", workspace, "--format", "json", "--device", "cpu")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_command_filters_with_and_without_an_index(indexed_workspace, workspace, images, run_cli):
    for place in (indexed_workspace, workspace):
        (found,) = run(run_cli, place, images / "red" / "000.png", "--label", "blue", "--label", "green",
                       "--path", "*.jpg", "-k", 5)
        assert len(found["hits"]) == 5
        assert all(hit["label"] in ("blue", "green") and hit["path"].endswith(".jpg") for hit in found["hits"])
        assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]
        with EmbeddingFile(pathlib.Path(place) / "embeddings.h5") as file:
            assert [int(hit["id"]) for hit in found["hits"]] == [file.ids[hit["row"]] for hit in found["hits"]]
        (found,) = run(run_cli, place, images / "red" / "000.png", "--min-score", "0.9999", "-k", 5)
        assert [hit["row"] for hit in found["hits"]] == [16]
    results = [run(run_cli, place, images / "red", "-k", 24) for place in (indexed_workspace, workspace)]
    assert [[hit["row"] for hit in one["hits"]] for one in results[0]] == [
        [hit["row"] for hit in one["hits"]] for one in results[1]]


def test_command_queries(indexed_workspace, images, run_cli, tmp_path, monkeypatch):
    """A folder; rows without an encoder; several together; unlike; itself left out; a region."""
    folder = run(run_cli, indexed_workspace, images / "red", "-k", 1)
    assert [one["hits"][0]["path"] for one in folder] == [one["query"] for one in folder]
    assert [one["query"] for one in folder] == sorted(map(str, (images / "red").iterdir()))
    alone = shutil.copytree(indexed_workspace, tmp_path / "alone")
    shutil.rmtree(alone / "encoders")
    (alone / "encoder.safetensors").unlink()
    rows = run(run_cli, alone, "--row", 16, "--row", 3, "-k", 2)
    assert [one["hits"][0]["row"] for one in rows] == [16, 3]
    by_file = run(run_cli, indexed_workspace, images / "red" / "000.png", "-k", 2)[0]
    assert by_file["query"] == rows[0]["query"]
    assert [hit["row"] for hit in by_file["hits"]] == [hit["row"] for hit in rows[0]["hits"]]
    without = run(run_cli, indexed_workspace, images / "red" / "000.png", "--row", 16, "--exclude-self", "-k", 1)
    assert [one["hits"][0]["row"] for one in without] == [rows[0]["hits"][1]["row"]] * 2
    with EmbeddingFile(indexed_workspace / "embeddings.h5") as file:
        vectors = file.embeddings().astype(np.float64)
    (together,) = run(run_cli, indexed_workspace, images / "red" / "000.png", "--row", 3, "--together", "-k", 24)
    assert together["query"] == f"{images / 'red' / '000.png'} and 1 more"
    mean = (vectors[16] + vectors[3]) / np.linalg.norm(vectors[16] + vectors[3])
    np.testing.assert_allclose([hit["score"] for hit in together["hits"]], np.sort(vectors @ mean)[::-1], atol=1e-5)
    (unlike,) = run(run_cli, indexed_workspace, "--row", 16, "--unlike", images / "blue" / "000.png", "-k", 24)
    rest = (vectors[16] - vectors[0]) / np.linalg.norm(vectors[16] - vectors[0])
    np.testing.assert_allclose([hit["score"] for hit in unlike["hits"]], np.sort(vectors @ rest)[::-1], atol=1e-4)


def test_command_takes_a_region(indexed_workspace, images, run_cli, tmp_path):
    wide = Image.new("RGB", (200, 100), "white")
    with Image.open(images / "red" / "000.png") as image:
        wide.paste(image, (30, 20))
        region = f"30,20,{image.width},{image.height}"
    wide.save(tmp_path / "wide.png")
    (found,) = run(run_cli, indexed_workspace, tmp_path / "wide.png", "--crop", region, "-k", 1)
    assert found["hits"][0]["path"] == str(images / "red" / "000.png")
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_command_reads_standard_input(indexed_workspace, images, run_cli, monkeypatch):
    with open(images / "red" / "000.png") as file:
        monkeypatch.setattr("sys.stdin", file)
        (found,) = run(run_cli, indexed_workspace, "-", "-k", 1)
    assert (found["query"], found["hits"][0]["path"]) == ("-", str(images / "red" / "000.png"))
    with open(os.devnull) as file:
        monkeypatch.setattr("sys.stdin", file)
        status, out, err = run_cli("search", "-", "--workspace", indexed_workspace)
    assert (status, out) == (1, "")
    assert err == "mocoembed: The image on standard input cannot be read: the file is empty\n"


def test_command_streams(indexed_workspace, images, run_cli, monkeypatch):
    """JSON, CSV, table and paths are the same in batches of five; what was found before a bad query is printed."""
    texts = {form: run_cli("search", images, "-k", 2, "--workspace", indexed_workspace, "--format", form)[1]
             for form in ("json", "csv", "table", "paths")}
    monkeypatch.setattr("mocoembed.search.query.BATCH", 5)
    for form, text in texts.items():
        assert run_cli("search", images, "-k", 2, "--workspace", indexed_workspace, "--format", form)[1] == text
    lines = run_cli("search", images, "-k", 2, "--workspace", indexed_workspace, "--format", "csv", "--unique",
                    "--min-score", 0.99)[1].splitlines()
    assert [line for line in lines if line.startswith("query,")] == [lines[0]] == [
        "query,rank,score,path,label,row,folded"]
    assert json.dumps(json.loads(texts["json"]), indent=2) + "\n" == texts["json"]


@pytest.mark.parametrize(("arguments", "status", "message"), [
    (("IMAGE", "--label", "redd"), 2, "--label 'redd': 0 of 24 images match. The nearest labels: 'red'."),
    (("IMAGE", "--path", "/red"), 2, "--path '/red': must be"),
    (("IMAGE", "--path", "nothing*"), 2, "--path 'nothing*': 0 of 24 images match"),
    (("--row", "24"), 2, "--row 24: "), (("--row", "-1"), 2, "--row -1: must be 0 or more."),
    (("--row", "x"), 2, "'x' is not a valid integer"), (("IMAGE", "--min-score", "nan"), 2, "must be a number"),
    (("IMAGE", "--crop", "0,0,5"), 2, "--crop 0,0,5: must be four numbers X,Y,WIDTH,HEIGHT"),
    (("IMAGE", "--crop", "0,0,0,5"), 2, "--crop 0,0,0,5"), (("--row", "1", "--crop", "0,0,5,5"), 2, "with an IMAGE"),
    (("IMAGE", "--crop", "30,30,30,30"), 2, "and the region must lie inside it"),
    (("IMAGE", "--unlike", "absent.png"), 2,
     "'absent.png' does not exist. Give one or more: mocoembed search IMAGE --unlike FILE"),
    (("IMAGE", "--unlike", "IMAGE"), 2, "have the same vector"),
    (("-", "-"), 2, "can be given once"), (("-", "--unlike", "-"), 2, "can be given once"),
    (("IMAGE", "--index", "absent.faiss"), 2, "absent.faiss")])
def test_command_with_wrong_input(indexed_workspace, images, run_cli, arguments, status, message):
    arguments = [images / "red" / "000.png" if argument == "IMAGE" else argument for argument in arguments]
    found, out, err = run_cli("search", *arguments, "--workspace", indexed_workspace)
    assert (found, out) == (status, "")
    assert message in err
    assert len(err.splitlines()) == 1 or "Usage" in err


def test_without_an_index_a_large_collection_is_refused(workspace, images, monkeypatch, run_cli):
    monkeypatch.setattr(exact, "PAYS", 1000)
    status, out, err = run_cli("search", "--row", 1, "--workspace", workspace)
    assert status == 0
    assert err == (f"no index: compared with all 24 images; `mocoembed index {workspace / 'embeddings.h5'}` makes "
                   "this faster\n")
    monkeypatch.setattr(exact, "LARGEST", 1000)
    status, out, err = run_cli("search", "--row", 1, "--workspace", workspace)
    assert (status, out) == (2, "")
    assert "has no index" in err
    assert f"mocoembed index {workspace / 'embeddings.h5'}" in err


# ----------------------------------------------------------------------------------------------- from Python


def test_searcher_takes_paths_bytes_images_arrays_and_vectors(indexed_workspace, images):
    path = images / "red" / "000.png"
    with Searcher.open(indexed_workspace, "cpu") as searcher, Image.open(path) as image:
        pixels, vector = np.asarray(image), searcher.file.embeddings[16]
        data = path.read_bytes()
        for query in (path, str(path), data, bytearray(data), memoryview(data), image, pixels, vector):
            hits = searcher.search(query, 3)
            assert [hit.row for hit in hits] == [hit.row for hit in searcher.search(path, 3)]
            assert hits[0].score == pytest.approx(1, abs=1e-5)
        for several in ([path, vector, pixels], np.stack([vector] * 2), np.stack([pixels] * 2)):
            assert [hits[0].row for hits in searcher.search(several, 1)] == [16] * len(several)
        assert searcher.search([]) == []
        gray = pixels[:, :, 1]
        assert searcher.search(gray, 5) == searcher.search(Image.fromarray(gray), 5)
        chosen = searcher.search(path, 4, Filter(not_labels=("red",)), unique=True, diverse=True)
        assert [hit.label == "red" for hit in chosen] == [False] * 4
        assert searcher.search(path, min_score=2) == []
        assert searcher.search(path, 4, Filter("red")) == searcher.search(path, 4, Filter(labels=("red",)))
        for query, error, message in [(7, UsageError, "but of type int"), ([7], UsageError, "but of type int"),
                                      (vector[:5], UsageError, "A vector of 5 numbers; .* have 64"),
                                      (b"no image", CollectionError, "image of query 0 cannot be read"),
                                      ("absent.png", CollectionError, "'absent.png' cannot be read"),
                                      (pixels.astype(float), UsageError, "an array of float64 and shape")]:
            with pytest.raises(error, match=message):
                searcher.search(query)
        with pytest.raises(UsageError, match="k 0: must be a whole number"):
            searcher.search(vector, 0)
    with pytest.raises(UsageError, match="This searcher is closed"):
        searcher.search(vector)


def test_vectors_are_scaled_to_the_length_of_the_collections(indexed_workspace, make_embeddings):
    with Searcher.open(indexed_workspace, encoder=False) as searcher:
        vector = searcher.file.embeddings()[5]
        for factor in (2, 0.5, 1e-8, 1e20):
            hits = searcher.search(factor * vector, 4, min_score=0.5)
            assert [(hit.row, round(hit.score, 5)) for hit in hits] == [
                (hit.row, round(hit.score, 5)) for hit in searcher.search(vector, 4)]
        with pytest.raises(UsageError, match="length 0"):
            searcher.search(0 * vector)
        for value in (np.nan, np.inf):
            with pytest.raises(FormatError, match="a number that is not finite"):
                searcher.search(np.full_like(vector, value))
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    path = make_embeddings("lengths", vectors, "abc" * 10, normalized=False)
    with Searcher(SearchConfig(("-",), embeddings=str(path)), encoder=False) as searcher:
        far = searcher.search(100 * vectors[3], 1)[0]
        assert far.score < -1000  # other lengths are other vectors there


def test_searcher_in_several_threads(indexed_workspace, images):
    paths = sorted(images.rglob("*.*"))
    with Searcher.open(indexed_workspace / "embeddings.faiss", "cpu") as searcher, ThreadPoolExecutor(4) as threads:
        alone = [searcher.search(path, 5, Filter(labels=("red",))) for path in paths]
        assert list(threads.map(lambda path: searcher.search(path, 5, Filter(labels=("red",))), paths)) == alone


def test_searcher_without_an_encoder(indexed_workspace, images, tmp_path):
    place = shutil.copytree(indexed_workspace, tmp_path / "alone")
    shutil.rmtree(place / "encoders")
    (place / "encoder.safetensors").unlink()
    with Searcher.open(place, encoder=False) as searcher:
        assert searcher.search(searcher.file.embeddings[3], 1)[0].row == 3
        with pytest.raises(UsageError, match="opened without an encoder"):
            searcher.search(images / "red" / "000.png")


def test_the_example_in_the_docs(indexed_workspace, images, capsys):
    text = (pathlib.Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    example = text[text.index("## Searching"):].split("```")[1].removeprefix("python")
    for said, here in (("mocoembed-workspace", indexed_workspace), ("photos/cats/1.jpg", images / "red" / "001.jpg"),
                       ('"cats"', '"red"')):
        example = example.replace(said, str(here))
    exec(compile(example, "python.md", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1 1.0 red {images / 'red' / '001.jpg'}"
    assert lines[5] == str(images / "red" / "001.jpg")
    assert len(lines) == 9


def test_no_hits_are_told_in_a_table(indexed_workspace, images, run_cli):
    query = images / "red" / "000.png"
    call = ("search", query, "--workspace", indexed_workspace, "--min-score", "1.5")
    assert run_cli(*call) == (0, f"{query}\nno hits\n", "")
    assert run_cli(*call, "--format", "paths") == (0, "", "")


def test_no_cosine_is_above_one(indexed_workspace):
    """Whatever rounding makes of a vector's product with itself."""
    with Searcher.open(indexed_workspace, encoder=False) as searcher:
        vectors = searcher.file.embeddings() * np.float32(1.00001)
        scores = [hits[0].score for hits in searcher.search(vectors, 1)]
    assert scores == [1.0] * len(vectors)


@pytest.mark.parametrize(("wishes", "said"), [
    ({"k": 0}, "k 0: must be a whole number"), ({"k": 2.5}, r"k 2\.5: must be"), ({"k": "3"}, "k '3': must be"),
    ({"filter": "cats"}, r"filter 'cats': must be a mocoembed\.Filter"), ({"min_score": float("nan")}, "min_score nan"),
    ({"min_score": "0.5"}, r"min_score '0\.5'")])
def test_what_cannot_be_wished_for_is_refused(indexed_workspace, wishes, said):
    with Searcher.open(indexed_workspace, encoder=False) as searcher, pytest.raises(UsageError, match=said):
        searcher.search(searcher.file.embeddings[0], **wishes)
