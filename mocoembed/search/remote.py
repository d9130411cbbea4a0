"""Search by a server: query images -> `mocoembed serve` at an address -> the results that a local search gives.

Requests go out one after the other over one connection. The token, if the server needs one, is that of the environment
variable MOCOEMBED_TOKEN; redirections are not followed, so that it goes nowhere else.
"""

import contextlib
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np

from mocoembed.config import SearchConfig
from mocoembed.data.facts import Failure
from mocoembed.errors import CollectionError, MocoembedError, UsageError
from mocoembed.memory import shown as memory_shown
from mocoembed.notes import say_nothing
from mocoembed.search.hits import Hit, QueryResult
from mocoembed.search.left_out import LeftOut
from mocoembed.search.queries import UNLIKE, combined, combined_each, name_together, query_names, read_bytes, shown

TOKEN_VARIABLE = "MOCOEMBED_TOKEN"
SECONDS = 60.0  # until an answer
TRIES = 20  # of a request that a busy server refuses
LOCAL = ("index", "embeddings", "encoder", "root", "recall")  # options of a search on this machine
MOST_HITS = 1_000  # that a server gives of a query
FLAGS = ("unique", "diverse", "exclude_self")


def iterate_remote(config: SearchConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                   note: Callable[[str], None] = say_nothing) -> Iterator[QueryResult]:
    """What `iterate_search` gives, from the server at `config.server`.

    Raises `UsageError` for options that a server does not know and for what it refuses as wrong, `MocoembedError` when
    it does not answer.
    """
    for name in LOCAL:
        if getattr(config, name):
            raise UsageError(f"--{name} cannot be given with --server, which searches its own collection.")
    if config.k > MOST_HITS:
        raise UsageError(f"-k {config.k}: a server gives at most {MOST_HITS} hits.")
    if config.torch or config.device != "auto":
        raise UsageError("--torch and --device cannot be given with --server.")
    queries: list[str | int] = [*query_names(config.images, note), *config.row]
    left_out = LeftOut(len(queries), note)
    server = Server(config.server or "")
    try:
        if config.together:
            yield Combining(server, config).together(queries, progress)
            return
        # Of a row, a search by row leaves out that row, and not its copies.
        apart = Combining(server, config) if config.unlike or (config.row and config.exclude_self) else None
        for done, query in enumerate(queries, 1):
            try:
                results = [server.found(query, config)] if apart is None else apart.found(query, left_out)
            except (CollectionError, RegionError) as error:
                left_out.add(error)
                continue
            yield from results
            progress(done, len(queries))
    finally:
        server.close()
    left_out.raise_if_any()


class RegionError(UsageError):
    """The region to search for is not within one of the images."""


class Server:
    """A connection to a server."""

    def __init__(self, address: str):
        """`address`: http://HOST:PORT or https://HOST."""
        try:
            parts = urlsplit(address)
            place = parts.hostname or "", parts.port
        except ValueError as error:
            raise _no_address(address) from error
        if parts.scheme not in ("http", "https") or not place[0] or parts.query or parts.username:
            raise _no_address(address)
        self.address, self._above = address, parts.path.rstrip("/")
        self._connection = (http.client.HTTPConnection(*place, timeout=SECONDS) if parts.scheme == "http" else
                            http.client.HTTPSConnection(*place, timeout=SECONDS, context=ssl.create_default_context()))

    def close(self):
        """Close it."""
        self._connection.close()

    def found(self, query: str | int, config: SearchConfig) -> QueryResult:
        """The hits of an image, or of a row of the server's collection; `CollectionError` when it cannot be read."""
        found = self.sent("search", query, _wishes(config), config.crop)
        return QueryResult(self.name(query), _hits(found))

    def sent(self, where: str, query: str | int, given: dict[str, Any], crop: Sequence[int] = ()) -> Any:
        """What /api/`where` answers to an image or its region `crop`, or to a row."""
        if isinstance(query, int):
            return self.sent_json(where, {"rows": [query]}, given)
        try:
            data = read_bytes(query)
        except Exception as error:  # whatever the file system raises
            raise CollectionError(f"The image {query!r} cannot be read: {Failure.of(0, error).said}") from error
        region = {"crop": ",".join(map(str, crop))} if crop else {}
        return self.ask("POST", _path(where, given | region), data, "application/octet-stream", query)

    def sent_json(self, where: str, body: dict[str, Any], given: dict[str, Any]) -> Any:
        """What it answers to JSON."""
        return self.ask("POST", _path(where, given), json.dumps(body).encode(), "application/json")

    def name(self, query: str | int) -> str:
        """What a query is called: a row by its path."""
        if isinstance(query, str):
            return query
        return self.ask("GET", f"/api/rows?offset={query}&limit=1")["rows"][0]["path"]

    def thumbnail(self, row: int) -> bytes:
        """The small image of a row, as JPEG."""
        return self._data("GET", f"/api/thumbnails/{row}")

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "", name: str = "") -> Any:
        """The JSON that is answered; a busy server is asked again. `name` is that of an image in the body."""
        try:
            return json.loads(self._data(method, path, body, kind, name))
        except ValueError as error:
            raise MocoembedError(f"{self.address} does not answer as mocoembed serve does.") from error

    def _data(self, method: str, path: str, body: bytes | None = None, kind: str = "", name: str = "") -> bytes:
        headers = {"Content-Type": kind} if kind else {}
        if token := os.environ.get(TOKEN_VARIABLE):
            if not (token.isascii() and token.isprintable()):
                raise UsageError(f"{TOKEN_VARIABLE} holds a character that a server's token cannot have. Set it again.")
            headers["Authorization"] = f"Bearer {token}"
        for _ in range(TRIES):
            status, data, wait = self._once(method, path, body, headers, name)
            if status not in (429, 503):
                break
            time.sleep(wait)
        if status == 200:
            return data
        said = _said(data)
        if status == 401:
            what = "refuses the token given" if token else "needs its token. Give it"
            raise UsageError(f"{self.address} {what} in the environment variable {TOKEN_VARIABLE}.")
        if name and status == 413:
            raise CollectionError(f"The image {shown(name)} is too large for the server: it has "
                                  f"{memory_shown(len(body or b''))}. {said}".rstrip())
        if name and "'query'" in said:
            raise (CollectionError if status == 422 else RegionError)(said.replace("'query'", shown(name)))
        if status in (400, 404) and said:
            raise UsageError(f"{self.address} refuses: {said}")
        raise MocoembedError(f"{self.address} answers with status {status}. {said}".rstrip())

    def _once(self, method: str, path: str, body: bytes | None, headers: dict, name: str) -> tuple[int, bytes, float]:
        """Status, body, and the seconds to wait before asking again; `CollectionError` when an image is not taken."""
        is_connected = False
        try:
            if self._connection.sock is None:
                self._connection.connect()
            is_connected = True
            with contextlib.suppress(ConnectionError):  # it may have answered before all was sent
                self._connection.request(method, self._above + path, body, headers)
            answer = self._connection.getresponse()
            data, wait = answer.read(), answer.headers.get("Retry-After", "1")
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if name and is_connected and isinstance(error, (ConnectionError, http.client.ResponseNotReady)):
                raise CollectionError(f"The image {shown(name)} was not taken: {self.address} closed the connection "
                                      f"while {memory_shown(len(body or b''))} were sent, as it does when an image is "
                                      "too large.") from error
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MocoembedError(f"{self.address} does not answer: {reason}. Start a server with: mocoembed "
                                 "serve") from error
        return answer.status, data, float(wait) if wait.isdecimal() else 1.0


