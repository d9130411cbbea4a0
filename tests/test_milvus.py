"""Pushing into Milvus and searching there, on Milvus Lite: what travels, what is refused, kills, servers that die."""

import csv
import dataclasses
import fcntl
import fnmatch
import hashlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial, partialmethod

import numpy as np
import pytest
from killing import Run
from test_graph import without_torch

from mocoembed.config import MilvusConfig, PushConfig, SearchConfig
from mocoembed.config.push import LITE_INDEX_TYPES
from mocoembed.data.exclude import Exclude
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import FormatError, LockedError, MismatchError, MocoembedError, UsageError
from mocoembed.search import push as module
from mocoembed.search.filters import Filter
from mocoembed.search.milvus import Milvus
from mocoembed.search.milvus_expressions import PathCheck, _patterns, expression, one_label
from mocoembed.search.milvus_rows import Part, part_of, path_of, rows_of, text_of
from mocoembed.search.milvus_search import iterate_milvus_search
from mocoembed.search.push import push_embeddings
from mocoembed.search.query import search_images

pytest.importorskip("pymilvus", reason="needs pymilvus: pip install 'mocoembed[milvus]'")
pytest.importorskip("milvus_lite", reason="needs milvus-lite: pip install 'mocoembed[milvus]'")

ODD_LABELS = ('a" or id > 0 or label == "', "it's {label}", "back\\slash", "per%cent_", "two\nlines", "tab\tand \u00fc",
              "]", "\\", '"', "\\\"")
ODD_PATHS = (b'a"b/1.jpg', b"b\xff/2.jpg", b"c\\/3.jpg", b"c\\xff/4.jpg", b"d\\\xff/5.jpg", b"100%/6_.jpg",
             b"two\nlines/7.jpg", "\u00fc/8.jpg".encode(), b"plain/9.jpg", b"{x}/10.jpg")


def vectors_of(seed: int, count: int, length: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, length))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write(path, rows: dict[bytes, tuple[str | None, int]], normalized=True, length=8, root=b"/photos", **more) -> str:
    """An embeddings file of images that do not exist: {path: (label, seed of vector and bytes)}."""
    paths = sorted(rows)
    names = tuple(sorted({label for label, _ in rows.values() if label is not None}))
    labels = np.array([-1 if rows[one][0] is None else names.index(rows[one][0]) for one in paths], np.int32)
    facts = np.zeros(len(paths), FACTS)
    facts["width"], facts["height"] = [rows[one][1] % 7 + 1 for one in paths], 5
    facts["digest"] = np.array([hashlib.sha256(b"%d" % rows[one][1]).digest() for one in paths], "V32")
    vectors = np.concatenate([vectors_of(rows[one][1], 1, length) for one in paths]) * (1 if normalized else 3)
    settings = Settings({"fingerprint": more.pop("fingerprint", "f" * 64), "provenance": {"recipe": "none"}},
                        "backbone", normalized, length, "fp32", "parent")
    write_embeddings(pathlib.Path(path), Listing(root, PathTable(paths), labels, names, 0), settings,
                     np.ones(len(paths), bool), facts, [vectors], [])
    return str(path)


def plain(count: int, first: int = 0) -> dict[bytes, tuple[str | None, int]]:
    return {b"%s/%04d.jpg" % (b"ab"[number % 2:number % 2 + 1], number): ("xyz"[number % 3], number)
            for number in range(first, first + count)}


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "m.db")


@pytest.fixture
def push(uri):
    def run(*files, **more):
        note = more.pop("note", lambda text: None)
        return list(push_embeddings(PushConfig(tuple(map(str, files)), to=more.pop("to", uri), **more), note=note))

    return run


def counts(pushed):
    return [(one.added, one.changed, one.dropped) for one in pushed]


def stored(uri, name="images") -> dict[int, dict]:
    """All rows of a collection by id, with vectors as bytes."""
    with Milvus(uri, name, 30) as collection:
        collection.load()
        ids = np.concatenate([collection.listed(part)[0] for part in Part.all_in(collection.properties())])
        fields = ["vector", "path", "label", "width", "height", "digest", "part", "row_hash"]
        rows = collection.get(ids.tolist(), fields)
        assert len(rows) == len(ids) == collection.count()
    return {row["id"]: {**row, "vector": np.asarray(row["vector"], np.float32).tobytes()} for row in rows}


def wanted(*paths) -> dict[int, dict]:
    """The same of embeddings files."""
    rows = {}
    for path in paths:
        with EmbeddingFile(path) as file:
            rows |= {row["id"]: {**row, "vector": row["vector"].tobytes()}
                     for row in rows_of(file, np.arange(len(file)), part_of(file))}
    return rows


# ---------------------------------------------------------------------------------------------- texts, expressions


