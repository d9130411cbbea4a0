"""W1 to W6 of the page: whatever is sent over a socket, nothing that is not ours to give comes back, and no 5xx."""

import contextlib
import hashlib
import itertools
import os
import pathlib
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from serving import Running, received, status_of

from mocoembed.config import EmbedConfig, ServeConfig
from mocoembed.embed.extract import embed_images
from mocoembed.errors import UsageError
from mocoembed.serve.copies import Copies
from mocoembed.serve.limits import SMALL, Bodies, Gate
from mocoembed.serve.points import Points
from mocoembed.serve.security import Hosts, name_of
from mocoembed.serve.service import SLOW

TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = b"nobody may read this"


@pytest.fixture(scope="module")
def place(tmp_path_factory, workspace, make_images):
    """A folder with `photos`, a workspace `ws` of them, and a secret beside both."""
    root = tmp_path_factory.mktemp("place")
    make_images(root / "photos", 2)
    (root / "secret.txt").write_bytes(SECRET)
    Image.new("RGB", (50, 50), "red").save(root / "outside.png")
    shutil.copytree(workspace, root / "ws")
    embed_images(EmbedConfig(str(root / "photos"), workspace=str(root / "ws"), workers=0, device="cpu", fresh=True))
    return root


@pytest.fixture(scope="module")
def running(place):
    running = Running(workspace=str(place / "ws"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def guarded(place):
    running = Running(workspace=str(place / "ws"), token=TOKEN)
    yield running
    running.stop()


def ask(running, line: str, *headers: str, body: bytes = b"") -> bytes:
    return running.raw("\r\n".join([line, *headers, "Connection: close", "", ""]).encode("latin-1") + body)


# ---------------------------------------------------------------------------------------------------- Host (W1, W2)


def test_other_hosts_are_refused_on_every_route(running):
    good = f"Host: 127.0.0.1:{running.port}"
    routes = running.asked()
    assert {("GET", "/"), ("POST", "/api/embed"), ("HEAD", "/api/images/0"), ("POST", "/login")} <= set(routes)
    for method, path in routes:
        for headers in (["Host: evil.example"], [], [good, "Host: evil.example"], ["Host: evil.example", good],
                        [good, good], ["Host: "], ["Host: 127.0.0.1.evil.example"], ["Host: localhost@evil.example"],
                        ["Host: evil.example:80"], ["Host: 127.0.0.1 evil.example"], ["Host: [::ffff:8.8.8.8]"],
                        ["Host: 8.8.8.8"]):
            for version in ("1.1", "1.0"):
                answer = ask(running, f"{method} {path} HTTP/{version}", *headers)
                assert status_of(answer) in (400, 421), (method, path, headers, answer[:200])
                assert b"photos" not in answer


def test_absolute_addresses_do_not_stand_for_the_host(running):
    for line in ("GET http://127.0.0.1/api/info HTTP/1.1", "GET http://evil.example/api/info HTTP/1.1"):
        assert status_of(ask(running, line, "Host: evil.example")) in (400, 421)
    own = f"127.0.0.1:{running.port}"
    assert status_of(ask(running, f"GET http://{own}/api/info HTTP/1.1", f"Host: {own}")) == 200  # as proxies ask
    for host in ("evil.example", f"evil.example:{running.port}", "localhost", f"x@{own}", ""):
        for path in ("/api/info", "", "?a=1", "#x"):
            for version in ("1.1", "1.0"):
                line = f"GET http://{host}{path} HTTP/{version}"
                assert status_of(ask(running, line, f"Host: {own}")) == 400, line
    for line in ("CONNECT 127.0.0.1:80 HTTP/1.1", "OPTIONS * HTTP/1.1", "GET info HTTP/1.1", "BREW / HTTP/1.1",
                 "GET / HTTP/9.9", "GET /\xff HTTP/1.1", "GET"):
        status = status_of(ask(running, line, f"Host: 127.0.0.1:{running.port}"))
        assert 400 <= status < 500 or status == 0, line


@pytest.mark.parametrize(("host", "allowed"), [
    ("localhost", True), ("localhost:8765", True), ("LOCALHOST.", True), ("127.0.0.1:1", True), ("[::1]:8765", True),
    ("images.example.org", True), ("IMAGES.example.org:443", True), ("example.org", False), ("localhost:", True),
    ("localhost:x", False), ("a@localhost", False), ("localhost/", False), ("localhost?", False), ("", False),
    ("localhost#", False), (" localhost", False), ("::1", False), ("0.0.0.0", False), ("192.168.0.7", False)])
def test_names_that_are_ours(host, allowed):
    assert Hosts(ServeConfig(allow_host=("Images.example.org",))).has(host) == allowed
    assert name_of("[::1]:80") == "::1"
    assert Hosts(ServeConfig(allow_host=("2001:db8::1",))).has("[2001:db8::1]:8765")


def test_addresses_are_ours_where_others_may_reach_the_page():
    hosts = Hosts(ServeConfig(host="0.0.0.0", token=TOKEN))
    assert hosts.has("192.168.0.7:8765")
    assert hosts.has(socket.gethostname())
    assert not hosts.has("evil.example")


@pytest.mark.parametrize("values", [
    {"host": "0.0.0.0"}, {"host": "::"}, {"host": "192.168.0.1"}, {"host": "example.org"}, {"token": "short"},
    {"token": "with a space in it!"}, {"token": "ümlaut-ümlaut-ümlaut"}, {"port": 70000}, {"port": -1},
    {"allow_host": ("http://x",)}, {"allow_host": ("",)}, {"allow_host": ("images.example.org:8443",)},
    {"allow_host": ("x y",)}])
def test_settings_that_would_open_the_page_are_refused(values):
    with pytest.raises(UsageError):
        ServeConfig(**values)


# ------------------------------------------------------------------------------------------------- other sites (W5)


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost:3000"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Origin": "file://"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}])
def test_requests_of_other_sites_that_are_no_reads_are_refused(running, headers):
    for path in ("/api/search", "/api/embed", "/api/info", "/login", "/none"):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = running.client.request(method, path, json={"rows": [0]}, headers=headers)
            assert answer.status_code == 403, (method, path, headers)
            assert answer.headers.get("access-control-allow-origin") is None


