"""Work in progress: one record per image to embed in a plain file, safe against being killed at any moment.

The file begins with a line of JSON and the arrays that it names (which images there are and which are to be
embedded). Then come the parts: fixed ranges of slots, each with a page for the number of its committed slots and its
fixed-size records. A part belongs to one process at a time. A batch is written, flushed to the disk, and only then
counted as committed; so whatever is counted is whole, and a rerun goes on after it. HDF5 does not give that: a file
that is being appended to is lost when its writer is killed.
"""

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from mocoembed.data.facts import FACTS, Failure
from mocoembed.errors import FormatError
from mocoembed.files import read_at, replacing, reserve, sha256_json, write_at, write_error

FORMAT = 3
PAGE = 4096
PARTS = 256  # at most: enough to share out, few enough to count
EMBEDDED, FAILED, COPIED = 1, 2, 3
"""Status of a slot; the vector of one that was `COPIED` is another image's with the same bytes."""
REASON_BYTES = 240


def part_slots(slots: int, batch_size: int) -> int:
    """Slots of a part: whole batches, the same whatever the number of processes."""
    batches = -(-slots // batch_size)
    return batch_size * max(1, -(-batches // PARTS))


def part_count(slots: int, batch_size: int) -> int:
    """Parts of so many slots."""
    return -(-slots // part_slots(slots, batch_size))


def pages(size: int) -> int:
    """`size` rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


class WorkFile:
    """The slots of an unfinished embedding; a context manager. Every process opens it for itself."""

    def __init__(self, path, writing: bool = True):
        """Open what `begin` made; raises `FormatError` for anything else, or damaged."""
        self.path = pathlib.Path(path)
        self.header = read_header(self.path)
        self.slots, self.part_slots = self.header["slots"], self.header["part_slots"]
        self.dimension, self.dtype = self.header["dimension"], self.header["dtype"]
        self.record = record_type(self.dimension, self.dtype)
        self.parts = -(-self.slots // self.part_slots)
        self._first, self._stride = self.header["parts_at"], stride(self.slots, self.part_slots, self.record)
        if self.path.stat().st_size < self._first + self.parts * self._stride:
            raise FormatError(f"{self.path} is truncated. Run the same command with --fresh.")
        self._descriptor = os.open(self.path, os.O_RDWR if writing else os.O_RDONLY)

    @staticmethod
    def begin(path, described: dict, arrays: dict[str, np.ndarray], slots: int, batch_size: int, record: np.dtype):
        """Make the file at `path`, with room for all records (`record_type`): `MocoembedError` when the disk has none.

        `described` (JSON types) is what `read_header` gives back, beside what this adds.
        """
        path = pathlib.Path(path)
        size, parts = part_slots(slots, batch_size), part_count(slots, batch_size)
        vector, (dimension,) = record["vector"].base, record["vector"].shape
        header = {"format": FORMAT, **described, "slots": slots, "part_slots": size, "dimension": dimension,
                  "dtype": vector.name,
                  "arrays": [[name, array.dtype.str, array.shape, _digest(array)] for name, array in arrays.items()]}
        arrays_at = pages(len(json.dumps(header)) + 256)  # with room for what is still to come
        parts_at = pages(arrays_at + sum(-(-array.nbytes // 8) * 8 for array in arrays.values()))
        header.update(arrays_at=arrays_at, parts_at=parts_at)
        text = json.dumps({**header, "sha256": sha256_json(header)}).encode() + b"\n"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            reserve(file.fileno(), parts_at + parts * stride(slots, size, record), path)
            write_at(file.fileno(), text, 0, path)
            for array in arrays.values():
                write_at(file.fileno(), np.ascontiguousarray(array).reshape(-1).view(np.uint8), arrays_at, path)
                arrays_at += -(-array.nbytes // 8) * 8

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self._descriptor)

    def array(self, name: str) -> np.ndarray:
        """One of the arrays that the file was begun with."""
        at = self.header["arrays_at"]
        for found, kind, shape, digest in self.header["arrays"]:
            count, kind = int(np.prod(shape)), np.dtype(kind)
            if found == name:
                data = read_at(self._descriptor, count * kind.itemsize, at, self.path)
                array = np.frombuffer(data, kind).reshape(shape)
                if _digest(array) != digest:
                    raise self._damaged("Run the same command with --fresh.")
                return array
            at += -(-count * kind.itemsize // 8) * 8
        raise KeyError(name)

    def range_of(self, part: int) -> tuple[int, int]:
        """The first slot of a part, and that after its last."""
        return part * self.part_slots, min(self.slots, (part + 1) * self.part_slots)

    def committed(self, part: int) -> int:
        """The first slot of a part that is not committed; `FormatError` when the file says nonsense."""
        first, end = self.range_of(part)
        if (count := self._count(part)) > end - first:
            raise self._damaged()
        return first + count

    def _count(self, part: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, self._first + part * self._stride), "little")

    def take_back_damaged(self, batch_size: int) -> int:
        """Count no longer as done, in every part, the batch of the first damaged record and all after it.

        How many slots these are; of a part whose counter is damaged, all.
        """
        taken = 0
        for part in range(self.parts):
            first, end = self.range_of(part)
            count = self._count(part)
            at, stop = (first, first + count) if count <= end - first else (first, first)
            while at < stop and self._is_whole(at, min(at + batch_size, stop)):
                at += batch_size
            if at < stop or stop != first + count:
                self._commit(part, at - first)
                taken += min(first + count, end) - at
        return taken

    def _damaged(self, remedy: str = "It is mended by running the same command again.") -> FormatError:
        return FormatError(f"{self.path} is damaged. {remedy}")

    def done(self, parts=None) -> int:
        """How many slots are committed, of some parts or of all."""
        parts = range(self.parts) if parts is None else parts
        return sum(self.committed(part) - self.range_of(part)[0] for part in parts)

    def write(self, first: int, vectors: np.ndarray, facts: np.ndarray, copied: np.ndarray, failures: list[Failure]):
        """Put slots `first`.. of one part, with vectors (n, D), facts (n,), copied (n,) bool; not committed yet."""
        records = np.zeros(len(facts), self.record)
        records["status"] = np.where(copied, COPIED, EMBEDDED)
        records["facts"] = facts
        records["vector"] = vectors
        for failure in failures:
            reason = failure.reason.encode("utf-8", "backslashreplace")[:REASON_BYTES].decode("utf-8", "ignore")
            record = records[failure.row - first:failure.row - first + 1]
            record["status"], record["error"], record["reason"] = FAILED, failure.error.encode(), reason.encode()
            record["vector"] = 0
        records["crc"] = _sums(records)
        write_at(self._descriptor, records.view(np.uint8), self._place(first), self.path)

    def commit(self, end: int):
        """Flush what was written and count the slots of a part up to `end` as done; `end` is its last or below."""
        part = (end - 1) // self.part_slots
        self._commit(part, end - part * self.part_slots)

    def _commit(self, part: int, count: int):
        try:
            os.fsync(self._descriptor)
            write_at(self._descriptor, count.to_bytes(8, "little"), self._first + part * self._stride, self.path)
            os.fsync(self._descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error

    def _place(self, slot: int) -> int:
        part, at = divmod(slot, self.part_slots)
        return self._first + part * self._stride + PAGE + at * self.record.itemsize

    def read(self, first: int, end: int) -> np.ndarray:
        """The records of slots `first` to `end` - 1."""
        pieces, at = [np.zeros(0, self.record)], first
        while at < end:
            stop = min(end, self.range_of(at // self.part_slots)[1])
            pieces.append(self._read(at, stop))
            if not _are_whole(pieces[-1]):
                raise self._damaged()
            at = stop
        return np.concatenate(pieces)

    def _is_whole(self, first: int, end: int) -> bool:
        """Whether some slots of one part can be read and hold what was written."""
        try:
            return _are_whole(self._read(first, end))
        except OSError:  # a bad sector
            return False

    def _read(self, first: int, end: int) -> np.ndarray:
        """Slots of one part, whatever they hold."""
        data = read_at(self._descriptor, (end - first) * self.record.itemsize, self._place(first), self.path)
        return np.frombuffer(data, self.record)

    def blocks(self, size: int = 4096) -> Iterator[tuple[int, np.ndarray]]:
        """The first slot and the records of pieces of at most `size` slots: of all that are committed, in order."""
        for part in range(self.parts):
            first, end = self.range_of(part)[0], self.committed(part)
            for start in range(first, end, size):
                yield start, self.read(start, min(end, start + size))


def stride(slots: int, part_slots: int, record: np.dtype) -> int:
    """Bytes from one part to the next."""
    return PAGE + pages(min(slots, part_slots) * record.itemsize)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _are_whole(records: np.ndarray) -> bool:
    return bool((records["crc"] == _sums(records)).all())


def _sums(records: np.ndarray) -> list[int]:
    """CRC-32 of each record but for its first four bytes, where it is kept."""
    return [zlib.crc32(row) for row in records.view(np.uint8).reshape(len(records), -1)[:, 4:]]


def record_type(dimension: int, dtype: str) -> np.dtype:
    """The record of a slot whose vector has `dimension` numbers, `float32` or `float16`."""
    return np.dtype([("crc", "<u4"), ("status", "u1"), ("error", "S64"), ("reason", f"S{REASON_BYTES}"),
                     ("facts", FACTS), ("vector", np.dtype(dtype).newbyteorder("<"), (dimension,))])


def read_header(path) -> dict:
    """The first line of a work file as JSON; `FormatError` when it is none."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline())
        if header["format"] == FORMAT:
            if header.pop("sha256") == sha256_json(header):
                return header
            raise ValueError("its hash does not match")
        problem = f"has the format {header['format']}, this version reads {FORMAT}"
    except (ValueError, KeyError, TypeError):
        problem = "is not an unfinished embedding, or is damaged"
    raise FormatError(f"{path} {problem}. Run the embed command with --fresh.")


def describe_work(path) -> dict:
    """How far unfinished work is: `committed` of `listed` images, and what it depends on."""
    with WorkFile(path, writing=False) as work:
        listed = work.header["listed"]
        return {"format": FORMAT, "committed": listed - work.slots + work.done(), "listed": listed,
                "unchanged": listed - work.slots, "dimension": work.dimension, **work.header["key"]}
