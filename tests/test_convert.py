"""Converting: the same rows in other tools' readers and back, in bounded memory; wrong combinations."""

import csv
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mocoembed.config import ConvertConfig, DuplicatesConfig, IndexConfig, KnnConfig, SearchConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.embed import convert as module
from mocoembed.embed import npy
from mocoembed.embed.convert import convert_embeddings
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import FormatError, Interrupted, MismatchError, UsageError
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.search.build import build_index
from mocoembed.search.duplicates import find_duplicates
from mocoembed.search.query import search_images

PATHS = [b'a/1,"x".jpg', "b/\u00fc.jpg".encode(), b"b/\xff.jpg", b"c/two\nlines.jpg"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of a few rows."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(npy, "BLOCK_BYTES", 100)


@pytest.fixture
def source(tmp_path):
    """(path, vectors) of four rows with odd names; the last one has no label."""
    listing = Listing(b"/photos", PathTable(PATHS), np.array([0, 1, 1, -1], np.int32), ("cat", "d\u00f6g"), 0)
    facts = np.zeros(4, FACTS)
    facts["width"], facts["size"], facts["mtime_ns"] = [1, 2, 3, 4], 2**40, 2**60
    facts["digest"] = np.array([bytes([row] * 32) for row in range(4)], "V32")
    vectors = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    settings = Settings({"fingerprint": "f" * 64, "provenance": {"recipe": "small"}}, "backbone", False, 5, "fp32",
                        "parent")
    write_embeddings(tmp_path / "e.h5", listing, settings, np.ones(4, bool), facts, [vectors], [])
    return tmp_path / "e.h5", vectors


def full(root=b"/photos/"):
    return [root + path for path in PATHS]


def test_npy_and_its_list(source, tmp_path):
    path, vectors = source
    calls = []
    result = convert_embeddings(ConvertConfig(str(path), to="npy"), lambda *counts: calls.append(counts))
    assert result.files == (tmp_path / "e.npy", tmp_path / "e-paths.csv")
    assert calls == [(2, 4), (4, 4)]
    found = np.load(tmp_path / "e.npy", mmap_mode="r")
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors)
    with open(tmp_path / "e-paths.csv", encoding="utf-8", errors="surrogateescape", newline="") as text:
        rows = list(csv.DictReader(text))
    assert [os.fsencode(row["path"]) for row in rows] == full()
    assert [row["label"] for row in rows] == ["cat", "d\u00f6g", "d\u00f6g", ""]
    with EmbeddingFile(path) as file:
        assert [int(row["id"]) for row in rows] == file.ids().tolist()


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_between_the_two_files_leaves_no_mismatched_pair(source, tmp_path, monkeypatch, renames):
    path, vectors = source
    np.save(tmp_path / "e.npy", vectors[:1])
    (tmp_path / "e-paths.csv").write_text("path\nold.jpg\n")
    real, done = os.replace, []

    def replace(one, other):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(other)
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        convert_embeddings(ConvertConfig(str(path), to="npy", fresh=True))
    assert len(np.load(tmp_path / "e.npy")) == (4 if renames else 1)
    assert not (tmp_path / "e-paths.csv").exists()


def test_csv_keeps_every_bit_and_pandas_reads_it(source, tmp_path):
    path, vectors = source
    convert_embeddings(ConvertConfig(str(path), to="csv", root=str(tmp_path), output=str(tmp_path / "new" / "x.csv")))
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(tmp_path / "new" / "x.csv", encoding_errors="backslashreplace", dtype={"digest": str})
    assert np.array_equal(table[[f"v{i}" for i in range(5)]].to_numpy(np.float32), vectors)
    moved = full(os.fsencode(tmp_path) + b"/")
    assert table["path"].tolist() == [path.decode("utf-8", "backslashreplace") for path in moved]
    assert table["digest"].tolist() == [f"{row:02x}" * 32 for row in range(4)]
    assert table["mtime_ns"].tolist() == [2**60] * 4
    assert table["width"].tolist() == [1, 2, 3, 4]


