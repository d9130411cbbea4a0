"""Search by image: query images -> vectors by the collection's own encoder -> hits (rank, score, path, label)."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from mocoembed.config import SearchConfig
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.asking import Asking
from mocoembed.search.filters import Filter
from mocoembed.search.hits import Hit, QueryResult
from mocoembed.search.left_out import LeftOut
from mocoembed.search.pair import BATCH, Pair, state_of
from mocoembed.search.queries import STANDARD_INPUT, queries_of, query_names

__all__ = ["Hit", "QueryResult", "Searcher", "iterate_search", "search_images"]

MOST_AT_ONCE = 1024  # queries compared at a time
RETRY_SECONDS = 10.0  # before files that could not be opened are tried again, unless they change before


def search_images(config: SearchConfig,
                  progress: Callable[[int, int], None] = lambda done, total: None,
                  note: Callable[[str], None] = say_nothing) -> list[QueryResult]:
    """Find the images of the collection that are nearest to each of `config.images`.

    `progress(done, total)` counts queries; `note(text)` is called with what a person should know of an encoder of
    others, or of a missing index. Raises `UsageError` for missing files and for filters that select nothing,
    `CollectionError` for a query that cannot be read, `MismatchError` when index, embeddings and encoder do not belong
    together, `FormatError` for a damaged file.
    """
    return list(iterate_search(config, progress, note))


def iterate_search(config: SearchConfig,
                   progress: Callable[[int, int], None] = lambda done, total: None,
                   note: Callable[[str], None] = say_nothing) -> Iterator[QueryResult]:
    """What `search_images` gives, one result after the other, as soon as they are there.

    Of several queries, those that cannot be used are left out and told to `note`; after the last result
    `CollectionError` is raised. The first `BATCH` queries are compared together, then more and more of them, which an
    index is faster at.
    """
    if config.server is not None:
        from mocoembed.search.remote import iterate_remote  # with http.client, which takes a while to import

        yield from iterate_remote(config, progress, note)
        return
    names = query_names(config.images, note)
    with Pair(config, note, bool(names or config.unlike)) as pair:
        queries = queries_of(names, config.row, pair.file, pair.path_of)
        ask = Asking(pair, config, note)
        if config.together:
            yield ask.together(queries, progress, BATCH)
            return
        left_out, at_once, names, vectors, selves = LeftOut(len(queries), note), BATCH, [], [], []
        for first in range(0, len(queries), BATCH):
            done = min(first + BATCH, len(queries))
            some = ask.vectors(queries[first:done], left_out)
            names += some[0]
            vectors.append(some[1])
            selves += some[2]
            progress(done, len(queries))
            if names and (len(names) >= at_once or done == len(queries)):
                yield from ask.results(names, np.concatenate(vectors), selves, left_out)
                at_once, names, vectors, selves = min(2 * at_once, MOST_AT_ONCE), [], [], []
        left_out.raise_if_any()


class Searcher:
    """Searches a workspace, or an index, for as long as it is open; a context manager.

    When the index or the embeddings file is replaced, the next search uses the new ones. Until both fit together and
    can be read, the old ones are searched, which stay open. Several threads may search at once: one of them opens the
    new files, the others are not held up.
    """

    def __init__(self, config: SearchConfig, note: Callable[[str], None] = say_nothing, encoder: bool = True):
        """`config` and `encoder` are those of `Pair`; `note` is also told why new files are not used yet."""
        self._config, self._note, self._with_encoder = config, note, encoder
        self._pair, self._taking, self._closed = Pair(config, note, encoder), threading.Lock(), False
        self._refused, self._refused_at, self._told = self._pair.states, -math.inf, ""

    @classmethod
    def open(cls, path=DEFAULT_WORKSPACE, device: str = "auto", encoder: bool = True,
             note: Callable[[str], None] = say_nothing) -> "Searcher":
        """The searcher of a workspace folder, or of an index file in one, for `search`.

        With `encoder=False` only vectors can be searched for. Raises what `search_images` raises.
        """
        path = os.fspath(path)
        config = SearchConfig((STANDARD_INPUT,), path, device=device) if os.path.isdir(path) else SearchConfig(
            (STANDARD_INPUT,), os.path.dirname(path) or ".", index=path, device=device)
        return cls(config, note, encoder)

    def search(self, images, k: int = 10, filter: Filter | None = None, min_score: float = -math.inf,
               unique: bool = False, diverse: bool = False) -> list:
        """The hits of one query, a list of `Hit`; of a sequence of several, a list of such lists.

        A query is a path, the bytes of an image file, a Pillow image, an array (H, W, 3) uint8 in RGB or (H, W) uint8
        of gray, or a vector (D,) of floats, which is scaled to length 1 where those of the collection have that;
        several may also be one array (Q, H, W, 3) or (Q, D). The other arguments are as in `SearchConfig`. Several
        threads may call this at once. Raises `CollectionError` for an image that cannot be read, `UsageError` for what
        is no query, a filter that selects nothing, or a searcher that is closed.
        """
        if self._closed:
            raise UsageError("This searcher is closed. Open another: Searcher.open(path)")
        return self.pair().search(images, k, filter, min_score, unique, diverse)

    def pair(self) -> Pair:
        """What is searched now, for several calls that must see the same rows: it does not change."""
        if not self._closed and self._now() != self._pair.states and self._taking.acquire(blocking=False):
            try:
                self._take()
            finally:
                self._taking.release()
        return self._pair

    def _now(self) -> dict:
        return {path: state_of(path) for path in self._pair.states}

    def _take(self):
        """Open the files that are there now, unless they have just been refused. The old pair goes with its users."""
        now = self._now()
        if now == self._pair.states:  # another thread has opened them
            return
        if now == self._refused and time.monotonic() - self._refused_at < RETRY_SECONDS:
            return
        try:
            self._pair = Pair(self._config, self._note, self._with_encoder, self._pair)
            self._told = ""
        except Exception as error:  # whatever is wrong with them: what is open still works
            self._refused, self._refused_at = now, time.monotonic()
            if str(error) != self._told:
                self._told = str(error)
                self._note(f"The files of the collection have changed, but cannot be used: {error}\n"
                           "The ones before are searched until they can be.")

    @property
    def file(self):
        """The `EmbeddingFile` that is searched now."""
        return self._pair.file

    @property
    def index(self):
        """The `SearchIndex` that is searched now, or `NoIndex`."""
        return self._pair.index

    def __enter__(self):
        return self

    def close(self):
        """Close the embeddings file; nothing can be searched for any more."""
        self._closed = True
        self._pair.close()

    def __exit__(self, *exception):
        self.close()
