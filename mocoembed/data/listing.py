"""What a collection is to all that read it: `Listing`, image `row` -> its path, its label, its bytes.

Paths are bytes relative to the collection's root, sorted; those in tar shards go on inside: `0/shard-003.tar/0815.jpg`.
A million images cost no Python objects, and processes share the tables, whether they are forked or spawned.
"""

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mocoembed.data.decode import UnreadableImage, read_file
from mocoembed.data.shared_array import SharedArray

NO_LABEL = -1
STATE = np.dtype([("size", np.int64), ("mtime_ns", np.int64)])
NO_FILE, OUTSIDE = -1, -2  # in place of a size: a special member of a shard, and one with a name outside the shard
UNKNOWN = -1  # both of them, of an image that cannot be looked up
AT_A_TIME = 2000  # paths made Python objects, or files looked up
SLOW_LOOK_UP = 50e-6  # seconds; a local file takes some 5 microseconds, one over a network 200 and more
THREADS = 16  # that look up where it is slow


class PathTable:
    """A sequence of paths (bytes) in two arrays, which spawned processes share: `blob` (uint8), `offsets` (int64)."""

    def __init__(self, paths: Sequence[bytes]):
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, paths), np.int64, len(paths)), out=offsets[1:])
        self._blob = SharedArray(np.frombuffer(bytearray().join(paths), np.uint8))
        self._offsets = SharedArray(offsets)

    @classmethod
    def of_arrays(cls, blob: np.ndarray, offsets: np.ndarray) -> "PathTable":
        """The table whose arrays these are."""
        table = cls([])
        table._blob, table._offsets = SharedArray(blob), SharedArray(offsets)
        return table

    @property
    def blob(self) -> np.ndarray:
        """All paths, one behind the other: uint8."""
        return self._blob.values

    @property
    def offsets(self) -> np.ndarray:
        """(N + 1,) int64: where each path begins, and the end of the last."""
        return self._offsets.values

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        if not 0 <= row < len(self):
            raise IndexError(row)
        first, end = self.offsets[row:row + 2].tolist()
        return self.blob[first:end].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        for first in range(0, len(self), AT_A_TIME):
            yield from self.take(range(first, min(first + AT_A_TIME, len(self))))

    def take(self, rows) -> list[bytes]:
        """The paths of some rows, in the given order."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        blob, offsets = self.blob.data, self.offsets
        return [bytes(blob[first:end]) for first, end in zip(offsets[rows].tolist(), offsets[rows + 1].tolist())]


@dataclass(frozen=True)
class Shards:
    """Where the images of a listing lie in tar files."""

    names: PathTable
    """S shards, relative to the root."""
    _states: SharedArray
    _places: SharedArray

    @classmethod
    def of_arrays(cls, names: PathTable, states: np.ndarray, places: np.ndarray) -> "Shards":
        """From the names and the arrays that the properties `states` and `places` will give."""
        return cls(names, SharedArray(states), SharedArray(places))

    @property
    def states(self) -> np.ndarray:
        """(S, 2) int64: size in bytes and time of the last change in ns, when the shard was indexed."""
        return self._states.values

    @property
    def places(self) -> np.ndarray:
        """(N, 3) int64: shard, offset and size of each image's bytes.

        The shard is -1 for an image in a file of its own, the size NO_FILE or OUTSIDE for what is not read from it.
        """
        return self._places.values

    def of_rows(self, rows) -> "Shards":
        """Where the images of some rows lie, in the given order."""
        return Shards(self.names, self._states, SharedArray(self.places[np.asarray(rows, np.int64)]))

    def holds(self, row: int) -> bool:
        """Whether image `row` is in a shard."""
        return bool(self.places[row, 0] >= 0)

    def read(self, root: bytes, row: int) -> tuple[bytes, int]:
        """The bytes of image `row` and the time of the shard's last change in ns."""
        shard, offset, size = self.places[row].tolist()
        if size == OUTSIDE:
            raise UnreadableImage("its name, absolute or with '..', is that of a file outside its shard")
        if size < 0:
            raise UnreadableImage("a link or another special member of its shard, not a file")
        data, status = read_file(os.path.join(root, self.names[shard]), offset, size)
        if [status.st_size, status.st_mtime_ns] != self.states[shard].tolist():
            raise UnreadableImage("its shard has changed since it was listed")
        return data, status.st_mtime_ns

    def states_of(self, root: bytes, rows: np.ndarray) -> np.ndarray:
        """STATE of the images `rows`, unknown also where the shard is not what it was; those in files are unknown."""
        shard, _, size = self.places[rows].T
        now = np.full(len(self.names), UNKNOWN, np.int64)
        for number in np.unique(shard[shard >= 0]).tolist():
            state = _look_up(os.path.join(root, self.names[number]))
            if list(state) == self.states[number].tolist():
                now[number] = state[1]
        states = np.full(len(rows), UNKNOWN, STATE)
        good = (size >= 0) & (shard >= 0)
        good[good] = now[shard[good]] != UNKNOWN
        states["size"][good], states["mtime_ns"][good] = size[good], now[shard[good]]
        return states