def test_our_own_page_and_other_programs_may_post(running):
    own = f"http://127.0.0.1:{running.port}"
    for headers in ({}, {"Origin": own}, {"Origin": own, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert running.client.post("/api/search", json={"rows": [0]}, headers=headers).status_code == 200


def test_other_sites_may_link_to_the_page_and_not_embed_its_images(running):
    embed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert running.get("/api/images/0", **embed).status_code == 403
    frame = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert running.get("/", **frame).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert running.get("/", **link).status_code == 200
    answer = running.client.options("/api/search", headers={"Origin": "https://evil.example",
                                                            "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 403


def test_every_answer_carries_the_headers(running):
    for method, path in [*running.asked(), ("POST", "/api/info")]:
        for answer in (running.client.request(method, path),
                       running.client.request(method, path, headers={"Host": "evil.example"})):
            check_headers(answer)


def check_headers(answer):
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers
    assert answer.status_code < 500


# -------------------------------------------------------------------------------------------------- traversal (W3)


def payloads() -> list[str]:
    """200 ways to ask for a file outside."""
    targets = ["etc/passwd", "secret.txt", "ws/embeddings.h5", "proc/self/environ"]
    steps = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "%252e%252e%252f", "..%c0%af", "....//", "..;/"]
    starts = ["/", "/api/images/", "/api/thumbnails/", "/static/", "/api/"]
    return [f"{start}{step * 6}{target}" for start, step, target in itertools.product(starts, steps, targets)]


def test_no_path_leads_outside(running, place):
    bad = payloads()
    assert len(bad) == 200
    bad += [f"/{place}/secret.txt", "//etc/passwd", "/file:///etc/passwd", "/%00", "/index.html%00.png",
            "/../__init__.py", "/api/images/0%00", "/api/images/0/../../../secret.txt", "/api/images/0;x",
            "/api/images/٣", "/security.py"]
    statuses = set()
    for path in bad:
        answer = ask(running, f"GET {quote(path, safe='/%:;') if not path.isascii() else path} HTTP/1.1",
                     f"Host: localhost:{running.port}")
        assert SECRET not in answer
        assert b"root:" not in answer
        assert b"HDF" not in answer
        statuses.add(status_of(answer))
    assert statuses <= {400, 404}


@pytest.mark.parametrize("kind", ["link out", "fifo", "gone", "swapped", "folder", "loop", "device", "link inside"])
def test_an_image_is_sent_only_by_its_content(tmp_path, place, kind):
    shutil.copytree(place / "photos", tmp_path / "photos")
    running = Running(workspace=str(place / "ws"), root=str(tmp_path / "photos"))
    try:
        row = running.get("/api/rows?label=red&limit=1").json()["rows"][0]
        image = pathlib.Path(row["path"])
        kept = running.get(f"/api/thumbnails/{row['row']}").content
        data = image.read_bytes()
        image.unlink()
        if kind == "link out":
            image.symlink_to(place / "outside.png")
        elif kind == "fifo":
            os.mkfifo(image)
        elif kind == "swapped":
            Image.new("RGB", (50, 50), "blue").save(image)
        elif kind == "folder":
            image.mkdir()
        elif kind == "loop":
            image.symlink_to(image.name)
        elif kind == "device":
            image.symlink_to("/dev/zero")
        elif kind == "link inside":
            (tmp_path / "photos" / "moved").write_bytes(data)
            image.symlink_to(tmp_path / "photos" / "moved")
        begun = time.monotonic()
        answers = [running.get(f"/api/{what}/{row['row']}") for what in ("images", "thumbnails")]
        assert time.monotonic() - begun < 5
        expected = 200 if kind == "link inside" else 410
        assert [answer.status_code for answer in answers] == [expected, expected]
        if expected == 200:
            assert answers[1].content == kept
        assert running.get("/api/images/0").status_code == 200
    finally:
        running.stop()


def test_images_of_unknown_bytes_lie_within_the_root(tmp_path, make_embeddings):
    path = make_embeddings("foreign", [[1.0, 0], [0, 1]], "ab")
    folder = tmp_path / "foreign-images"
    inside, outside = folder / "a" / "0000.png", folder / "b" / "0001.png"
    Image.new("RGB", (9, 9)).save(inside)
    Image.new("RGB", (9, 9)).save(tmp_path / "out.png")
    outside.unlink()
    outside.symlink_to(tmp_path / "out.png")
    running = Running(embeddings=path, workspace=str(tmp_path))
    try:
        assert running.get("/api/images/0").status_code == 200
        assert running.get("/api/images/1").status_code == 410
        assert "encoder" in running.client.post("/api/search", content=inside.read_bytes()).json()["error"]
        assert running.client.post("/api/search", json={"rows": [1]}).json()["queries"][0]["hits"][0]["row"] == 1
    finally:
        running.stop()


# ----------------------------------------------------------------------------------------------------- bodies (W4)


def chunks(total: int, size: int = 1 << 16):
    for _ in range(total // size):
        yield f"{size:x}\r\n".encode() + bytes(size) + b"\r\n"


@pytest.mark.parametrize("kind", ["image/png", "application/json"])
def test_a_large_body_is_cut_off_early(running, kind):
    head = (f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\nContent-Type: {kind}\r\n")
    answer = running.raw(f"{head}Content-Length: 500000000\r\n\r\n".encode())
    assert status_of(answer) == 413
    sent = 0
    with running.connect() as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for part in chunks(500 << 20):
                connection.sendall(part)
                sent += len(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert sent < 100 << 20
    assert running.service.bodies.held == 0


def test_lengths_that_contradict_each_other_are_refused(running):
    head = f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\n"
    for headers in ("Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: -1\r\n", "Content-Length: x\r\n",
                    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip, x\r\n",
                    f"Content-Length: {'9' * 40}\r\n"):
        answer = running.raw(f"{head}{headers}\r\n12345".encode())
        assert 400 <= status_of(answer) < 500, headers


def test_bodies_that_need_none_are_not_waited_for(running):
    answer = ask(running, "GET /api/info HTTP/1.1", f"Host: localhost:{running.port}", "Content-Length: 1000000")
    assert status_of(answer) == 200


def test_stalled_uploads_keep_nobody_waiting(running, place):
    image = next((place / "photos" / "red").iterdir()).read_bytes()
    head = (f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\nContent-Type: image/png\r\n"
            "Content-Length: 1000000\r\n\r\n").encode()
    stalled = [running.connect() for _ in range(300)]
    try:
        for connection in stalled:
            connection.sendall(head + bytes(1000))
        silent = [running.connect() for _ in range(50)]
        for path in ("/", "/api/info", "/api/thumbnails/1"):
            assert running.get(path).status_code == 200
        assert running.client.post("/api/search", content=image).status_code == 200
        for connection in silent:
            connection.close()
    finally:
        for connection in stalled:
            connection.close()
    for _ in range(100):
        if running.service.bodies.held == 0:
            break
        time.sleep(0.05)
    assert running.service.bodies.held == 0


def test_slow_bodies_end_in_408(running, monkeypatch):
    monkeypatch.setattr(running.service.bodies, "seconds_for_part", 0.1)
    answer = running.raw((f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\nContent-Length: 99\r\n\r\n"
                          "a").encode())
    assert status_of(answer) == 408
    monkeypatch.setattr(running.service.bodies, "seconds_for_part", 5)
    monkeypatch.setattr(running.service.bodies, "seconds", 0.3)
    with running.connect() as connection:
        connection.sendall(f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\n"
                           "Content-Length: 99\r\n\r\n".encode())
        try:
            for _ in range(20):  # a byte now and then is not enough
                connection.sendall(b"a")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert status_of(received(connection)) in (408, 0)


def test_what_came_quickly_does_not_let_the_rest_stall(running, monkeypatch):
    monkeypatch.setattr(running.service.bodies, "seconds", 0.5)
    monkeypatch.setattr("mocoembed.serve.limits.BYTES_A_SECOND", 1000)
    with running.connect() as connection:
        connection.sendall(f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\n"
                           "Content-Length: 200000\r\n\r\n".encode() + bytes(100_000))  # a hundred seconds' worth
        begun = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - begun < 20:
                connection.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - begun < 15
        assert running.service.bodies.held == 0


def test_a_slow_upload_that_keeps_coming_is_taken(running, place, monkeypatch):
    image = next((place / "photos" / "red").iterdir()).read_bytes()
    monkeypatch.setattr(running.service.bodies, "seconds", 0.3)
    monkeypatch.setattr("mocoembed.serve.limits.BYTES_A_SECOND", len(image))
    with running.connect() as connection:
        connection.sendall((f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\nConnection: close\r\n"
                            f"Content-Length: {len(image)}\r\n\r\n").encode())
        for first in range(0, len(image), len(image) // 10 + 1):
            connection.sendall(image[first:first + len(image) // 10 + 1])
            time.sleep(0.06)
        assert status_of(received(connection)) == 200


def test_a_head_that_does_not_come_is_not_waited_for(running, monkeypatch):
    monkeypatch.setattr("mocoembed.serve.connections.SECONDS_FOR_HEAD", 0.2)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "):
        with running.connect() as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b"" if sent == b"" else received(connection) == b""
    for _ in range(2):  # also on a connection that was used before
        assert running.get("/api/live").status_code == 200


def test_bodies_that_nobody_reads_are_not_waited_for_after_the_answer(running, monkeypatch):
    """uvicorn's timer for connections that are kept ends with the first byte of the body."""
    monkeypatch.setattr("mocoembed.serve.connections.SECONDS_FOR_HEAD", 0.5)
    ask_live = f"GET /api/live HTTP/1.1\r\nHost: localhost:{running.port}\r\n"
    with running.connect() as connection:
        connection.sendall(f"{ask_live}Content-Length: 100000\r\n\r\n".encode())
        until_live(connection)
        connection.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""  # a TimeoutError: it is still open
    with running.connect() as connection:  # a body that comes takes nothing from what is asked next
        connection.sendall(f"{ask_live}Content-Length: 5\r\n\r\n".encode())
        until_live(connection)
        connection.sendall(f"12345{ask_live}\r\n".encode())
        until_live(connection)
        time.sleep(1)
        connection.sendall(f"{ask_live}\r\n".encode())
        until_live(connection)


def until_live(connection):
    found = b""
    while not found.endswith(b'{"status":"live"}'):
        found += (part := connection.recv(100))
        assert part, found


def test_what_is_no_request_is_logged_and_counted(place, monkeypatch):
    monkeypatch.setattr("mocoembed.serve.connections.SECONDS_FOR_HEAD", 0.2)
    running = Running(workspace=str(place / "ws"))
    try:
        head, before = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", len(running.notes)
        for sent in (b"GET /nonsense\x00 HTTP/1.1\r\n\r\n", head + bytes(b"x" * 200_000), head, b""):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                running.raw(sent)
        assert [note.partition(" refused: ")[2] for note in running.notes[before:]] == [
            f"a connection from 127.0.0.1: {said}" for said in ("400 malformed", "400 too large", "408 slow")]
        counted = running.get("/metrics").text
        for reason in ("malformed", "too large", "slow"):
            assert f'mocoembed_refused_total{{reason="{reason}"}} 1\n' in counted
    finally:
        running.stop()


def test_answers_that_nobody_reads_are_let_go(running, monkeypatch):
    monkeypatch.setattr("mocoembed.serve.connections.SECONDS_FOR_READING", 0.3)
    with running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask_again = f"GET /api/openapi.json HTTP/1.1\r\nHost: localhost:{running.port}\r\n\r\n".encode() * 10
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                connection.sendall(ask_again)
                time.sleep(0.01)
            pytest.fail("the connection is still open")


def test_long_heads_are_cut_off(running):
    line = f"GET /api/live HTTP/1.1\r\nHost: localhost:{running.port}\r\n"
    body = f"POST /api/search HTTP/1.1\r\nHost: localhost:{running.port}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    for head, piece in ((line + "X: ", "x" * 1000), (line, "X: y\r\n" * 100), ("GET /", "x" * 1000),
                        (body, "X: y\r\n" * 100)):
        with running.connect() as connection:
            connection.sendall(head.encode())
            sent = 0
            try:
                for _ in range(20_000):
                    connection.sendall(piece.encode())
                    sent += len(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert sent < 10 << 20, head
    assert running.get("/api/live").status_code == 200


def test_too_much_at_once_is_refused_and_may_come_again(running, place, monkeypatch):
    image = next((place / "photos" / "red").iterdir()).read_bytes() + bytes(SMALL)
    monkeypatch.setattr(running.service, "bodies", Bodies(most=10))
    answer = running.client.post("/api/search", content=image)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert running.client.post("/api/search", json={"rows": [0]}).status_code == 200  # small bodies need no room
    assert running.service.bodies.held == 0
    monkeypatch.undo()
    assert running.client.post("/api/search", content=image).status_code == 200


@pytest.mark.parametrize(("gate", "method", "path", "sent"), [
    ("uploads", "POST", "/api/search", "image"), ("uploads", "POST", "/api/embed", "image"),
    ("uploads", "POST", "/api/search?crop=0,0,9,9", "rows"), ("decoded", "POST", "/api/search", "image"),
    ("searches", "POST", "/api/search", "rows"), ("searches", "POST", "/api/embed", "rows"),
    ("searches", "POST", "/api/search?exclude_self=true", "image"), ("searches", "GET", "/api/info", None),
    ("searches", "GET", "/api/rows", None), ("searches", "GET", "/api/labels", None),
    ("images", "GET", "/api/images/0", None), ("images", "GET", "/api/thumbnails/0", None),
    ("images", "POST", "/api/search?crop=0,0,9,9", "rows"), ("copies", "GET", "/api/duplicates", None),
    ("health", "GET", "/api/health-report", None), ("map", "GET", "/api/map", None),
    ("searches", "GET", "/api/map", None)])
def test_every_kind_of_work_has_a_gate(running, place, monkeypatch, gate, method, path, sent):
    image = next((place / "photos" / "red").iterdir()).read_bytes()
    service = running.service
    monkeypatch.setattr(Points, "state", lambda *arguments: None)  # there is no map here
    monkeypatch.setattr(service.slow[gate].askers if gate in SLOW else getattr(service, gate), "_most", 0)
    if sent == "image":
        same_bytes = []
        monkeypatch.setattr(running.service.following.current, "same_bytes", same_bytes.append)
        answer = running.client.request(method, path, content=image)
        assert same_bytes == []
    else:
        answer = running.client.request(method, path, json=sent and {sent: [0]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_pages_that_wait_for_duplicates_share_the_work_and_hold_up_nothing_else(running, monkeypatch):
    going, asked = threading.Event(), []

    def slow(copies, *arguments):
        asked.append(arguments)
        going.wait(60)
        return {"groups": []}

    while running.get("/api/duplicates").status_code == 202:
        pass
    monkeypatch.setattr(Copies, "groups", slow)
    with ThreadPoolExecutor(10) as pool:
        try:
            pages = [pool.submit(running.get, "/api/duplicates?threshold=0.99") for _ in range(10)]
            while running.service.slow["copies"].askers.inside < 10:
                time.sleep(0.01)
            assert running.get("/api/health-report").status_code in (200, 202)
            assert running.get("/api/map").status_code == 404
            assert not any(one.done() for one in pages)
        finally:
            going.set()
        assert [one.result().status_code for one in pages] == [200] * 10
    assert asked == [(0.99, 0, 50)]


def test_a_slow_encoder_makes_no_endless_queue(running, place, monkeypatch):
    """Who waits for it keeps a place; those who come together are still embedded together."""
    image, service = next((place / "photos" / "red").iterdir()).read_bytes(), running.service
    embed, going, sizes = service.following.current.pair.embed, threading.Event(), []

    def slow(images):
        sizes.append(len(images))
        going.wait(60)
        return embed(images)

    monkeypatch.setattr(service.following.current.pair, "embed", slow)
    monkeypatch.setattr(service, "uploads", Gate(6, 0))
    with ThreadPoolExecutor(6) as pool:
        try:
            asked = [pool.submit(running.client.post, "/api/search", content=image) for _ in range(6)]
            for _ in range(1000):
                if sum(sizes) + len(service.batches._waiting) == 6:  # decoded, all of them
                    break
                time.sleep(0.01)
            assert running.client.post("/api/search", content=image).status_code == 429
        finally:
            going.set()
        assert [one.result().status_code for one in asked] == [200] * 6
    assert sum(sizes) == 6
    assert len(sizes) <= 2
    assert running.client.post("/api/search", content=image).status_code == 200


def test_decompression_bombs_are_refused(running, tmp_path):
    Image.new("1", (19_000, 19_000)).save(tmp_path / "bomb.png")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    for name, said in (("bomb.png", "361000000 pixels"), ("large.png", "MiB")):
        answer = running.client.post("/api/search", content=(tmp_path / name).read_bytes())
        assert answer.status_code == 422, name
        assert said in answer.json()["error"]


# ------------------------------------------------------------------------------------------------------ token (W6)


def test_without_the_token_nothing_is_told(guarded):
    for method, path in guarded.asked():
        is_open = path in ("/api/live", "/api/ready", "/login", "/login.css")
        expected = 403 if (method, path) == ("POST", "/login") else 200 if is_open else 401
        assert guarded.client.request(method, path).status_code == expected, (method, path)
    for headers in ({"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": TOKEN}, {"Authorization": "Bearer"},
                    {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer \xff"},
                    {"Cookie": f"mocoembed-{guarded.port}={TOKEN}"}, {"Cookie": "=;;;\xff"},
                    {"Cookie": f"mocoembed-{guarded.port}="}):
        answer = httpx.get(f"{guarded.client.base_url}/api/info", headers={k: v.encode("latin-1")
                                                                           for k, v in headers.items()})
        assert answer.status_code == 401, headers
        assert answer.headers["www-authenticate"].startswith("Bearer")
    answer = httpx.get(f"{guarded.client.base_url}/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert httpx.get(f"{guarded.client.base_url}/api/info?token={TOKEN}").status_code == 401


def test_the_token_opens_everything(guarded):
    assert guarded.get("/api/info", Authorization=f"Bearer {TOKEN}").status_code == 200
    assert guarded.get("/api/info", Authorization=f"bearer  {TOKEN}").status_code == 200


@pytest.mark.parametrize("other", ['prefs={"theme":"dark"}', "a b=c d", "a[b]=1", "user@x=1", "name=caf\u00e9", "flag"])
def test_cookies_of_other_servers_on_this_machine_do_not_matter(guarded, other):
    tokens = guarded.server.tokens
    for cookies in (f"{other}; {tokens.cookie}={tokens.session}", f"{tokens.cookie}={tokens.session}; {other}",
                    f"{tokens.cookie}=of-before; {other}; {tokens.cookie}={tokens.session}"):
        assert guarded.get("/api/info", Cookie=cookies.encode()).status_code == 200
    for cookies in (other, f"{other}; x{tokens.cookie}={tokens.session}",
                    f"{tokens.cookie}={tokens.session}x; {other}"):
        assert guarded.get("/api/info", Cookie=cookies.encode()).status_code == 401


def test_the_link_works_once_and_gives_a_cookie(guarded):
    address = guarded.server.address
    with httpx.Client() as browser:
        answer = browser.get(address)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        assert TOKEN not in cookie
        assert browser.get(f"{guarded.client.base_url}/api/info").status_code == 200
    with httpx.Client() as other:
        assert "set-cookie" not in other.get(address).headers
        assert other.get(f"{guarded.client.base_url}/api/info").status_code == 401
        assert other.post(f"{guarded.client.base_url}/login", data={"token": "wrong"}).status_code == 403
        assert other.post(f"{guarded.client.base_url}/login", data={"token": TOKEN}).status_code == 303
        assert other.get(f"{guarded.client.base_url}/api/info").status_code == 200


def test_refusals_are_logged_without_what_was_sent(running):
    running.get("/api/info", Host="evil.example")
    running.raw(b"GET /\x1b[31m<script> HTTP/1.1\r\nHost: evil\r\n\r\n")
    running.get("/api/info", **{"Host": "evil.example", "X-Forwarded-For": "<b>evil</b>"})
    assert any("421 host" in note for note in running.notes)  # at most so many a minute: or of a test before this one
    text = "\n".join(running.notes)
    assert "evil" not in text
    assert "script" not in text
    assert 'reason="host"' in running.get("/metrics").text


def test_a_failure_is_answered_and_its_traceback_logged(running, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("an inner secret")

    monkeypatch.setattr(running.service.following.current, "label_counts", fail)
    answer = running.get("/api/labels")
    assert (answer.status_code, answer.json()["error"]) == (500, "The server failed; its log says why.")
    assert answer.headers["x-content-type-options"] == "nosniff"
    for _ in range(100):  # the traceback is logged after the answer
        if logged := any("inner secret" in str(record.exc_info) for record in caplog.records):
            break
        time.sleep(0.05)
    assert logged
    monkeypatch.undo()
    assert running.get("/api/labels").status_code == 200


def test_no_redirection_comes_from_the_host_header(running):
    for path in ("/api/info/", "/api/", "//evil.example", "//evil.example/..", "/metrics/"):
        answer = ask(running, f"GET {path} HTTP/1.1", f"Host: localhost:{running.port}")
        assert status_of(answer) == 404
        assert b"ocation" not in answer.split(b"\r\n\r\n")[0]


def test_methods_are_those_of_the_routes(running):
    for method, path in (("DELETE", "/api/search"), ("PUT", "/api/images/0"), ("GET", "/api/search"),
                         ("POST", "/api/info"), ("TRACE", "/"), ("PATCH", "/login")):
        answer = running.client.request(method, path)
        assert answer.status_code == 405, (method, path)
        assert answer.headers["allow"]
    assert running.client.head("/api/thumbnails/0").status_code == 200


def test_signals_of_threads_do_not_change_the_answers(running, place):
    """Images are the same whichever thread asks."""
    digests: set[str] = set()

    def look():
        with httpx.Client(base_url=running.client.base_url) as client:
            digests.update(hashlib.sha256(client.get("/api/thumbnails/2").content).hexdigest() for _ in range(5))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 1
