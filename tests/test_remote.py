"""`mocoembed search --server`: the same results as here, and what is said when there are none."""

import json
import shutil
import socket

import numpy as np
import pytest
from PIL import Image
from serving import Running

from mocoembed.config import EmbedConfig, SearchConfig
from mocoembed.embed.extract import embed_images
from mocoembed.errors import CollectionError, MocoembedError, UsageError
from mocoembed.search.hits import QueryResult
from mocoembed.search.query import search_images
from mocoembed.search.remote import Combining, Server, iterate_remote, thumbnails
from mocoembed.search.sheet import Sheet

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def running(indexed_workspace):
    running = Running(workspace=str(indexed_workspace))
    yield running
    running.stop()


@pytest.fixture
def address(running):
    return f"http://127.0.0.1:{running.port}"


@pytest.mark.parametrize("values", [
    {}, {"k": 3}, {"label": ("red", "green")}, {"not_label": ("red",), "path": ("00[0-4]*",)}, {"min_score": 0.98},
    {"crop": (3, 4, 20, 21)}, {"exclude_self": True}, {"unique": True}, {"diverse": True, "k": 5}])
def test_a_server_finds_what_is_found_here(indexed_workspace, images, address, values):
    names = tuple(str(images / name) for name in ("red/000.png", "blue/001.jpg"))
    here = search_images(SearchConfig(names, str(indexed_workspace), **values))
    there = search_images(SearchConfig(names, server=address, **values))
    assert [one.query for one in there] == list(names)
    for one, other in zip(here, there):
        assert [(hit.row, hit.id, hit.path, hit.label, hit.rank, hit.folded) for hit in one.hits] == \
            [(hit.row, hit.id, hit.path, hit.label, hit.rank, hit.folded) for hit in other.hits]
        assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in other.hits], abs=1e-5)


def test_an_image_that_is_too_large_for_the_server_is_named_and_left_out(address, images, tmp_path):
    large, good = tmp_path / "large.png", images / "red" / "000.png"
    with open(large, "wb") as file:
        file.truncate(70 << 20)
    results = iterate_remote(SearchConfig((str(large), str(good)), server=address))
    assert next(results).query == str(good)
    with pytest.raises(CollectionError, match=r"large\.png'? (is too large for the server: it has 70\.0 MiB|was not)"):
        next(results)


def test_a_sheet_is_drawn_from_the_servers_images(indexed_workspace, images, address, tmp_path, run_cli):
    query = str(shutil.copy(images / "red" / "000.png", tmp_path / "query.png"))
    (hit,) = search_images(SearchConfig((query,), server=address, k=1))[0].hits
    assert run_cli("search", query, "--server", address, "-k", "1", "--sheet", tmp_path / "there.png")[0] == 0
    assert thumbnails(address)(hit)[:2] == b"\xff\xd8"  # a JPEG
    assert run_cli("search", query, "--workspace", indexed_workspace, "-k", "1", "--sheet",
                   tmp_path / "here.png")[0] == 0
    with Image.open(tmp_path / "there.png") as there, Image.open(tmp_path / "here.png") as here:
        difference = np.abs(np.asarray(there, int) - np.asarray(here, int))
    assert difference.mean() < 1  # but for JPEG
    moved = hit._replace(path="/elsewhere/000.png")
    sheet = Sheet([QueryResult(query, [moved])], 1, read=thumbnails(address)).image
    assert np.abs(np.asarray(sheet, int) - np.asarray(here, int)).mean() < 1


@pytest.fixture(scope="module")
def with_copies(tmp_path_factory, make_images, workspace):
    """A workspace without an index, of images of which two have the same bytes; and their folder."""
    folder = tmp_path_factory.mktemp("copies")
    images = make_images(folder / "images")
    (images / "blue" / "copy.png").write_bytes((images / "red" / "000.png").read_bytes())
    root = str(shutil.copytree(workspace, folder / "workspace"))
    embed_images(EmbedConfig(str(images), workspace=root, workers=0, device="cpu", fresh=True))
    return root, images


@pytest.fixture(scope="module")
def serving_copies(with_copies):
    running = Running(workspace=with_copies[0])
    yield f"http://127.0.0.1:{running.port}"
    running.stop()


