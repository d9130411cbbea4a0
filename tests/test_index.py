"""The index file: building, measuring, refusing what is wrong; and `mocoembed index`."""

import errno
import json
import os
import pathlib
import re
import shutil
import threading
import time
import tracemalloc

import faiss
import numpy as np
import pytest

from mocoembed import memory, verified
from mocoembed.config import IndexConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import scan
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import FormatError, Interrupted, LockedError, MismatchError, MocoembedError, UsageError
from mocoembed.files import StopRequest, locked
from mocoembed.search import blocks, build, tuning
from mocoembed.search import index as module
from mocoembed.search.build import build_index
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.index import SearchIndex
from mocoembed.search.index_rows import Effort, IndexRows
from mocoembed.search.kinds import ID_BYTES, WORKING_BYTES
from mocoembed.search.trailer import FOOTER, FORMAT_VERSION, read_manifest, trailer
from mocoembed.search.tuning import Sample, measure


def vectors_of(count: int, length: int = 12, seed: int = 0, unit: bool = True) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if unit else vectors


@pytest.fixture
def built(make_embeddings):
    """(embeddings file, index file) of 60 vectors of length 1."""
    path = make_embeddings("photos", vectors_of(60), "abc" * 20, normalized=True)
    return pathlib.Path(path), build_index(IndexConfig(path)).path


def nearest_ids(path, queries, k: int, metric: str) -> list[list[int]]:
    """By loops over the embeddings file."""
    with EmbeddingFile(path) as file:
        vectors, ids = file.embeddings().astype(np.float64), file.ids()
    found = []
    for query in queries.astype(np.float64):
        scores = [query @ row if metric == "inner_product" else -((query - row) ** 2).sum() for row in vectors]
        found.append([int(ids[row]) for row in sorted(range(len(ids)), key=lambda row: -scores[row])[:k]])
    return found