def test_parquet_in_row_groups(source, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path, vectors = source
    convert_embeddings(ConvertConfig(str(path), to="parquet"))
    file = parquet.ParquetFile(tmp_path / "e.parquet")
    assert file.num_row_groups == 2
    table = file.read()
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    assert table.schema.field("embedding").type.list_size == 5
    assert np.array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), vectors)
    assert table["path_bytes"].to_pylist() == full()
    assert table["path"].to_pylist()[1:3] == ["/photos/b/\u00fc.jpg", "/photos/b/\\xff.jpg"]
    assert table["label"].to_pylist() == ["cat", "d\u00f6g", "d\u00f6g", None]
    assert table["size"].to_pylist() == [2**40] * 4
    assert table["digest"].to_pylist()[3] == "03" * 32
    about = json.loads(table.schema.metadata[b"mocoembed"])
    assert about["encoder"]["fingerprint"] == "f" * 64
    with EmbeddingFile(path) as embeddings:
        assert table["id"].to_pylist() == embeddings.ids().tolist()


def test_there_and_back(source, tmp_path):
    path, vectors = source
    convert_embeddings(ConvertConfig(str(path), to="npy"))
    notes = []
    convert_embeddings(ConvertConfig(str(tmp_path / "e.npy"), output=str(tmp_path / "back.h5")), note=notes.append)
    assert "searching by image needs the encoder" in notes[0]
    with EmbeddingFile(path) as file, EmbeddingFile(tmp_path / "back.h5") as back:
        assert np.array_equal(back.embeddings(), vectors)
        assert back.paths() == file.paths() == PATHS
        assert back.root == b"/photos"
        assert back.labels().tolist() == file.labels().tolist()
        assert back.label_names == file.label_names
        assert back.ids().tolist() == file.ids().tolist()
        assert not back.normalized
        assert back.digest[2] == bytes(32)
        assert back.encoder["provenance"]["foreign"] is True
        assert back.encoder["provenance"]["file"] == "e.npy"
        back.verify()


def test_float16_stays_float16(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float16)
    path = foreign(tmp_path, "v", vectors, [b"%d.jpg" % row for row in range(5)])
    convert_embeddings(ConvertConfig(path, to="npy", output=str(tmp_path / "back.npy")))
    back = np.load(tmp_path / "back.npy")
    assert (back.dtype, back.tobytes()) == (np.float16, vectors.tobytes())


def foreign(folder, name: str, vectors, lines, made_by=None, **values) -> str:
    np.save(folder / f"{name}.npy", vectors)
    (folder / f"{name}.txt").write_bytes(b"\n".join(lines))
    config = ConvertConfig(str(folder / f"{name}.npy"), paths=str(folder / f"{name}.txt"), made_by=made_by, **values)
    return str(convert_embeddings(config).files[0])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_rows_in_any_order_and_of_any_float_type(tmp_path, dtype):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((60, 8))
    vectors = np.asfortranarray((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype))
    names = [b"kinds/%d/%02d.jpg" % (row % 3, row) for row in random.permutation(60)]
    path = foreign(tmp_path, "v", vectors, names, root=str(tmp_path))
    with EmbeddingFile(path) as file:
        assert file.dtype == ("float16" if dtype == "<f2" else "float32")
        assert file.normalized
        assert file.root == os.fsencode(tmp_path)
        assert file.paths() == sorted(names)
        order = [names.index(name) for name in sorted(names)]
        assert np.array_equal(file.embeddings(), vectors[order].astype(np.float32))
        assert [file.label_names[label] for label in file.labels()] == [name[6:7].decode() for name in sorted(names)]


def test_others_vectors_are_indexed_measured_and_compared_but_not_searched(tmp_path, images):
    random = np.random.default_rng(0)
    names = [b"%s/%02d.jpg" % (b"ab"[row % 2:row % 2 + 1], row) for row in range(20)]
    vectors = np.where(np.arange(20)[:, None] % 2 == 0, [1, 0, 0], [0, 1, 0]) + 0.05 * random.standard_normal((20, 3))
    bank = foreign(tmp_path, "bank", vectors, names, "clip")
    queries = foreign(tmp_path, "queries", vectors[:6] * 2, names[:6], "clip")
    other = foreign(tmp_path, "other", vectors[:6], names[:6])
    assert knn_accuracy(KnnConfig(bank, queries, k=(3,))).scores[0].top1 == 100
    with pytest.raises(MismatchError, match="Different encoders"):
        knn_accuracy(KnnConfig(bank, other, k=(3,)))
    assert find_duplicates(DuplicatesConfig(bank, threshold=0.5)).extra == 18
    with pytest.raises(UsageError, match="does not know the bytes"):
        find_duplicates(DuplicatesConfig(bank, exact_only=True))
    index = build_index(IndexConfig(bank))
    assert index.manifest["recall_at_10"] == 1
    for encoder in (None, "moco-v2-800ep"):
        with pytest.raises(UsageError, match=r"made by another tool .*no encoder to embed(?s:.*)mocoembed embed"):
            search_images(SearchConfig((str(images / "red" / "000.png"),), str(tmp_path), str(index.path),
                                       encoder=encoder, device="cpu"))


