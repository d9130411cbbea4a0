"""What changes while the server runs: replaced files, missing images, an empty collection, signals."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from serving import Running
from torchless import WITHOUT_TORCH

from mocoembed.config import EmbedConfig, IndexConfig, ServeConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import scan
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.search.build import build_index
from mocoembed.serve.app import Server
from mocoembed.serve.collection import Collection

ROOT = pathlib.Path(__file__).parent.parent


def build(root: pathlib.Path, photos: pathlib.Path):
    embed_images(EmbedConfig(str(photos), workspace=str(root), workers=0, device="cpu"))
    build_index(IndexConfig(workspace=str(root), fresh=True))


@pytest.fixture
def changing(tmp_path, workspace, make_images):
    """A workspace, its photos, and a server of them."""
    photos, root = make_images(tmp_path / "photos", 4), tmp_path / "ws"
    shutil.copytree(workspace, root)
    (root / "embeddings.h5").unlink()
    build(root, photos)
    running = Running(workspace=str(root))
    yield root, photos, running
    running.stop()


def test_replaced_files_are_taken_over_without_a_failed_request(changing, make_images):
    root, photos, running = changing
    old = running.get("/api/info").json()
    statuses, counts, going = [], set(), threading.Event()

    def ask():
        with httpx.Client(base_url=running.client.base_url) as client:
            while not going.is_set():
                answer = client.post("/api/search?k=50", json={"rows": [0]})
                statuses.append(answer.status_code)
                counts.add(len(answer.json()["queries"][0]["hits"]))
                statuses.append(client.get("/api/thumbnails/0").status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        make_images(photos, 6)
        build(root, photos)
        for _ in range(100):
            if running.get("/api/info").json()["count"] == 18:
                break
            time.sleep(0.1)
        time.sleep(0.2)
    finally:
        going.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert counts == {12, 18}
    new = running.get("/api/info").json()
    assert new["version"] != old["version"]
    assert any("18 images are served now" in note for note in running.notes)
    for path in ("/api/thumbnails/0", "/api/rows", "/api/duplicates"):
        assert running.get(f"{path}?version={old['version']}").status_code == 409
        assert running.get(f"{path}?version={new['version']}").status_code in (200, 202)
    kept = running.get(f"/api/thumbnails/0?version={new['version']}").headers["cache-control"]
    assert "immutable" in kept


def until(holds):
    """Wait until something holds."""
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("it does not come about")


def test_replaced_files_are_warmed_up_before_they_are_served(changing, make_images, monkeypatch):
    """Where that fails, they are served nevertheless, and the server is not ready until it works."""
    root, photos, running = changing
    until(lambda: running.get("/api/ready").status_code == 200)
    seen, broken = [], threading.Event()
    broken.set()

    def warm_up(collection):
        seen.append((len(collection), len(running.service.following.current)))
        if broken.is_set():
            raise RuntimeError("no encoder today")

    monkeypatch.setattr(Collection, "warm_up", warm_up)
    make_images(photos, 6)
    build(root, photos)
    until(lambda: len(seen) > 2)
    assert (seen[0], seen[-1]) == ((18, 12), (18, 18))
    assert running.get("/api/info").json()["count"] == 18
    assert running.get("/api/ready").status_code == 503
    broken.clear()
    until(lambda: running.get("/api/ready").status_code == 200)
    assert sum("no encoder today" in note for note in running.notes) == 1


def test_a_first_search_that_fails_is_tried_again(indexed_workspace, monkeypatch):
    monkeypatch.setattr("mocoembed.serve.service.SECONDS_BETWEEN_LOOKS", 0.05)
    tries = []

    def warm_up(collection):
        tries.append(collection)
        if len(tries) <= 3:
            raise RuntimeError("no encoder today")

    monkeypatch.setattr(Collection, "warm_up", warm_up)
    running = Running(workspace=str(indexed_workspace))
    try:
        until(lambda: running.get("/api/ready").status_code == 200)
        assert len(tries) == 4
        assert sum("no encoder today" in note for note in running.notes) == 1
    finally:
        running.stop()


def test_no_images_are_served_like_some(tmp_path, make_images):
    """An embeddings file without a row: every route of the API answers, and none fails."""
    listing = scan(make_images(tmp_path / "photos", 1))
    settings = Settings({"fingerprint": "f" * 64, "provenance": {}}, "backbone", True, 3, "fp32", "parent")
    write_embeddings(tmp_path / "none.h5", listing, settings, np.zeros(len(listing), bool),
                     np.zeros(len(listing), FACTS), [np.empty((0, 3), np.float32)], [])
    running = Running(embeddings=str(tmp_path / "none.h5"), workspace=str(tmp_path))
    try:
        until(lambda: 202 not in [running.get(f"/api/{job}").status_code for job in ("health-report", "duplicates")])
        query = {"vectors": [[1, 0, 0]]}
        statuses = {path: running.client.request(method, path, json=query if method == "POST" else None).status_code
                    for method, path in running.asked() if method != "HEAD" and path.startswith(("/api/", "/metrics"))}
        missing = {"/api/images/0": 404, "/api/thumbnails/0": 404, "/api/map": 404, "/api/duplicates": 409,
                   "/api/preview": 415}  # JSON is no image
        assert len(statuses) == 15
        assert statuses == dict.fromkeys(statuses, 200) | missing
        for wishes in ("", "?unique=true&diverse=true", "?exclude_self=true", "?offset=5"):
            answer = running.client.post(f"/api/search{wishes}", json={"like": [[1, 0, 0]]})
            assert answer.json()["queries"] == [{"hits": []}], wishes
        for body in ({"rows": [0]}, {"ids": ["5"]}, {"paths": ["a"]}, {"like": [0]}):
            assert running.client.post("/api/search", json=body).status_code == 404
        assert running.get("/api/thumbnails/0").json()["error"] == "There is no row 0; no image is here."
        for path in ("/api/rows?sample=5", "/api/labels?text=a"):
            assert running.get(path).json()["total"] == 0
        assert running.get("/api/rows?label=red").status_code == 404
        assert running.get("/api/ready").status_code == 200
    finally:
        running.stop()


def test_files_that_cannot_be_opened_change_nothing(changing):
    root, _, running = changing
    whole = (root / "embeddings.faiss").read_bytes()
    (root / "new").write_bytes(whole[:100])
    os.replace(root / "new", root / "embeddings.faiss")
    for _ in range(40):
        if any("cannot be used" in note for note in running.notes):
            break
        time.sleep(0.1)
    assert running.client.post("/api/search", json={"rows": [1]}).status_code == 200
    (root / "new").write_bytes(whole)
    os.replace(root / "new", root / "embeddings.faiss")
    for _ in range(40):
        if any("served now" in note for note in running.notes):
            break
        time.sleep(0.1)
    assert sum("cannot be used" in note for note in running.notes) == 1
    assert any("served now" in note for note in running.notes)


def test_a_collection_whose_images_are_gone_can_be_searched(changing):
    _, photos, running = changing
    shutil.rmtree(photos)
    assert running.client.post("/api/search", json={"rows": [1]}).json()["queries"][0]["hits"][0]["row"] == 1
    for path in ("/api/images/1", "/api/thumbnails/1"):
        answer = running.get(path)
        assert answer.status_code == 410
        assert "gone" in answer.json()["error"]


@pytest.mark.parametrize(("values", "said"), [
    ({"workspace": "nowhere"}, "does not exist"), ({"embeddings": "nowhere.h5"}, "does not exist"),
    ({"index": "nowhere.faiss"}, "does not exist"), ({"root": "nowhere"}, "nowhere"), ({"host": "203.0.113.9",
                                                                                     "token": "0" * 16}, "--host")])
def test_what_cannot_be_served_is_explained(indexed_workspace, values, said):
    with pytest.raises(MocoembedError, match=said):
        Server(ServeConfig(**{"workspace": str(indexed_workspace), "port": 0, **values}))


def test_small_answers_are_sent_at_once(indexed_workspace):
    """asyncio sets TCP_NODELAY only for sockets that say they are TCP's; without it every answer took 40 ms."""
    server = Server(ServeConfig(workspace=str(indexed_workspace), port=0))
    assert server._listening.proto == socket.IPPROTO_TCP
    server._listening.close()