class Origin(NamedTuple):
    """What is known of an image's bytes besides themselves."""

    size: int
    mtime_ns: int
    """Of its file, or of its shard."""


@dataclass(frozen=True)
class Listing:
    """The images of a collection, in an order that does not depend on the file system."""

    root: bytes
    """Absolute path of the folder that all paths are relative to."""
    paths: PathTable
    """Paths relative to the root, sorted as bytes."""
    labels: np.ndarray
    """(N,) int32: index into `label_names`, or -1 where the label is unknown."""
    label_names: tuple[str, ...]
    """Sorted names of the labels."""
    skipped: Counter[str]
    """Files that were not taken for images, counted by `data/skipped.py`'s `suffix_of`."""
    closed: tuple[bytes, ...] = ()
    """Folders that could not be opened."""
    source: bytes = b""
    """Absolute path of what was listed: the folder, the list file, the shards with their braces, the image.

    Of several collections, their paths, sorted, with NUL bytes between them.
    """
    repeated: int = 0
    """Lines of a list, members of a shard, or images of another collection that name an image again."""
    shards: Shards | None = None
    """Where the images are, when not all are in files of their own."""
    excluded: dict[str, int] = field(default_factory=dict)
    """{glob or usual name: files and folders that it left out; a folder, whatever is in it, counts once}."""

    def __len__(self):
        return len(self.paths)

    @property
    def sources(self) -> tuple[bytes, ...]:
        """The absolute path of every collection that was listed."""
        return tuple(self.source.split(b"\0"))

    def full_path(self, row: int) -> bytes:
        """Absolute path of image `row`; for one in a shard, the shard's path and the member's name."""
        return os.path.join(self.root, self.paths[row])

    def read(self, row: int) -> tuple[bytes, Origin]:
        """The bytes of image `row`; raises `OSError` or `UnreadableImage`."""
        if self.shards is None or not self.shards.holds(row):
            data, status = read_file(self.full_path(row))
            return data, Origin(status.st_size, status.st_mtime_ns)
        data, mtime_ns = self.shards.read(self.root, row)
        return data, Origin(len(data), mtime_ns)

    def states(self, rows=None) -> np.ndarray:
        """Size and time of the last change of the images `rows` (all), as `read` would give them: (len(rows),) STATE.

        Nothing is opened: -1 and -1 for what is missing or not a regular file, or in a shard that has changed.
        """
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        if self.shards is None:
            return _states_of_files(self, rows)
        states = self.shards.states_of(self.root, rows)
        in_files = self.shards.places[rows, 0] < 0
        states[in_files] = _states_of_files(self, rows[in_files])
        return states

    def digest(self) -> str:
        """SHA-256 of the paths and their order (not of the images' bytes)."""
        value = hashlib.sha256(self.paths.offsets.tobytes())
        value.update(self.paths.blob.tobytes())
        return value.hexdigest()

    def subset(self, rows) -> "Listing":
        """The listing of some rows, in the given order."""
        rows = np.fromiter(rows, np.int64)
        shards = self.shards and self.shards.of_rows(rows)
        return Listing(self.root, PathTable(self.paths.take(rows)), self.labels[rows], self.label_names,
                       self.skipped, self.closed, self.source, self.repeated, shards, self.excluded)


def _states_of_files(listing: Listing, rows: np.ndarray) -> np.ndarray:
    """STATE of images in files of their own; where looking up is slow, by several threads."""
    prefix = os.path.join(listing.root, b"")
    parts = np.split(rows, range(AT_A_TIME, len(rows), AT_A_TIME))

    def look_up(part: np.ndarray) -> np.ndarray:
        return np.array([_look_up(prefix + path) for path in listing.paths.take(part)], STATE)

    begun = time.perf_counter()
    states = [look_up(parts[0])]
    if time.perf_counter() - begun > SLOW_LOOK_UP * len(parts[0]):
        with ThreadPoolExecutor(THREADS) as threads:
            states += threads.map(look_up, parts[1:])
    else:
        states += map(look_up, parts[1:])
    return np.concatenate(states)


def _look_up(path: bytes) -> tuple[int, int]:
    """Size and time of the last change in ns of a regular file; -1 and -1 for anything else."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return UNKNOWN, UNKNOWN
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (UNKNOWN, UNKNOWN)
