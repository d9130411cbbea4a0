"""Search by image: query images -> vectors by the collection's own encoder -> hits (rank, score, path, label).

Index, embeddings file and encoder must belong together; a foreign or outdated one is refused.
"""

import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from mocoembed.config import SearchConfig
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.data.decode import EncodedImage
from mocoembed.data.facts import Failure
from mocoembed.data.images import NO_LABEL, require_root
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, MismatchError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.asking import Asking
from mocoembed.search.duplicates import unit
from mocoembed.search.encoding import is_without_torch, query_encoder, require_device
from mocoembed.search.exact import NoIndex
from mocoembed.search.filters import Filter
from mocoembed.search.hits import Hit, QueryResult
from mocoembed.search.index import SearchIndex
from mocoembed.search.queries import (
    STANDARD_INPUT,
    Region,
    decoded,
    is_one,
    is_vector,
    queries_of,
    query_names,
    read_bytes,
)
from mocoembed.search.ranking import Found, Ranking, Wishes
from mocoembed.search.threshold import choose_threshold
from mocoembed.workspace import Workspace

__all__ = ["Hit", "QueryResult", "Searcher", "iterate_search", "search_images"]

BATCH = 64  # query images embedded at a time
MOST_AT_ONCE = 1024  # queries compared at a time
MASKS = 15  # of filters that are remembered by a searcher


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

    The first `BATCH` queries are compared together, then more and more of them, which an index is faster at.
    """
    names = query_names(config.images, note)
    with Searcher(config, note, bool(names or config.unlike)) as searcher:
        queries = queries_of(names, config.row, searcher.file, searcher.path_of)
        ask = Asking(searcher, config, note)
        if config.together:
            yield ask.together(queries, progress, BATCH)
            return
        at_once, begun, vectors, selves = BATCH, 0, [], []
        for first in range(0, len(queries), BATCH):
            done = min(first + BATCH, len(queries))
            some = ask.vectors(queries[first:done])
            vectors.append(some[0])
            selves += some[1]
            progress(done, len(queries))
            if done - begun >= at_once or done == len(queries):
                yield from ask.results([query.name for query in queries[begun:done]], np.concatenate(vectors), selves)
                at_once, begun, vectors, selves = min(2 * at_once, MOST_AT_ONCE), done, [], []


def read_query(name: str, transform, full_decode: bool, crop: Sequence[int] = (),
               with_torch: bool = True) -> tuple[np.ndarray, bytes]:
    """(S, S, 3) uint8: the query, or its region `crop`, as the encoder sees it; and its bytes.

    Raises `CollectionError` when it cannot be read, `UsageError` for a region outside of it.
    """
    try:
        data = read_bytes(name)
        image = EncodedImage(data, full_decode, transform.value_range)
        return transform.pixels(Region(image, crop, name) if crop else image, with_torch), data
    except UsageError:
        raise
    except Exception as error:  # whatever a decoder raises
        failure = Failure.of(0, error)
        name = "on standard input" if name == STANDARD_INPUT else repr(name)
        raise CollectionError(f"The image {name} cannot be read: {failure.error}: {failure.reason}") from error


class Searcher:
    """An index, its embeddings file and its encoder, checked against each other; a context manager.

    `config` is a `SearchConfig`, or anything with its fields `workspace`, `index`, `embeddings`, `encoder`, `root`,
    `device` and `torch`, perhaps with `recall`.
    """

    def __init__(self, config, note: Callable[[str], None] = say_nothing, encoder: bool = True):
        """Without `encoder` none is looked for, and vectors alone can be searched for."""
        workspace = Workspace(config.workspace)
        require_device(config.device)  # a wrong one is refused before anything is read, and so is a root
        require_root(config.root)
        self.root = config.root
        self.index = open_index(workspace, config, note)
        self.file = self.index.file if isinstance(self.index, NoIndex) else open_embeddings(self.index,
                                                                                            config.embeddings)
        self.transform = None
        if encoder:
            self._encoder = query_encoder(config, workspace, self.index, self.file, note)
            self.transform = replace(self._encoder.transform, value_range=self.file.value_range)
        self._ids, self._labels, self._label_names = self.file.ids(), self.file.labels(), self.file.label_names
        self._rows = None if isinstance(self.index, NoIndex) else self.index.rows(
            self.file, getattr(config, "recall", None), self._ids)
        self._embedding = threading.Lock()
        self._masks: dict[Filter, np.ndarray] = {}

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

        A query is a path, the bytes of an image file, a Pillow image, an array (H, W, 3) uint8 in RGB, or a vector (D,)
        of floats; several may also be one array (Q, H, W, 3) or (Q, D). The other arguments are as in `SearchConfig`.
        Several threads may call this at once. Raises `CollectionError` for an image that cannot be read, `UsageError`
        for what is no query or a filter that selects nothing.
        """
        if k < 1:
            raise UsageError(f"k {k}: must be 1 or more.")
        some = [images] if is_one(images) else list(images)
        if not some:
            return []
        wishes = Wishes(k, self._mask(filter) if filter else None, min_score,
                        self.duplicates_from() if unique else None, diverse)
        hits = self.chosen(self._vectors(some), wishes)
        return hits[0] if is_one(images) else hits

    def _mask(self, chosen: Filter) -> np.ndarray:
        """(N,) bool: the rows that a filter selects; the latest filters are remembered."""
        if (mask := self._masks.get(chosen)) is None:
            mask = chosen.mask(self.file)
            self._masks = {**dict(list(self._masks.items())[-MASKS:]), chosen: mask}
        return mask

    def _vectors(self, some: list) -> np.ndarray:
        """(Q, D) float32: those among the queries that are vectors, and those of the others."""
        vectors, images = np.empty((len(some), self.file.dimension), np.float32), {}
        for place, one in enumerate(some):
            if is_vector(one):
                if len(one) != self.file.dimension:
                    raise UsageError(f"A vector of {len(one)} numbers; those of {self.file.path} have "
                                     f"{self.file.dimension}.")
                vectors[place] = one
                continue
            if self.transform is None:
                raise UsageError("This searcher was opened without an encoder: give vectors, or leave encoder=False "
                                 "out.")
            try:
                image = decoded(one, self.file.full_decode, self.file.value_range)
                images[place] = self.transform.pixels(image, not is_without_torch(self._encoder))
            except UsageError:
                raise
            except Exception as error:  # whatever a decoder raises
                failure = Failure.of(0, error)
                name = repr(one) if isinstance(one, str) else f"of query {place}"
                raise CollectionError(f"The image {name} cannot be read: {failure.error}: {failure.reason}") from error
        places = list(images)
        for first in range(0, len(places), BATCH):
            with self._embedding:
                vectors[places[first:first + BATCH]] = self.embed([images[i] for i in places[first:first + BATCH]])
        return vectors

    def __enter__(self):
        return self

    def close(self):
        """Close the embeddings file."""
        self.file.close()

    def __exit__(self, *exception):
        self.file.close()

    def read(self, name: str) -> np.ndarray:
        """(S, S, 3) uint8: a query image, decoded as the collection's were; `CollectionError` if it cannot be."""
        return self.read_with_bytes(name)[0]

    def read_with_bytes(self, name: str, crop: Sequence[int] = ()) -> tuple[np.ndarray, bytes]:
        """The same of an image or its region `crop` (left, top, width, height), and the image's bytes."""
        return read_query(name, self.transform, self.file.full_decode, crop,
                          not is_without_torch(self._encoder))

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        """(Q, D) float32, from Q images (S, S, 3) uint8."""
        return self._encoder(np.stack(images))

    def hits(self, vectors: np.ndarray, k: int) -> list[list[Hit]]:
        """For each of `vectors` (Q, D), the k nearest images."""
        return self.chosen(vectors, Wishes(k))

    def chosen(self, vectors: np.ndarray, wishes: Wishes, excluded: Sequence[np.ndarray] = ()) -> list[list[Hit]]:
        """For each of `vectors` (Q, D), the hits that are wished for; `excluded`: for each, rows that are none."""
        found = Ranking(self.file, self._rows, wishes).hits(vectors, excluded)
        rows = sorted({one.row for some in found for one in some})
        paths = dict(zip(rows, map(self._full, self.file.paths[rows])))
        return [[self._hit(rank, one, paths[one.row], wishes.unique is not None) for rank, one in enumerate(some, 1)]
                for some in found]

    def _full(self, path: bytes) -> str:
        return os.fsdecode(os.path.join(os.fsencode(self.root) if self.root else self.file.root, path))

    def path_of(self, row: int) -> str:
        """Full path of a row's image."""
        return self._full(self.file.paths[row])

    def duplicates_from(self) -> float:
        """The cosine from which on two images of the collection are near-duplicates."""
        file = self.file
        return choose_threshold(len(file), lambda rows: unit(file.embeddings[rows]),
                                np.array(file.digest(), "V32")).cosine

    def _hit(self, rank: int, found: Found, path: str, with_folded: bool) -> Hit:
        label = int(self._labels[found.row])
        return Hit(rank, found.score, path, None if label == NO_LABEL else self._label_names[label], found.row,
                   int(self._ids[found.row]), found.folded if with_folded else None)


