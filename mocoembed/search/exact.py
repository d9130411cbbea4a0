"""Exact search over rows of the embeddings file, without an index: vectors and rows -> the nearest of these rows.

The vectors are read in blocks where they lie in the HDF5 file, so the memory is bounded, however large it is. Scores
are those of `SearchIndex`: the inner product, or minus the squared distance.
"""

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MismatchError, UsageError
from mocoembed.memory import shown

BLOCK_BYTES, BLOCK_ROWS = 1 << 24, 1 << 15  # of wanted vectors that are read at a time, and those between them
QUERIES = 512  # compared at a time
RANKED_BYTES = 1 << 18  # of vectors in float64 at a time, which the processor's cache holds
SCORES = 1 << 22  # of queries and rows that are computed at a time
BETWEEN, BETWEEN_FOR_FEW = 1.1, 2.5  # so many times the wanted rows are compared rather than picked; for few queries
FEW = 16  # queries
SPARE = 32  # more candidates than k, so that rounding in float32 does not decide which the last hits are
ROUNDING = 1e-5  # of scores of vectors of length 1, at most
LARGEST = 1 << 30  # bytes of vectors in float32 that are compared without an index: about a second
PAYS = 1 << 26  # from so many on an index pays


class ExactRows:
    """Rows of an embeddings file, compared one and all with every query."""

    exact = True

    def __init__(self, file: EmbeddingFile, rows: np.ndarray | None = None):
        """`rows` (n,) int64 rise; `None`: all of them."""
        self._file, self._rows = file, rows
        self._count = len(file) if rows is None else len(rows)

    def __len__(self):
        return self._count

    def nearest(self, vectors: np.ndarray, k: int,
                watch: Callable[[], None] = lambda: None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32 and rows (Q, k) int64 of the k nearest to `vectors` (Q, D), the nearest first.

        Of equal scores the lower row comes first. A k larger than the number of rows is cut to it. `watch()` is called
        for every block and may end it. Raises `MismatchError` for vectors of another length, `FormatError` for values
        that are not finite.
        """
        vectors, k = require_queries(self._file, vectors), min(k, len(self))
        found = [self._nearest(vectors[first:first + QUERIES], k, watch) for first in range(0, len(vectors), QUERIES)]
        scores, rows = zip(*found) if found else ([np.empty((0, k), np.float32)], [np.empty((0, k), np.int64)])
        return np.concatenate(scores), np.concatenate(rows)

    def _nearest(self, queries: np.ndarray, k: int, watch: Callable[[], None]) -> tuple[np.ndarray, np.ndarray]:
        kept = min(k + SPARE, len(self))
        scores = rows = None
        for block, compared in self._compared(queries, watch):
            some, its_rows = compared, np.broadcast_to(block, compared.shape)
            if scores is not None:
                some, its_rows = _better(compared, block, scores, kept)
                some, its_rows = np.concatenate([scores, some], axis=1), np.concatenate([rows, its_rows], axis=1)
            scores, rows = _best(some, its_rows, kept)
        rows = np.empty((len(queries), 0), np.int64) if rows is None else rows
        scores, rows = ranked(self._file, queries, rows, kept)
        if k < kept < len(self) and len(tied := np.flatnonzero(scores[:, k - 1] == scores[:, -1])):
            rows[tied, :k] = self._lowest(queries[tied], scores[tied], rows[tied], k, watch)
        return scores[:, :k], rows[:, :k]

    def _lowest(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray, k: int,
                watch: Callable[[], None]) -> np.ndarray:
        """Rows (Q, k) where all candidates from the k-th on are equal: rounding has chosen these among more."""
        last = scores[:, k - 1]
        found = [its[some > bound] for its, some, bound in zip(rows, scores, last)]
        least = last - ROUNDING * (1 + np.abs(last) + (queries.astype(np.float64)**2).sum(axis=1))
        for block, compared in self._compared(queries, watch):
            for line in [line for line, its in enumerate(found) if len(its) < k]:
                near = block[compared[line] >= least[line]]
                for first in range(0, len(near), k):
                    some = near[first:first + k]
                    same = scores_of(self._file, queries[line:line + 1], some[None])[0] == last[line]
                    found[line] = np.concatenate([found[line], some[same]])[:k]
                    if len(found[line]) == k:
                        break
            if all(len(its) == k for its in found):
                break
        return np.stack([its if len(its) == k else some[:k] for its, some in zip(found, rows)])  # or of no length 1

    def _compared(self, queries: np.ndarray, watch: Callable[[], None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows (B,) and their scores (Q, B), block after block; minus infinity for rows that do not count."""
        step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * self._file.dimension), SCORES // len(queries)))
        for first in range(0, len(self), step):
            watch()
            block = np.arange(first, min(first + step, len(self)))
            block = block if self._rows is None else self._rows[block]
            block, vectors, left_out = self._read(block, BETWEEN_FOR_FEW if len(queries) <= FEW else BETWEEN)
            with np.errstate(invalid="ignore"):  # what is not selected may hold anything
                compared = self._scores(queries, vectors)  # Q x block
                compared[:, left_out] = 0
                is_finite = np.isfinite(compared.max() - compared.min())  # either may be NaN or infinite
            if not is_finite:
                raise FormatError(f"{self._file.path} has vectors of numbers that are not finite or too large to "
                                  f"compare, in rows {block[0]} to {block[-1]}. Embed the collection again with "
                                  "--fresh.")
            compared[:, left_out] = -np.inf
            yield block, compared

    def _read(self, rows: np.ndarray, between: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (n,), their vectors (n, D) float32, and places among them that do not count.

        `rows` rise; where they are no more than `between` times as many with those between them, all are read, which is
        faster than picking.
        """
        first, end = int(rows[0]), int(rows[-1]) + 1
        if end - first > between * len(rows):
            return rows, self._file.vectors_at(rows), np.empty(0, np.int64)
        left_out = np.ones(end - first, bool)
        left_out[rows - first] = False
        return np.arange(first, end), self._file.vectors_at(slice(first, end)), np.flatnonzero(left_out)

    def _scores(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """(Q, B): inner products, or minus the squared distances, in float64 as their terms cancel out."""
        if self._file.normalized:
            return queries @ vectors.T
        queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
        return 2 * queries @ vectors.T - (vectors**2).sum(axis=1) - (queries**2).sum(axis=1)[:, None]


def require_queries(file: EmbeddingFile, vectors: np.ndarray) -> np.ndarray:
    """The vectors (Q, D) in float32; raises as `ExactRows.nearest` does."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != file.dimension:
        raise MismatchError(f"{file.path} holds vectors of dimension {file.dimension}; the queries have shape "
                            f"{vectors.shape}. Embed them with the same encoder and features.")
    require_finite(vectors)
    return vectors


def require_finite(vectors: np.ndarray):
    """Raise `FormatError` for queries (Q, D) with a number that is not finite."""
    if not np.isfinite(vectors).all():
        raise FormatError("A query's vector holds a number that is not finite; it cannot be searched.")


def ranked(file: EmbeddingFile, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) and rows (Q, k) of the k best of the candidates `rows` (Q, n); of equal ones the lower first."""
    scores = scores_of(file, queries, rows)
    lines, order = np.arange(len(rows))[:, None], np.lexsort((rows, -scores), axis=1)[:, :k]
    return scores[lines, order], rows[lines, order]


def scores_of(file: EmbeddingFile, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(Q, n) float32: the scores of a few rows (Q, n), the same for equal vectors wherever they stand.

    They are added up in float64. Of a row -1, which is none, the score is minus infinity.
    """
    scores, step = np.empty(rows.shape, np.float32), max(1, RANKED_BYTES // (8 * file.dimension))
    for line, (query, its) in enumerate(zip(queries.astype(np.float64), rows)):
        for first in range(0, len(its), step):
            vectors = file.vectors_at(its[first:first + step]).astype(np.float64)
            each = vectors * query if file.normalized else -(vectors - query)**2
            scores[line, first:first + step] = each.sum(axis=1)
    scores[rows < 0] = -np.inf
    return scores


def _better(compared: np.ndarray, block: np.ndarray, before: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, m) and rows (Q, m) of a block that can be among the best: all, or few with minus infinity beside them.

    Rows rise from block to block, so that equal to the last of the `kept` scores before is not better.
    """
    if before.shape[1] == kept:
        above = np.flatnonzero(compared > before.min(axis=1, keepdims=True).astype(compared.dtype))
        lines, places = np.divmod(above, compared.shape[1])
        counts = np.bincount(lines, minlength=len(compared))
        if 4 * (most := int(counts.max(initial=0))) < compared.shape[1]:
            at = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
            scores = np.full((len(compared), most), -np.inf, compared.dtype)
            rows = np.full((len(compared), most), -1)
            scores[lines, at], rows[lines, at] = compared[lines, places], block[places]
            return scores, rows
    return compared, np.broadcast_to(block, compared.shape)


def _best(scores: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best of every line of scores (Q, n), of equal ones those with the lower rows, in any order."""
    if scores.shape[1] <= count:
        return scores, rows
    best, its_rows = np.empty((len(scores), count), scores.dtype), np.empty((len(scores), count), np.int64)
    least = np.partition(scores, scores.shape[1] - count, axis=1)[:, scores.shape[1] - count]
    for line, (some, bound) in enumerate(zip(scores, least)):
        places = np.flatnonzero(some >= bound)
        if len(places) > count:
            above, equal = np.flatnonzero(some > bound), np.flatnonzero(some == bound)
            places = np.concatenate([above, equal[np.argsort(rows[line, equal])][:count - len(above)]])
        best[line], its_rows[line] = some[places], rows[line, places]
    return best, its_rows


class NoIndex:
    """An embeddings file in place of its index: it says the same about itself, and is searched exactly."""

    exact = True

    def __init__(self, file: EmbeddingFile):
        self.path, self.file = file.path, file
        self.manifest: dict[str, Any] = {"encoder": file.fingerprint, "features": file.features,
                                         "normalized": file.normalized}

    @classmethod
    def of(cls, file: EmbeddingFile, note) -> "NoIndex":
        """For a file that is small enough, `UsageError` for others; `note` is told where an index pays."""
        size = 4 * len(file) * file.dimension
        command = shlex.join(["mocoembed", "index", str(file.path)])
        if size > LARGEST:
            raise UsageError(f"{file.path} has no index, and comparing {shown(size)} of vectors with every query takes "
                             f"seconds. Make one with: {command}")
        if size >= PAYS:
            note(f"no index: compared with all {len(file):,} images; `{command}` makes this faster")
        return cls(file)
