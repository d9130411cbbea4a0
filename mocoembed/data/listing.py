"""What a collection is to all that read it: `Listing`, picture `row` -> its path, its label, its bytes.

Paths are bytes relative to the collection's root, sorted; those in tar shards go on inside: `0/shard-003.tar/0815.jpg`.
A million pictures cost no Python objects, and processes share the tables, whether they are forked or spawned.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mocoembed.data.picture import UnreadablePicture, read_file
from mocoembed.errors import CollectionError

NO_LABEL = -1


class PathTable:
    """A sequence of paths (bytes) in two tensors, which spawned processes share: `blob` (uint8), `offsets` (int64)."""

    def __init__(self, paths: list[bytes]):
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        self.blob = torch.from_numpy(np.frombuffer(bytearray(b"".join(paths)), np.uint8))
        self.offsets = torch.from_numpy(offsets)

    @classmethod
    def of_arrays(cls, blob: np.ndarray, offsets: np.ndarray) -> "PathTable":
        """The table whose arrays these are."""
        table = cls([])
        table.blob, table.offsets = torch.from_numpy(blob), torch.from_numpy(offsets)
        return table

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        if not 0 <= row < len(self):
            raise IndexError(row)
        first, end = self.offsets[row:row + 2].tolist()
        return self.blob[first:end].numpy().tobytes()

    def __iter__(self) -> Iterator[bytes]:
        blob, offsets = self.blob.numpy(), self.offsets.tolist()
        return (blob[first:end].tobytes() for first, end in itertools.pairwise(offsets))


@dataclass(frozen=True)
class Shards:
    """Where the pictures of a listing lie in tar files."""

    names: PathTable
    """S shards, relative to the root."""
    states: torch.Tensor
    """(S, 2) int64: size in bytes and time of the last change in ns, when the shard was indexed."""
    places: torch.Tensor
    """(N, 3) int64: shard, offset and size of each picture's bytes; size -1 for what is no regular file in it."""

    def read(self, root: bytes, row: int) -> tuple[bytes, int]:
        """The bytes of picture `row` and the time of the shard's last change in ns."""
        shard, offset, size = self.places[row].tolist()
        if size < 0:
            raise UnreadablePicture("a link or another special member of its shard, not a file")
        data, status = read_file(os.path.join(root, self.names[shard]), offset, size)
        if [status.st_size, status.st_mtime_ns] != self.states[shard].tolist():
            raise UnreadablePicture("its shard has changed since it was listed")
        return data, status.st_mtime_ns


class Origin(NamedTuple):
    """What is known of a picture's bytes besides themselves."""

    size: int
    mtime_ns: int
    """Of its file, or of its shard."""


@dataclass(frozen=True)
class Listing:
    """The pictures of a collection, in an order that does not depend on the file system."""

    root: bytes
    """Absolute path of the folder that all paths are relative to."""
    paths: PathTable
    """Paths relative to the root, sorted as bytes."""
    labels: np.ndarray
    """(N,) int32: index into `label_names`, or -1 where the label is unknown."""
    label_names: tuple[str, ...]
    """Sorted names of the labels."""
    left_out: int
    """Files that were passed over: hidden ones and those without a picture's name."""
    closed: tuple[bytes, ...] = ()
    """Folders that could not be opened."""
    source: bytes = b""
    """Absolute path of what was listed: the folder, the list file, the shards with their braces, the picture."""
    repeated: int = 0
    """Lines of a list, or members of a shard, that name a picture again; each picture is listed once."""
    shards: Shards | None = None
    """Where the pictures are, when not in files of their own."""

    def __len__(self):
        return len(self.paths)

    def full_path(self, row: int) -> bytes:
        """Absolute path of picture `row`; for one in a shard, the shard's path and the member's name."""
        return os.path.join(self.root, self.paths[row])

    def read(self, row: int) -> tuple[bytes, Origin]:
        """The bytes of picture `row`; raises `OSError` or `UnreadablePicture`."""
        if self.shards is None:
            data, status = read_file(self.full_path(row))
            return data, Origin(status.st_size, status.st_mtime_ns)
        data, mtime_ns = self.shards.read(self.root, row)
        return data, Origin(len(data), mtime_ns)

    def digest(self) -> str:
        """SHA-256 of the paths and their order (not of the pictures' bytes)."""
        value = hashlib.sha256(self.paths.offsets.numpy().tobytes())
        value.update(self.paths.blob.numpy().tobytes())
        return value.hexdigest()

    def subset(self, rows) -> "Listing":
        """The listing of some rows, in the given order."""
        rows = list(rows)
        shards = self.shards and Shards(self.shards.names, self.shards.states, self.shards.places[rows])
        return Listing(self.root, PathTable([self.paths[row] for row in rows]), self.labels[rows], self.label_names,
                       self.left_out, self.closed, self.source, self.repeated, shards)


class State(NamedTuple):
    """What tells whether a file or folder has changed. No user can set `ctime_ns` back."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: bytes) -> "State":
        """As it is now; raises `OSError`."""
        status = os.stat(path)
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass
class Found:
    """What a source of pictures gives, in any order; `listing` makes a `Listing` of it."""

    root: bytes
    paths: list[bytes]
    labels: list[str | None]
    witnesses: dict[bytes, State]
    """Absolute paths of all files and folders that this was read from, as they were before reading."""
    left_out: int = 0
    closed: tuple[bytes, ...] = ()
    shards: Shards | None = None

    def listing(self, source: bytes) -> Listing:
        """Sorted, each path once; raises `CollectionError` when a path comes with two labels."""
        paths, labels = self.paths, self.labels
        order = sorted(range(len(paths)), key=paths.__getitem__)  # stable: of one path the first comes first
        first = [row for row, before in zip(order, [None, *order]) if before is None or paths[row] != paths[before]]
        if len(first) < len(order):
            label_of = {paths[row]: labels[row] for row in first}
            for path, label in zip(paths, labels):
                if label_of[path] != label:
                    raise CollectionError(f"The picture {os.fsdecode(path)!r} has two labels in {os.fsdecode(source)!r}"
                                          f": {label_of[path]!r} and {label!r}. Leave one of them.")
        label_names = sorted(set(labels) - {None})
        number = {name: place for place, name in enumerate(label_names)} | {None: NO_LABEL}
        shards = self.shards and Shards(self.shards.names, self.shards.states, self.shards.places[first])
        return Listing(self.root, PathTable([paths[row] for row in first]),
                       np.array([number[labels[row]] for row in first], np.int32), tuple(label_names), self.left_out,
                       tuple(sorted(self.closed)), source, len(order) - len(first), shards)


def folder_label(path: bytes, root: bytes, labels: str) -> str | None:
    """The label that a path relative to `root` gives: `parent`, `first` (the first folder below the root), `none`."""
    parts = path.split(b"/")
    if labels == "none" or (labels == "first" and len(parts) == 1):
        return None
    folder = parts[0] if labels == "first" else (parts[-2] if len(parts) > 1 else os.path.basename(root))
    return folder.decode("utf-8", "backslashreplace")
