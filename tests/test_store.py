"""The embeddings file: its round trip, its bytes, what it refuses."""

import json
import resource
import signal

import h5py
import numpy as np
import pytest

from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.embed.seal import MARK, SEAL, make_seal
from mocoembed.embed.store import EmbeddingFile, FailedImage
from mocoembed.embed.store_writer import Settings, stable_ids, write_embeddings
from mocoembed.errors import FormatError, MocoembedError

PATHS = [b"a/1.jpg", "b/\u00fc.jpg".encode(), b"b/\xff.jpg", b"c/3.jpg"]


def written(path, dimension=5):
    listing = Listing(b"/root", PathTable(PATHS), np.array([0, 1, 1, -1], np.int32), ("cat", "d\u00f6g"), 0)
    done = np.array([True, True, False, True])
    facts = np.zeros(4, FACTS)
    facts["width"], facts["mtime_ns"], facts["digest"] = [1, 2, 0, 4], 2**60, b"\x00" * 31 + b"\x07"
    vectors = np.random.default_rng(0).standard_normal((3, dimension)).astype(np.float32)
    failed = [FailedImage(PATHS[2], "OSError", "broken \u00e4")]
    settings = Settings({"fingerprint": "f" * 64, "provenance": {}}, "backbone", True, dimension, "fp32", "parent")
    write_embeddings(path, listing, settings, done, facts, iter([vectors[:1], vectors[1:]]), failed)
    return vectors


def test_round_trip(tmp_path):
    vectors = written(tmp_path / "e.h5")
    with EmbeddingFile(tmp_path / "e.h5") as file:
        assert len(file) == 3
        assert file.dimension == 5
        assert np.array_equal(file.embeddings(), vectors)
        assert np.array_equal(file.embeddings(slice(1, 3)), vectors[1:3])
        assert file.paths() == [PATHS[0], PATHS[1], PATHS[3]]
        assert file.labels().tolist() == [0, 1, -1]
        assert file.label_names == ["cat", "d\u00f6g"]
        assert file.failed() == [FailedImage(PATHS[2], "OSError", "broken \u00e4")]
        assert file.full_path(0) == b"/root/a/1.jpg"
        assert file.full_path(0, "/elsewhere") == b"/elsewhere/a/1.jpg"
        assert file.describe()["listed"] == 4
        assert file.ids().tolist() == stable_ids([PATHS[0], PATHS[1], PATHS[3]]).tolist()
        file.verify()


def test_the_same_content_is_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        written(tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_plain_h5py_reads_it(tmp_path):
    vectors = written(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5") as file:
        assert np.array_equal(file["embeddings"][:], vectors)
        assert file["paths"][0].decode() == "a/1.jpg"
        assert file["digest"][0].tobytes() == b"\x00" * 31 + b"\x07"
        assert file["width"][:].tolist() == [1, 2, 4]


def test_ids_are_stable_positive_and_distinct():
    ids = stable_ids(PATHS)
    assert ids.dtype == np.int64
    assert (ids >= 0).all()
    assert stable_ids(PATHS[::-1]).tolist() == ids[::-1].tolist()
    assert len(set(stable_ids([b"same", b"same"]).tolist())) == 2


def test_flipped_bits_are_found(tmp_path):
    """Those in what describes the rows at once, those in the rows when asked."""
    path = tmp_path / "e.h5"
    vectors = written(path)
    whole = path.read_bytes()
    for known in (b"/root", b"broken", "d\u00f6g".encode(), b"mocoembed embeddings", b"\x89HDF", b"TREE"):
        data = bytearray(whole)
        data[data.find(known) + 1] ^= 1
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"damaged|not an embeddings file|not one of mocoembed's"):
            EmbeddingFile(path)
    data = bytearray(whole)
    data[data.find(vectors.tobytes()) + 1] ^= 1
    path.write_bytes(data)
    with EmbeddingFile(path) as file, pytest.raises(FormatError, match="damaged: its rows"):
        file.verify()


def seal_again(path):
    """Make a changed file look as if it had been written so."""
    with open(path, "r+b") as file:
        rows = json.loads(file.read(SEAL).removeprefix(MARK).rstrip(b"\0"))["rows"]
        file.seek(0)
        file.write(make_seal(file.fileno(), rows))


def test_what_is_not_an_embeddings_file_is_refused(tmp_path):
    path = tmp_path / "e.h5"
    path.write_text("text")
    with pytest.raises(FormatError, match=r"not an embeddings file.*mocoembed embed FOLDER"):
        EmbeddingFile(path)
    with h5py.File(path, "w") as file:
        file["embeddings"] = np.zeros((2, 2))
    with pytest.raises(FormatError, match="not one of mocoembed's"):
        EmbeddingFile(path)
    for change, message in [(lambda f: f.attrs.__setitem__("format_version", 99), "format 99"),
                            (lambda f: f.__delitem__("ids"), "lacks a proper dataset 'ids'"),
                            (lambda f: (f.__delitem__("size"), f.__setitem__("size", np.zeros(9))), "9 rows"),
                            (lambda f: (f.__delitem__("ids"), f.__setitem__("ids", h5py.SoftLink("/size"))), "ids"),
                            (lambda f: (f.__delitem__("ids"),
                                        f.__setitem__("ids", h5py.ExternalLink("other.h5", "x"))), "ids")]:
        written(path)
        with h5py.File(path, "r+") as file:
            change(file)
        seal_again(path)
        with pytest.raises(FormatError, match=message):
            EmbeddingFile(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    written(tmp_path / "e.h5")
    before = (tmp_path / "e.h5").read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr("mocoembed.files.NEARLY_FULL", 1 << 60)  # a limited file size stands for a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 500, limit[1]))
        with pytest.raises(MocoembedError, match=r"No space left to write .*e\.h5|Cannot write .*e\.h5"):
            written(tmp_path / "e.h5", dimension=90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before_signal)
    assert (tmp_path / "e.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5"]
