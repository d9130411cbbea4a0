"""What a source of images has found, in any order -> `Listing`.

It is kept in arrays from the start: a million images are at no time a million Python objects, unless they come out
of order and have to be sorted.
"""

import itertools
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mocoembed.data.listing import NO_LABEL, Listing, PathTable, Shards
from mocoembed.errors import CollectionError


class State(NamedTuple):
    """A file or folder as it was when it was read: it has changed if one of these has."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: bytes | str | os.PathLike) -> "State":
        """The state of a file or folder now."""
        status = os.stat(path)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Found:
    """The paths and labels of images, and what else a listing needs."""

    def __init__(self, root: bytes = b""):
        self.root = root
        self.witnesses: dict[bytes, State] = {}
        """Absolute paths of all files and folders that this was read from, as they were before reading."""
        self.skipped: Counter[str] = Counter()
        """How many files were not taken for images, by `suffix_of`."""
        self.repeated = 0
        self.closed: list[bytes] = []
        self.excluded: dict[str, int] = {}
        self.shards: Shards | None = None
        self._blob, self._ends, self._labels = bytearray(), array("q", [0]), array("i")
        self._numbers: dict[str | None, int] = {None: NO_LABEL}

    def __len__(self):
        return len(self._labels)

    @property
    def paths(self) -> PathTable:
        """The paths as they were found."""
        return PathTable.of_arrays(np.frombuffer(self._blob, np.uint8), np.frombuffer(self._ends, np.int64))

    def extend(self, paths: list[bytes], labels: Iterable[str | None]):
        """More images; of a million some thousands at a time."""
        numbers = self._numbers
        self._blob += b"".join(paths)
        self._ends.extend(itertools.accumulate(map(len, paths), initial=self._ends.pop()))
        self._labels.extend([numbers.setdefault(label, len(numbers) - 1) for label in labels])

    def listing(self, source: bytes) -> Listing:
        """Sorted, each path once; raises `CollectionError` when a path comes with two labels.

        A path that comes with a label and without has that label.
        """
        count, shards, labels, paths = len(self), self.shards, np.array(self._labels, np.int32), self.paths
        if not all(path < after for path, after in itertools.pairwise(paths)):
            objects = np.fromiter(paths, object, count)
            order = objects.argsort(kind="stable")  # of one path the first comes first
            objects = objects[order]
            first = np.flatnonzero(np.append(True, objects[1:] != objects[:-1]))
            labels = self._one_label_each(objects, first, labels[order], source)
            paths, shards = PathTable(objects[first].tolist()), shards and shards.of_rows(order[first])
        names = sorted(name for name in self._numbers if name is not None)
        place = np.full(len(names) + 1, NO_LABEL, np.int32)  # the last for NO_LABEL, which is -1
        place[[self._numbers[name] for name in names]] = range(len(names))
        return Listing(self.root, paths, place[labels], tuple(names), self.skipped, tuple(sorted(self.closed)), source,
                       self.repeated + count - len(paths), shards, self.excluded)

    def _one_label_each(self, paths: np.ndarray, first: np.ndarray, labels: np.ndarray, source: bytes) -> np.ndarray:
        """Of sorted paths, equal ones from each `first` on: the label of each."""
        known = np.maximum.reduceat(labels, first)  # NO_LABEL is less than any
        group = np.repeat(np.arange(len(first)), np.diff(first, append=len(paths)))
        two = np.flatnonzero((labels != NO_LABEL) & (labels != known[group]))
        if len(two):
            path, same, names = paths[two[0]], labels[group == group[two[0]]].tolist(), [*self._numbers][1:]
            one, other, *_ = (names[number] for number in dict.fromkeys(same) if number != NO_LABEL)
            where = " and ".join(repr(os.fsdecode(each)) for each in source.split(b"\0"))
            raise CollectionError(f"The image {os.fsdecode(path)!r} has two labels in {where}: {one!r} and "
                                  f"{other!r}. Keep one of them.")
        return known


def folder_label(path: bytes, root: bytes, labels: str) -> str | None:
    """The label that a path relative to `root` gives: `parent`, `first` (the first folder below the root), `none`."""
    parts = path.split(b"/")
    if labels == "none" or (labels == "first" and len(parts) == 1):
        return None
    folder = parts[0] if labels == "first" else (parts[-2] if len(parts) > 1 else os.path.basename(root))
    return folder.decode("utf-8", "backslashreplace")
