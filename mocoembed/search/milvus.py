"""A Milvus collection: made, filled, listed and searched. The only module that imports pymilvus, an optional extra.

A server and a local file (Milvus Lite, a server in this process) are used alike. What goes wrong there is raised as a
`MocoembedError` of one line; nothing is tried again beyond what pymilvus itself does within the timeout.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mocoembed.config.push import LITE_INDEX_TYPES, is_server, push_command
from mocoembed.errors import FormatError, LockedError, MocoembedError, UsageError

TOKEN_VARIABLE = "MILVUS_TOKEN"
LONGEST_TEXT = 65_535  # bytes of a VARCHAR
MOST_HITS = 16_384  # that Milvus gives for a query
LISTED_AT_ONCE = 8_192  # of MOST_HITS at most
ABOUT, INDEX, PART = "mocoembed", "mocoembed.index", "mocoembed.part."  # keys of the collection's properties
FLUSH_SECONDS = 600.0  # at least, for sealing and indexing
INDEXING_SECONDS = 1.0  # between two questions whether the index is made


def require_pymilvus(uri: str) -> Any:
    """The package; `UsageError` when it is missing, or milvus-lite for a local file."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import pymilvus

        if not is_server(uri):
            import milvus_lite  # noqa: F401
    except ImportError as error:
        package = "milvus-lite" if "milvus_lite" in str(error) else "pymilvus"
        raise UsageError(f"--to {uri} needs the package {package}. "
                         "Install it with: pip install 'mocoembed[milvus]'") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # it writes whole tracebacks
    lite = logging.getLogger("milvus_lite")
    lite.propagate = False
    _logged.error = None  # one of an earlier collection says nothing of the next
    lite.addHandler(_logged)
    return pymilvus


class _Logged(logging.Handler):
    """Keeps the last error that was logged, in place of printing its traceback."""

    error: BaseException | None = None

    def emit(self, record: logging.LogRecord):
        """Called by the logger."""
        if record.exc_info:
            self.error = record.exc_info[1]


_logged = _Logged(logging.ERROR)  # of Milvus Lite, which tells pymilvus nothing of why it does not start


