"""Types of index on clustered vectors: what they find, tuning, memory, updates, filters; against brute force."""

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from functools import partial

import faiss
import killing
import numpy as np
import pytest

from mocoembed.config import IndexConfig
from mocoembed.embed import store
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, Interrupted, MocoembedError, UsageError
from mocoembed.search import build, faiss_index, faiss_parts, index_rows, kinds, ranking, tuning, update
from mocoembed.search import index as index_module
from mocoembed.search.build import build_index
from mocoembed.search.exact import ExactRows
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.index import SearchIndex, read_stamps
from mocoembed.search.index_rows import Effort, IndexRows
from mocoembed.search.kinds import KINDS, Plan, kind_of, lists_for
from mocoembed.search.ranking import Ranking, Wishes
from mocoembed.search.stamps import stamps_of, verified_stamps
from mocoembed.search.trailer import FOOTER, read_manifest

COUNT, LENGTH = 1500, 32
PARTIAL = ("rabitq", "ivf-sq8", "ivf-pq", "ivf-flat", "hnsw")


def clustered(seed: int, count: int = COUNT, normalized: bool = True) -> np.ndarray:
    """(count, 32) float32 about thirty centres."""
    centres, random = np.random.default_rng(9).normal(size=(30, LENGTH)), np.random.default_rng(seed)
    vectors = centres[random.integers(0, 30, count)] + 0.4 * random.normal(size=(count, LENGTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalized else vectors).astype(np.float32)


@pytest.fixture
def rows_file(make_embeddings) -> pathlib.Path:
    return pathlib.Path(make_embeddings("rows", clustered(0), "abc" * (COUNT // 3), normalized=True))


def recall_of(path, k: int = 10, queries=None, **wishes) -> float:
    """Share of the k nearest that a search through the index finds, by brute force."""
    queries = clustered(5, 80) if queries is None else queries
    index = SearchIndex.open(path)
    with EmbeddingFile(path.with_suffix(".h5")) as file:
        found = Ranking(file, index.rows(file), Wishes(k, **wishes)).hits(queries)
        selected = wishes.get("selected")
        right = ExactRows(file, None if selected is None else np.flatnonzero(selected)).nearest(queries, k)[1]
    assert all(len(hits) == right.shape[1] for hits in found)
    return float(np.mean([len({hit.row for hit in hits} & set(rows)) / len(rows)
                          for hits, rows in zip(found, right.tolist())]))


@pytest.mark.parametrize("normalized", [True, False], ids=["cosine", "distance"])
@pytest.mark.parametrize("name", PARTIAL)
def test_a_type_finds_what_it_promises(make_embeddings, name, normalized):
    vectors = clustered(0, normalized=normalized)
    path = pathlib.Path(make_embeddings("rows", vectors, "abc" * (COUNT // 3), normalized=normalized))
    notes: list[str] = []
    result = build_index(IndexConfig(str(path), type=name, recall=0.95), note=notes.append)
    assert notes[0].startswith(f"plan: {name}")
    assert "while building" in notes[0]
    manifest = read_manifest(result.path)
    assert (manifest["type"], manifest["count"], manifest["format"], manifest["measured_on"]) == (name, COUNT, 2, 300)
    assert manifest["recall_at_10"] >= 0.95
    assert manifest["metric"] == ("inner_product" if normalized else "l2")
    breadths = [point.get("nprobe", point.get("efSearch")) for point in manifest["curve"]]
    assert breadths == sorted(breadths)
    assert {point["batch"] for point in manifest["curve"]} == {1000}
    assert all({"recall_at_1", "recall_at_10", "latency_ms", "batch_latency_ms"} <= set(point)
               for point in manifest["curve"])
    assert {**manifest["parameters"]}.items() <= next(
        point for point in manifest["curve"] if point["recall_at_10"] == manifest["recall_at_10"]).items()
    queries = clustered(5, 80, normalized)
    for k, least in ((1, 0.9), (10, 0.93), (60, 0.9)):
        assert recall_of(result.path, k, queries) >= least
    with EmbeddingFile(path) as file:
        rows = SearchIndex.open(result.path).rows(file)
        scores, found = rows.nearest(queries, 10)
        expected = np.stack([file.embeddings()[its] @ query if normalized else
                             -((file.embeddings()[its] - query)**2).sum(axis=1) for query, its in zip(queries, found)])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)  # exact, whatever the codes are
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("normalized", [True, False], ids=["cosine", "distance"])
@pytest.mark.parametrize("change", ["in parts", "read"])
def test_a_batch_is_ranked_in_parts_or_from_rows_that_are_read_with_the_same_hits(make_embeddings, normalized, change,
                                                                                  monkeypatch):
    path = pathlib.Path(make_embeddings("rows", clustered(0, 60, normalized), "abc" * 20, normalized=normalized))
    index = SearchIndex.open(build_index(IndexConfig(str(path), type="ivf-sq8", recall=0.5)).path)
    queries = clustered(5, 80, normalized)
    with EmbeddingFile(path) as file:
        rows = IndexRows(index, file, Effort(1, 40))  # a list holds fewer, so some of the candidates are none
        scores, found = rows.nearest(queries, 20)
        assert (found < 0).any()
        if change == "in parts":
            monkeypatch.setattr(index_rows, "COMPARED", 7 * 40 * LENGTH * 4)  # seven queries
        else:
            monkeypatch.setattr(EmbeddingFile, "vectors_in_place", lambda self: None)
        again, its = rows.nearest(queries, 20)
    assert (its == found).all()
    assert (again == scores).all()


def test_the_rows_that_were_held_out_are_in_the_index(rows_file):
    """Each stored vector finds itself, in an index that looks at all of its lists."""
    index = SearchIndex.open(build_index(IndexConfig(str(rows_file), type="rabitq", recall=0.5)).path)
    with EmbeddingFile(rows_file) as file:
        rows = IndexRows(index, file, Effort(index.index.lists, 400))
        assert (rows.nearest(file.embeddings(), 1)[1][:, 0] == np.arange(COUNT)).all()
        assert np.sort(index.index.ids()).tolist() == np.sort(file.ids()).tolist()


def test_tuning_is_on_rows_that_the_index_has_not_seen(rows_file, monkeypatch):
    seen = []
    original = FaissIndex.add
    monkeypatch.setattr(FaissIndex, "add", lambda self, vectors, ids: (seen.append(len(ids)),
                                                                       original(self, vectors, ids)))
    measured = []
    monkeypatch.setattr(build, "curve", lambda index, *rest: (measured.append(len(index)), tuning.curve(index, *rest)
                                                              )[1])
    build_index(IndexConfig(str(rows_file), type="ivf-flat", recall=0.9))
    assert measured == [COUNT - 300]
    assert seen[-1] == 300


def test_a_recall_that_is_missed(rows_file, run_cli):
    """Nothing is written, and the status is 1; unless it is allowed."""
    output = rows_file.with_suffix(".faiss")
    factory = "PQ2x4"  # codes of one byte, nothing to tune but the candidates
    call = ("index", rows_file, "--type", factory, "--recall", "1")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(tuning, "CANDIDATES", (12,))
    try:
        status, out, err = run_cli(*call)
        assert (status, out) == (1, "")
        assert "reaches a recall@10 of 0." in err
        assert "--allow-lower-recall" in err
        assert not output.exists()
        assert run_cli(*call, "--allow-lower-recall")[0] == 0
        assert read_manifest(output)["recall_at_10"] < 0.9
    finally:
        monkey.undo()


def test_auto_is_flat_then_rabitq_then_flat_again(rows_file, make_embeddings, monkeypatch):
    assert build_index(IndexConfig(str(rows_file))).manifest["type"] == "flat"
    monkeypatch.setattr(build, "FLAT_BYTES", 1000)
    assert build_index(IndexConfig(str(rows_file), fresh=True)).manifest["type"] == "rabitq"
    noise = np.random.default_rng(0).normal(size=(COUNT, LENGTH)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    path = make_embeddings("noise", noise, "abc" * (COUNT // 3), normalized=True)
    monkeypatch.setattr(tuning, "CANDIDATES", (12,))  # too few for noise
    notes: list[str] = []
    assert build_index(IndexConfig(path), note=notes.append).manifest["type"] == "flat"
    assert any("rabitq does not reach a recall of 0.99" in note for note in notes)


def test_a_cap_of_memory_names_what_would_do(rows_file, run_cli, monkeypatch):
    monkeypatch.setattr(kinds, "WORKING_BYTES", 0)
    limit = Plan(KINDS["flat"], COUNT, LENGTH).peak + 1000
    status, _, err = run_cli("index", rows_file, "--type", "hnsw", "--memory", f"{limit / 1e6:.6f}MB")
    assert status == 1
    assert "needs" in err
    assert "use --type flat" in err
    assert "Traceback" not in err
    enough = ("--type", "flat", "--memory", f"{limit / 1e6:.6f}MB", "--recall", "0.9")
    assert run_cli("index", rows_file, *enough)[0] == 0
    status, _, err = run_cli("index", rows_file, "--memory", "2kB")
    assert status == 1
    assert "the smallest type needs" in err
    for wrong in ("much", "4", "0GB", "-1GB"):
        status, _, err = run_cli("index", rows_file, "--memory", wrong)
        assert status == 2
        assert "a size such as 4GB" in err


@pytest.mark.parametrize(("factory", "keeps"), [("IVF16,SQ8", True), ("HNSW16,Flat", False), ("SQ8", False),
                                                ("OPQ4_16,IVF16,PQ4", True), ("PCA16,SQ8", False), ("Flat", False)])
def test_factory_strings_of_faiss(rows_file, factory, keeps):
    result = build_index(IndexConfig(str(rows_file), type=factory, recall=0.8))
    assert result.manifest["type"] == {"Flat": "flat"}.get(factory, factory)
    assert ("stamps_bytes" in result.manifest) == keeps
    assert recall_of(result.path) >= 0.75


@pytest.mark.parametrize("factory", ["PCA8,IVF16,Flat", "PCA8,HNSW16,Flat", "OPQ4_16,IVF16,Flat"])
def test_scores_are_those_of_the_vectors_whatever_the_index_makes_of_them(rows_file, factory):
    """FAISS's own would be products of centred, shortened vectors."""
    index = SearchIndex.open(build_index(IndexConfig(str(rows_file), type=factory, recall=0.9)).path)
    with EmbeddingFile(rows_file) as file:
        scores, rows = index.rows(file).nearest(file.embeddings()[:100], 5)
        found = rows[:, 0] == np.arange(100)
        np.testing.assert_allclose(scores[found, 0], 1, atol=1e-6)
        expected = (file.embeddings()[rows] * file.embeddings()[:100, None]).sum(axis=2)
    assert found.mean() > 0.95
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_the_last_points_of_a_curve_have_more_candidates(rows_file, run_cli, monkeypatch):
    """What they bring is little where the breadth rises, and enough for a recall that is nearly all."""
    monkeypatch.setattr(tuning, "CANDIDATES", (12, 14, 400))
    monkeypatch.setattr(tuning, "WORTH", 1.0)
    manifest = build_index(IndexConfig(str(rows_file), type="ivf-pq", recall=0.999)).manifest
    counts = [point["candidates"] for point in manifest["curve"]]
    assert counts == sorted(counts)
    assert counts[-1] == 400
    assert manifest["parameters"]["candidates"] == 400
    assert manifest["recall_at_10"] >= 0.999
    assert run_cli("search", "--embeddings", rows_file, "--row", "1", "--recall", "0.999")[0] == 0


def test_a_lower_recall_says_what_is_kept(rows_file, run_cli):
    build_index(IndexConfig(str(rows_file), type="ivf-flat", recall=0.99))
    status, _, err = run_cli("index", rows_file, "--recall", "0.5")
    assert status == 0
    assert "the index was made for a recall of 0.99 and keeps it; --fresh builds it for 0.5" in err


def test_more_lists_than_vectors_to_learn_from_are_refused_before_the_work(rows_file, run_cli):
    status, out, err = run_cli("index", rows_file, "--type", "IVF1400,Flat")
    assert (status, out) == (2, "")
    assert f"1400 lists need as many vectors to learn from, and {rows_file} has 1200 beside those" in err
    assert "128 lists are usual for so many" in err
    assert "plan:" not in err


@pytest.mark.parametrize("factory", ["PQ4", "OPQ4_16,PQ4", "OPQ4_16,IVF16,PQ4", "IVF16,PQ4x4fs"])
def test_product_codes_are_trained_without_warnings_and_renumbering(factory, capfd):
    """FAISS has a line for every code and round of few vectors, and spends most of the time on what nothing uses."""
    index, before = FaissIndex.empty(LENGTH, factory), faiss.cvar.distance_compute_blas_threshold
    index.train(clustered(0))
    assert capfd.readouterr() == ("", "")
    inner = index._index
    while hasattr(inner, "index"):
        inner = faiss.downcast_index(inner.index)
    assert not getattr(inner, "do_polysemous_training", False)
    assert faiss.cvar.distance_compute_blas_threshold == before  # by which few numbers would be compared slowly
    index.add(clustered(0), np.arange(COUNT))
    nearest = index.search(clustered(0)[:100], 10, 16 if "IVF" in factory else 0)[1]
    assert np.mean([row in its for row, its in enumerate(nearest)]) > 0.5


@pytest.mark.parametrize("factory", ["IDMap,HNSW16,Flat", "HNSW8,SQ8", "PCA16,HNSW16,Flat"])
def test_a_graph_looks_among_more_candidates_for_its_links(factory):
    layers = [FaissIndex.empty(LENGTH, factory)._index]  # each belongs to the one before it
    while not isinstance(layers[-1], faiss.IndexHNSW):
        layers.append(faiss.downcast_index(layers[-1].index))
    assert layers[-1].hnsw.efConstruction == 80


@pytest.mark.parametrize("name", ["flat", *PARTIAL, "IVF64,PQ8", "PQ16", "HNSW16,SQ8", "PCA16,IVF32,SQ8", "OPQ4_16,PQ4",
                                  "IVF32,RaBitQ4", "IVF32,PQ16x4fs"])
def test_a_plan_knows_the_size_of_what_faiss_makes(name):
    """Of types that are ours and of factory strings alike."""
    plan, written = Plan(kind_of(name), 4000, LENGTH), []
    index = FaissIndex.empty(LENGTH, plan.factory)
    index.train(clustered(0))
    index.add(clustered(0, 4000), np.arange(4000))
    index.write(lambda data: written.append(len(data)) or len(data))
    assert plan.size - (1 << 16) == pytest.approx(sum(written) + 8 * 4000, rel=0.25)  # with stamps
    assert plan.size < plan.peak


def test_a_plan_counts_the_training_of_lists_and_codes(monkeypatch):
    monkeypatch.setattr(kinds, "_rate", lambda: 1e11)

    def seconds(name: str) -> float:
        return Plan(kind_of(name), 1_000_000, 256).seconds

    assert seconds("IVF4096,Flat") == pytest.approx(seconds("ivf-flat"))
    assert seconds("IVF65536,Flat") > 20 * seconds("IVF1024,Flat")
    assert seconds("IVF4096,PQ64") == pytest.approx(seconds("ivf-pq"))
    assert seconds("ivf-pq") > seconds("ivf-flat")
    assert seconds("OPQ64,IVF4096,PQ64") > 1.5 * seconds("ivf-pq")
    assert seconds("HNSW64,Flat") > seconds("hnsw") > 10 * seconds("flat")
    assert ", more than" in str(Plan(kind_of("LSQ8x8"), 1000, 256))  # how long that trains is not known


def test_a_factory_string_that_ranks_again_by_itself(rows_file, run_cli):
    status, out, err = run_cli("index", rows_file, "--type", "IVF16,PQ4,RFlat")
    assert (status, out) == (2, "")
    assert "Leave RFlat out" in err


@pytest.mark.parametrize("factory", ["IVFx,Flat", "IVF16,PQ7", "hnsw,Flat", ""])
def test_a_factory_string_that_faiss_refuses(rows_file, run_cli, factory):
    status, out, err = run_cli("index", rows_file, "--type", factory)
    assert (status, out) == (2, "")
    assert f"--type {factory}" in err
    assert "project/faiss" not in err
    assert len(err.splitlines()) <= 2


def changed_file(make_embeddings, vectors):
    """The same paths, so the same ids, with other vectors."""
    return pathlib.Path(make_embeddings("rows", vectors, ("abc" * (COUNT // 3))[:len(vectors)], normalized=True))


@pytest.mark.parametrize("name", ["rabitq", "ivf-sq8", "ivf-pq", "ivf-flat", "IVF64,SQ4"])
def test_an_index_is_updated_in_place(make_embeddings, name, monkeypatch, tmp_path):
    """Some added, some dropped, some changed: as if it had been built anew, and nothing was trained."""
    before, after = clustered(0), clustered(0)
    path = changed_file(make_embeddings, before[:1400])
    first = build_index(IndexConfig(str(path), type=name, recall=0.9))
    after[100:150] = clustered(3, 50)
    for row in range(20):  # dropped
        (tmp_path / "rows-images" / "abc"[row % 3] / f"{row:04d}.png").unlink()
    names = [(row, "abc"[row % 3]) for row in range(20, COUNT)]
    path = write_rows(tmp_path, names, after)
    monkeypatch.setattr(FaissIndex, "train", lambda *arguments: pytest.fail("trained again"))
    notes: list[str] = []
    result = build_index(IndexConfig(str(path), type=name, recall=0.9), note=notes.append)
    assert result.done == "updated"
    assert notes == ["updating: 100 added, 20 dropped, 50 changed"]
    assert result.manifest["count"] == COUNT - 20
    assert result.manifest["moved"] == 170
    assert result.manifest["measured_on"] == 100  # stored rows, on which the curve is measured anew
    curve = result.manifest["curve"]
    assert curve != first.manifest["curve"]
    assert {**result.manifest["parameters"]}.items() <= next(
        point for point in curve if point["recall_at_10"] == result.manifest["recall_at_10"]).items()
    assert curve[-1]["recall_at_10"] > 0.95
    assert recall_of(result.path) >= 0.88
    with EmbeddingFile(path) as file:
        search = SearchIndex.open(result.path, verify=True)
        assert np.sort(search.index.ids()).tolist() == np.sort(file.ids()).tolist()
        order = np.argsort(file.ids())
        assert (read_stamps(result.path, result.manifest) == stamps_of(file.embeddings())[order]).all()
        everything = IndexRows(search, file, Effort(search.index.lists, 400))
        assert (everything.nearest(file.embeddings(), 1)[1][:, 0] == np.arange(len(file))).mean() > 0.999
    again = build_index(IndexConfig(str(path), type=name, recall=0.9))
    assert again.done == "up to date"
    assert again.manifest == result.manifest


def write_rows(tmp_path, names, vectors) -> pathlib.Path:
    """`rows.h5` with exactly these (number, class) and their vectors."""
    from mocoembed.data.facts import FACTS
    from mocoembed.data.images import scan
    from mocoembed.embed.store_writer import Settings, write_embeddings

    folder = tmp_path / "rows-images"
    for row, label in names:
        (folder / label / f"{row:04d}.png").touch()
    listing = scan(folder)
    order = [int(listing.paths[row][-8:-4]) for row in range(len(listing))]
    settings = Settings({"fingerprint": "f" * 64, "provenance": {"recipe": "none"}}, "backbone", True, LENGTH, "fp32",
                        "parent")
    write_embeddings(tmp_path / "rows.h5", listing, settings, np.ones(len(listing), bool),
                     np.zeros(len(listing), FACTS), [vectors[order]], [])
    return tmp_path / "rows.h5"


@pytest.mark.parametrize(("case", "said"), [
    ("graph", "type hnsw cannot be updated"), ("third", "900 of 1500 rows have changed"),
    ("recall", "the recall has fallen"),
    ("target", "made for a recall of 0.8"), ("type", "the index is of type rabitq"),
    ("encoder", "the embeddings are of another encoder")])
def test_an_index_is_built_anew_where_it_must(make_embeddings, case, said, monkeypatch):
    name, describe = "hnsw" if case == "graph" else "rabitq", build._description
    build_index(IndexConfig(str(changed_file(make_embeddings, clustered(0))), type=name, recall=0.8))
    vectors = clustered(0)
    vectors[:900 if case == "third" else 100] = clustered(4, 900 if case == "third" else 100)
    path = changed_file(make_embeddings, vectors)
    if case == "recall":
        original = update.curve
        monkeypatch.setattr(update, "curve", lambda *rest: [{**one, "recall_at_10": 0.5} for one in original(*rest)])
    if case == "encoder":
        monkeypatch.setattr(build, "_description", lambda *rest: {**describe(*rest), "encoder": "e" * 64})
    notes: list[str] = []
    target, name = 0.9 if case == "target" else 0.8, "ivf-flat" if case == "type" else name
    result = build_index(IndexConfig(str(path), type=name, recall=target), note=notes.append)
    assert result.done == "built"
    assert said in notes[0]
    assert recall_of(result.path) >= 0.8


def test_an_update_searches_more_thoroughly_before_it_builds_anew(make_embeddings, monkeypatch):
    """The first breadth, from the old one on, whose new recall is not below the target; the target does not drift."""
    first = build_index(IndexConfig(str(changed_file(make_embeddings, clustered(0))), type="ivf-flat", recall=0.9))
    breadth, original, lost = first.manifest["parameters"]["nprobe"], update.curve, [0.03]

    def poorer(*rest):
        for point in original(*rest):
            found = 0.9 - lost[0] if point["nprobe"] == breadth else point["recall_at_10"]
            yield {**point, "recall_at_10": found, "recall_error": 0.02}

    monkeypatch.setattr(update, "curve", poorer)
    for seed, (lost[0], expected) in enumerate([(0.01, breadth), (0.03, 2 * breadth)], 7):
        vectors = clustered(0)
        vectors[:50] = clustered(seed, 50)
        result = build_index(IndexConfig(str(changed_file(make_embeddings, vectors)), type="ivf-flat", recall=0.9))
        assert (result.done, result.manifest["parameters"]["nprobe"]) == ("updated", expected)
        assert result.manifest["recall_floor"] == 0.9
    assert update._kept([{"nprobe": 1, "recall_at_10": 1.0, "recall_error": 0.0}], 8, 0.9)["nprobe"] == 1


@pytest.mark.parametrize("name", ["rabitq", "hnsw", "flat"])  # the first is updated, the others are built anew
def test_killed_at_any_operation_the_old_index_or_the_new_one_is_there(make_embeddings, tmp_path, name):
    path = changed_file(make_embeddings, clustered(0, 300))
    old = build_index(IndexConfig(str(path), type=name, recall=0.5))
    before, vectors = old.path.read_bytes(), clustered(0, 300)
    vectors[7] = clustered(4, 1)[0]
    changed_file(make_embeddings, vectors)
    for n in itertools.count(1):
        run = killing.Run(tmp_path / f"run-{n}", "index", path,
                          prepare=partial(killing.at_operation, n, killing.kill, ("write", "remove"))).go()
        if (status := run.wait()) == 0:
            break
        assert status == -signal.SIGKILL, run.stderr
        manifest = SearchIndex.open(old.path, verify=True).manifest
        assert old.path.read_bytes() == before or manifest["embeddings"] != old.manifest["embeddings"]
    assert n > 5
    assert f"{name} " in run.stdout
    assert SearchIndex.open(old.path, verify=True).manifest["embeddings"] != old.manifest["embeddings"]
    assert not list(old.path.parent.glob("*.tmp"))


@pytest.mark.parametrize("name", ["flat", *PARTIAL])
def test_an_index_is_made_again_as_it_was_asked_for(make_embeddings, name, run_cli):
    """Without options, by the type and the recall of the index that is there."""
    path = changed_file(make_embeddings, clustered(0))
    asked = ("index", path, "--type", name, "--recall", "0.9")
    assert "index: plan: " in run_cli(*asked)[2]
    code, out, err = run_cli("index", path)
    assert (code, err) == (0, "")
    assert f"up to date: {COUNT} vectors of dimension {LENGTH}, {name} " in out
    vectors = clustered(0)
    vectors[:900] = clustered(4, 900)
    changed_file(make_embeddings, vectors)
    code, out, err = run_cli("index", path)
    assert code == 0, err
    assert "index: building anew: " in err
    assert f"index: plan: {name}" in err
    manifest = read_manifest(path.with_suffix(".faiss"))
    assert (manifest["type"], manifest["recall_target"]) == (name, 0.9)
    assert run_cli("index", path, "--fresh")[0] == 0
    manifest = read_manifest(path.with_suffix(".faiss"))
    assert (manifest["type"], manifest["recall_target"]) == ("flat", 0.99)


def test_info_says_when_an_index_is_older_than_its_rows(make_embeddings, run_cli):
    path = changed_file(make_embeddings, clustered(0))
    index = build_index(IndexConfig(str(path), type="ivf-flat", recall=0.8)).path
    assert json.loads(run_cli("info", index, "--json")[1])["outdated"] is None
    changed_file(make_embeddings, clustered(4))
    assert f"{path} has other rows; update the index with: mocoembed index {path}" in run_cli("info", index)[1]
    path.unlink()
    assert f"{path} is not there" in run_cli("info", index)[1]


def test_a_signal_while_updating_leaves_the_old_index(make_embeddings, monkeypatch):
    result = build_index(IndexConfig(str(changed_file(make_embeddings, clustered(0))), type="rabitq", recall=0.8))
    before = result.path.read_bytes()
    vectors = clustered(0)
    vectors[:100] = clustered(4, 100)
    path = changed_file(make_embeddings, vectors)
    original = FaissIndex.add
    monkeypatch.setattr(FaissIndex, "add", lambda *arguments: (original(*arguments), os.kill(os.getpid(), 15)))
    with pytest.raises(Interrupted, match="the index is as it was"):
        build_index(IndexConfig(str(path), type="rabitq", recall=0.8))
    assert result.path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["flat", *PARTIAL])
def test_filters_keep_their_word(make_embeddings, name, monkeypatch):
    """k hits, with the recall of the unfiltered index, however few or far the selected ones are."""
    count = 10_000
    path = make_embeddings("many", clustered(0, count), "abcd" * (count // 4), normalized=True)
    result = build_index(IndexConfig(str(path), type=name, recall=0.97))
    random, queries = np.random.default_rng(1), clustered(5, 80)
    least = recall_of(result.path, 10, queries) - 0.02
    assert least > 0.9
    for exact_bytes in (ranking.EXACT_BYTES, 0):  # by the rows, and by the index where it can
        monkeypatch.setattr(ranking, "EXACT_BYTES", exact_bytes)
        for some in (count, count // 2, count // 10, count // 100, count // 1000, 3):
            selected = np.zeros(count, bool)
            selected[random.permutation(count)[:some]] = True
            assert recall_of(result.path, 10, queries, selected=selected) >= least
        with EmbeddingFile(path) as file:  # correlated: the far half of all
            far = file.embeddings() @ queries[0]
        assert recall_of(result.path, 10, queries[:1], selected=far < np.median(far)) >= 0.9


def test_more_hits_than_the_lists_hold(rows_file):
    path = build_index(IndexConfig(str(rows_file), type="ivf-flat", recall=0.6)).path
    assert recall_of(path, COUNT) == 1.0
    assert recall_of(path, 1200, unique=1.1) > 0.95


def test_a_search_picks_its_point_from_the_curve(rows_file):
    index = SearchIndex.open(build_index(IndexConfig(str(rows_file), type="ivf-flat", recall=0.8)).path)
    curve = index.manifest["curve"]
    for point in curve:
        effort = index.effort(point["recall_at_10"] - point["recall_error"])
        assert effort.breadth <= point["nprobe"]
    assert index.effort() == Effort(index.manifest["parameters"]["nprobe"])
    index.manifest["curve"] = [{**curve[0], "recall_at_10": 0.5}]
    with pytest.raises(UsageError, match=r"--recall 0\.9: .* reaches 0\.5000 \(\+- 0\.0"):
        index.effort(0.9)


def test_a_large_index_stays_in_its_file(rows_file, monkeypatch):
    """The same results as from memory; also when the file has been replaced since."""
    for name in ("flat", "rabitq", "hnsw", "ivf-flat"):
        path = build_index(IndexConfig(str(rows_file), type=name, recall=0.9, fresh=True)).path
        read = SearchIndex.open(path).search(clustered(6, 5), 7)
        with monkeypatch.context() as mapping:
            mapping.setattr(index_module, "MAPPED_FROM", 1)
            mapping.setattr(faiss, "PyCallbackIOReader", lambda *rest: pytest.fail("read as a whole"))
            index = SearchIndex.open(path)
        path.unlink()
        mapped = index.search(clustered(6, 5), 7)
        assert (mapped[1] == read[1]).all()
        np.testing.assert_allclose(mapped[0], read[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["flat", *PARTIAL])
def test_mutated_files_are_refused(make_embeddings, tmp_path, name):
    """Flipped, overwritten, cut out, doubled and cut off: 260 of each type, so more than 1,500."""
    rows = pathlib.Path(make_embeddings("rows", clustered(0, 390), "abc" * 130, normalized=True))
    data = build_index(IndexConfig(str(rows), type=name, recall=0.5)).path.read_bytes()
    random, copy = np.random.default_rng(0), tmp_path / "copy.faiss"
    for number in range(260):
        place, length = int(random.integers(len(data))), int(random.integers(1, 200))
        changed = bytearray(data)
        if number % 5 == 0:
            changed[place] ^= 1 << int(random.integers(8))
        elif number % 5 == 1:
            changed[place:place + length] = random.bytes(len(changed[place:place + length]))
        elif number % 5 == 2:
            del changed[place:place + length]
        elif number % 5 == 3:
            changed[place:place] = changed[place:place + length]
        else:
            del changed[place:]
        copy.write_bytes(changed)
        with pytest.raises(FormatError):
            SearchIndex.open(copy, verify=number % 2 == 0)


def test_flipped_bits_are_refused_in_every_part(rows_file, tmp_path):
    path = build_index(IndexConfig(str(rows_file), type="rabitq", recall=0.8)).path
    data, manifest = path.read_bytes(), read_manifest(path)
    random, copy = np.random.default_rng(0), tmp_path / "copy.faiss"
    parts = {"index": (0, manifest["index_bytes"]),
             "stamps": (manifest["index_bytes"], manifest["index_bytes"] + manifest["stamps_bytes"]),
             "manifest": (manifest["index_bytes"] + manifest["stamps_bytes"], len(data) - FOOTER.size),
             "footer": (len(data) - FOOTER.size, len(data))}
    for first, end in parts.values():
        for place in random.integers(first, end, 12):
            changed = bytearray(data)
            changed[place] ^= 1 << int(random.integers(8))
            copy.write_bytes(changed)
            with pytest.raises(FormatError):
                SearchIndex.open(copy)
    changed = bytearray(data)
    changed[manifest["index_bytes"] + 5] ^= 1
    copy.write_bytes(changed)
    with pytest.raises(FormatError, match="stamps"):
        read_stamps(copy, manifest)
    copy.write_bytes(data[:manifest["index_bytes"]] + data[manifest["index_bytes"] + 8:])
    with pytest.raises(FormatError, match="bytes instead of"):
        SearchIndex.open(copy)


def test_numbers_that_are_not_finite(make_embeddings):
    vectors = clustered(0)
    vectors[700, 3] = np.inf
    path = make_embeddings("broken", vectors, "abc" * (COUNT // 3), normalized=True)
    with pytest.raises(FormatError, match="not finite"):
        build_index(IndexConfig(path, type="rabitq"))
    assert not pathlib.Path(path).with_suffix(".faiss").exists()


def test_stamps_are_taken_while_the_rows_are_checked(rows_file, monkeypatch):
    monkeypatch.setattr(store, "PIECE", 400)  # so that a thread hashes
    with EmbeddingFile(rows_file) as file:
        assert verified_stamps(file).tolist() == stamps_of(file.embeddings()).tolist()
        offset = file.dataset("embeddings").id.get_offset()
    with open(rows_file, "r+b") as changed:
        changed.seek(offset + 4 * LENGTH * 700)
        changed.write(b"\1")
    with EmbeddingFile(rows_file) as file, pytest.raises(FormatError, match="SHA-256"):
        verified_stamps(file)


def test_stamps_tell_vectors_apart():
    vectors = clustered(0)
    stamps = stamps_of(vectors)
    assert len(set(stamps.tolist())) == COUNT
    other = vectors.copy()
    other[7, 3] = np.nextafter(other[7, 3], 1)
    assert np.flatnonzero(stamps_of(other) != stamps).tolist() == [7]


def test_plans_grow_with_what_they_hold():
    for kind in KINDS.values():
        small, large = Plan(kind, 10_000, 64), Plan(kind, 1_000_000, 256)
        assert small.size < large.size
        assert small.peak < large.peak
        assert large.size <= large.peak
    assert [lists_for(count) for count in (1, 7, 60, 50_000, 1_000_000)] == [1, 1, 8, 512, 4096]
    million = {name: Plan(kind, 1_000_000, 256) for name, kind in KINDS.items()}
    assert million["rabitq"].size < 0.08 * million["flat"].size
    assert million["hnsw"].size > million["flat"].size


def test_without_a_gpu_it_is_said(rows_file, run_cli, monkeypatch):
    monkeypatch.setattr(faiss_index.faiss, "get_num_gpus", lambda: 0, raising=False)
    status, _, err = run_cli("index", rows_file, "--type", "rabitq", "--gpu")
    assert status == 2
    assert "FAISS sees no GPU" in err


def test_info_shows_the_curve(rows_file, run_cli):
    path = build_index(IndexConfig(str(rows_file), type="ivf-sq8", recall=0.8)).path
    status, out, _ = run_cli("info", path, "--verify", "--json")
    assert status == 0
    assert json.loads(out)["curve"][0]["nprobe"] == 1
    status, out, _ = run_cli("info", path)
    assert re.search(r"^curve\.0 +nprobe 1, candidates 40, recall_at_10 0\.\d+, .*latency_ms", out, re.MULTILINE)
    with pytest.raises(MocoembedError):
        build_index(IndexConfig(str(rows_file), type="ivf-sq8", memory="1MB", fresh=True))


LIMITED = """
import pathlib, resource, sys
from mocoembed.config import IndexConfig
from mocoembed.search.build import build_index
from mocoembed.search.kinds import KINDS, Plan
import faiss  # whose libraries are no part of the plan
plan = Plan(KINDS[sys.argv[2]], 1500, 32)
taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = taken + plan.peak + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(build_index(IndexConfig(sys.argv[1], type=sys.argv[2], recall=0.9, fresh=True)).manifest["type"])
"""


@pytest.mark.parametrize("name", ["flat", *PARTIAL])
def test_the_memory_that_is_planned_is_enough_and_less_is_said(rows_file, name):
    """As under `ulimit -v`: the plan's memory and a little more do; with less, it ends before anything is taken."""
    for more, status in ((64 << 20, 0), (-(100 << 20), 1)):
        done = subprocess.run([sys.executable, "-c", LIMITED, rows_file, name, str(more)], capture_output=True,
                              text=True)
        assert done.returncode == status, done.stderr
        assert (name in done.stdout) == (status == 0)
        assert status == 0 or re.search(r"needs .* of memory, .* are free: (use --type|the smallest type)", done.stderr)


@pytest.mark.parametrize("normalized", [True, False], ids=["cosine", "distance"])
def test_a_small_exact_index_is_compared_by_numpy_with_the_same_hits(make_embeddings, normalized, monkeypatch):
    """As FAISS finds them; of copies, which are equal, the lower rows first. A larger index is FAISS's."""
    vectors = clustered(0, 300, normalized)
    vectors[[7, 120, 299]] = vectors[40]
    path = make_embeddings("small", vectors, "abc" * 100, normalized=normalized)
    index = build_index(IndexConfig(path, type="flat")).path
    queries = np.concatenate([vectors[40:41], clustered(5, 20, normalized)])
    with EmbeddingFile(path) as file:
        copies = np.flatnonzero((file.embeddings() == vectors[40]).all(axis=1)).tolist()
        scores, rows = SearchIndex.open(index, for_rows=True).rows(file).nearest(queries, 12)
        by_faiss = SearchIndex.open(index).rows(file)
        assert isinstance(by_faiss, IndexRows)
        theirs, their_rows = by_faiss.nearest(queries, 12)
        assert rows[0, :4].tolist() == copies
        assert set(their_rows[0, :4]) == set(copies)
        np.testing.assert_array_equal(rows[1:], their_rows[1:])
        np.testing.assert_allclose(scores, theirs, atol=1e-4)
        monkeypatch.setattr(index_module, "PAYS", 4 * vectors.size - 1)
        assert isinstance(SearchIndex.open(index, for_rows=True).rows(file), IndexRows)


def test_a_small_exact_index_loads_no_faiss_and_is_checked_anyway(indexed_workspace, tmp_path):
    script = ("import sys\nfrom mocoembed import Searcher\n"
              "with Searcher.open(sys.argv[1], 'cpu', encoder=False) as searcher:\n"
              "    assert searcher.index.manifest['type'] == 'flat'\n"
              "    print(searcher.search(searcher.file.embeddings[3], k=1)[0].row)\n"
              "assert 'faiss' not in sys.modules\n")
    done = subprocess.run([sys.executable, "-c", script, str(indexed_workspace)], check=True, capture_output=True)
    assert done.stdout.split() == [b"3"]
    copy = tmp_path / "copy.faiss"
    data = bytearray((indexed_workspace / "embeddings.faiss").read_bytes())
    data[100] ^= 1
    copy.write_bytes(data)
    with pytest.raises(FormatError, match="do not match their SHA-256"):
        SearchIndex.open(copy, for_rows=True)


@pytest.mark.parametrize("name", ["flat", *PARTIAL, "IVF16,PQ4", "PCA16,IVF16,Flat", "HNSW8,SQ8"])
def test_a_damaged_index_can_be_built_again(rows_file, run_cli, name):
    path = build_index(IndexConfig(str(rows_file), type=name, recall=0.3)).path
    whole = path.read_bytes()
    for data in (whole[:-100], whole[:-8] + b"XXXXXXXX", b"", whole[100:]):
        path.write_bytes(data)
        status, _, err = run_cli("index", rows_file, "--type", name, "--recall", "0.3")
        assert (status, "--fresh" in err) == (2, True)
        assert run_cli("index", rows_file, "--type", name, "--recall", "0.3", "--fresh")[0] == 0
        assert len(SearchIndex.open(path)) == COUNT
    path.write_bytes(bytes([*whole[:5], whole[5] ^ 1, *whole[6:]]))
    with pytest.raises(FormatError) as raised:
        SearchIndex.open(path)
    assert f"mocoembed index EMBEDDINGS --output {path} --fresh" in str(raised.value)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap,HNSW16,Flat", "IDMap,HNSW8,SQ8", "IDMap,PCA16,Flat",
                                     "IDMap,SQ8"])
def test_memory_for_codes_is_taken_once(factory):
    index = FaissIndex.empty(LENGTH, factory)
    vectors = clustered(0)
    index.train(vectors)
    index.reserve(COUNT)
    codes = faiss_parts.codes_of(index._index).codes
    place = int(codes.data())
    for first in range(0, COUNT, 100):
        index.add(vectors[first:first + 100], np.arange(first, first + 100))
    assert codes.size() == COUNT * faiss_parts.codes_of(index._index).code_size
    assert int(codes.data()) == place


def test_links_of_a_graph_are_planned_with_their_growth():
    flat, graph = (Plan(KINDS[name], 10**6, 128) for name in ("flat", "hnsw"))
    assert flat.parts.link_bytes == 0
    assert graph.peak - flat.peak >= 3 * 10**6 * graph.parts.link_bytes > 10**6 * 4 * 2 * kinds.LINKS


def test_what_does_not_fit_into_free_memory_names_what_does(rows_file, run_cli, monkeypatch):
    monkeypatch.setattr(kinds, "WORKING_BYTES", 0)
    free = Plan(KINDS["flat"], COUNT, LENGTH).peak + 1000
    monkeypatch.setattr(build, "available_memory", lambda: free)
    status, _, err = run_cli("index", rows_file, "--type", "hnsw")
    assert status == 1
    assert "are free: use --type flat" in err


def test_a_recall_is_reached_by_more_than_its_error(rows_file):
    path = build_index(IndexConfig(str(rows_file), type="ivf-flat", recall=0.5)).path
    index = SearchIndex.open(path)
    points = [{"nprobe": breadth, "recall_at_10": recall, "recall_error": 0.01}
              for breadth, recall in ((1, 0.8), (2, 0.905), (4, 0.95))]
    index.manifest["curve"] = points
    assert index.effort(0.9).breadth == 4
    assert index.effort(0.795).breadth == 2
    with pytest.raises(UsageError, match=r"reaches 0\.9500 \(\+- 0\.0100\) at most"):
        index.effort(0.945)


def test_more_hits_of_a_graph_take_as_many_more_candidates():
    assert Effort.of({"efSearch": 32}).for_hits(1000).breadth == 3200
    assert Effort.of({"nprobe": 4, "candidates": 40}).for_hits(1000) == Effort(40, 4000)


def test_factory_strings_of_exact_indexes_are_flat(rows_file):
    manifest = build_index(IndexConfig(str(rows_file), type="IDMap,Flat")).manifest
    assert manifest["type"] == "flat"
    assert build_index(IndexConfig(str(rows_file), type="flat")).done == "up to date"
    assert build_index(IndexConfig(str(rows_file), type="Flat")).done == "up to date"