def test_any_path_comes_back_from_its_text():
    numbers = random.Random(0)
    paths = [*ODD_PATHS]
    paths += [bytes(numbers.choices(b"\\x4ff\xff\xc3\xbc/\n", k=numbers.randint(1, 9))) for _ in range(5000)]
    texts = list(map(text_of, paths))
    assert [path_of(text) for text in texts] == paths
    assert len(set(texts)) == len(set(paths))
    assert text_of("caf\u00e9/1.jpg".encode()) == "caf\u00e9/1.jpg"


def test_patterns_match_whatever_the_glob_matches():
    numbers = random.Random(1)
    globs = ["*.jpg", "a*", "2024/*", "*", "a?b", "[ab]*/x", "x[!a]", "a/b*c", "100%", "_", "\\", '"', "a//b", "*/",
             "[", "a[b"]
    globs += ["".join(numbers.choices("ab/*?[]!_%\\\"", k=numbers.randint(1, 5))) for _ in range(400)]
    paths = ["".join(numbers.choices("ab/_%\\\"]x", k=numbers.randint(1, 7))).strip("/") or "a" for _ in range(300)]
    matched = 0
    for glob in globs:
        likes = [re.compile(".*".join(map(re.escape, one.split("%"))), re.DOTALL) for one in _patterns(glob)]
        for path in paths:
            if not Exclude((glob,)).takes(path.encode()):
                matched += 1
                assert any(like.fullmatch(text_of(path.encode())) for like in likes), (glob, path)
    assert matched > 2000
    assert fnmatch.fnmatchcase("a/b", "a*")  # as Exclude compares: * stops at no slash


def test_values_do_not_become_a_part_of_the_expression():
    assert one_label('a" or "') == 'label == "a\\" or \\""'
    assert expression(Filter(("\\",), ("\n",)), ["ab"]) == ('label in ["\\\\"] and (label is null or label not in '
                                                            '["\\n"]) and digest not in ["ab"]')
    assert expression(Filter(("", "a"), ("", "b"))) == (
        '(label in ["a"] or label is null) and (label is null or label not in ["b"]) and label is not null')
    assert expression(Filter(("",))) == one_label("") == "label is null"
    assert expression(Filter(paths=('" or id > 0 or path == "',))).count('"') == 8  # four patterns, and no more
    assert expression(Filter()) == ""
    assert not PathCheck(())
    assert PathCheck(())("a")
    assert PathCheck(("a*",))("b/ab")
    assert not PathCheck(("a*",))("b/b")


@pytest.mark.parametrize("label", [*ODD_LABELS, None])
def test_filters_by_odd_labels_select_what_they_do_in_the_file(tmp_path_factory, odd, label):
    path, uri = odd
    with EmbeddingFile(path) as file, Milvus(uri, "images", 30) as collection:
        collection.load()
        chosen = [Filter((label,)), Filter((), (label,)), Filter((label, "plain"))] if label else [
            Filter(), Filter((), ODD_LABELS)]
        for one in chosen:
            mask = one.mask(file) if one else np.ones(len(file), bool)
            found = collection.search(vectors_of(0, 1), 100, expression(one), "IP", {})[0]
            assert sorted(hit["id"] for hit in found) == sorted(file.ids[np.flatnonzero(mask)].tolist())


@pytest.mark.parametrize("glob", ["*.jpg", "a*", "*\udcff*", "c\\*", "100%", "100%/*", "*\n*", "?lain", "[pt]*",
                                  "{x}/1*"])
def test_globs_select_what_they_do_in_the_file(odd, glob):
    path, uri = odd
    with EmbeddingFile(path) as file, Milvus(uri, "images", 30) as collection:
        collection.load()
        check, mask = PathCheck((glob,)), Filter(paths=(glob,)).mask(file)
        hits = collection.search(vectors_of(0, 1), 100, expression(Filter(paths=(glob,))), "IP", {})[0]
        found = [hit["id"] for hit in hits if check(hit["path"])]
        assert sorted(found) == sorted(file.ids[np.flatnonzero(mask)].tolist())


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """(embeddings file, URI) of images with odd names and labels, pushed."""
    folder = tmp_path_factory.mktemp("odd")
    labels = [*ODD_LABELS, None, "plain"]
    paths = [*ODD_PATHS, b"plain/11.jpg", b"plain/12.jpg"]
    path = write(folder / "odd.h5", {one: (label, number) for number, (one, label) in enumerate(zip(paths, labels))})
    list(push_embeddings(PushConfig((path,), to=str(folder / "m.db"))))
    return path, str(folder / "m.db")


def test_odd_rows_are_stored_exactly(odd):
    path, uri = odd
    assert stored(uri) == wanted(path)
    assert {path_of(row["path"]) for row in stored(uri).values()} >= set(ODD_PATHS)


# --------------------------------------------------------------------------------------------------------- pushing


