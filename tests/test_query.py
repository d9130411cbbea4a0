"""Search by image: hits, pairs that do not belong together, names of any bytes; and `mocoembed search`."""

import csv
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from mocoembed.cli.main import main
from mocoembed.config import EmbedConfig, IndexConfig, SearchConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.model.encoder_file import save_encoder
from mocoembed.search import query as module
from mocoembed.search.build import build_index
from mocoembed.search.query import search_images
from mocoembed.workspace import Workspace


def collection(folder: pathlib.Path, workspace: pathlib.Path, **more):
    """Embed and index `folder` in a workspace that has an encoder."""
    embed_images(EmbedConfig(str(folder), workspace=str(workspace), workers=0, device="cpu", fresh=True, **more))
    build_index(IndexConfig(workspace=str(workspace)))


def search(workspace, *images, **more):
    return search_images(SearchConfig(tuple(map(str, images)), workspace=str(workspace), device="cpu", **more))


@pytest.fixture
def fresh_index(tmp_path, indexed_workspace) -> pathlib.Path:
    """A copy of `indexed_workspace` that a test may change."""
    return pathlib.Path(shutil.copytree(indexed_workspace, tmp_path / "indexed"))


def test_every_image_finds_itself(indexed_workspace, images, monkeypatch):
    """In batches of five, with path, label and row of the embeddings file."""
    monkeypatch.setattr(module, "BATCH", 5)
    paths, steps = sorted(str(path) for path in images.rglob("*.*")), []
    config = SearchConfig(tuple(paths), workspace=str(indexed_workspace), k=3, device="cpu")
    results = search_images(config, lambda *counts: steps.append(counts))
    assert steps == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    for row, (path, result) in enumerate(zip(paths, results)):
        first = result.hits[0]
        assert (result.query, first.rank, first.path, first.row) == (path, 1, path, row)
        assert first.label == pathlib.Path(path).parent.name
        assert first.score == pytest.approx(1, abs=1e-5)
        assert [hit.rank for hit in result.hits] == [1, 2, 3]


def test_queries_are_decoded_as_the_collection_was(fresh_workspace, tmp_path):
    """Noise of 600 pixels, whose scaled decode is another image."""
    (tmp_path / "large").mkdir()
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 255, (600, 600, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "large" / f"{seed}.jpg")
    vectors = []
    for full_decode in (False, True):
        collection(tmp_path / "large", fresh_workspace, full_decode=full_decode)
        (found,) = search(fresh_workspace, tmp_path / "large" / "1.jpg", k=1)
        assert found.hits[0].row == 1
        assert found.hits[0].score == pytest.approx(1, abs=1e-6)
        with EmbeddingFile(fresh_workspace / "embeddings.h5") as file:
            assert file.full_decode is full_decode
            vectors.append(file.embeddings())
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-5


def test_hits_are_the_nearest_of_the_embeddings_file(indexed_workspace, make_images, tmp_path):
    """An image from outside, compared by loops with the vector that embedding its folder gives."""
    outside = make_images(tmp_path / "outside", per_class=1, seed=9)
    embed_images(EmbedConfig(str(outside), workspace=str(indexed_workspace), output=str(tmp_path / "outside.h5"),
                             workers=0, device="cpu"))
    with EmbeddingFile(tmp_path / "outside.h5") as file, EmbeddingFile(indexed_workspace / "embeddings.h5") as other:
        cosines = [float(file.embeddings()[0] @ row) for row in other.embeddings()]
        query = os.fsdecode(file.full_path(0))
    hits = search(indexed_workspace, query, k=24)[0].hits
    assert [hit.row for hit in hits] == sorted(range(24), key=lambda row: -cosines[row])
    np.testing.assert_allclose([hit.score for hit in hits], sorted(cosines, reverse=True), atol=1e-5)


@pytest.mark.parametrize("more", [{"features": "projection"}, {"normalize": False}, {"labels": "none"},
                                  {"dtype": "float16"}])
