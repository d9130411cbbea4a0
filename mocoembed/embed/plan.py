"""What an embed run has to do: a listing and the embeddings that there are -> which images must be read.

An image that has a row under its path, with the size and the time of its last change, is kept as it is. All others
are read: new ones, changed ones, and those that failed before. What turns out to have known bytes is not encoded.
"""

from dataclasses import dataclass

import numpy as np

from mocoembed.data.images import Listing
from mocoembed.embed.store import EmbeddingFile


@dataclass(frozen=True)
class Plan:
    """Of a listing of N images."""

    before: np.ndarray
    """(N,) int64: the row that the same path has in the embeddings that there are, or -1."""
    todo: np.ndarray
    """(M,) int64: the images to read, rows of the listing in its order. Slot i of the work is image todo[i]."""

    @classmethod
    def of(cls, listing: Listing, base: EmbeddingFile | None, states: np.ndarray) -> "Plan":
        """Compare a listing, with its `states`, and an embeddings file; without one everything is to be done."""
        everything = np.arange(len(listing))
        if base is None:
            return cls(np.full(len(listing), -1), everything)
        before = rows_by_path(listing, base)
        known = base.facts()[before]  # of rows -1: of the last one, not used
        same = (before >= 0) & (states["size"] == known["size"]) & (states["mtime_ns"] == known["mtime_ns"])
        return cls(before, everything[~same])

    @property
    def kept(self) -> np.ndarray:
        """(N,) int64: as `before`, but -1 for the images to read."""
        kept = self.before.copy()
        kept[self.todo] = -1
        return kept


def rows_by_path(listing: Listing, base: EmbeddingFile) -> np.ndarray:
    """(N,) int64: for each image of a listing the row of the same path in an embeddings file, or -1; both sorted."""
    rows = np.full(len(listing), -1)
    old = enumerate(base.paths())
    row, path = next(old, (-1, None))
    for number, wanted in enumerate(listing.paths):
        while path is not None and path < wanted:
            row, path = next(old, (-1, None))
        if path == wanted:
            rows[number] = row
    return rows