def test_a_port_that_is_taken_is_named(indexed_workspace):
    first = Server(ServeConfig(workspace=str(indexed_workspace), port=0))
    first._listening.listen()
    with pytest.raises(UsageError, match=f"--port {first.port}"):
        Server(ServeConfig(workspace=str(indexed_workspace), port=first.port))
    first._listening.close()


def test_an_index_of_other_embeddings_is_not_used(indexed_workspace, make_embeddings, tmp_path):
    shutil.copytree(indexed_workspace, tmp_path / "ws")
    path = make_embeddings("other", [[1.0, 0], [0, 1]], "ab")
    running = Running(embeddings=path, workspace=str(tmp_path / "ws"))
    try:
        info = running.get("/api/info").json()
        assert (info["count"], info["index"]["type"], info["searches_images"]) == (2, "none", False)
    finally:
        running.stop()


def test_without_graph_and_torch_the_collection_is_shown(fresh_workspace, monkeypatch):
    for graph in (fresh_workspace / "encoders").glob("*.query.onnx"):
        graph.unlink()
    monkeypatch.setitem(sys.modules, "mocoembed.model.embedder", None)  # as if torch were not installed
    running = Running(workspace=str(fresh_workspace))
    try:
        assert running.get("/api/info").json()["searches_images"] is False
        assert running.client.post("/api/search", json={"rows": [1]}).status_code == 200
        answer = running.client.post("/api/search", content=b"image")
        assert (answer.status_code, "no encoder" in answer.json()["error"]) == (409, True)
        assert "no graph of the encoder" in running.notes[0]
    finally:
        running.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_without_torch_until_a_signal(indexed_workspace, images, number):
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", "--workspace", str(indexed_workspace), "--port", "0",
               "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)[0]
        data = (images / "red" / "000.png").read_bytes()
        with httpx.Client(base_url=address, timeout=20) as client:
            hits = client.post("/api/search?k=2", content=data).json()["queries"][0]["hits"]
            assert hits[0]["path"].endswith("red/000.png")
            stalled = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as connection:
                connection.sendall(stalled + data[:100])
                time.sleep(0.3)
                process.send_signal(number)
                time.sleep(0.3)
                connection.sendall(data[100:])  # what is running is finished
                assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_the_client_in_the_docs_works(indexed_workspace, images, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.DOTALL)
    running = Running(workspace=str(indexed_workspace))
    try:
        code = code.replace("http://127.0.0.1:8765", f"http://127.0.0.1:{running.port}")
        code = code.replace("photos/cats/1.jpg", str(images / "red" / "001.jpg")).replace('"cats", "dogs"', '"red"')
        exec(compile(code, "serving.md", "exec"), {})
    finally:
        running.stop()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(" red " in line for line in lines[:5])


def test_the_container_has_what_the_server_needs():
    """The packages of a machine that only searches, and those of `serve/`; nothing else of the project is copied."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    packages = set(re.search(r"pip install --no-cache-dir (?!--no-deps)(.*)", text)[1].split())
    (searching,) = re.findall(r"^searching/bin/pip install (?!--no-deps)(.*)$",
                              (ROOT / "docs" / "search.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert packages == {*searching.split(), "starlette", "uvicorn", "httptools", "orjson"}
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
