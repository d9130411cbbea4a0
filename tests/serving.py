"""A server on a thread of the tests, spoken to by httpx or over a raw socket."""

import contextlib
import socket
import threading

import httpx

from mocoembed.config import ServeConfig
from mocoembed.serve.app import Server


class Running:
    """A server that runs; `client` asks it, `raw(data)` sends bytes and gives what comes back."""

    def __init__(self, **values):
        self.notes: list[str] = []
        self.server = Server(ServeConfig(**{"port": 0, "browser": False, **values}), self.notes.append)
        self.port, self.service = self.server.port, self.server.service
        begun = threading.Event()
        self._thread = threading.Thread(target=self.server.run, args=(lambda address: begun.set(),), daemon=True)
        self._thread.start()
        assert begun.wait(20)
        # a new connection for each request: one that is kept may be closed by the server just then
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20,
                                   limits=httpx.Limits(max_keepalive_connections=0))

    def stop(self):
        self.client.close()
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def raw(self, data: bytes) -> bytes:
        """What comes back until the server closes, or for a moment after the last byte."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.settimeout(0.5)
            return received(connection)

    def routes(self) -> list:
        """Those that are answered, below what watches and guards them."""
        return self.server._server.config.app.app.app.routes

    def asked(self) -> list[tuple[str, str]]:
        """(method, path) of everything that can be asked for, and of a path that leads nowhere."""
        found = [(method, route.path.replace("{row:int}", "0")) for route in self.routes() for method in route.methods]
        return [*sorted(found), ("GET", "/none"), ("POST", "/none")]

    def get(self, path: str, **headers) -> httpx.Response:
        return self.client.get(path, headers=headers)


def received(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0
