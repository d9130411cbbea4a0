"""How much an index finds and how long that takes: queries and the exact neighbours -> a curve, and a point on it.

Recall@k is the share of the k nearest images that are found; an image that is as near as the k-th nearest counts, so
that ties do not matter. Queries are rows that are held out of the index while it is tuned, or, of an exact or an
updated index, stored rows, which are not their own neighbours.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.files import StopRequest
from mocoembed.search.exact import ExactRows, scores_of
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.index_rows import TUNED_FOR, Effort, IndexRows, others

HELD_OUT, HELD_SHARE = 500, 0.2  # rows as queries: so many, but at most this share of all
STORED = 100  # queries for an index that is not tuned
ALONE = 50  # of them are timed one by one
BATCH = 1000  # are timed together
TOLERANCE = 1e-5  # relative; FAISS adds up in float32, the reference in float64
CANDIDATES = (40, 100, 200, 400)  # that are ranked again
WORTH = 0.002  # of recall, for which more candidates are taken
ENOUGH = 0.9995  # of recall, above which the curve ends
STOPPED = "Stopped while measuring; no index was written. Run the same command again."


def held_out_of(count: int) -> int:
    """How many of so many rows an index is first built without, as queries."""
    return min(HELD_OUT, int(HELD_SHARE * count))


@dataclass(frozen=True)
class Sample:
    """Queries and how near their nearest neighbours are."""

    rows: np.ndarray
    """(S,) int64: of the queries."""
    queries: np.ndarray
    """(S, D) float32."""
    bounds: np.ndarray
    """(S, k) float32: the scores of the k nearest, exactly; k is 10, or less where there are fewer."""
    stored: bool
    """Whether the queries are in the index."""

    @classmethod
    def held_out(cls, file: EmbeddingFile, stop: StopRequest, seed: int = 0) -> "Sample":
        """Rows that the index is built without."""
        rows = np.sort(np.random.default_rng(seed).choice(len(file), held_out_of(len(file)), replace=False))
        others = np.setdiff1d(np.arange(len(file)), rows, assume_unique=True)
        queries = file.vectors_at(rows)
        return cls(rows, queries, _bounds(ExactRows(file, others), queries, TUNED_FOR, stop), False)

    @classmethod
    def of_stored(cls, file: EmbeddingFile, stop: StopRequest, count: int = STORED) -> "Sample":
        """Rows at even distances, without themselves among their neighbours."""
        rows = np.unique(np.linspace(0, len(file) - 1, count).astype(np.int64))
        queries, k = file.vectors_at(rows), min(TUNED_FOR + 1, len(file))
        bounds = _bounds(ExactRows(file), queries, k, stop)
        return cls(rows, queries, bounds[:, 1:] if k > 1 else bounds, len(file) > 1)  # itself, or its equal, is first

    @property
    def k(self) -> int:
        """Hits that are compared."""
        return self.bounds.shape[1]

    def without_queries(self, found: np.ndarray) -> np.ndarray:
        """(S, k) of the rows `found` (S, k), or (S, k + 1) where the queries are stored: without these themselves."""
        return found[others(found, self.rows)].reshape(len(found), -1) if self.stored else found


def _bounds(exact: ExactRows, queries: np.ndarray, k: int, stop: StopRequest) -> np.ndarray:
    return exact.nearest(queries, k, lambda: stop.raise_if_set(STOPPED))[0]


def recall(file: EmbeddingFile, sample: Sample, found: np.ndarray) -> np.ndarray:
    """(S,) the share of each query's nearest that are among the rows `found` (S, k); -1 is none."""
    scores = scores_of(file, sample.queries, found)
    bound = sample.bounds[:, found.shape[1] - 1:found.shape[1]]
    return (scores >= bound - TOLERANCE * np.maximum(1, abs(bound))).mean(axis=1)


def measure(rows: IndexRows, file: EmbeddingFile, sample: Sample, stop: StopRequest) -> dict:
    """Recall@10, its standard error, recall@1, and milliseconds for a query, alone and in a batch of `batch` queries.

    The batch is `BATCH` queries, held-out ones again and again; of stored ones, which an update measures, each once.

    Recall@1 is the share of queries whose first hit is as near as the nearest.
    """
    seconds = []
    for query in sample.queries[:ALONE]:
        begun = time.perf_counter()
        rows.nearest(query[None], sample.k)
        seconds.append(time.perf_counter() - begun)
        stop.raise_if_set(STOPPED)
    together = sample.queries if sample.stored else np.resize(sample.queries, (BATCH, sample.queries.shape[1]))
    begun = time.perf_counter()
    found = rows.nearest(together, sample.k + sample.stored)[1]
    batch = (time.perf_counter() - begun) / len(together)
    found = sample.without_queries(found[:len(sample.queries)])
    each = recall(file, sample, found)
    stop.raise_if_set(STOPPED)
    return {"recall_at_10": float(each.mean()), "recall_error": float(each.std() / np.sqrt(len(each))),
            "recall_at_1": float(recall(file, sample, found[:, :1]).mean()),
            "latency_ms": 1e3 * float(np.median(seconds)), "batch_latency_ms": 1e3 * batch, "batch": len(together)}


def curve(index: FaissIndex, file: EmbeddingFile, sample: Sample, reranks: bool, stop: StopRequest,
          ids: np.ndarray | None = None) -> Iterator[dict]:
    """Points of rising breadth: its parameters, as a manifest names them, and what `measure` says.

    Of the numbers of candidates, the least that more of them does not improve much is taken; the rest come last, with
    the largest breadth. The curve ends where all is found. `ids`: of the file's rows, if they have been read.
    """
    rows = IndexRows(index, file, Effort(), ids=ids)
    candidates = list(CANDIDATES) if reranks or index.transforms else [0]

    def point_at(breadth: int, count: int) -> dict:
        rows.effort = Effort(breadth, count)
        return {**rows.effort.parameters(index.breadth_name), **measure(rows, file, sample, stop)}

    for breadth in _breadths(index):
        while True:
            point = point_at(breadth, candidates[0])
            if len(candidates) == 1:
                break
            rows.effort = Effort(breadth, candidates[1])
            found = sample.without_queries(rows.nearest(sample.queries, sample.k + sample.stored)[1])
            if recall(file, sample, found).mean() < point["recall_at_10"] + WORTH:
                break
            del candidates[0]
        yield point
        if point["recall_at_10"] >= ENOUGH:
            return
    for count in candidates[1:]:
        yield (point := point_at(breadth, count))
        if point["recall_at_10"] >= ENOUGH:
            return


def described(point: dict) -> dict:
    """What a manifest says of the point that is taken: its `parameters` apart from what was measured."""
    parameters = {name: point[name] for name in ("nprobe", "efSearch", "candidates") if name in point}
    return {"parameters": parameters, **{name: value for name, value in point.items() if name not in parameters}}


def _breadths(index: FaissIndex) -> list[int]:
    if index.breadth_name == "nprobe":
        return [1 << power for power in range(index.lists.bit_length())]
    return [16 << power for power in range(7)] if index.breadth_name == "efSearch" else [0]


def chosen(points: list[dict], target: float) -> dict | None:
    """The first point that reaches the recall, by more than its standard error; `None` where none does."""
    return next((point for point in points if point["recall_at_10"] - point["recall_error"] >= target
                 or point["recall_at_10"] >= max(target, ENOUGH)), None)