@pytest.mark.parametrize(("unit", "metric"), [(True, "inner_product"), (False, "l2")])
def test_round_trip(make_embeddings, monkeypatch, unit, metric):
    """The nearest ids, in blocks of seven vectors, by the metric that suits them."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 7 * 4 * 12)
    steps = []
    path = make_embeddings("photos", vectors_of(60, unit=unit), "abc" * 20, normalized=unit)
    result = build_index(IndexConfig(path), lambda *counts: steps.append(counts))
    assert result.path == pathlib.Path(path).with_suffix(".faiss")
    assert steps == [(7 * i, 60) for i in range(1, 9)] + [(60, 60)]
    index, queries = SearchIndex.open(result.path), vectors_of(5, seed=1, unit=unit)
    scores, ids = index.search(queries, 9)
    assert ids.tolist() == nearest_ids(path, queries, 9, metric)
    assert (np.diff(scores, axis=1) <= 0).all()
    with EmbeddingFile(path) as file:
        itself, first = index.search(file.embeddings(), 1)
        np.testing.assert_array_equal(first[:, 0], file.ids())
    np.testing.assert_allclose(itself, 1.0 if unit else 0.0, atol=1e-5)


def test_manifest(built):
    path, index = built
    manifest = SearchIndex.open(index).manifest
    assert manifest == read_manifest(index)
    with EmbeddingFile(path) as file:
        assert manifest["embeddings"] == {"path": "photos.h5", "count": 60, "rows_sha256": file.identity}
    expected = {"kind": "mocoembed index", "format": 1, "type": "flat", "factory": "IDMap,Flat", "parameters": {},
                "metric": "inner_product", "dimension": 12, "count": 60, "encoder": "f" * 64, "features": "backbone",
                "normalized": True, "recall_at_10": 1.0, "measured_on": 60}
    assert {name: manifest[name] for name in expected} == expected
    assert 0 < manifest["latency_ms"] < 1000


def test_faiss_reads_the_file_by_itself(built):
    index = faiss.read_index(str(built[1]))
    assert (index.ntotal, index.d) == (60, 12)


def test_recall_is_measured(built):
    """An index with half of its vectors at the wrong ids does not pass for exact; one with ties does."""
    with EmbeddingFile(built[0]) as file:
        index, ids, stop = FaissIndex.empty(12, "Flat"), file.ids(), StopRequest()
        index.add(file.embeddings(), np.concatenate([np.roll(ids[:30], 1), ids[30:]]))
        measured = measure(IndexRows(index, file, Effort()), file, Sample.of_stored(file, stop), stop)
        assert 0.3 < measured["recall_at_10"] < 0.8
        assert measured["recall_error"] > 0.01


def test_ties_do_not_lower_recall(make_embeddings):
    path = make_embeddings("same", np.tile(vectors_of(2), (20, 1)), "a" * 40, normalized=True)
    assert build_index(IndexConfig(path)).manifest["recall_at_10"] == 1.0


def test_k_is_cut_and_checked(built):
    index = SearchIndex.open(built[1])
    scores, ids = index.search(vectors_of(2), 1000)
    assert scores.shape == ids.shape == (2, 60)
    assert len(set(ids[0].tolist())) == 60
    assert ids.min() >= 0
    with pytest.raises(UsageError, match="-k 0"):
        index.search(vectors_of(2), 0)
    with pytest.raises(MismatchError, match=r"dimension 12.*\(2, 5\)"):
        index.search(vectors_of(2, 5), 1)
    with pytest.raises(FormatError, match="not finite"):
        index.search(np.full((1, 12), np.nan), 1)


def test_flipped_bits_and_cuts_are_refused(built, tmp_path):
    data = built[1].read_bytes()
    random, copy = np.random.default_rng(0), tmp_path / "copy.faiss"
    footer = len(data) - FOOTER.size
    places = [*random.integers(0, len(data), 34), 0, footer, footer + 33, footer + 38, len(data) - 1,
              read_manifest(built[1])["index_bytes"]]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        copy.write_bytes(changed)
        with pytest.raises(FormatError):
            SearchIndex.open(copy)
    for length in [*random.integers(0, len(data), 20), 1, len(data) - 1]:
        copy.write_bytes(data[:length])
        with pytest.raises(FormatError):
            SearchIndex.open(copy)
    copy.write_bytes(data[:200] + data)
    with pytest.raises(FormatError, match="bytes instead of"):
        SearchIndex.open(copy)


def test_faiss_sees_only_what_has_the_right_hash(built, monkeypatch):
    data = bytearray(built[1].read_bytes())
    data[500] ^= 4
    built[1].write_bytes(data)
    monkeypatch.setattr(faiss, "read_index", lambda *arguments: pytest.fail("FAISS read a damaged file"))
    with pytest.raises(FormatError, match="SHA-256"):
        SearchIndex.open(built[1])


def rewrite(path: pathlib.Path, **changes):
    """Give an index file another manifest, with a right SHA-256."""
    manifest = read_manifest(path)
    data = path.read_bytes()[:manifest["index_bytes"]]
    path.write_bytes(data + trailer({**manifest, **changes}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"format": FORMAT_VERSION + 1}, "index format 3.*Install a newer"), ({"kind": "other"}, "not a mocoembed index"),
    ({"dimension": 13}, "dimension 13, the index has 60 of 12"), ({"count": 59}, "says 59 vectors"),
    ({"metric": "l2"}, "damaged")])
def test_a_manifest_of_something_else(built, changes, message):
    rewrite(built[1], **changes)
    with pytest.raises(FormatError, match=message):
        SearchIndex.open(built[1])


def test_other_files_are_named(built, workspace, tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    cut = built[1].read_bytes()[:-60]
    others = {"an embeddings file": built[0],
              "an encoder": workspace / "encoder.safetensors", "FAISS": write("cut", cut),
              "of another kind": write("notes.txt", b"dear diary"), "it is empty": write("nothing", b"")}
    for what, path in others.items():
        with pytest.raises(FormatError, match=f"is not a mocoembed index.*{what}.*mocoembed index EMBEDDINGS"):
            SearchIndex.open(path)
    with pytest.raises(UsageError, match=r"does not exist.*mocoembed index"):
        SearchIndex.open(tmp_path / "absent.faiss")


def test_numbers_that_are_not_finite(make_embeddings):
    vectors = vectors_of(9)
    vectors[6, 3] = np.nan
    path = make_embeddings("broken", vectors, "a" * 9)
    with pytest.raises(FormatError, match=r"broken.h5: row 6 \('a/0006.png'\)"):
        build_index(IndexConfig(path))
    assert not pathlib.Path(path).with_suffix(".faiss").exists()


def test_no_vectors(images, tmp_path):
    listing = scan(images)
    settings = Settings({"fingerprint": "f"}, "backbone", True, 4, "fp32", "parent")
    write_embeddings(tmp_path / "empty.h5", listing, settings,
                     np.zeros(len(listing), bool), np.zeros(len(listing), FACTS), [], [])
    with pytest.raises(FormatError, match="holds no vectors"):
        build_index(IndexConfig(str(tmp_path / "empty.h5")))


def test_damaged_embeddings(built):
    with EmbeddingFile(built[0]) as file:
        vector = file.embeddings(slice(3, 4)).tobytes()
    data = bytearray(built[0].read_bytes())
    data[data.find(vector)] ^= 1
    built[0].write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        build_index(IndexConfig(str(built[0])))


def test_a_full_disk_leaves_the_old_index(built, monkeypatch):
    before = built[1].read_bytes()

    def full(self, data):
        if self.length > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.write(data)
        self.length += len(data)
        return len(data)

    monkeypatch.setattr(module._HashingWriter, "__call__", full)
    with pytest.raises(MocoembedError, match="No space left"):
        build_index(IndexConfig(str(built[0]), fresh=True))
    assert built[1].read_bytes() == before
    assert not list(built[1].parent.glob("*.tmp"))


def test_a_signal_leaves_the_old_index(built):
    before = built[1].read_bytes()

    def progress(done, total):
        os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted, match="60 of 60 vectors") as stopped:
        build_index(IndexConfig(str(built[0]), fresh=True), progress)
    assert stopped.value.status == 143
    assert built[1].read_bytes() == before


def test_a_signal_stops_the_writing(built, monkeypatch):
    before = built[1].read_bytes()
    monkeypatch.setattr(build, "measure", lambda *arguments: os.kill(os.getpid(), 2) or {})
    with pytest.raises(Interrupted, match="while writing") as stopped:
        build_index(IndexConfig(str(built[0]), fresh=True))
    assert stopped.value.status == 130
    assert built[1].read_bytes() == before


@pytest.mark.parametrize("step", ["search", "truth"])
def test_a_signal_stops_the_measuring(built, monkeypatch, step):
    """After the first query, and before the first block of brute force."""
    before, calls = built[1].read_bytes(), []

    def signalled(original):
        def run(*arguments):
            calls.append(step)
            os.kill(os.getpid(), 15)
            return original(*arguments)

        return run

    if step == "search":
        monkeypatch.setattr(FaissIndex, "search", signalled(FaissIndex.search))
    else:
        monkeypatch.setattr(tuning.ExactRows, "nearest", signalled(tuning.ExactRows.nearest))
    with pytest.raises(Interrupted, match="while measuring"):
        build_index(IndexConfig(str(built[0]), fresh=True))
    assert len(calls) == 1 or step == "search"  # a query alone is searched again, on one thread
    assert built[1].read_bytes() == before


def test_only_one_writer(built):
    with locked(built[1].with_name(".photos.faiss.lock"), "it"), pytest.raises(LockedError, match=r"photos\.faiss"):
        build_index(IndexConfig(str(built[0])))


def test_only_an_index_is_replaced(built):
    before = built[0].read_bytes()
    with pytest.raises(UsageError, match="not a mocoembed index"):
        build_index(IndexConfig(str(built[0]), output=str(built[0])))
    assert built[0].read_bytes() == before
    with pytest.raises(UsageError, match="is a folder"):
        build_index(IndexConfig(str(built[0]), output=str(built[0].parent)))
    whole = built[1].read_bytes()
    built[1].write_bytes(whole[:99])  # a damaged one, or one of FAISS alone, may be built again when that is said
    with pytest.raises(UsageError, match="--fresh"):
        build_index(IndexConfig(str(built[0])))
    build_index(IndexConfig(str(built[0]), fresh=True))
    assert len(SearchIndex.open(built[1])) == 60
    built[1].write_bytes(b"Index of names")  # it begins like one, but for the case
    with pytest.raises(UsageError, match=r"is not a mocoembed index\. Give another --output\.$"):
        build_index(IndexConfig(str(built[0]), fresh=True))


def test_an_index_given_as_embeddings_is_called_one(built):
    """And not the index of itself, which could be replaced."""
    before = built[1].read_bytes()
    with pytest.raises(FormatError, match="is not an embeddings file"):
        build_index(IndexConfig(str(built[1])))
    assert built[1].read_bytes() == before


def test_the_index_of_other_embeddings_is_replaced_only_when_that_is_said(built, tmp_path):
    before = built[1].read_bytes()
    other = tmp_path / "other.h5"
    other.write_bytes(built[0].read_bytes())
    with pytest.raises(UsageError, match=r"is the index of .*, not of .*other.h5"):
        build_index(IndexConfig(str(other), output=str(built[1])))
    assert built[1].read_bytes() == before
    build_index(IndexConfig(str(other), output=str(built[1]), fresh=True))
    assert SearchIndex.open(built[1]).manifest["embeddings"]["path"].endswith("other.h5")


def test_too_little_memory_is_said_before(built, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 4000)
    monkeypatch.setattr(faiss, "read_index", lambda *arguments: pytest.fail("loaded all the same"))
    for work in (lambda: build_index(IndexConfig(str(built[0]))), lambda: SearchIndex.open(built[1])):
        with pytest.raises(MocoembedError, match=r"needs 0\.\d\d GiB of memory and 0\.00 GiB are free"):
            work()


def test_memory_that_runs_out_all_the_same(built, monkeypatch):
    before = built[1].read_bytes()

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(build, "measure", fail)
    monkeypatch.setattr(faiss, "read_index", fail)
    for work in (lambda: build_index(IndexConfig(str(built[0]))), lambda: SearchIndex.open(built[1])):
        with pytest.raises(MocoembedError, match="ran out of memory; it needs about"):
            work()
    assert built[1].read_bytes() == before


@pytest.mark.parametrize("length", [2, 64])
def test_building_takes_the_memory_it_asked_for(make_embeddings, length):
    """Short vectors come in large numbers: what is compared with the sample must stay within its share, too."""
    path = make_embeddings("many", vectors_of(4000, length), "a" * 4000, normalized=True)
    with EmbeddingFile(path) as file:
        index, stop = FaissIndex.empty(length, "Flat"), StopRequest()
        index.add(file.embeddings(), file.ids())
        tracemalloc.start()
        measured = measure(IndexRows(index, file, Effort()), file, Sample.of_stored(file, stop), stop)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert measured["recall_at_10"] == 1.0
    assert peak < WORKING_BYTES / 2 + ID_BYTES * 4000


def test_memory_counts_the_limit_of_the_process(monkeypatch):
    free = memory.available_memory()
    assert 1e6 < free < 1e14
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (1 << 40, 1 << 40))
    assert memory._process() < 1 << 40
    assert memory._cached("active_file 3\nanon 5\ninactive_file 4\n") == 7


def test_replacing_while_others_open(make_embeddings, tmp_path):
    """Every opening sees one index or the other, whole."""
    paths = [make_embeddings(name, vectors_of(count), "a" * count) for name, count in (("one", 20), ("two", 50))]
    data = [build_index(IndexConfig(path)).path.read_bytes() for path in paths]
    shared, over = tmp_path / "shared.faiss", threading.Event()
    shared.write_bytes(data[0])

    def replace():
        turn = 0
        while not over.is_set():
            turn += 1
            (tmp_path / "next").write_bytes(data[turn % 2])
            os.replace(tmp_path / "next", shared)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        sizes = {SearchIndex.open(shared).search(vectors_of(1), 99)[1].shape[1] for _ in range(200)}
    finally:
        over.set()
        thread.join()
    assert sizes == {20, 50}


def test_command(fresh_workspace, run_cli):
    status, out, err = run_cli("index", "--workspace", fresh_workspace)
    assert (status, err[:19]) == (0, "index: plan: flat: ")
    assert out.startswith(f"{fresh_workspace / 'embeddings.faiss'}: 24 vectors of dimension 64, flat (inner_product), ")
    assert re.search(r"recall@10 1\.000, [\d.]+ ms a query, in \d[\d.hmin ]* s\n\Z", out)
    other = fresh_workspace / "deeper" / "other.faiss"
    status, out, _ = run_cli("index", fresh_workspace / "embeddings.h5", "--output", other, "--json", "--type", "flat")
    assert json.loads(out) == {"path": str(other), "done": "built", **read_manifest(other)}
    assert read_manifest(other)["embeddings"]["path"] == "../embeddings.h5"


def test_embedding_says_that_the_index_is_outdated(fresh_workspace, images, tmp_path, run_cli):
    assert run_cli("index", "--workspace", fresh_workspace)[0] == 0
    fewer = shutil.copytree(images / "red", tmp_path / "fewer" / "red").parent
    embed = ("embed", fewer, "--workspace", fresh_workspace, "--fresh", "--device", "cpu")
    assert f"update the index with: mocoembed index {fresh_workspace / 'embeddings.h5'}" in run_cli(*embed)[2]
    assert run_cli("index", "--workspace", fresh_workspace)[0] == 0
    assert "update the index" not in run_cli(*embed)[2]


@pytest.mark.parametrize("arguments", [("absent.h5",), ("--type", "hnswx"), ("--workspace", "absent")])
def test_command_with_a_wrong_call(tmp_path, run_cli, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    status, out, err = run_cli("index", *arguments)
    assert (status, out) == (2, "")
    assert arguments[-1] in err


def test_a_checked_index_is_not_hashed_again_and_a_changed_one_is(built, tmp_path, monkeypatch):
    monkeypatch.setenv("MOCOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    time.sleep(0.01)
    SearchIndex.open(built[1])
    with monkeypatch.context() as once:
        once.setattr(module, "sha256_start", lambda *arguments: pytest.fail("hashed again"))
        SearchIndex.open(built[1])
    before = built[1].stat()
    time.sleep(0.01)
    with open(built[1], "r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(built[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    for verify in (False, True):
        with pytest.raises(FormatError, match="SHA-256"):
            SearchIndex.open(built[1], verify)