def open_index(workspace: Workspace, config, note: Callable[[str], None] = say_nothing) -> SearchIndex | NoIndex:
    """The index that is given, or the workspace's; where there is none, the embeddings file in its place."""
    if config.index is None and not workspace.index.exists():
        return NoIndex.of(EmbeddingFile(workspace.embeddings_file(config.embeddings)), note)
    return SearchIndex.open(workspace.index_file(config.index))


def open_embeddings(index: SearchIndex, given: str | None) -> EmbeddingFile:
    """The embeddings file that the index was built from: `given`, or the one it names, relative to itself.

    Raises `UsageError` when it is not there and `MismatchError` when it holds other rows by now.
    """
    built_from = index.manifest["embeddings"]
    path = pathlib.Path(given or os.path.normpath(index.path.parent / built_from["path"]))
    if not path.is_file():
        raise UsageError(f"The embeddings file {str(path)!r} of {index.path} does not exist. "
                         "If it has moved, give it with --embeddings FILE.")
    file = EmbeddingFile(path)
    if file.identity != built_from["rows_sha256"]:
        count, identity = len(file), file.identity[:12]
        file.close()
        raise MismatchError(f"{index.path} was built from {built_from['count']} rows "
                            f"({built_from['rows_sha256'][:12]}), but {path} has {count} rows ({identity}).\n"
                            f"Run mocoembed index again: mocoembed index {path} --output {index.path}")
    return file
