"""A `Searcher` whose files are replaced while it searches: old pair or new pair, never a mixture and never an error."""

import gc
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest

from mocoembed.config import IndexConfig
from mocoembed.errors import MocoembedError
from mocoembed.search import query as module
from mocoembed.search.build import build_index
from mocoembed.search.query import Searcher

ROWS = {"old": 40, "new": 57}


@pytest.fixture
def two(make_embeddings, tmp_path):
    """`two(part, version)` puts the embeddings ("h5") or index ("faiss") of a version in place, as `live.*`."""
    random, live = np.random.default_rng(0), tmp_path / "live"
    live.mkdir()
    for version, count in ROWS.items():
        vectors = random.normal(size=(count, 8))
        path = make_embeddings(version, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "a" * count,
                               normalized=True)
        shutil.copy(path, live / "embeddings.h5")
        build_index(IndexConfig(workspace=str(live)))
        shutil.copy(live / "embeddings.faiss", tmp_path / f"{version}.faiss")

    def put(part: str, version: str):
        shutil.copy(tmp_path / f"{version}.{part}", tmp_path / "copy")
        os.replace(tmp_path / "copy", live / f"embeddings.{part}")

    put("h5", "old")
    put("faiss", "old")
    return put


@pytest.fixture
def live(two, tmp_path) -> pathlib.Path:
    """The workspace of `two`."""
    return tmp_path / "live"


def seen(hits) -> str:
    """Which version the hits of a query with a k of all are of; they must be of one."""
    (version,) = {pathlib.Path(hit.path).parts[-3].removesuffix("-images") for hit in hits}
    assert sorted(hit.row for hit in hits) == list(range(ROWS[version]))
    assert all(pathlib.Path(hit.path).name == f"{hit.row:04d}.png" for hit in hits)
    return version


QUERY = np.eye(8, dtype=np.float32)[0]


def test_new_files_are_taken_once_they_fit_together(live, two):
    said = []
    with Searcher.open(live, encoder=False, note=said.append) as searcher:
        assert seen(searcher.search(QUERY, 100)) == "old"
        before = searcher.pair()
        two("h5", "new")
        assert seen(searcher.search(QUERY, 100)) == seen(searcher.search(QUERY, 100)) == "old"
        assert len(said) == 1
        assert "was built from 40 rows" in said[0]
        two("faiss", "new")
        assert seen(searcher.search(QUERY, 100)) == "new"
        assert (len(searcher.file), len(searcher.index)) == (57, 57)
        assert seen(before.search(QUERY, 100)) == "old"  # as long as somebody has it
        assert len(said) == 1


@pytest.mark.parametrize("harm", ["damaged", "truncated", "absent"])
@pytest.mark.parametrize("part", ["h5", "faiss"])
def test_files_that_cannot_be_read_leave_the_old_ones(live, two, part, harm, monkeypatch):
    path = live / f"embeddings.{part}"
    with Searcher.open(live / "embeddings.faiss", encoder=False) as searcher:
        whole = path.read_bytes()
        path.unlink()
        if harm != "absent":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + (b"" if harm == "truncated" else b"?" + whole[middle + 1:]))
        assert seen(searcher.search(QUERY, 100)) == "old"
        opened = []
        monkeypatch.setattr(module, "Pair", lambda *arguments: opened.append(1))
        searcher.search(QUERY, 1)
        assert not opened  # it is not tried again and again
        monkeypatch.undo()
        two("h5", "new")
        two("faiss", "new")
        assert seen(searcher.search(QUERY, 100)) == "new"


def test_what_was_refused_is_tried_again_after_a_while(live, two, monkeypatch):
    def fail(*arguments):
        raise MocoembedError("Too little memory.")

    with Searcher.open(live, encoder=False) as searcher:
        two("h5", "new")
        two("faiss", "new")
        with monkeypatch.context() as patch:
            patch.setattr(module, "Pair", fail)
            assert seen(searcher.search(QUERY, 100)) == "old"
        assert seen(searcher.search(QUERY, 100)) == "old"
        monkeypatch.setattr(module, "RETRY_SECONDS", 0)
        assert seen(searcher.search(QUERY, 100)) == "new"


def test_an_index_that_is_made_later_is_used(live, two):
    (live / "embeddings.faiss").unlink()
    with Searcher.open(live, encoder=False) as searcher:
        assert seen(searcher.search(QUERY, 100)) == "old"
        assert searcher.index.path.suffix == ".h5"
        two("faiss", "old")
        searcher.search(QUERY)
        assert searcher.index.path.suffix == ".faiss"


def test_the_encoder_is_opened_once(indexed_workspace, images, tmp_path):
    root = pathlib.Path(shutil.copytree(indexed_workspace, tmp_path / "ws"))
    query = str(images / "red" / "000.png")
    with Searcher.open(root, "cpu") as searcher:
        encoder, hits = searcher.pair()._encoder, searcher.search(query, 3)
        shutil.copy(root / "embeddings.h5", root / "copy")
        os.replace(root / "copy", root / "embeddings.h5")
        before = searcher.file
        assert searcher.search(query, 3) == hits
        assert searcher.file is not before
        assert searcher.pair()._encoder is encoder


def test_threads_search_while_both_files_are_replaced(live, two):
    errors, versions, done = [], set(), threading.Event()
    with Searcher.open(live, encoder=False) as searcher:

        def ask():
            try:
                while not done.is_set():
                    versions.add(seen(searcher.search(QUERY, 100)))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        searcher.search(QUERY, 100)  # which maps the columns that hits are read from
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        for thread in threads:
            thread.start()
        for turn in range(60):
            version = ("new", "old")[turn % 2]
            for part in (("h5", "faiss") if turn % 3 else ("faiss", "h5")):
                two(part, version)
                searcher.search(QUERY, 100)
        done.set()
        for thread in threads:
            thread.join()
        assert not errors
        assert versions == {"old", "new"}
        two("faiss", "new")
        two("h5", "new")
        assert seen(searcher.search(QUERY, 100)) == "new"
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files