def travelling(monkeypatch) -> list:
    """What is sent from now on: ("upsert" or "delete", ids)."""
    sent = []
    for name in ("upsert", "delete"):
        real = getattr(Milvus, name)

        def watched(self, rows, name=name, real=real):
            sent.append((name, sorted(row["id"] if name == "upsert" else row for row in rows)))
            real(self, rows)

        monkeypatch.setattr(Milvus, name, watched)
    return sent


def test_only_what_is_new_changed_or_gone_travels(tmp_path, uri, push, monkeypatch):
    path = write(tmp_path / "e.h5", plain(50))
    assert counts(push(path)) == [(50, 0, 0)]
    assert stored(uri) == wanted(path)
    sent = travelling(monkeypatch)
    assert counts(push(path)) == [(0, 0, 0)]
    assert not sent
    rows = plain(50) | plain(3, 100)
    del rows[b"a/0000.jpg"]
    rows[b"b/0001.jpg"] = ("y", 1000)  # other bytes
    rows[b"a/0002.jpg"] = ("another label", 2)  # the same bytes
    before = wanted(path)
    write(path, rows)
    assert counts(push(path)) == [(3, 2, 1)]
    assert stored(uri) == (now := wanted(path))
    assert sent == [("delete", sorted(before.keys() - now.keys())),
                    ("upsert", sorted(number for number in now if now[number] != before.get(number)))]


def test_rows_of_unit_length_and_others_have_the_scores_of_the_file(tmp_path, push, uri):
    for normalized in (True, False):
        path = write(tmp_path / f"{normalized}.h5", plain(40), normalized)
        (pushed,) = push(path, collection=f"c{normalized}", index_type="FLAT")
        assert pushed.part.recall_at_10 == 1.0
        assert pushed.index["metric"] == ("IP" if normalized else "L2")
        with EmbeddingFile(path) as file, Milvus(uri, f"c{normalized}", 30) as collection:
            collection.load()
            query, all_vectors = file.embeddings[3], file.embeddings()
            hits = collection.search(query[None], 40, "", pushed.index["metric"], {})[0]
            scores = all_vectors @ query if normalized else -((all_vectors - query)**2).sum(axis=1)
            np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=1e-4)


def test_index_types_parameters_and_their_recall_are_kept(tmp_path, push, uri, run_cli):
    path = write(tmp_path / "e.h5", plain(400))
    assert push(path)[0].index["type"] == "FLAT"
    (pushed,) = push(path, index_type="IVF_FLAT", param=("nlist=64",), search_param=("nprobe=1",))
    assert pushed.index == {"type": "IVF_FLAT", "metric": "IP", "params": {"nlist": 64}, "search_params": {"nprobe": 1},
                            "made": True}
    assert pushed.part.recall_at_10 < 0.9
    (again,) = push(path, search_param=("nprobe=64",))
    assert again.index["params"] == {"nlist": 64}
    assert again.part.recall_at_10 == 1.0
    status, out, _ = run_cli("push", path, "--to", uri, "--index-type", "FLAT", "--json")
    (facts,) = json.loads(out)
    assert status == 0
    assert facts["index"]["type"] == "FLAT"
    assert facts["recall_at_10"] == 1.0
    assert facts["count"] == 400
    status, out, _ = run_cli("push", path, "--to", uri)
    assert "400 vectors of dimension 8 (0 added, 0 changed, 0 dropped), FLAT (IP), recall@10 1.000, " in out


def test_several_files_are_parts_of_one_collection(tmp_path, push, uri):
    first, second = write(tmp_path / "1.h5", plain(30)), write(tmp_path / "2.h5", plain(20, 100))
    pushed = push(first, second)
    assert counts(pushed) == [(30, 0, 0), (20, 0, 0)]
    assert [one.part.recall_at_10 for one in pushed] == [1.0, 1.0]  # among its own rows, as every vector is compared
    assert stored(uri) == wanted(first, second)
    rows = plain(19, 100)
    write(second, rows)
    assert counts(push(second)) == [(0, 0, 1)]
    assert stored(uri) == wanted(first, second)  # those of the first file have stayed
    moved = tmp_path / "elsewhere" / "1.h5"
    moved.parent.mkdir()
    os.rename(first, moved)
    assert counts(push(moved)) == [(0, 0, 0)]  # a file may move


def test_an_id_that_stands_in_two_files_is_refused_before_anything_is_written(tmp_path, push, uri):
    first, second = write(tmp_path / "1.h5", plain(30)), write(tmp_path / "2.h5", plain(30, 25))
    with pytest.raises(MismatchError, match=r"5 of the 30 ids of .*2\.h5 stand for images of .*1\.h5, too"):
        push(first, second)
    push(first)
    before = stored(uri)
    with pytest.raises(MismatchError, match=r"5 of the 30 ids of .*2\.h5 stand for images of 1\.h5 in images at "):
        push(second)
    assert stored(uri) == before
    with pytest.raises(UsageError, match="they are one part"):
        push(first, first)


