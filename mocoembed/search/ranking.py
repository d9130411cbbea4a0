"""From query vectors to hits: candidates, the nearest first, of which filters, copies and diversity leave k.

Candidates come from the index, or from exact comparison with the selected rows; more are fetched until k are found or
none is left, so a query gets k hits whenever there are so many.

    source (index or rows) -> candidates -> selected, not excluded, score >= min -> unique -> diverse -> k
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mocoembed.data.facts import UNKNOWN
from mocoembed.embed.store import EmbeddingFile
from mocoembed.search.exact import ExactRows
from mocoembed.search.groups import unit

AT_ONCE = 1 << 21  # candidates fetched at a time, of all queries together
LEAST_SHARE = 0.1  # of the images that a filter must select for the index to be asked for more candidates
LEAST_SHARE_OF_A_PART = 0.25  # the same for an index that looks at a part of its vectors only
EXACT_BYTES = 1 << 22  # of selected vectors, up to which they are compared one and all rather than found by a part
MOST_FROM_A_PART = 1000  # candidates that such an index is asked for
BLOCK = 2048  # candidates whose vectors are read at a time
POOL = 5  # candidates for each hit that `diverse` chooses from
LAMBDA = 0.5  # weight of nearness to the query against difference from the hits before it


@dataclass(frozen=True)
class Wishes:
    """What is asked of the hits of every query."""

    k: int
    selected: np.ndarray | None = None
    """(N,) bool: the rows that a filter selects; `None`: all."""
    min_score: float = -np.inf
    unique: float | None = None
    """Cosine from which on two images are near-duplicates, of which the nearest is a hit; `None`: all are hits."""
    diverse: bool = False


class Found(NamedTuple):
    """A hit as numbers."""

    row: int
    score: float
    folded: tuple[int, ...] = ()
    """Rows of the near-duplicates that are left out for it."""


class Ranking:
    """Finds the hits of query vectors in an embeddings file; `index`, a source of all rows, may be `None`: exactly."""

    def __init__(self, file: EmbeddingFile, index: Any, wishes: Wishes,
                 exactly: Callable[[np.ndarray | None], Any] | None = None):
        """`exactly(rows)` gives a source that compares these rows one and all; by default, `ExactRows`."""
        self.file, self.wishes = file, wishes
        self._exact_rows = exactly or functools.partial(ExactRows, file)
        self._index, self.source = index, self._source(index)
        self.pool = POOL * wishes.k if wishes.diverse else wishes.k
        self._all_count = wishes.selected is None and wishes.unique is None and wishes.min_score == -np.inf

    def _source(self, index: Any) -> Any:
        """The index, unless it may miss selected images or would be asked for very many to find them.

        An index that looks at a part of its vectors finds few of the selected ones when they are rare or far from the
        query, as those of another label are; what it does not find, `hits` looks for exactly.
        """
        selected = self.wishes.selected
        if index is None:
            return self._exactly()
        if selected is None:
            return index if index.exact or self.wishes.k <= MOST_FROM_A_PART else self._exactly()
        few = not index.exact and 4 * self.file.dimension * int(selected.sum()) <= EXACT_BYTES
        least = LEAST_SHARE if index.exact else LEAST_SHARE_OF_A_PART
        return self._exactly() if few or selected.mean() < least else index

    def _exactly(self) -> Any:
        selected = self.wishes.selected
        return self._exact_rows(None if selected is None else np.flatnonzero(selected))

    def hits(self, vectors: np.ndarray, excluded: Sequence[np.ndarray] = ()) -> list[list[Found]]:
        """For each of `vectors` (Q, D), its hits. `excluded`: for each, rows that are none."""
        none = np.empty(0, np.int64)
        left_out = list(excluded) or [none] * len(vectors)
        found: list[list[Found]] = [[] for _ in vectors]
        pending, count = np.arange(len(vectors)), self._first(left_out)
        while len(pending):
            again, step = [], max(1, AT_ONCE // count)
            for first in range(0, len(pending), step):
                some = pending[first:first + step]
                scores, rows = self.source.nearest(vectors[some], count)
                for query, its_scores, its_rows in zip(some.tolist(), scores, rows):
                    hits = self._choose(its_scores, its_rows, left_out[query],
                                        self.source.exact and count >= len(self.source))
                    if hits is None:
                        again.append(query)
                    else:
                        found[query] = self._diverse(vectors[query], hits) if self.wishes.diverse else hits
            pending, count = np.array(again, np.int64), 4 * count
            filtered = self._is_of_all and self.wishes.selected is not None
            if again and (filtered or (not self.source.exact and count > MOST_FROM_A_PART)):
                self.source = self._exactly()
            count = min(count, len(self.source))
        return found

    @property
    def _is_of_all(self) -> bool:
        """Whether the candidates come from the index, which knows no filter."""
        return self.source is self._index

    def _first(self, left_out: Sequence[np.ndarray]) -> int:
        """Candidates that are fetched at first: so many that it is mostly enough."""
        wanted = self.pool + max(map(len, left_out), default=0)
        if self.wishes.unique is not None:
            wanted = 2 * wanted + 8
        if self._is_of_all and self.wishes.selected is not None:
            wanted = int(1.5 * wanted / self.wishes.selected.mean()) + 8
        return max(1, min(wanted, len(self.source)))

    def _choose(self, scores: np.ndarray, rows: np.ndarray, left_out: np.ndarray, is_all: bool) -> list[Found] | None:
        """The hits among candidates in their order; `None` when more candidates are needed."""
        wishes = self.wishes
        if self._all_count and not len(left_out) and len(rows) >= self.pool and rows[self.pool - 1] >= 0:
            return self._first_of(scores, rows)
        good = rows >= 0
        if wishes.selected is not None:
            good &= wishes.selected[rows]
        if len(left_out):
            good &= ~np.isin(rows, left_out)
        near = scores >= wishes.min_score
        is_all = is_all or not near[good].all()
        good &= near
        scores, rows = scores[good], rows[good]
        if wishes.unique is not None:
            return self._folded(scores, rows, wishes.unique, is_all)
        if len(rows) < self.pool and not is_all:
            return None
        return self._first_of(scores, rows)

    def _first_of(self, scores: np.ndarray, rows: np.ndarray) -> list[Found]:
        return list(map(Found, rows[:self.pool].tolist(), scores[:self.pool].tolist()))

    def _folded(self, scores: np.ndarray, rows: np.ndarray, threshold: float, is_all: bool) -> list[Found] | None:
        """The first of each kind of near-duplicates, with those of it before the next distinct image."""
        kept: list[Found] = []
        folded: list[list[int]] = []  # rows, for each of `kept`
        vectors = np.empty((0, self.file.dimension), np.float32)  # of those that are kept
        place_of: dict[bytes, int] = {}
        for row, score, vector, digest in self._with_vectors(scores, rows):
            same = place_of.get(digest) if digest != UNKNOWN else None
            if same is None and kept and (cosines := vectors @ vector).max() >= threshold:
                same = int(cosines.argmax())
            if same is not None:
                folded[same].append(row)
            elif len(kept) == self.pool:
                break  # the next distinct image: nothing after it counts
            else:
                place_of[digest] = len(kept)
                kept.append(Found(row, score))
                folded.append([])
                vectors = np.concatenate([vectors, vector[None]])
        else:
            if not is_all:
                return None
        return [one._replace(folded=tuple(rows)) for one, rows in zip(kept, folded)]

    def _with_vectors(self, scores: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, float, np.ndarray, bytes]]:
        """Row, score, vector of length 1 and digest of each candidate, read in blocks."""
        for first in range(0, len(rows), BLOCK):
            some = rows[first:first + BLOCK]
            yield from zip(some.tolist(), scores[first:first + BLOCK].tolist(), unit(self.file.vectors_at(some)),
                           self.file.digests_at(some))

    def _diverse(self, vector: np.ndarray, pool: list[Found]) -> list[Found]:
        """k of the candidates by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

        Each is the one for which LAMBDA times its cosine to the query minus (1 - LAMBDA) times its largest cosine to
        those chosen before is largest.
        """
        if not pool:
            return pool
        vectors = unit(self.file.vectors_at(np.array([one.row for one in pool])))  # n x D
        near = vectors @ unit(vector[None])[0]
        alike, chosen = np.full(len(pool), -np.inf), [int(near.argmax())]
        while len(chosen) < min(self.wishes.k, len(pool)):
            alike = np.maximum(alike, vectors @ vectors[chosen[-1]])
            worth = LAMBDA * near - (1 - LAMBDA) * alike
            worth[chosen] = -np.inf
            chosen.append(int(worth.argmax()))
        return [pool[place] for place in chosen]
