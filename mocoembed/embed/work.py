"""Work in progress: one record per listed picture in a plain file, safe against being killed at any moment.

Page 0 holds a JSON header, page 1 the number of committed slots, then come fixed-size records. A batch is written,
flushed to the disk, and only then counted as committed; so whatever is counted is whole, and a rerun goes on
after it. HDF5 does not give that: a file that is being appended to is lost when its writer is killed.
"""

import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from mocoembed.data.loader import FACTS, Failure
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import replacing, require_space, sync_folder, write_error

PAGE = 4096
EMBEDDED, FAILED = 1, 2
REASON_BYTES = 240


class WorkFile:
    """Slots of an unfinished embedding; a context manager. `committed` slots, from the first on, are done."""

    def __init__(self, path, key: dict, slots: int, dimension: int):
        """Open the work of an earlier, interrupted run with the same `key`, or begin anew.

        `key` (JSON types) is all that the vectors depend on. Raises `UsageError` when the file holds the work of
        another key, and `MocoembedError` when the disk has no room for all records.
        """
        self.path = pathlib.Path(path)
        self.record = np.dtype([("status", "u1"), ("error", "S64"), ("reason", f"S{REASON_BYTES}"),
                                ("facts", FACTS), ("vector", "<f4", (dimension,))])
        self.slots = slots
        header = {"format": 1, "key": key, "slots": slots, "dimension": dimension}
        if self.path.exists():
            self._require_same(header)
        else:
            self._begin(header)
        self._descriptor = os.open(self.path, os.O_RDWR)
        self.committed = int.from_bytes(os.pread(self._descriptor, 8, PAGE), "little")
        if not 0 <= self.committed <= slots:
            raise FormatError(f"{self.path} is damaged. Run the same command with --fresh.")

    def _require_same(self, header: dict):
        try:
            found = _read_header(self.path)
        except ValueError:
            found = {}
        if found != header:
            other = [name for name, value in header["key"].items() if found.get("key", {}).get(name) != value]
            raise UsageError(f"{self.path} holds unfinished work with other settings ({', '.join(other) or 'size'}). "
                             "Add --fresh to drop it, or give another --output.")

    def _begin(self, header: dict):
        size = 2 * PAGE + self.slots * self.record.itemsize
        self.path.parent.mkdir(parents=True, exist_ok=True)
        require_space(self.path, size)
        with replacing(self.path) as temporary, open(temporary, "wb") as file:
            file.write(json.dumps(header).encode().ljust(PAGE, b"\0"))
            file.write(bytes(PAGE))
            file.flush()
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self._descriptor)

    def write(self, first: int, vectors: np.ndarray, facts: np.ndarray, failures: list[Failure]):
        """Put the next batch: slots `first`.. with vectors (n, D) and facts (n,); not committed yet."""
        records = np.zeros(len(facts), self.record)
        records["status"] = EMBEDDED
        records["facts"] = facts
        records["vector"] = vectors
        for failure in failures:
            reason = failure.reason.encode("utf-8", "backslashreplace")[:REASON_BYTES].decode("utf-8", "ignore")
            blank = np.zeros((), self.record)
            blank["status"], blank["error"], blank["reason"] = FAILED, failure.error.encode(), reason.encode()
            records[failure.row - first] = blank
        self._write(records.tobytes(), 2 * PAGE + first * self.record.itemsize)

    def commit(self, done: int):
        """Flush what was written and count the first `done` slots as done."""
        try:
            os.fsync(self._descriptor)
            self._write(done.to_bytes(8, "little"), PAGE)
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error
        self.committed = done

    def _write(self, data: bytes, offset: int):
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise write_error(self.path, error) from error

    def blocks(self, size: int = 4096) -> Iterator[tuple[int, np.ndarray]]:
        """The first slot and the records of pieces of `size` slots, all in order."""
        for first in range(0, self.slots, size):
            length = min(size, self.slots - first) * self.record.itemsize
            yield first, np.frombuffer(os.pread(self._descriptor, length, 2 * PAGE + first * self.record.itemsize),
                                       self.record)

    def remove(self):
        """Delete the file, once its content has been published."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)


def _read_header(path) -> dict:
    with open(path, "rb") as file:
        return json.loads(file.read(PAGE).rstrip(b"\0"))


def describe_work(path) -> dict:
    """How far unfinished work is: `committed` of `listed` pictures, and what it depends on."""
    header = _read_header(path)
    with open(path, "rb") as file:
        file.seek(PAGE)
        committed = int.from_bytes(file.read(8), "little")
    return {"format": header["format"], "committed": committed, "listed": header["slots"],
            "dimension": header["dimension"], **header["key"]}
