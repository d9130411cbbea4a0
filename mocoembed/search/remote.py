"""Search by a server: query images -> `mocoembed serve` at an address -> the results that a local search gives.

Requests go out one after the other over one connection. The token, if the server needs one, is that of the environment
variable MOCOEMBED_TOKEN; redirections are not followed, so that it goes nowhere else.
"""

import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

from mocoembed.config import SearchConfig
from mocoembed.data.facts import Failure
from mocoembed.errors import CollectionError, MocoembedError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.hits import Hit, QueryResult
from mocoembed.search.left_out import LeftOut
from mocoembed.search.queries import query_names, read_bytes, shown

TOKEN_VARIABLE = "MOCOEMBED_TOKEN"
SECONDS = 60.0  # until an answer
TRIES = 20  # of a request that a busy server refuses
LOCAL = ("index", "embeddings", "encoder", "root", "unlike", "recall")  # options of a search on this machine
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
    if config.together or config.torch or config.device != "auto":
        raise UsageError("--together, --torch and --device cannot be given with --server.")
    names = query_names(config.images, note)
    total = len(names) + len(config.row)
    left_out = LeftOut(total, note)
    server = Server(config.server or "")
    try:
        queries: list[str | int] = [*names, *config.row]
        for done, query in enumerate(queries, 1):
            try:
                result = server.row(query, config) if isinstance(query, int) else server.image(query, config)
            except (CollectionError, RegionError) as error:
                left_out.add(error)
                continue
            yield result
            progress(done, total)
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

    def image(self, name: str, config: SearchConfig) -> QueryResult:
        """The hits of an image; `CollectionError` when it cannot be read."""
        try:
            data = read_bytes(name)
        except Exception as error:  # whatever the file system raises
            raise CollectionError(f"The image {name!r} cannot be read: {Failure.of(0, error).said}") from error
        crop = {"crop": ",".join(map(str, config.crop))} if config.crop else {}
        path = f"/api/search?{urlencode(_wishes(config) | crop, doseq=True)}"
        return _result(name, self.ask("POST", path, data, "application/octet-stream", name))

    def row(self, row: int, config: SearchConfig) -> QueryResult:
        """The hits of an image of the server's collection."""
        body = json.dumps({"rows": [row]}).encode()
        found = self.ask("POST", f"/api/search?{urlencode(_wishes(config), doseq=True)}", body, "application/json")
        facts = self.ask("GET", f"/api/rows?offset={row}&limit=1")["rows"]
        return _result(facts[0]["path"], found)

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "", name: str = "") -> Any:
        """The JSON that is answered; a busy server is asked again. `name` is that of an image in the body."""
        headers = {"Content-Type": kind} if kind else {}
        if token := os.environ.get(TOKEN_VARIABLE):
            if not (token.isascii() and token.isprintable()):
                raise UsageError(f"{TOKEN_VARIABLE} holds a character that a server's token cannot have. Set it again.")
            headers["Authorization"] = f"Bearer {token}"
        for _ in range(TRIES):
            status, answer, wait = self._once(method, path, body, headers)
            if status not in (429, 503):
                break
            time.sleep(wait)
        if status == 200:
            return answer
        said = answer.get("error", "") if isinstance(answer, dict) else ""
        if status == 401:
            what = "refuses the token given" if token else "needs its token. Give it"
            raise UsageError(f"{self.address} {what} in the environment variable {TOKEN_VARIABLE}.")
        if name and "'query'" in said:
            raise (CollectionError if status == 422 else RegionError)(said.replace("'query'", shown(name)))
        if status in (400, 404) and said:
            raise UsageError(f"{self.address} refuses: {said}")
        raise MocoembedError(f"{self.address} answers with status {status}. {said}".rstrip())

    def _once(self, method: str, path: str, body: bytes | None, headers: dict) -> tuple[int, Any, float]:
        """Status, JSON, and the seconds to wait before asking again."""
        try:
            self._connection.request(method, self._above + path, body, headers)
            answer = self._connection.getresponse()
            data, wait = answer.read(), answer.headers.get("Retry-After", "1")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MocoembedError(f"{self.address} does not answer: {reason}. Start a server with: mocoembed "
                                 "serve") from error
        try:
            return answer.status, json.loads(data), float(wait) if wait.isdecimal() else 1.0
        except ValueError as error:
            if answer.status == 200:
                raise MocoembedError(f"{self.address} does not answer as mocoembed serve does.") from error
            return answer.status, None, 1.0


def _no_address(address: str) -> UsageError:
    return UsageError(f"--server {address}: must be the address of a server, such as http://127.0.0.1:8765.")


def _wishes(config: SearchConfig) -> dict[str, Any]:
    """The query parameters of a search."""
    given = {"k": config.k, "label": config.label, "not_label": config.not_label, "path": config.path}
    if config.min_score is not None:
        given["min_score"] = config.min_score
    return given | {name: "true" for name in FLAGS if getattr(config, name)}


def _result(name: str, answer: Any) -> QueryResult:
    try:
        hits = [Hit(one["rank"], one["score"], one["path"], one["label"], one["row"], int(one["id"]), one.get("folded"),
                    tuple(one.get("folded_rows", ())))
                for one in answer["queries"][0]["hits"]]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise MocoembedError("The server does not answer as mocoembed serve does.") from error
    return QueryResult(name, hits)