def test_what_is_no_matrix_with_a_path_for_each_row_is_refused(tmp_path):
    good, names = np.ones((3, 2), np.float32), [b"x/1.jpg", b"x/2.jpg", b"x/3.jpg"]
    bad = good.copy()
    bad[2, 1] = np.nan
    for vectors, lines, message in [
            (good, names[:2], "holds 3 vectors, .* names 2 paths"), (good, [*names[:2], names[0]], "more than once"),
            (bad, names, "row 2 holds a number that is not finite"), (good[0], names, r"shape \(2,\)"),
            (good.astype(np.float64) * 1e300, names, "row 0 holds a number that is not finite"),
            (good.astype(int), names, "matrix of floats"), (good.astype(object), names, "cannot be read"),
            (good[:0], [], r"shape \(0, 2\)")]:
        with pytest.raises(FormatError, match=message):
            foreign(tmp_path, "v", vectors, lines)
        assert not (tmp_path / "v.h5").exists()
    data = (tmp_path / "v.npy").read_bytes()
    np.save(tmp_path / "v.npy", good)
    data = (tmp_path / "v.npy").read_bytes()
    for broken in (data[:-4], data[:20], data.replace(b"'<f4'", b"'<q9'")):
        (tmp_path / "v.npy").write_bytes(broken)
        with pytest.raises(FormatError, match="cannot be read"):
            convert_embeddings(ConvertConfig(str(tmp_path / "v.npy"), paths=str(tmp_path / "v.txt")))
    with pytest.raises(UsageError, match=r"--root .*does not lie below it"):
        foreign(tmp_path, "v", good, names, root=str(tmp_path / "elsewhere"))


def test_a_damaged_source_is_not_converted(source, tmp_path):
    path, vectors = source
    data = bytearray(path.read_bytes())
    data[data.find(vectors.tobytes()) + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="is damaged"):
        convert_embeddings(ConvertConfig(str(path), to="npy"))
    assert [one.name for one in tmp_path.iterdir()] == ["e.h5"]


def test_a_signal_leaves_nothing_half(source, tmp_path):
    path, _ = source
    for form in ("npy", "csv"):
        with pytest.raises(Interrupted, match="Stopped after 2 of 4 rows; nothing was written"):
            convert_embeddings(ConvertConfig(str(path), to=form), lambda *counts: signal.raise_signal(signal.SIGINT))
        assert [one.name for one in tmp_path.iterdir()] == ["e.h5"]


