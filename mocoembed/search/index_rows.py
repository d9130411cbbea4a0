"""An index as a source of rows: query vectors -> the rows of the embeddings file that are nearest, with their scores.

What a quantised index finds are candidates in a rough order; they are ranked again by the vectors themselves, which
brings back the recall that quantising costs.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mocoembed.cores import cores
from mocoembed.embed.store import EmbeddingFile
from mocoembed.search.faiss_parts import OneThread, scores_with
from mocoembed.search.rows_of_ids import RowsOfIds

TUNED_FOR = 10  # hits for which an index is tuned
COMPARED = 1 << 25  # bytes of vectors at most that a thread compares at a time


@dataclass(frozen=True)
class Effort:
    """How thoroughly an index is searched."""

    breadth: int = 0
    """`nprobe` of an inverted file, `efSearch` of a graph; 0: the index has no such setting."""
    candidates: int = 0
    """That are ranked again; 0: none, the index's scores are exact."""
    in_graph: bool = False
    """Whether `breadth` is `efSearch`."""

    @classmethod
    def of(cls, parameters: dict) -> "Effort":
        """From a manifest's `parameters`, or a point of its curve."""
        return cls(parameters.get("nprobe", parameters.get("efSearch", 0)), parameters.get("candidates", 0),
                   "efSearch" in parameters)

    def parameters(self, name: str | None) -> dict[str, int]:
        """As in a manifest; `name` is what FAISS calls the breadth."""
        breadth = {name: self.breadth} if name else {}
        return {**breadth, **({"candidates": self.candidates} if self.candidates else {})}

    def for_hits(self, k: int) -> "Effort":
        """For more hits than it was tuned for, which lie in more lists and among more candidates.

        A graph keeps `efSearch` candidates, so these grow as the hits do.
        """
        if k <= TUNED_FOR:
            return self
        share = k / TUNED_FOR
        return replace(self, breadth=math.ceil(self.breadth * (share if self.in_graph else math.sqrt(share))),
                       candidates=math.ceil(self.candidates * share))


def others(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(S, k + 1) bool: all of the rows `found` (S, k + 1) but the query itself, which is one of `rows` (S,).

    Where it was not found, as among more copies of it than k, the last one is left out, so k are left everywhere.
    """
    other = found != rows[:, None]
    other[other.all(axis=1), -1] = False
    return other


class IndexRows:
    """An index and the embeddings file it was built from; `index` has `search(vectors, k, breadth)` and a length."""

    def __init__(self, index: Any, file: EmbeddingFile, effort: Effort, exact: bool = False,
                 ids: np.ndarray | None = None):
        self._index, self._file, self.effort, self.exact = index, file, effort, exact
        self._normalized = file.normalized
        self._rows_of = RowsOfIds(file.ids() if ids is None else ids)

    def __len__(self):
        return len(self._index)

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32 and rows (Q, k) int64 of the k nearest, the nearest first; -1 where there is none."""
        effort, k = self.effort.for_hits(k), min(k, len(self))
        wanted = min(max(k, effort.candidates), len(self))
        scores, ids = self._index.search(vectors, wanted, effort.breadth)
        return self._ranked(vectors, ids, k) if effort.candidates else (scores, self._rows_of(ids))

    def _ranked(self, vectors: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the candidates `ids` (Q, n) by their vectors; a batch of queries in parts, on all cores."""
        queries = np.ascontiguousarray(vectors, np.float32)
        step = max(1, COMPARED // (4 * ids.shape[1] * queries.shape[1]))
        parts = [slice(first, first + step) for first in range(0, len(ids), step)]
        if len(parts) == 1:
            return self._ranked_part(queries, ids, k)
        with ThreadPoolExecutor(cores()) as threads:
            ranked = list(threads.map(lambda part: self._ranked_part(queries[part], ids[part], k), parts))
        scores, rows = zip(*ranked)
        return np.concatenate(scores), np.concatenate(rows)

    def _ranked_part(self, queries: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._rows_of(ids)
        vectors, places = self._file.vectors_in_place(), rows
        if vectors is None or vectors.dtype != np.float32:
            vectors = self._file.vectors_at(rows.ravel())
            places = np.where(rows < 0, -1, np.arange(rows.size).reshape(rows.shape))
        with OneThread():
            scores = scores_with(queries, vectors, places, self._normalized)
        lines, best = np.arange(len(rows))[:, None], np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return scores[lines, best], rows[lines, best]