@pytest.mark.parametrize("values", [
    {"together": True}, {"together": True, "row": (3, 9), "k": 30}, {"unlike": "green", "row": (3,)},
    {"together": True, "unlike": "green", "crop": (3, 4, 20, 21), "label": ("red", "green"), "unique": True},
    {"together": True, "row": (3,), "exclude_self": True, "k": 30}, {"unlike": "green", "exclude_self": True, "k": 30},
    {"row": (8, 17), "exclude_self": True, "k": 30}])
def test_queries_are_combined_as_here(with_copies, serving_copies, values):
    workspace, images = with_copies
    names = tuple(str(images / name) for name in ("red/000.png", "blue/001.jpg"))
    if "unlike" in values:  # a folder is its images, and another image
        values = values | {"unlike": (str(images / "green"), str(images / "red/003.jpg"))}
    here = search_images(SearchConfig(names, workspace, **values))
    there = search_images(SearchConfig(names, server=serving_copies, **values))
    assert [(one.query, one.image) for one in there] == [(one.query, one.image) for one in here]
    for one, other in zip(here, there):
        assert [hit._replace(score=0) for hit in other.hits] == [hit._replace(score=0) for hit in one.hits]
        assert [hit.score for hit in other.hits] == pytest.approx([hit.score for hit in one.hits], abs=1e-5)


def test_what_cannot_be_combined_is_told_as_here(with_copies, serving_copies, tmp_path):
    workspace, images = with_copies
    name, other, broken = str(images / "red/000.png"), str(images / "blue/001.jpg"), str(tmp_path / "broken.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for given, values in (((name,), {"unlike": (name,)}), ((name, broken), {"together": True}),
                          ((name, other), {"unlike": (name,)}), ((name, other), {"unlike": (broken,)}),
                          ((name, other), {"unlike": ("no.jpg",)})):
        notes, kinds, texts = ([], []), [], []
        for noted, where in zip(notes, ({"workspace": workspace}, {"server": serving_copies})):
            with pytest.raises(MocoembedError) as error:
                search_images(SearchConfig(given, **where, **values), note=noted.append)
            kinds.append(error.type)
            texts.append(str(error.value))
        assert kinds[0] is kinds[1], texts
        assert texts[0] == texts[1]
        assert notes[0] == notes[1]


def test_vectors_that_are_not_of_length_1_are_combined_as_here(images, fresh_workspace):
    workspace, name = str(fresh_workspace), str(images / "red/000.png")
    embed_images(EmbedConfig(str(images), workspace=workspace, workers=0, device="cpu", normalize=False, fresh=True))
    running = Running(workspace=workspace)
    try:
        where = {"server": f"http://127.0.0.1:{running.port}"}
        here, there = (search_images(SearchConfig(row=(3, 8, 20), together=True, **one))[0]
                       for one in ({"workspace": workspace}, where))
        assert [(hit.row, hit.score) for hit in there.hits] == [(hit.row, hit.score) for hit in here.hits]
        with pytest.raises(UsageError, match="--unlike needs vectors of length 1"):
            search_images(SearchConfig((name,), unlike=(name,), **where))
    finally:
        running.stop()


def test_a_file_that_is_replaced_between_embedding_and_search_is_told(serving_copies, with_copies, monkeypatch):
    """The rows that a query is, and its vector, would be those of other images."""
    asked = Server.ask

    def ask(self, method, path, *rest):
        answer = asked(self, method, path, *rest)
        return answer | {"version": "0" * 16} if path == "/api/info" else answer

    monkeypatch.setattr(Server, "ask", ask)
    with pytest.raises(MocoembedError, match="has been replaced"):
        search_images(SearchConfig((str(with_copies[1] / "red/000.png"),), server=serving_copies, together=True))


def test_the_command_prints_the_same(indexed_workspace, images, address, run_cli):
    for form in ("table", "json", "csv", "paths"):
        arguments = ["search", images / "red" / "000.png", "--row", "3", "-k", "4", "--format", form]
        here = run_cli(*arguments, "--workspace", indexed_workspace)
        there = run_cli(*arguments, "--server", address)
        assert there[0] == here[0] == 0
        if form in ("table", "paths"):
            assert there[1] == here[1]
        elif form == "json":
            assert [[hit["path"] for hit in one["hits"]] for one in json.loads(there[1])] == \
                [[hit["path"] for hit in one["hits"]] for one in json.loads(here[1])]


@pytest.mark.parametrize("given", ["127.0.0.1:8765", "ftp://x", "http://", "http://x:y", "http://a@x", "http://x?y",
                                   ""])