def test_other_kinds_of_vectors(fresh_workspace, images, more):
    collection(images, fresh_workspace, **more)
    query = images / "red" / "003.jpg"
    first, second = search(fresh_workspace, query, k=2)[0].hits
    assert first.path == str(query)
    assert first.label == (None if "labels" in more else "red")
    assert first.score == pytest.approx(0 if "normalize" in more else 1, abs=1e-3 if "dtype" in more else 1e-4)
    assert second.score < first.score - 1e-4


def test_k_larger_than_the_collection(indexed_workspace, images):
    hits = search(indexed_workspace, images / "red" / "000.png", k=500)[0].hits
    assert sorted(hit.row for hit in hits) == list(range(24))


def test_the_workspace_may_move(fresh_index, images, tmp_path, monkeypatch):
    """The index names the embeddings file relative to itself, not to the current folder."""
    monkeypatch.chdir(tmp_path)
    os.rename(fresh_index, tmp_path / "elsewhere")
    assert search("elsewhere", images / "red" / "000.png")[0].hits[0].path == str(images / "red" / "000.png")


def test_the_images_may_move(indexed_workspace, images, tmp_path):
    hit = search(indexed_workspace, images / "red" / "000.png", root=str(tmp_path))[0].hits[0]
    assert hit.path == str(tmp_path / "red" / "000.png")


def test_the_embeddings_file_may_move(fresh_index, images):
    query = images / "red" / "000.png"
    os.rename(fresh_index / "embeddings.h5", fresh_index / "moved.h5")
    with pytest.raises(UsageError, match=r"embeddings\.h5' of .*embeddings\.faiss does not exist.*--embeddings"):
        search(fresh_index, query)
    assert search(fresh_index, query, embeddings=str(fresh_index / "moved.h5"))[0].hits[0].path == str(query)


def test_a_stale_pair_is_refused(fresh_index, make_images, tmp_path):
    query = tmp_path / "more" / "red" / "000.png"
    make_images(tmp_path / "more", per_class=9)
    embed_images(EmbedConfig(str(tmp_path / "more"), workspace=str(fresh_index), workers=0, device="cpu", fresh=True))
    with pytest.raises(MismatchError, match=r"faiss was built from 24 rows \(\w{12}\), but .*h5 has 27 rows \(\w{12}\)"
                                            r".\nRun mocoembed index again"):
        search(fresh_index, query)
    other = shutil.copy(fresh_index / "embeddings.h5", tmp_path / "other.h5")
    with pytest.raises(MismatchError, match=r"\.faiss is the index of .*embeddings\.h5, not of .*other\.h5\. .*: "
                                            r"mocoembed index \S*other\.h5$"):
        search(fresh_index, query, embeddings=str(other), index=str(fresh_index / "embeddings.faiss"))
    build_index(IndexConfig(workspace=str(fresh_index)))
    assert search(fresh_index, query)[0].hits[0].path == str(query)


def test_encoders(fresh_index, images, make_encoder, tmp_path):
    """Found by fingerprint; given; foreign; not there."""
    query, places = images / "red" / "000.png", Workspace(fresh_index)
    save_encoder(tmp_path / "foreign.safetensors", make_encoder(seed=5))
    with pytest.raises(MismatchError, match=r"made with encoder \w{12}, but .*foreign\.safetensors is \w{12}"):
        search(fresh_index, query, encoder=str(tmp_path / "foreign.safetensors"))
    shutil.copy(tmp_path / "foreign.safetensors", places.newest_encoder)  # a later pretraining
    assert search(fresh_index, query)[0].hits[0].score == pytest.approx(1, abs=1e-5)
    (kept,) = places.encoders.glob("*.safetensors")
    os.rename(kept, tmp_path / "own.safetensors")
    assert search(fresh_index, query)[0].hits[0].path == str(query)  # by the encoder's graph
    for path in places.encoders.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match=f"The encoder {kept.name[:12]} that made .*--encoder FILE"):
        search(fresh_index, query)
    assert search(fresh_index, query, encoder=str(tmp_path / "own.safetensors"))[0].hits[0].path == str(query)