def test_foreign_collections_and_other_vectors_are_refused(tmp_path, push, uri):
    path, other = write(tmp_path / "e.h5", plain(10)), write(tmp_path / "o.h5", plain(10, 20), fingerprint="e" * 64)
    longer = write(tmp_path / "l.h5", plain(10, 40), length=9)
    with Milvus(uri, "theirs", 30, create=True) as collection:
        collection._client.create_collection("theirs", dimension=8)
    with pytest.raises(MismatchError, match=r"theirs at .*m\.db was not made by mocoembed push\. Give another name"):
        push(path, collection="theirs")
    push(path)
    before = stored(uri)
    with pytest.raises(MismatchError, match=r"images at .* holds vectors of encoder f{12}, but .*o\.h5 has e{12}"):
        push(other)
    with pytest.raises(MismatchError, match=r"dimension 8, but .*l\.h5 has 9"):
        push(longer)
    with pytest.raises(MismatchError, match=r"encoder ffffffffffff, but .*o\.h5 has eeeeeeeeeeee"):
        push(path, other)
    assert stored(uri) == before
    push(other, fresh=True)
    assert stored(uri) == wanted(other)


def test_vectors_that_are_not_finite_and_long_names_are_refused(tmp_path, push, uri, make_embeddings):
    with pytest.raises(FormatError, match=r"row 1 .* holds a number that is not finite"):
        push(make_embeddings("nan", [[1, 0], [np.nan, 1]], "ab"))
    with pytest.raises(FormatError, match="is longer than 65535 bytes"):
        push(write(tmp_path / "long.h5", {b"a/1.jpg": ("x" * 70_000, 1)}), collection="long")


def test_what_was_not_stored_is_noticed(tmp_path, push, uri, monkeypatch):
    path = write(tmp_path / "e.h5", plain(30))
    real = Milvus.upsert
    monkeypatch.setattr(Milvus, "upsert", lambda self, rows: real(self, rows[1:]))
    with pytest.raises(MocoembedError, match="does not hold what was pushed: 1 of 30 rows are missing"):
        push(path)
    monkeypatch.setattr(Milvus, "upsert", lambda self, rows: real(self, [{**row, "vector": -row["vector"]}
                                                                         for row in rows]))
    with pytest.raises(MocoembedError, match="1 of 30 rows that were compared differ"):
        push(path)
    monkeypatch.setattr(Milvus, "upsert", real)
    with pytest.raises(MocoembedError, match="1 of 30 rows that were compared differ"):
        push(path)  # its hash is right
    assert counts(push(path, fresh=True)) == [(30, 0, 0)]
    assert stored(uri) == wanted(path)


def test_after_a_few_rows_they_alone_are_looked_up_and_checked(tmp_path, push, uri, monkeypatch):
    path, listings = write(tmp_path / "e.h5", plain(60)), []
    push(path)
    real, upsert = Milvus.listed, Milvus.upsert
    monkeypatch.setattr(Milvus, "listed", lambda self, part: listings.append(part) or real(self, part))
    assert counts(push(path)) == [(0, 0, 0)]
    rows = plain(60) | {b"b/0001.jpg": ("y", 900), b"b/new.jpg": ("x", 901)}
    del rows[b"a/0000.jpg"]
    write(path, rows)
    assert counts(push(path)) == [(1, 1, 1)]
    assert len(listings) == 2
    assert stored(uri) == wanted(path)
    listings.clear()
    write(path, rows | {b"b/two.jpg": ("x", 902), b"b/three.jpg": ("x", 903)})
    monkeypatch.setattr(Milvus, "upsert", lambda self, rows: upsert(self, rows[1:]))
    with pytest.raises(MocoembedError, match="does not hold what was pushed: 1 of 62 rows are missing"):
        push(path)
    monkeypatch.setattr(Milvus, "upsert", lambda self, rows: upsert(self, [{**row, "vector": -row["vector"]}
                                                                           for row in rows]))
    with pytest.raises(MocoembedError, match="1 of 62 rows that were compared differ"):
        push(path)
    monkeypatch.setattr(Milvus, "delete", lambda self, ids: None)
    write(path, plain(59))
    with pytest.raises(MocoembedError, match="are too many or doubled"):
        push(path)
    assert len(listings) == 3


