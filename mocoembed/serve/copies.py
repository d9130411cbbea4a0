"""Groups of near-duplicates at any threshold: the pairs are found once, then a threshold is answered at once."""

from dataclasses import asdict

import numpy as np

from mocoembed.data.facts import UNKNOWN
from mocoembed.memory import within_memory
from mocoembed.search.build import require_vectors
from mocoembed.search.duplicates import (
    PAIR_BYTES,
    Components,
    group_of,
    how_compared,
    near_pairs,
    same_bytes,
    unit,
)
from mocoembed.search.kinds import ID_BYTES, WORKING_BYTES
from mocoembed.search.threshold import choose_threshold
from mocoembed.serve.answers import Refusal
from mocoembed.serve.collection import Collection
from mocoembed.serve.jobs import Job

FURTHER = 3  # times as far apart as the collection's own threshold are pairs that are kept
MOST_PAIRS = 2_000_000


class Copies:
    """The pairs of a collection's near-duplicates."""

    def __init__(self, collection: Collection, job: Job):
        file = collection.file
        require_vectors(file)
        self._collection = collection
        self._digests = np.array(file.digest(), "V32")
        needed = len(file) * (4 * file.dimension + ID_BYTES) + WORKING_BYTES + PAIR_BYTES
        with within_memory(f"Comparing {len(file)} vectors of dimension {file.dimension}", needed):
            self.auto = choose_threshold(len(file), lambda rows: unit(file.embeddings[rows]), self._digests)
            self.least = 1 - FURTHER * (1 - self.auto.cosine)
            self._rows = np.empty((2, 0), np.int64)
            self._cosines = np.empty(0, np.float32)
            for a, b, cosines in near_pairs(file, self.least, job.progress, job):
                self._keep(np.stack([a, b]), cosines)
        self._same = same_bytes(self._digests)

    def _keep(self, rows: np.ndarray, cosines: np.ndarray):
        """Add pairs; of too many, those that are least alike are let go."""
        near = cosines >= self.least
        self._rows = np.concatenate([self._rows, rows[:, near]], axis=1)
        self._cosines = np.concatenate([self._cosines, cosines[near]])
        if len(self._cosines) > MOST_PAIRS:
            self.least = float(np.partition(self._cosines, -MOST_PAIRS // 2)[-MOST_PAIRS // 2])
            near = self._cosines >= self.least
            self._rows, self._cosines = self._rows[:, near], self._cosines[near]

    def groups(self, threshold: float | None, offset: int, limit: int) -> dict:
        """Groups at a threshold, the largest first, as plain JSON types; the image to keep is the first of each."""
        threshold = self.auto.cosine if threshold is None else threshold
        least = round(float(np.ceil(1e4 * self.least) / 1e4), 4)
        if not least <= threshold <= 1:
            raise Refusal(400, f"threshold {threshold:g}: must be from {least:g} to 1.")
        components = Components(len(self._digests))
        near = self._cosines >= np.float32(threshold) - np.float32(1e-6)
        components.join_pairs(*self._rows[:, near])
        for rows in self._same:
            components.join(rows)
        groups = sorted(components.groups(), key=lambda rows: (-len(rows), rows[0]))
        return {"version": self._collection.version, "threshold": threshold, "auto": self.auto.cosine,
                "least": least, "reason": self.auto.reason, "compared": how_compared(len(self._digests)),
                "bytes_known": bool((self._digests != np.void(UNKNOWN)).any()), "total": len(groups),
                "extra": sum(len(rows) - 1 for rows in groups),
                "groups": [self._group(rows) for rows in groups[offset:offset + limit]]}

    def _group(self, rows: np.ndarray) -> dict:
        group = group_of(self._collection.file, rows, self._collection.moved_to)
        return {"members": [{**asdict(one), "id": str(self._collection.ids[one.row])} for one in group.members]}