def test_queries_that_cannot_be_used(indexed_workspace, images, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(next((images / "red").glob("*.jpg")).read_bytes()[:200])
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "empty").mkdir()
    for name, error, message in [("absent.jpg", UsageError, r"absent\.jpg' does not exist"),
                                 ("empty", CollectionError, "The folder of queries .*empty' holds no images"),
                                 ("broken.jpg", CollectionError, r"broken\.jpg' cannot be read: Truncated File Read$"),
                                 ("fifo.jpg", CollectionError, "not a regular file")]:
        with pytest.raises(error, match=message):
            search(indexed_workspace, images / "red" / "000.png", tmp_path / name)


def test_an_embeddings_file_is_no_index(indexed_workspace, images):
    with pytest.raises(FormatError, match="it is an embeddings file"):
        search(indexed_workspace, images / "red" / "000.png", index=str(indexed_workspace / "embeddings.h5"))


# ------------------------------------------------------------------------------------------------- the command


def test_command_formats(indexed_workspace, images, run_cli):
    queries = [images / "red" / "000.png", images / "blue" / "001.jpg"]
    arguments = ("search", *queries, "--workspace", indexed_workspace, "-k", "2", "--format")
    status, out, err = run_cli(*arguments, "json")
    assert (status, err) == (0, "")
    assert run_cli(*arguments[:-1], "--json")[1] == out
    assert run_cli(*arguments, "json", "--json")[1] == out
    for form in ("csv", "table", "paths"):
        status, said, err = run_cli(*arguments, form, "--json")
        assert (status, said) == (2, "")
        assert err == f"mocoembed: --json and --format {form} exclude each other. Leave one of them out.\n"
    value = json.loads(out)
    assert [one["query"] for one in value] == list(map(str, queries))
    assert set(value[0]["hits"][0]) == {"rank", "score", "path", "label", "row", "id"}
    hits = [(one["query"], hit) for one in value for hit in one["hits"]]
    rows = list(csv.DictReader(run_cli(*arguments, "csv")[1].splitlines()))
    assert [(row["query"], row["path"], row["label"], int(row["row"])) for row in rows] == [
        (query, hit["path"], hit["label"], hit["row"]) for query, hit in hits]
    assert run_cli(*arguments, "paths")[1].splitlines() == [hit["path"] for _, hit in hits]
    lines = run_cli(*arguments, "table")[1].splitlines()
    assert lines[0] == str(queries[0])
    assert lines[1].split() == ["rank", "score", "label", "path"]
    assert lines[2].split() == ["1", "1.0000", "red", str(queries[0])]
    assert len({line.index("/") for line in lines[2:4]}) == 1
    assert lines[4] == ""
    assert lines[5] == str(queries[1])


def parsed(form, out):
    """The queries whose hits were printed."""
    if form == "json":
        return [one["query"] for one in json.loads(out)]
    if form == "csv":
        return list(dict.fromkeys(row["query"] for row in csv.DictReader(out.splitlines())))
    return [line for line in out.splitlines() if line.startswith("/")]


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_queries_that_cannot_be_read_cost_nothing_else(indexed_workspace, images, run_cli, tmp_path, form, monkeypatch):
    """Of a folder, in batches of two; the output is whole and the status 1."""
    monkeypatch.setattr(module, "BATCH", 2)
    folder = pathlib.Path(shutil.copytree(images / "red", tmp_path / "queries"))
    good = sorted(map(str, folder.iterdir()))
    for name in ("000a.png", "000b.png", "004a.jpg"):
        (folder / name).write_bytes(b"no image")
    (folder / "009.jpg").symlink_to("absent.jpg")
    status, out, err = run_cli("search", folder, "--workspace", indexed_workspace, "-k", "1", "--format", form,
                               "--sheet", tmp_path / "hits.png")
    assert (status, parsed(form, out)) == (1, good)
    lines = err.splitlines()
    assert [line.partition("' cannot be read: ")[0] for line in lines[:-2]] == [
        f"The image '{folder / name}" for name in ("000a.png", "000b.png", "004a.jpg", "009.jpg")]
    assert lines[-2].startswith("sheet: ")
    assert lines[-1] == f"mocoembed: 4 of 12 queries left out, the first of them: {lines[0]}"
    assert (tmp_path / "hits.png").exists()


