"""Groups of near-duplicates at any threshold: the pairs are found once, then a threshold is answered at once."""

import copy
from dataclasses import asdict

import numpy as np

from mocoembed.data.facts import UNKNOWN
from mocoembed.memory import within_memory
from mocoembed.search.build import require_vectors
from mocoembed.search.duplicates import (
    PAIR_BYTES,
    Components,
    how_compared,
    near_pairs,
    same_bytes,
    unit,
)
from mocoembed.search.groups import Group, groups_of
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
            self._pairs = np.empty((2, 0), np.int64)
            self._cosines = np.empty(0, np.float32)
            for a, b, cosines in near_pairs(file, self.least, job.progress, job):
                self._keep(np.stack([a, b]), cosines)
        copies = same_bytes(self._digests)
        # Of all rows, a threshold looks only at those that may be in a group, by their numbers among these.
        self._rows, numbers = np.unique(np.concatenate([self._pairs.ravel(), *copies]), return_inverse=True)
        self._pairs = numbers[:self._pairs.size].reshape(2, -1)
        self._identical = Components(len(self._rows))
        for rows in copies:
            self._identical.join(np.searchsorted(self._rows, rows))

    def _keep(self, rows: np.ndarray, cosines: np.ndarray):
        """Add pairs; of too many, those that are least alike are let go."""
        near = cosines >= self.least
        self._pairs = np.concatenate([self._pairs, rows[:, near]], axis=1)
        self._cosines = np.concatenate([self._cosines, cosines[near]])
        if len(self._cosines) > MOST_PAIRS:
            self.least = float(np.partition(self._cosines, -MOST_PAIRS // 2)[-MOST_PAIRS // 2])
            near = self._cosines >= self.least
            self._pairs, self._cosines = self._pairs[:, near], self._cosines[near]

    def groups(self, threshold: float | None, offset: int, limit: int) -> dict:
        """Groups at a threshold, the largest first, as plain JSON types; the image to keep is the first of each."""
        threshold = self.auto.cosine if threshold is None else threshold
        least = round(float(np.ceil(1e4 * self.least) / 1e4), 4)
        if not least <= threshold <= 1:
            raise Refusal(400, f"threshold {threshold:g}: must be from {least:g} to 1.", "parameter")
        components = copy.deepcopy(self._identical)
        near = self._cosines >= np.float32(threshold) - np.float32(1e-6)
        components.join_pairs(*self._pairs[:, near])
        groups = [self._rows[numbers] for numbers in components.groups()]
        groups.sort(key=lambda rows: (-len(rows), rows[0]))
        shown = groups_of(self._collection.file, groups[offset:offset + limit], self._collection.moved_to)
        return {"version": self._collection.version, "threshold": threshold, "auto": self.auto.cosine,
                "least": least, "reason": self.auto.reason, "compared": how_compared(len(self._digests)),
                "bytes_known": bool((self._digests != np.void(UNKNOWN)).any()), "total": len(groups),
                "extra": sum(len(rows) - 1 for rows in groups),
                "groups": [self._as_json(group) for group in shown]}

    def _as_json(self, group: Group) -> dict:
        return {"members": [{**asdict(one), "id": str(self._collection.ids[one.row])} for one in group.members]}