@pytest.mark.parametrize(("values", "message"), [
    ({"collection": "1a"}, "--collection 1a: must be letters"), ({"to": "milvus"}, "--to milvus: must be a server's"),
    ({"to": "ftp://x/a.db"}, "must be a server's"), ({"index_type": "KD_TREE"}, "--index-type KD_TREE: must be one of"),
    ({"index_type": "HNSW", "param": ("M",)}, "--param M: must be KEY=VALUE"),
    ({"index_type": "HNSW", "param": ("M=-3",)}, "--param M=-3: M must be a whole number from 2 to 2048"),
    ({"search_param": ("efx=3",)}, "--search-param efx=3: Milvus Lite has no parameter efx. Perhaps it is ef"),
    ({"index_type": "HNSW", "param": ("foo=3",)}, "Milvus Lite has no parameter foo. Perhaps it is ef"),
    ({"search_param": ("ef=x",)}, "--search-param ef=x: ef must be a whole number"),
    ({"param": ("M=8",)}, "--param M=8: must be given together with --index-type"),
    ({"timeout": 0.0}, "--timeout 0.0: must be more than 0")])
def test_wrong_options(values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        PushConfig(("e.h5",), **values)


def test_wrong_places(tmp_path, push, uri, run_cli):
    path = write(tmp_path / "e.h5", plain(10))
    (tmp_path / "file.db").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"file\.db: is a file of another kind"):
        push(path, to=str(tmp_path / "file.db"))
    with pytest.raises(UsageError, match="Milvus Lite has AUTOINDEX"):
        push(path, index_type="DISKANN")
    push(path)
    with open(tmp_path / "m.db" / "LOCK") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="is in use by another process"):
            push(path)
    (tmp_path / "m.db" / "LOCK").unlink()
    (tmp_path / "m.db" / "LOCK").mkdir()  # as little of a file to write as on a disk that is read-only
    status, out, err = run_cli("push", path, "--to", uri)
    assert (status, out) == (1, "")
    assert err == (f"mocoembed: Milvus Lite cannot open {uri}: Is a directory. It writes there even for a search: use "
                   "a copy elsewhere.\n")
    assert run_cli("push", tmp_path / "nothing.h5")[0] == 2
    with pytest.raises(UsageError, match="--collection and --search-param belong to"):
        MilvusConfig(None, "photos")


# ----------------------------------------------------------------------------------------------- kills and servers

STEPS = ("create", "set_property", "index", "load", "flush", "upsert", "delete", "listed")


def kill_at(n: int, after: bool):
    """In this process: die at the n-th request of `STEPS`, before or after it was done."""
    left = [n]

    def watched(real, self, *arguments):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(self, *arguments)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for name in STEPS:
        real = getattr(Milvus, name)
        setattr(Milvus, name, partialmethod(lambda self, real, *rest: watched(real, self, *rest), real))
    module.BATCH_BYTES = 10_000


def test_a_push_that_is_killed_at_every_step_is_mended_by_the_next(tmp_path, uri):
    """A first push and one of a changed file, each killed at the n-th request, n = 1, 2, ... until it comes through."""
    path, kills = write(tmp_path / "e.h5", plain(60)), []
    for rows in (plain(60), plain(50, 20)):
        write(path, rows)
        for n in range(1, 100):
            run = Run(tmp_path / "run", "push", path, "--to", uri, prepare=partial(kill_at, n, n % 2 == 0)).go()
            if run.wait() == 0:
                break
            assert run.wait() == -signal.SIGKILL, run.stderr
            kills.append(n)
        assert stored(uri) == wanted(path)
    assert len(kills) > 8


def test_info_shows_the_collections_of_a_local_file(tmp_path, uri, push, run_cli):
    path = write(tmp_path / "e.h5", plain(60))
    said = []
    push(path, index_type="IVF_FLAT", param=("nlist=4",), note=said.append)
    assert said == ["IVF_FLAT in Milvus Lite may lose hits where a filter is given; FLAT does not"]
    push(path, collection="second", note=said.append)
    assert len(said) == 1
    with Milvus(uri, "theirs", 60) as collection:
        collection._client.create_collection("theirs", dimension=4)
    status, out, _ = run_cli("info", uri, "--json")
    found = json.loads(out)["collections"]
    assert (status, list(found)) == (0, ["images", "second", "theirs"])
    with EmbeddingFile(path) as file:
        assert found["images"]["encoder"] == file.fingerprint
        assert found["images"]["parts"]["e.h5"].items() >= {"count": 60, "whole": True,
                                                            "rows_sha256": file.identity}.items()
    assert found["images"]["index"]["type"] == "IVF_FLAT"
    assert found["theirs"] == {"made_by": "another program"}
    lines = run_cli("info", uri)[1]
    assert re.search(r"^collections\.second\.parts\.e\.h5\.recall_at_10 +1\.0$", lines, re.MULTILINE)
    status, _, err = run_cli("info", uri, "--verify")
    assert (status, "has no hash" in err) == (2, True)