class Milvus:
    """A collection of a Milvus server or of a local file, by name; a context manager. It need not exist yet."""

    def __init__(self, uri: str, name: str, timeout: float, create: bool = False):
        """`create`: a local file that is not there is made. Raises `MocoembedError` when the server is away."""
        self.uri, self.name, self.timeout, self.local = uri, name, timeout, not is_server(uri)
        if self.local:
            self._require_local(create)
        self._pymilvus = require_pymilvus(uri)
        if self.local:
            self._mend()
        with self._errors("connect"):
            self._client = self._pymilvus.MilvusClient(uri, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=timeout)

    def __str__(self):
        return f"{self.name} at {self.uri}"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(Exception):
            self._client.close()
        if self.local:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self.uri)

    def _require_local(self, create: bool):
        path = pathlib.Path(self.uri)
        if path.is_file():
            raise UsageError(f"--to {self.uri}: is a file of another kind; Milvus Lite keeps a folder under such a "
                             "name. Give another name ending in .db.")
        if not path.exists() and not create:
            raise UsageError(f"--to {self.uri}: does not exist. Fill it with: {push_command(self.uri, self.name)}")
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)

    def _mend(self):
        """Remove what a process left that was killed while it made the collection, and that nothing else would."""
        folder = pathlib.Path(self.uri) / "collections" / self.name
        with contextlib.suppress(OSError):
            if not (folder / "schema.json").exists():
                (folder / "schema.json.tmp").unlink(missing_ok=True)
                folder.rmdir()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Raise what pymilvus and gRPC raise as a `MocoembedError` of one line."""
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            code = error.code().name if hasattr(error, "code") else ""
            why = (f"no answer within {self.timeout:g} s" if code == "DEADLINE_EXCEEDED"
                   else str(getattr(error, "details", lambda: code)() or code))
            raise self._failed(what, why) from error
        except self._pymilvus.MilvusException as error:
            if self.local and what == "connect":
                self._require_unlocked()
                raise self._not_opened(str(error.message)) from error
            raise self._failed(what, str(error.message) or str(error.code)) from error

    def _failed(self, what: str, why: str) -> MocoembedError:
        why = " ".join(why.split()).rstrip(".")
        why = why if len(why) <= 300 else f"{why[:300]}..."
        if "Fail connecting" in why or "UNAVAILABLE" in why or "failed to connect" in why:
            return MocoembedError(f"The Milvus server {self.uri} cannot be reached: {why}. "
                                  "Start it, or correct --to, and run the same command again.")
        return MocoembedError(f"Milvus at {self.uri} failed to {what}: {why}.")

    def _not_opened(self, said: str) -> MocoembedError:
        """The error of a local file that Milvus Lite cannot open, with its own reason."""
        why = " ".join(str(_logged.error or said).split()).rstrip(".")
        if isinstance(error := _logged.error, OSError):
            why = f"{error.strerror or error}. It writes there even for a search: use a copy elsewhere"
        return MocoembedError(f"Milvus Lite cannot open {self.uri}: {why}.")

    def _require_unlocked(self):
        with contextlib.suppress(OSError), open(pathlib.Path(self.uri) / "LOCK") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockedError(f"{self.uri} is in use by another process, and Milvus Lite lets one in at a time. "
                                  "Wait for it to end, or start a server.") from error

    # ------------------------------------------------------------------------------------------- the collection

    def exists(self) -> bool:
        """Whether the collection is there."""
        with self._errors("look for a collection"):
            return bool(self._client.has_collection(self.name, timeout=self.timeout))

    def drop(self):
        """Delete the collection."""
        with self._errors("delete the collection"):
            self._client.drop_collection(self.name, timeout=self.timeout)

    def create(self, dimension: int, about: dict):
        """Make the collection, with `about` in its properties."""
        kinds = self._pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False,
                                            description="image embeddings, by mocoembed push")
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
        schema.add_field("path", kinds.VARCHAR, max_length=LONGEST_TEXT)
        schema.add_field("label", kinds.VARCHAR, max_length=LONGEST_TEXT, nullable=True)
        schema.add_field("width", kinds.INT32)
        schema.add_field("height", kinds.INT32)
        schema.add_field("digest", kinds.VARCHAR, max_length=64)
        schema.add_field("part", kinds.INT64)
        schema.add_field("row_hash", kinds.INT64)
        with self._errors("make the collection"):
            self._client.create_collection(self.name, schema=schema, properties={ABOUT: json.dumps(about)},
                                           timeout=self.timeout)

    def properties(self) -> dict[str, dict]:
        """Our properties of the collection: {key: JSON object}; `FormatError` for any that are damaged."""
        with self._errors("describe the collection"):
            found = self._client.describe_collection(self.name, timeout=self.timeout).get("properties", {})
        ours = {}
        for key, text in found.items():
            if key == ABOUT or key.startswith(f"{ABOUT}."):
                try:
                    ours[key] = text if isinstance(text, dict) else json.loads(text)
                except ValueError as error:
                    raise FormatError(f"{self}: its property {key} is not JSON. Push again with --fresh.") from error
        return ours

    def set_property(self, key: str, value: dict):
        """Store one of our properties."""
        with self._errors("store a property"):
            self._client.alter_collection_properties(self.name, {key: json.dumps(value)}, timeout=self.timeout)

    def require_type(self, kind: str | None):
        """Raise `UsageError` for a type of index that Milvus Lite does not have."""
        if self.local and kind not in (None, *LITE_INDEX_TYPES):
            raise UsageError(f"--index-type {kind}: Milvus Lite has {', '.join(LITE_INDEX_TYPES)}. "
                             "Use one of them, or a server.")

    def index(self, kind: str, metric: str, build: dict):
        """Give the vectors an index of that type, in place of any other."""
        parameters = self._client.prepare_index_params()
        parameters.add_index("vector", index_type=kind, index_name="vector", metric_type=metric,
                             params={"params": build} if build else {})  # pymilvus takes one level off
        with self._errors("make the index"):
            for name in self._client.list_indexes(self.name):
                self._client.release_collection(self.name, timeout=self.timeout)
                self._client.drop_index(self.name, name, timeout=self.timeout)
            self._client.create_index(self.name, parameters, timeout=max(self.timeout, FLUSH_SECONDS))

    def has_index(self) -> bool:
        """Whether the vectors have an index."""
        with self._errors("list the indexes"):
            return bool(self._client.list_indexes(self.name))

    def load(self):
        """Make the collection ready to be queried.

        Milvus Lite writes its index files in place, and never again loads a collection of which a killed process has
        left one half written. They hold nothing that the rows do not: they are removed, and it makes them anew.
        """
        try:
            self._load()
        except MocoembedError:
            if not (self.local and self._remove_index_files()):
                raise
            self._load()

    def _load(self):
        with self._errors("load the collection"):
            self._client.load_collection(self.name, timeout=max(self.timeout, FLUSH_SECONDS))

    def _remove_index_files(self) -> int:
        files = list((pathlib.Path(self.uri) / "collections" / self.name).glob("partitions/*/indexes/*.idx"))
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def flush(self):
        """Have the server write everything, and index it."""
        with self._errors("flush the collection"):
            self._client.flush(self.name, timeout=max(self.timeout, FLUSH_SECONDS))

    def wait_until_indexed(self, pause: Callable[[], None]):
        """Wait until no row is left that the index lacks; `pause` is called every second, and may raise."""
        while True:
            with self._errors("describe the index"):
                found = self._client.describe_index(self.name, "vector", timeout=self.timeout) or {}
            if not int(found.get("pending_index_rows") or 0):
                return
            pause()
            time.sleep(INDEXING_SECONDS)

    # ------------------------------------------------------------------------------------------------- entities

    def upsert(self, rows: list[dict]):
        """Put rows in, in place of those with the same ids."""
        with self._errors("take rows"):
            self._client.upsert(self.name, rows, timeout=self.timeout)

    def delete(self, ids: Sequence[int]):
        """Take the rows of these ids out."""
        with self._errors("delete rows"):
            self._client.delete(self.name, ids=list(ids), timeout=self.timeout)

    def count(self, expression: str = "") -> int:
        """Rows that an expression selects."""
        with self._errors("count rows"):
            found = self._client.query(self.name, filter=expression, output_fields=["count(*)"],
                                       consistency_level="Strong", timeout=self.timeout)
        return int(found[0]["count(*)"])

    def any(self, expression: str) -> bool:
        """Whether an expression selects a row."""
        with self._errors("look for rows"):
            return bool(self._client.query(self.name, filter=expression, output_fields=["id"], limit=1,
                                           timeout=self.timeout))

    def some(self, field: str, limit: int) -> list[str]:
        """That field of so many rows at most."""
        with self._errors("look for rows"):
            found = self._client.query(self.name, filter="", output_fields=[field], limit=limit, timeout=self.timeout)
        return [row[field] for row in found]

    def get(self, ids: Sequence[int], fields: Sequence[str]) -> list[dict]:
        """The rows of these ids that are there, in any order."""
        with self._errors("give rows"):
            return list(self._client.query(self.name, filter=f"id in {list(ids)}", output_fields=list(fields),
                                           limit=len(ids), consistency_level="Strong", timeout=self.timeout))

    def listed(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 each: ids, rising, and row hashes of all rows of a part."""
        ids, hashes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        with self._errors("list rows"):
            rows = self._client.query_iterator(self.name, batch_size=LISTED_AT_ONCE, filter=f"part == {part}",
                                               output_fields=["id", "row_hash"], consistency_level="Strong",
                                               timeout=self.timeout)
            while some := rows.next():
                ids.append(np.fromiter((one["id"] for one in some), np.int64, len(some)))
                hashes.append(np.fromiter((one["row_hash"] for one in some), np.int64, len(some)))
            rows.close()
        all_ids, all_hashes = np.concatenate(ids), np.concatenate(hashes)
        order = np.argsort(all_ids, kind="stable")
        return all_ids[order], all_hashes[order]

    def search(self, vectors: np.ndarray, k: int, expression: str, metric: str, parameters: dict) -> list[list[dict]]:
        """For each of `vectors` (Q, D) the k nearest rows: dicts of id, score, path, label and part, nearest first."""
        with self._errors("search"):
            found = self._client.search(self.name, data=list(vectors), anns_field="vector", limit=k, filter=expression,
                                        output_fields=["path", "label", "part"], timeout=self.timeout,
                                        search_params={"metric_type": metric, "params": parameters})
        sign = 1.0 if metric == "IP" else -1.0
        return [[{"id": hit["id"], "score": sign * float(hit["distance"]), **hit["entity"]} for hit in hits]
                for hits in found]
