"""What a `SearchConfig` asks of an open `Pair`: queries -> vectors -> results."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mocoembed.config import SearchConfig
from mocoembed.errors import CollectionError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.filters import Filter
from mocoembed.search.hits import QueryResult
from mocoembed.search.left_out import LeftOut
from mocoembed.search.queries import UNLIKE, Query, Selves, combined, combined_each, name_together, query_names
from mocoembed.search.ranking import Wishes


class Asking:
    """The wishes of a `SearchConfig`, made ready for an open `Pair`: queries -> vectors -> results."""

    def __init__(self, pair: Any, config: SearchConfig, note: Callable[[str], None] = say_nothing):
        self.pair, self.config, file = pair, config, pair.file
        chosen = Filter(config.label, config.not_label, config.path)
        self.wishes = Wishes(config.k, chosen.mask(file) if chosen else None,
                             -np.inf if config.min_score is None else config.min_score,
                             pair.duplicates_from() if config.unique else None, config.diverse)
        if self.wishes.unique is not None:
            note(f"near-duplicates: cosine {self.wishes.unique:.4f} or more")
        self._selves = Selves(file) if config.exclude_self else None
        unlike = query_names(config.unlike, say_nothing, UNLIKE)
        self._unlike = pair.embed([pair.read(name) for name in unlike]) if unlike else None

    def vectors(self, queries: Sequence[Query],
                left_out: LeftOut | None = None) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
        """Names and vectors (Q, D) float32, and for each query the rows that it is itself, if these are no hits.

        A query that cannot be read goes to `left_out`; without that, its error is raised.
        """
        names: list[str] = []
        vectors, images, selves = [], {}, []
        for query in queries:
            data, vector = None, np.empty(self.pair.file.dimension, np.float32)
            if query.row is not None:
                vector = self.pair.file.embeddings[query.row]
            else:
                try:
                    images[len(names)], data = self.pair.read_with_bytes(query.name, self.config.crop)
                except (CollectionError, UsageError) as error:  # the latter: a region outside of it
                    if left_out is None:
                        raise
                    left_out.add(error)
                    continue
            if self._selves is not None:
                selves.append(self._selves.rows(query, data))
            names.append(query.name)
            vectors.append(vector)
        found = np.array(vectors, np.float32).reshape(len(names), self.pair.file.dimension)
        if images:
            found[list(images)] = self.pair.embed(list(images.values()))
        return names, found, selves

    def results(self, names: Sequence[str], vectors: np.ndarray, selves: Sequence[np.ndarray],
                left_out: LeftOut) -> list[QueryResult]:
        """The result of each of the queries' vectors (Q, D); of which `unlike` leaves nothing goes to `left_out`."""
        places, asked = combined_each(names, vectors, self._unlike, self.pair.file.normalized, left_out)
        return self._found([names[place] for place in places], asked, [selves[place] for place in places if selves])

    def together(self, queries: Sequence[Query], progress: Callable[[int, int], None],
                 batch: int) -> QueryResult:
        """The result of all queries as one; `batch` of them are embedded at a time."""
        vectors, selves = [], [np.empty(0, np.int64)]
        for first in range(0, len(queries), batch):
            some = self.vectors(queries[first:first + batch])
            vectors.append(some[1])
            selves += some[2]
            progress(min(first + batch, len(queries)), len(queries))
        names = [query.name for query in queries]
        asked = combined(np.concatenate(vectors), self._unlike, True, self.pair.file.normalized)
        return self._found([name_together(names)], asked, [np.concatenate(selves)], names[0])[0]

    def _found(self, names: Sequence[str], asked: np.ndarray, selves: Sequence[np.ndarray],
               image: str | None = None) -> list[QueryResult]:
        """The result of each of the vectors (Q, D) that are compared."""
        return [QueryResult(name, hits, self.pair.file.value_range, image)
                for name, hits in zip(names, self.pair.chosen(asked, self.wishes, selves))]