def test_command_and_its_wrong_calls(source, tmp_path, run_cli):
    path, _ = source
    status, out, err = run_cli("convert", path, "--to", "npy")
    assert (status, out) == (0, f"{tmp_path / 'e.npy'} and {tmp_path / 'e-paths.csv'}: 4 vectors of dimension 5\n")
    assert err == "names that are not UTF-8: 1; docs/format.md says how they are written\n"
    before = (tmp_path / "e.npy").read_bytes()
    (tmp_path / "text").write_text("x")
    for arguments, message in [
            ((path, "--to", "npy"), "e.npy exists. Add --fresh"), ((path,), "Give --to npy, parquet or csv"),
            ((path, "--to", "h5"), "Give --to npy, parquet or csv"), ((path, "--to", "xls"), "must be one of npy"),
            ((path, "--to", "csv", "--paths", "l.txt"), "--paths l.txt: is for a .npy file"),
            ((path, "--to", "csv", "--made-by", "x"), "--made-by x: is for a .npy file"),
            ((path, "--to", "csv", "--output", path, "--fresh"), "is the source itself"),
            ((path, "--to", "csv", "--output", tmp_path), "is a folder"),
            ((path, "--to", "csv", "--output", tmp_path / "text" / "new" / "a.csv"),
             f"--output {tmp_path}/text/new/a.csv: {tmp_path}/text is a file, not a folder"),
            ((path, "--to", "csv", "--root", tmp_path / "text"), "text' is not a folder"),
            ((tmp_path / "none.h5", "--to", "csv"), "does not exist"),
            ((tmp_path / "e.npy", "--to", "csv"), "can only become an embeddings file"),
            ((tmp_path / "e.npy", "--paths", tmp_path / "none.txt"), "none.txt' does not exist. Give a .txt"),
            ((tmp_path / "e.npy", "--paths", tmp_path / "text", "--fresh"), "must be a list file"),
            ((tmp_path / "e.npy",), "e.h5 exists")]:
        status, out, err = run_cli("convert", *arguments)
        assert (status, out) == (2, ""), arguments
        assert message in err, arguments
    assert (tmp_path / "e.npy").read_bytes() == before
    status, _, err = run_cli("convert", tmp_path / "text", "--to", "csv")
    assert (status, "neither an embeddings file nor a .npy file" in err) == (1, True)
    status, out, _ = run_cli("convert", path, "--to", "npy", "--fresh", "--json")
    assert (status, json.loads(out)["count"]) == (0, 4)


def test_without_pyarrow_the_message_says_how_to_get_it(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs the package pyarrow.*pip install 'mocoembed\[parquet\]'"):
        convert_embeddings(ConvertConfig(str(source[0]), to="parquet"))


MEMORY = """
import resource, sys
from mocoembed.config import ConvertConfig
from mocoembed.embed.convert import convert_embeddings
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_embeddings(ConvertConfig(sys.argv[1], to=sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_parquet_for_viewers_in_the_browser(fresh_workspace, images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    shutil.copytree(images, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "000.png").write_bytes(b"changed")
    (tmp_path / "photos" / "red" / "001.jpg").unlink()
    source, notes = fresh_workspace / "embeddings.h5", []
    convert_embeddings(ConvertConfig(str(source), to="parquet", root=str(tmp_path / "photos"), text_ids=True,
                                     thumbnails=True), note=notes.append)
    rows = parquet.read_table(fresh_workspace / "embeddings.parquet").to_pylist()
    with EmbeddingFile(source) as file:
        assert [row["id"] for row in rows] == list(map(str, file.ids()))
        assert [row["mtime_ns"] for row in rows] == list(map(str, file.mtime_ns()))
        for row, width, height in zip(rows, file.width(), file.height()):
            if row["path"].endswith(("red/000.png", "red/001.jpg")):
                assert row["image"] is None
                continue
            shown = Image.open(io.BytesIO(row["image"]["bytes"]))
            assert (shown.format, shown.size) == ("JPEG", (width, height))
            assert row["path"].endswith(row["image"]["path"])
    assert "without a thumbnail: 2 images" in notes[0]


@pytest.mark.parametrize("option", ["text_ids", "thumbnails"])
def test_options_of_parquet_are_refused_elsewhere(option):
    with pytest.raises(UsageError, match="is for --to parquet"):
        ConvertConfig("e.h5", to="csv", **{option: True})


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, form):
    """160 MB of vectors, in blocks of 16 MB; verifying them and pyarrow take a little as well."""
    if form == "parquet":
        pytest.importorskip("pyarrow")
    count, dimension = 40_000, 1024
    listing = Listing(b"/p", PathTable([b"%06d.jpg" % row for row in range(count)]), np.zeros(count, np.int32),
                      ("x",), 0)
    settings = Settings({"fingerprint": "f" * 64, "provenance": {}}, "backbone", False, dimension, "fp32", "parent")
    blocks = (np.ones((1000, dimension), np.float32) for _ in range(count // 1000))
    write_embeddings(tmp_path / "e.h5", listing, settings, np.ones(count, bool), np.zeros(count, FACTS), blocks, [])
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "e.h5", form], check=True, capture_output=True,
                          text=True, cwd=tmp_path)
    grown = int(re.findall(r"\d+", done.stdout)[-1]) / 1024
    assert grown < 120, f"{grown:.0f} MB"
    assert pathlib.Path(tmp_path / f"e.{form}").stat().st_size > (1e8 if form == "npy" else 1e5)
