"""Finished work -> the embeddings file: every listed image gets its row, or is reported as failed.

A row comes from the embeddings that there were (kept, or known by its bytes) or from the work. Images with the same
bytes have the same vector.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mocoembed.data.digests import DigestTable
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing
from mocoembed.embed.plan import Plan
from mocoembed.embed.store import EmbeddingFile, FailedImage
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.embed.work import COPIED, EMBEDDED, FAILED, WorkFile
from mocoembed.errors import CollectionError, FormatError

BLOCK = 4096  # vectors in memory at a time
MISSING = 0  # status of an image that is not done


@dataclass(frozen=True)
class Counts:
    """Where the rows of an embeddings file come from, in images."""

    new: int
    changed: int
    unchanged: int
    """Kept, because size and time, or else the bytes, are as they were."""
    recognised: int
    """Moved or copied within the collection: a new path, bytes that were there before."""
    dropped: int
    """No longer listed, and not moved."""
    repeated: int
    """Encoded once for several files with the same bytes; counted among the new and changed ones."""


class Rows:
    """Where everything about each of N listed images is: in the work, or in the embeddings that there were."""

    def __init__(self, listing: Listing, plan: Plan, work: WorkFile, base: EmbeddingFile | None, whole: bool = True):
        """Unless it has to be `whole`, what is not committed has neither row nor reason."""
        self.listing, self.plan, self.work, self.base = listing, plan, work, base
        kept = plan.kept
        self.whole = whole
        self.status = np.full(len(listing), EMBEDDED, np.uint8)
        self.status[plan.todo] = MISSING
        self.place = -1 - kept  # slot of the work, or -1 - row of the base
        self.facts = np.zeros(len(listing), FACTS)
        self.reasons: dict[int, tuple[str, str]] = {}
        self.base_facts = np.zeros(0, FACTS) if base is None else base.facts()
        self.facts[kept >= 0] = self.base_facts[kept[kept >= 0]]
        self._read_work()
        self.repeated = self._find_copied()
        self._share_vectors()

    def _read_work(self):
        for first, block in self.work.blocks(BLOCK):
            rows = self.plan.todo[first:first + len(block)]
            self.status[rows], self.facts[rows] = block["status"], block["facts"]
            self.place[rows] = first + np.arange(len(block))
            for at in np.flatnonzero(block["status"] == FAILED):
                self.reasons[int(rows[at])] = (block["error"][at].decode(), block["reason"][at].decode())
        known = (EMBEDDED, FAILED, COPIED) if self.whole else (EMBEDDED, FAILED, COPIED, MISSING)
        if not np.isin(self.status, known).all():
            raise FormatError(f"{self.work.path} is damaged. Run the same command with --fresh.")

    def _find_copied(self) -> int:
        """Give the copied images the place of an image with the same bytes; how many came from this very work."""
        copied = np.flatnonzero(self.status == COPIED)
        if not len(copied):
            return 0
        old = DigestTable(self.base_facts["digest"])
        originals = self.plan.todo[self.status[self.plan.todo] != COPIED]
        new = DigestTable(self.facts["digest"][originals])
        repeated = 0
        for row in copied.tolist():
            digest = self.facts["digest"][row].tobytes()
            if (found := old.find(digest)) >= 0:
                source, self.place[row] = self.base_facts[found], -1 - found
            elif (found := new.find(digest)) >= 0:
                original, repeated = int(originals[found]), repeated + 1
                source, self.place[row] = self.facts[original], self.place[original]
                if self.status[original] == FAILED:
                    self.status[row], self.reasons[row] = FAILED, self.reasons[original]
                    continue
            elif not self.whole:
                self.status[row] = MISSING
                continue
            else:  # the original was damaged in the work and cannot be read any more; the next run tries again
                self.status[row], self.reasons[row] = FAILED, ("LookupError", "the image with these bytes is gone")
                continue
            self.facts["width"][row], self.facts["height"][row] = source["width"], source["height"]
            self.status[row] = EMBEDDED
        return repeated

    def _share_vectors(self):
        """Give all images of the work that have the same bytes the vector of the first, whoever encoded them."""
        mine = np.flatnonzero((self.place >= 0) & (self.status == EMBEDDED))
        digests = np.ascontiguousarray(self.facts["digest"][mine]).view("S32")
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        self.place[mine] = self.place[mine[first[group]]]

    def fall_back(self):
        """Give an image without a row the one that its path had, if it had one."""
        rows = np.flatnonzero((self.status != EMBEDDED) & (self.plan.before >= 0))
        before = self.plan.before[rows]
        self.status[rows], self.place[rows], self.facts[rows] = EMBEDDED, -1 - before, self.base_facts[before]

    def same_as_base(self) -> bool:
        """Whether the embeddings that there were say just what would be written."""
        base, rows, embedded = self.base, np.flatnonzero(self.status == EMBEDDED), self.status == EMBEDDED
        return (base is not None and len(base) == len(rows) and base.root == self.listing.root
                and base.source == (self.listing.source or self.listing.root)
                and bool((self.place[rows] == -1 - np.arange(len(rows))).all())
                and self.facts[rows].tobytes() == self.base_facts.tobytes()
                and base.label_names == list(self.listing.label_names)
                and bool((base.labels() == self.listing.labels[embedded]).all())
                and base.failed() == self.failed())

    def failed(self) -> list[FailedImage]:
        """The images without a row, in the listing's order."""
        return [FailedImage(self.listing.paths[row], *reason) for row, reason in sorted(self.reasons.items())]

    def vectors(self) -> Iterator[np.ndarray]:
        """The vectors of all rows in order, (n, D) float32, in pieces."""
        places = self.place[self.status == EMBEDDED]
        for start in range(0, len(places), BLOCK):
            some = places[start:start + BLOCK]
            piece = np.empty((len(some), self.work.dimension), np.float32)  # which holds float16 exactly, too
            here = some >= 0
            piece[here] = _gather(self._of_work, some[here], piece)
            piece[~here] = _gather(self._of_base, -1 - some[~here], piece)
            yield piece

    def _of_work(self, first: int, end: int) -> np.ndarray:
        return self.work.read(first, end)["vector"]

    def _of_base(self, first: int, end: int) -> np.ndarray:
        assert self.base is not None  # only rows of a base have places below 0
        return self.base.embeddings(slice(first, end))

    def counts(self) -> Counts:
        """What happened to how many images."""
        todo, before = self.plan.todo, self.plan.before[self.plan.todo]
        todo, before = todo[self.status[todo] == EMBEDDED], before[self.status[todo] == EMBEDDED]
        digests = self.facts["digest"][todo]
        listed = before >= 0
        same = np.zeros(len(todo), bool)
        same[listed] = digests[listed] == self.base_facts["digest"][before[listed]]
        known = np.zeros(len(todo), bool)
        known[~listed] = self.place[todo[~listed]] < 0
        gone = np.ones(len(self.base_facts), bool)
        gone[self.plan.before[self.plan.before >= 0]] = False
        moved = set(digests[known].tolist())
        dropped = sum(digest not in moved for digest in self.base_facts["digest"][gone].tolist())
        return Counts(int((~listed & ~known).sum()), int((listed & ~same).sum()),
                      len(self.listing) - len(self.plan.todo) + int(same.sum()), int(known.sum()), dropped,
                      self.repeated)


def _gather(read: Callable[[int, int], np.ndarray], rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The vectors of some rows, read in runs of rows that follow each other."""
    starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1).tolist()
    parts = [read(int(rows[start]), int(rows[end - 1]) + 1) for start, end in itertools.pairwise([*starts, len(rows)])]
    return np.concatenate(parts) if parts else like[:0]


def publish(output: pathlib.Path, rows: Rows, settings: Settings):
    """Write the embeddings file of all rows; `CollectionError` when no image can be read."""
    failed, listing = rows.failed(), rows.listing
    if len(failed) == len(listing):
        raise CollectionError(f"None of the {len(listing)} images can be read; the first one: "
                              f"{failed[0].said}")
    write_embeddings(output, listing, settings, rows.status == EMBEDDED, rows.facts, rows.vectors(), failed)
