"""What a `SearchConfig` asks of an open `Pair`: queries -> vectors -> results."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mocoembed.config import SearchConfig
from mocoembed.notes import say_nothing
from mocoembed.search.filters import Filter
from mocoembed.search.hits import QueryResult
from mocoembed.search.queries import Query, Selves, combined, query_names
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
        unlike = query_names(config.unlike, say_nothing)
        self._unlike = pair.embed([pair.read(name) for name in unlike]) if unlike else None

    def vectors(self, queries: Sequence[Query]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(Q, D) float32, and for each query the rows that it is itself, if these are to be left out."""
        file, selves = self.pair.file, []
        vectors, images = np.empty((len(queries), file.dimension), np.float32), {}
        for place, query in enumerate(queries):
            data = None
            if query.row is None:
                images[place], data = self.pair.read_with_bytes(query.name, self.config.crop)
            else:
                vectors[place] = file.embeddings[query.row]
            if self._selves is not None:
                selves.append(self._selves.rows(query, data))
        if images:
            vectors[list(images)] = self.pair.embed(list(images.values()))
        return vectors, selves

    def results(self, names: Sequence[str], vectors: np.ndarray, selves: Sequence[np.ndarray],
                image: str | None = None) -> list[QueryResult]:
        """The result of each of the queries' vectors (Q, D), or of all of them together."""
        asked = combined(vectors, self._unlike, self.config.together, self.pair.file.normalized)
        return [QueryResult(name, hits, self.pair.file.value_range, image)
                for name, hits in zip(names, self.pair.chosen(asked, self.wishes, selves))]

    def together(self, queries: Sequence[Query], progress: Callable[[int, int], None],
                 batch: int) -> QueryResult:
        """The result of all queries as one; `batch` of them are embedded at a time."""
        vectors, selves = [], [np.empty(0, np.int64)]
        for first in range(0, len(queries), batch):
            some = self.vectors(queries[first:first + batch])
            vectors.append(some[0])
            selves += some[1]
            progress(min(first + batch, len(queries)), len(queries))
        first_name = queries[0].name
        name = first_name if len(queries) == 1 else f"{first_name} and {len(queries) - 1} more"
        return self.results([name], np.concatenate(vectors), [np.concatenate(selves)], first_name)[0]