def test_what_is_no_address_is_refused(given, images):
    with pytest.raises(UsageError, match="must be the address"):
        search_images(SearchConfig((str(images / "red/000.png"),), server=given))


def test_what_the_server_says_is_told(images, address, tmp_path):
    name = str(images / "red/000.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for values, said in (({"label": ("rad",)}, "'red'"), ({"crop": (0, 0, 999, 999)}, "inside"),
                         ({"k": 5000}, "-k 5000: a server gives at most 1000 hits")):
        with pytest.raises(UsageError, match=said):
            search_images(SearchConfig((name,), server=address, **values))
    with pytest.raises(UsageError, match="no row 99"):
        search_images(SearchConfig((), row=(99,), server=address))
    with pytest.raises(CollectionError, match=r"broken\.jpg"):
        search_images(SearchConfig((str(tmp_path / "broken.jpg"),), server=address))
    for values in ({"index": "x"}, {"root": "x"}, {"recall": 0.9}, {"torch": True}, {"device": "cpu"}):
        with pytest.raises(UsageError, match="--server"):
            search_images(SearchConfig((name,), server=address, **values))


def test_of_several_queries_the_good_ones_are_answered(images, address, tmp_path, run_cli):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    status, out, notes = run_cli("search", tmp_path / "broken.jpg", images / "red/000.png", "--server", address,
                                 "--format", "paths", "-k", "1")
    assert (status, out.count("\n")) == (1, 1)
    assert "1 of 2 queries left out" in notes


def test_a_server_that_is_not_there_is_named(images, run_cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        status, _, notes = run_cli("search", images / "red/000.png", "--server", f"http://127.0.0.1:{port}")
    assert status == 1
    assert f"http://127.0.0.1:{port} does not answer" in notes


def test_the_token_comes_from_the_environment(indexed_workspace, images, monkeypatch):
    running = Running(workspace=str(indexed_workspace), token=TOKEN)
    config = SearchConfig((str(images / "red/000.png"),), server=f"http://127.0.0.1:{running.port}", k=1)
    try:
        with pytest.raises(UsageError, match="MOCOEMBED_TOKEN"):
            search_images(config)
        monkeypatch.setenv("MOCOEMBED_TOKEN", TOKEN)
        assert search_images(config)[0].hits[0].path.endswith("red/000.png")
    finally:
        running.stop()


def test_a_busy_server_is_asked_again(running, address, images, monkeypatch):
    waited = []

    def wait(seconds):
        waited.append(seconds)
        monkeypatch.setattr(running.service.searches, "_most", 100)

    monkeypatch.setattr(running.service.searches, "_most", 0)
    monkeypatch.setattr("mocoembed.search.remote.time.sleep", wait)
    assert search_images(SearchConfig((str(images / "red/000.png"),), server=address))
    assert waited == [1.0]


def test_what_is_no_server_of_ours_is_told():
    server = Server("http://127.0.0.1:1")
    server._once = lambda *arguments: (200, b'{"queries": []}', 1.0)
    with pytest.raises(MocoembedError, match="does not answer as"):
        server.found(__file__, SearchConfig((__file__,)))
    with pytest.raises(MocoembedError, match="does not answer as"):
        Combining(server, SearchConfig((__file__,), together=True))


def test_a_region_outside_of_one_image_costs_the_others_nothing(images, address, tmp_path, run_cli):
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    status, out, notes = run_cli("search", tmp_path / "small.png", images / "red/000.png", "--server", address,
                                 "--format", "paths", "-k", "1", "--crop", "3,4,20,21")
    assert (status, out.count("\n")) == (1, 1)
    assert f"the image '{tmp_path / 'small.png'}' has 9 x 9 pixels" in notes


@pytest.mark.parametrize(("token", "said"), [("a\nb", "a character that"), ("\u00e9", "a character that"),
                                             ("wrong-but-long-enough", "refuses the token given in")])
def test_a_wrong_token_is_told(indexed_workspace, images, monkeypatch, token, said):
    running = Running(workspace=str(indexed_workspace), token=TOKEN)
    monkeypatch.setenv("MOCOEMBED_TOKEN", token)
    try:
        with pytest.raises(UsageError, match=said):
            search_images(SearchConfig((str(images / "red/000.png"),), server=f"http://127.0.0.1:{running.port}"))
    finally:
        running.stop()
