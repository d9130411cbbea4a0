"""Downloading known weights: resumed, checked, and never half a file under the final name. Against a local server."""

import hashlib
import http.server
import pathlib
import re
import socket
import threading

import pytest
import torch

from mocoembed.config import ExportConfig
from mocoembed.errors import LockedError, MocoembedError
from mocoembed.files import locked
from mocoembed.model import published
from mocoembed.model.encoder import Backbone
from mocoembed.model.encoder_file import load_encoder
from mocoembed.model.published import PUBLISHED, Published, fetch
from mocoembed.train.export import export_encoder

NAME = "moco-v2-200ep"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.data`: whole or a range, to the end or only `server.stop_after` bytes."""

    def do_GET(self):
        server, given = self.server, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(given[1]) if given and server.ranges else 0
        server.starts.append(start)
        if self.path != "/weights.pth.tar":
            return self.send_error(404)
        if start and start >= len(server.data):
            return self.send_error(416)
        body = server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:server.stop_after])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that `NAME` points to, for a cache folder of the test's own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.data, server.ranges, server.stop_after, server.starts = bytes(range(256)) * 4000, True, None, []
    url = f"http://127.0.0.1:{server.server_address[1]}/weights.pth.tar"
    monkeypatch.setitem(PUBLISHED, NAME, Published(url, hashlib.md5(server.data).hexdigest()[:8], "CC BY-NC 4.0"))
    monkeypatch.setenv("MOCOEMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("*"))  # of a folder that is not there: nothing


def test_one_transfer_with_licence_and_progress_then_none(server, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "SECONDS_BETWEEN_NOTES", 0)
    notes = []
    path = fetch(NAME, notes.append)
    assert path.read_bytes() == server.data
    assert names(tmp_path) == ["weights.pth.tar"]
    assert "licence CC BY-NC 4.0" in notes[0]
    assert f"{NAME}: 1 of 1 MB" in notes[-1]
    assert len(notes) > 3
    assert fetch(NAME, notes.append) == path
    assert server.starts == [0]


def test_a_wrong_hash_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, NAME, Published(PUBLISHED[NAME].url, "0" * 8, "none"))
    with pytest.raises(MocoembedError, match=r"has the MD5 \w{32}, not 00000000\.\.\.; it was deleted"):
        fetch(NAME, print)
    assert names(tmp_path) == []


def test_a_broken_transfer_is_kept_and_gone_on_with(server, tmp_path):
    server.stop_after = 300_000
    for kept in (300_000, 600_000):
        with pytest.raises(MocoembedError, match=rf"connection broke after 0\.{kept // 100_000} of 1\.0 MB"):
            fetch(NAME, print)
        assert names(tmp_path) == ["weights.pth.tar.part"]
        assert (tmp_path / "cache" / "weights.pth.tar.part").read_bytes() == server.data[:kept]
    server.stop_after = None
    assert fetch(NAME, print).read_bytes() == server.data
    assert server.starts == [0, 300_000, 600_000]
    assert names(tmp_path) == ["weights.pth.tar"]


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.stop_after, server.ranges = 300_000, False
    for _ in range(2):
        with pytest.raises(MocoembedError, match=r"the connection broke after 0\.3"):
            fetch(NAME, print)
    server.stop_after = None
    assert fetch(NAME, print).read_bytes() == server.data


@pytest.mark.parametrize("right", [True, False])
def test_a_part_that_is_already_whole(server, tmp_path, right):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights.pth.tar.part").write_bytes(server.data if right else server.data[::-1])
    if right:
        assert fetch(NAME, print).read_bytes() == server.data
    else:
        with pytest.raises(MocoembedError, match="it was deleted"):
            fetch(NAME, print)
        assert names(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    path = fetch(NAME, print)
    path.write_bytes(b"x" + server.data[1:])
    notes = []
    assert fetch(NAME, notes.append).read_bytes() == server.data
    assert "is damaged and is downloaded again" in notes[0]


def no_name(*arguments):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_no_way_to_the_server(server, tmp_path, monkeypatch):
    for url, reason in [(PUBLISHED[NAME].url.replace("weights", "other"), "Not Found"),
                        ("http://127.0.0.1:9/weights.pth.tar", "Connection refused"),
                        ("http://weights.invalid/weights.pth.tar", "Name or service not known")]:
        if "invalid" in url:
            monkeypatch.setattr(socket, "getaddrinfo", no_name)
        monkeypatch.setitem(PUBLISHED, NAME, Published(url, "0" * 8, "none"))
        with pytest.raises(MocoembedError, match=f"{NAME} cannot be downloaded from .*{reason}") as error:
            fetch(NAME, print)
        assert "put the file at" in str(error.value)
        assert names(tmp_path) == []


def test_one_download_at_a_time(server, tmp_path):
    with locked(tmp_path / "cache" / ".weights.pth.tar.lock", "x"), pytest.raises(LockedError):
        fetch(NAME, print)
    assert server.starts == []


def test_a_name_on_the_command_line_becomes_an_encoder(server, tmp_path, monkeypatch, run_cli):
    torch.save({"state_dict": {f"module.encoder_q.{name}": tensor
                               for name, tensor in Backbone("resnet18", 0.125).state_dict().items()}}, tmp_path / "w")
    server.data = (tmp_path / "w").read_bytes()
    monkeypatch.setitem(PUBLISHED, NAME, Published(PUBLISHED[NAME].url, hashlib.md5(server.data).hexdigest(), "CC 0"))
    status, out, err = run_cli("export", NAME, "--workspace", tmp_path / "ws")
    assert status == 0
    assert f"encoder of {NAME}" in out
    assert "licence CC 0" in err
    provenance = load_encoder(tmp_path / "ws" / "encoder.safetensors").provenance
    assert provenance["name"] == NAME
    assert provenance["licence"] == "CC 0"
    assert provenance["checkpoint_sha256"] == hashlib.sha256(server.data).hexdigest()
    monkeypatch.chdir(tmp_path)
    pathlib.Path(NAME).write_text("a file of that name comes first")
    with pytest.raises(MocoembedError, match="is not a checkpoint"):
        export_encoder(ExportConfig(NAME, workspace=str(tmp_path / "ws")))


def test_the_published_table():
    assert {name: one.digits for name, one in PUBLISHED.items()} == {
        "moco-v1-200ep": "b251726a", "moco-v2-200ep": "59fd9945", "moco-v2-800ep": "a04e12f8"}
    for name, one in PUBLISHED.items():
        folder = name.replace("-", "_")
        assert one.url == f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/{folder}/{folder}_pretrain.pth.tar"
        assert "CC BY-NC 4.0" in one.licence