def test_rows_that_are_there_twice_are_mended(tmp_path, uri, push):
    """As after a kill while Milvus Lite wrote: two of its files hold the same rows, and it lists and finds both."""
    path = write(tmp_path / "e.h5", plain(60))
    push(path)
    folder = pathlib.Path(uri) / "collections" / "images"
    (data,) = folder.glob("partitions/*/data/*.parquet")
    shutil.copy(data, data.with_name("data_000002_000061.parquet"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["partitions"]["_default"]["data_files"].append("data/data_000002_000061.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with Milvus(uri, "images", 60) as collection, EmbeddingFile(path) as file:
        collection.load()
        assert len(collection.listed(part_of(file))[0]) == 120
    (pushed,) = push(path)
    assert (pushed.added, pushed.changed, pushed.dropped) == (60, 0, 60)
    assert stored(uri) == wanted(path)
    with Milvus(uri, "images", 60) as collection, EmbeddingFile(path) as file:
        collection.load()
        assert len(collection.listed(part_of(file))[0]) == 60


@pytest.mark.parametrize("kind", LITE_INDEX_TYPES)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_an_index_file_of_milvus_lite_that_a_kill_left_half_written_is_made_anew(tmp_path, uri, push, kind, share):
    """Milvus Lite writes them in place; a collection with such a one could never be opened again."""
    path = write(tmp_path / "e.h5", plain(60))
    push(path, index_type=kind)
    files = list(pathlib.Path(uri).glob("collections/images/partitions/*/indexes/*.idx"))
    assert files
    sizes = [file.stat().st_size for file in files]
    for file, size in zip(files, sizes):
        os.truncate(file, int(share * size))
    assert stored(uri) == wanted(path)
    assert [file.stat().st_size for file in files] == sizes


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, uri):
    path, numbers, kills = write(tmp_path / "e.h5", plain(3000)), random.Random(0), 0
    for turn in range(20):
        write(path, plain(3000 - turn, 500 * turn))
        for _ in range(numbers.randint(1, 2)):
            run = Run(tmp_path / "run", "push", path, "--to", uri, prepare=small_batches).go()
            time.sleep(numbers.uniform(0, 4))
            kills += run.kill() != 0
        run = Run(tmp_path / "run", "push", path, "--to", uri).go()
        assert run.wait() == 0, run.stderr
        assert stored(uri) == wanted(path)
    assert kills > 8


def small_batches():
    module.BATCH_BYTES = 20_000


class Server:
    """A server of Milvus Lite in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = subprocess.Popen([sys.executable, "-m", "milvus_lite", "server", "--data-dir", self.folder,
                                         "--host", "127.0.0.1", "--port", str(self.port)],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail("the server did not start")

    def wait(self):
        """Until it answers."""
        for _ in range(60):
            try:
                with Milvus(self.uri, "images", 5) as collection:
                    collection.exists()
                return
            except MocoembedError:
                time.sleep(0.5)
        pytest.fail("the server does not answer")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "server.db")
    yield server
    server.kill()


def test_a_server_that_dies_is_slow_or_away_costs_one_line(tmp_path, server, run_cli, monkeypatch):
    path, real, sent = write(tmp_path / "e.h5", plain(60)), Milvus.upsert, []
    monkeypatch.setattr(module, "BATCH_BYTES", 10_000)

    def dying(self, rows):
        sent.append(rows)
        if len(sent) == 2:
            server.kill()
        real(self, rows)

    monkeypatch.setattr(Milvus, "upsert", dying)
    status, out, err = run_cli("push", path, "--to", server.uri)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"The Milvus server {server.uri} cannot be reached" in err
    monkeypatch.setattr(Milvus, "upsert", real)
    status, out, err = run_cli("push", path, "--to", server.uri)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "cannot be reached" in err
    server.start()
    os.kill(server.process.pid, signal.SIGSTOP)
    status, out, err = run_cli("push", path, "--to", server.uri, "--timeout", "1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    os.kill(server.process.pid, signal.SIGCONT)
    server.wait()
    with pytest.raises(MismatchError, match=r"does not hold all 60 rows of e\.h5 yet"):
        list(iterate_milvus_search(SearchConfig(("-",), str(tmp_path)), MilvusConfig(server.uri)))
    status, out, err = run_cli("push", path, "--to", server.uri)
    assert status == 0, err
    assert re.fullmatch(r"an earlier push of e\.h5 was cut off: going on with \d+ rows there\n", err), err
    assert stored(server.uri) == wanted(path)


def test_a_signal_stops_between_batches(tmp_path, uri):
    path = write(tmp_path / "e.h5", plain(60))
    run = Run(tmp_path / "run", "push", path, "--to", uri, prepare=partial(signal_at_batch, 2)).go()
    assert run.wait() == 130
    assert re.fullmatch(r"mocoembed: Stopped after pushing \d+ of 60 rows\. Run the same command again\.\n", run.stderr)


def signal_at_batch(n: int):
    module.BATCH_BYTES, real, left = 10_000, Milvus.upsert, [n]

    def watched(self, rows):
        real(self, rows)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    Milvus.upsert = watched


# ------------------------------------------------------------------------------------------------------- searching


@pytest.fixture(scope="module")
def pushed_workspace(indexed_workspace, tmp_path_factory):
    """(workspace with embeddings and encoder, URI of the collection that they were pushed into)."""
    uri = str(tmp_path_factory.mktemp("pushed") / "m.db")
    list(push_embeddings(PushConfig(workspace=str(indexed_workspace), to=uri, index_type="FLAT")))
    return indexed_workspace, uri


@pytest.mark.parametrize("more", [
    {}, {"k": 30}, {"label": ("red", "blue")}, {"not_label": ("red",)}, {"path": ("00[1-3]*",)},
    {"path": ("red/*",), "k": 3},
    {"exclude_self": True}, {"min_score": 0.9}, {"together": True, "exclude_self": True}, {"crop": (2, 3, 20, 20)},
    {"label": ("red",), "path": ("*.png", "00[57]*"), "exclude_self": True, "k": 4}, {"root": "/"}], ids=str)
def test_hits_are_those_of_the_ordinary_search(pushed_workspace, images, more):
    root, uri = pushed_workspace
    queries = tuple(map(str, sorted(images.rglob("*.jpg"))[::5]))
    config = SearchConfig(queries, str(root), device="cpu", **more)
    expected, found = search_images(config), list(iterate_milvus_search(config, MilvusConfig(uri)))
    assert [result.query for result in found] == [result.query for result in expected]
    for ours, theirs in zip(expected, found):
        assert len(ours.hits) == len(theirs.hits) > 0
        np.testing.assert_allclose([hit.score for hit in theirs.hits], [hit.score for hit in ours.hits], atol=1e-5)
        assert [hit._replace(score=0, row=None) for hit in ours.hits] == [
            hit._replace(score=0) for hit in theirs.hits]


def test_output_formats(pushed_workspace, images, run_cli, tmp_path):
    root, uri = pushed_workspace
    query = str(sorted(images.rglob("*.jpg"))[0])
    where = ("--workspace", root, "--to", uri, "-k", 2)
    status, out, _ = run_cli("search", query, *where)
    assert status == 0
    assert out.splitlines()[1].split() == ["rank", "score", "label", "path"]
    assert run_cli("search", query, *where, "--format", "paths")[1].splitlines()[0] == query
    rows = list(csv.DictReader(io.StringIO(run_cli("search", query, *where, "--format", "csv")[1])))
    assert [row["row"] for row in rows] == ["", ""]
    assert rows[0]["path"] == query
    (result,) = json.loads(run_cli("search", query, *where, "--json", "--sheet", tmp_path / "s.png")[1])
    assert result["hits"][0]["row"] is None
    assert int(result["hits"][0]["id"]) > 0
    assert (tmp_path / "s.png").exists()


@pytest.mark.parametrize(("more", "message"), [
    ({"label": ("redd",)}, "--label 'redd': 0 of 24 images match. The nearest labels: 'red'."),
    ({"path": ("nothing*",)}, "--path 'nothing*': 0 of 24 images match."),
    ({"path": ("rde",)}, "--path 'rde': 0 of 24 images match. The nearest names: 'red"),
    ({"path": ("red/00[x].png",)}, "--path 'red/00[x].png': 0 of 24 images match. The nearest names: 'red/00"),
    ({"path": ("red", "gren")}, "--path 'gren': 0 of 24 images match. The nearest names: 'green"),
    ({"path": ("red",), "label": ("green",), "min_score": 0.1}, "The filters together: 0 of 24 images match."),
    ({"label": ("red",), "not_label": ("red",)}, "The filters together: 0 of 24 images match."),
    ({"row": (1,)}, "--row does not go with --to"), ({"unique": True}, "--unique does not go with --to"),
    ({"diverse": True}, "--diverse does not go"), ({"index": "x"}, "--index does not go"),
    ({"server": "http://x:1"}, "--server does not go with --to"), ({"recall": 0.9}, "--recall does not go with --to"),
    ({"k": 20_000}, "-k 20000: Milvus gives at most 16384")])
def test_what_selects_nothing_or_does_not_map_is_refused(pushed_workspace, images, more, message):
    root, uri = pushed_workspace
    config = SearchConfig((str(sorted(images.rglob("*.jpg"))[0]),), str(root), device="cpu", **more)
    with pytest.raises(UsageError, match=re.escape(message)):
        list(iterate_milvus_search(config, MilvusConfig(uri)))


def test_a_score_that_nothing_reaches_is_no_error(pushed_workspace, images):
    root, uri = pushed_workspace
    config = SearchConfig((str(sorted(images.rglob("*.jpg"))[0]),), str(root), device="cpu", path=("red",), min_score=2)
    (result,) = iterate_milvus_search(config, MilvusConfig(uri))
    assert result.hits == []


def test_outdated_and_unfinished_collections_are_refused(fresh_workspace, uri, images):
    config = SearchConfig((str(sorted(images.rglob("*.jpg"))[0]),), str(fresh_workspace), device="cpu")

    def search(note=lambda text: None, config=config, name="images"):
        return list(iterate_milvus_search(config, MilvusConfig(uri, name), note=note))

    with pytest.raises(UsageError, match=r"m\.db: does not exist. Fill it with: mocoembed push EMBEDDINGS --to"):
        search()
    list(push_embeddings(PushConfig(workspace=str(fresh_workspace), to=uri)))
    with pytest.raises(UsageError, match=r"The Milvus collection other at .* does not exist\. Make it with: mocoembed"):
        search(name="other")
    assert search()
    with EmbeddingFile(fresh_workspace / "embeddings.h5") as file:
        key, part = f"mocoembed.part.{part_of(file):016x}", Part.of(file, 24)
    with Milvus(uri, "images", 30) as collection:
        collection.set_property(key, dataclasses.asdict(part))
    said = []
    assert search(said.append)
    assert "a push of embeddings.h5 (24 rows before, 24 after) runs or was cut off" in said[0]
    with Milvus(uri, "images", 30) as collection:
        collection.set_property(key, dataclasses.asdict(dataclasses.replace(part, whole=True, rows_sha256="0" * 64)))
    with pytest.raises(MismatchError, match=r"was pushed from 24 rows \(0{12}\), but .*embeddings\.h5 has 24 rows .*\n"
                                            r"Push it again: mocoembed push "):
        search()
    with Milvus(uri, "images", 30) as collection:
        collection.set_property("mocoembed", {"kind": "another"})
    with pytest.raises(MismatchError, match="was not made by mocoembed push"):
        search()


def test_neither_torch_nor_without_need_pymilvus_is_loaded(indexed_workspace, images, tmp_path):
    query, where = str(sorted(images.rglob("*.jpg"))[0]), ["--workspace", str(indexed_workspace)]
    local = ["--to", tmp_path / "m.db", *where]
    for arguments in (["push", *local], ["search", query, *local]):
        done = without_torch(*arguments)
        assert done.returncode == 0, done.stderr
    script = ("import sys\nsys.modules['pymilvus'] = None\nfrom mocoembed.cli.main import main\nmain(sys.argv[1:])")
    for arguments, status in ((["search", query], 0), (["search", query, "--to", str(tmp_path / "m.db")], 2),
                              (["push", "--to", str(tmp_path / "m.db")], 2)):
        done = subprocess.run([sys.executable, "-c", script, *arguments, *where], capture_output=True, text=True,
                              check=False)
        assert done.returncode == status, done.stderr
        if status:
            assert done.stderr.endswith("m.db needs the package pymilvus. Install it with: pip install "
                                        "'mocoembed[milvus]'\n")
            assert done.stderr.count("\n") == 1


def test_queries_that_cannot_be_read_cost_nothing_else(pushed_workspace, images, run_cli, tmp_path):
    root, uri = pushed_workspace
    folder = pathlib.Path(shutil.copytree(images / "red", tmp_path / "queries"))
    good = sorted(map(str, folder.iterdir()))
    (folder / "000a.png").write_bytes(b"no image")
    (folder / "009.jpg").symlink_to("absent.jpg")
    status, out, err = run_cli("search", folder, "--workspace", root, "--to", uri, "-k", 1, "--json")
    assert (status, [one["query"] for one in json.loads(out)]) == (1, good)
    assert f"mocoembed: 2 of 10 queries left out, the first of them: The image '{folder}" in err.splitlines()[-1]
    status, out, err = run_cli("search", folder / "000a.png", "--workspace", root, "--to", uri, "--json")
    assert (status, out) == (1, "")


def test_what_is_unlike_itself_and_what_is_only_itself_cost_the_other_queries_nothing(
        pushed_workspace, images, run_cli):
    """As in the ordinary search: one is left out, the other has no hits."""
    root, uri = pushed_workspace
    one, other = (str(path) for path in sorted((images / "red").iterdir())[:2])
    for where in ((), ("--to", uri)):
        call = ("search", one, other, "--workspace", root, *where, "-k", 1, "--json")
        status, out, err = run_cli(*call, "--unlike", one)
        assert (status, [found["query"] for found in json.loads(out)]) == (1, [other])
        assert f"The image '{one}': The query and the images" in err
        status, out, _ = run_cli(*call, "--exclude-self", "--path", f"red/{pathlib.Path(one).name}")
        assert (status, [len(found["hits"]) for found in json.loads(out)]) == (0, [0, 1])
        status, out, _ = run_cli("search", one, *call[3:], "--exclude-self", "--path", f"red/{pathlib.Path(one).name}")
        assert (status, [len(found["hits"]) for found in json.loads(out)]) == (0, [0])