def test_nothing_is_printed_when_no_query_can_be_read(indexed_workspace, images, run_cli, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    good, sheet = images / "red" / "000.png", tmp_path / "hits.png"
    for queries, expected in ((["broken.png"], 1), (["broken.png", "broken.png"], 1), (["absent.png"], 2)):
        status, out, err = run_cli("search", *(tmp_path / name for name in queries), "--workspace", indexed_workspace,
                                   "--sheet", sheet, "--json")
        assert (status, out) == (expected, "")
        assert queries[0] in err
    status, out, err = run_cli("search", good, tmp_path / "broken.png", "--together", "--workspace", indexed_workspace)
    assert (status, out, len(err.splitlines())) == (1, "", 1)  # a mean of fewer would be another query
    status, out, err = run_cli("search", good, images / "red" / "001.jpg", "--crop", "0,0,48,10", "--workspace",
                               indexed_workspace, "--json")
    assert (status, parsed("json", out)) == (1, [str(images / "red" / "001.jpg")])  # the other is not so wide
    status, out, err = run_cli("search", images / "red", "--unlike", good, "--workspace", indexed_workspace, "--json")
    assert (status, str(good) in parsed("json", out), len(parsed("json", out))) == (1, False, 7)
    assert f"'{good}': The query and the images" in err
    assert not sheet.exists()


@pytest.mark.parametrize(("arguments", "message"), [((), "No query image"), (("IMAGE", "-k", "0"), "-k 0"),
                                                    (("IMAGE", "--sheet", "hits.jpg"), ".png"),
                                                    (("IMAGE", "--sheet", "IMAGE"), "not a contact sheet"),
                                                    (("IMAGE", "--index", "absent.faiss"), "absent.faiss"),
                                                    (("IMAGE", "--root", "absent"), "'absent' is not a folder")])
def test_command_with_a_wrong_call(indexed_workspace, images, run_cli, arguments, message):
    image = images / "red" / "000.png"
    before = image.read_bytes()
    arguments = [image if argument == "IMAGE" else argument for argument in arguments]
    status, out, err = run_cli("search", *arguments, "--workspace", indexed_workspace)
    assert (status, out) == (2, "")
    assert message in err
    assert image.read_bytes() == before


@pytest.fixture(params=[b"caf\xe9 \xff.png", "schön 猫.png".encode(), b"two\nlines\x1b[31m.png"])
def odd_name(request, fresh_workspace, images, tmp_path):
    """(workspace, path as bytes) of a collection with an image of an odd name."""
    folder = tmp_path / "odd"
    shutil.copytree(images / "red", folder / "red")
    path = os.path.join(os.fsencode(folder), b"red", request.param)
    with open(path, "wb") as file:
        file.write((images / "green" / "000.png").read_bytes())
    collection(folder, fresh_workspace)
    return fresh_workspace, path


def test_odd_names_come_back_whole(odd_name, capfdbinary):
    workspace, path = odd_name
    assert os.fsencode(search(workspace, os.fsdecode(path))[0].hits[0].path) == path

    def run(form: str) -> bytes:
        with pytest.raises(SystemExit) as leaving:
            main(["search", os.fsdecode(path), "-k", "1", "--format", form, "--workspace", str(workspace)])
        assert not leaving.value.code
        return capfdbinary.readouterr().out

    value = json.loads(run("json").decode("ascii"))
    assert os.fsencode(value[0]["query"]) == os.fsencode(value[0]["hits"][0]["path"]) == path
    assert run("paths") == path + b"\n"
    lines = run("csv").decode("utf-8", "surrogateescape").splitlines(keepends=True)
    row = next(csv.DictReader(lines))
    assert os.fsencode(row["path"]) == path
    shown = path.replace(b"\n", b"\\n").replace(b"\x1b", b"\\x1b")
    assert run("table").splitlines()[2].endswith(b"  " + shown)