class Combining:
    """Queries of which one vector is made here, as in a local search: the server embeds each, and searches by it."""

    def __init__(self, server: Server, config: SearchConfig):
        """Also embeds the images that hits should be unlike."""
        self._server, self._config = server, config
        info = server.ask("GET", "/api/info")
        with _as_answered():
            self._normalized, self._version = info["normalized"], {"version": info["version"]}
        unlike = query_names(config.unlike, say_nothing, UNLIKE)
        self._unlike = np.concatenate([self._embedded(name)[0] for name in unlike]) if unlike else None

    def found(self, query: str | int, left_out: LeftOut) -> list[QueryResult]:
        """The result of one query; none if nothing is left of it, and it goes to `left_out`."""
        vector, selves = self._embedded(query, self._config.crop)
        name = self._server.name(query)
        _, asked = combined_each([name], vector, self._unlike, self._normalized, left_out)
        return [self._result(name, one, selves) for one in asked]

    def together(self, queries: Sequence[str | int], progress: Callable[[int, int], None]) -> QueryResult:
        """The result of all queries as one."""
        vectors, selves = [], []
        for done, query in enumerate(queries, 1):
            vector, rows = self._embedded(query, self._config.crop)
            vectors.append(vector)
            selves += rows
            progress(done, len(queries))
        names = [self._server.name(query) for query in queries]
        (asked,) = combined(np.concatenate(vectors), self._unlike, True, self._normalized)
        return replace(self._result(name_together(names), asked, selves), image=names[0])

    def _embedded(self, query: str | int, crop: Sequence[int] = ()) -> tuple[np.ndarray, list[int]]:
        """The vector (1, D) float32 of an image or row, and the rows that it is itself, if these are no hits."""
        selves = {"selves": "true"} if self._config.exclude_self else {}
        answer = self._server.sent("embed", query, self._version | selves, crop)
        with _as_answered():
            return np.array(answer["vectors"], np.float32).reshape(1, -1), answer["selves"][0] if selves else []

    def _result(self, name: str, vector: np.ndarray, selves: list[int]) -> QueryResult:
        body = {"vectors": [list(map(float, vector))], "selves": [selves]}
        return QueryResult(name, _hits(self._server.sent_json("search", body, self._version | _wishes(self._config))))


def thumbnails(address: str) -> Callable[[Hit], bytes]:
    """What reads the small images of hits from a server, for a contact sheet."""
    server = Server(address)

    def read(hit: Hit) -> bytes:
        assert hit.row is not None  # a server tells it
        return server.thumbnail(hit.row)

    return read


def _said(data: bytes) -> str:
    """The reason in an answer that refuses."""
    try:
        return json.loads(data)["error"]
    except (ValueError, KeyError, TypeError):
        return ""


def _no_address(address: str) -> UsageError:
    return UsageError(f"--server {address}: must be the address of a server, such as http://127.0.0.1:8765.")


def _wishes(config: SearchConfig) -> dict[str, Any]:
    """The query parameters of a search."""
    given: dict[str, Any] = {"k": config.k, "label": config.label, "not_label": config.not_label, "path": config.path}
    if config.min_score is not None:
        given["min_score"] = config.min_score
    return given | {name: "true" for name in FLAGS if getattr(config, name)}


def _path(where: str, given: dict[str, Any]) -> str:
    return f"/api/{where}?{urlencode(given, doseq=True)}"


def _hits(answer: Any) -> list[Hit]:
    with _as_answered():
        return [Hit(one["rank"], one["score"], one["path"], one["label"], one["row"], int(one["id"]),
                    one.get("folded"), tuple(one.get("folded_rows", ())))
                for one in answer["queries"][0]["hits"]]


@contextlib.contextmanager
def _as_answered():
    """Turn what goes wrong with an answer's fields into a `MocoembedError`."""
    try:
        yield
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise MocoembedError("The server does not answer as mocoembed serve does.") from error
