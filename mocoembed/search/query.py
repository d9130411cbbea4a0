"""Search by image: query images -> vectors by the collection's own encoder -> hits (rank, score, path, label).

Index, embeddings file and encoder must belong together; a foreign or outdated one is refused.
"""

import os
import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from mocoembed.config import SearchConfig
from mocoembed.data.decode import EncodedImage
from mocoembed.data.facts import Failure
from mocoembed.data.images import NO_LABEL, require_root
from mocoembed.data.shards import read_path, split_at_shard
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, MismatchError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.encoding import is_without_torch, query_encoder, require_device
from mocoembed.search.index import SearchIndex, rows_of
from mocoembed.workspace import Workspace

BATCH = 64  # query images embedded at a time


@dataclass(frozen=True)
class Hit:
    """An image of the collection that is near to a query."""

    rank: int
    """From 1, the nearest."""
    score: float
    """Cosine similarity, or minus the squared distance of vectors that do not have length 1."""
    path: str
    """Full path; `os.fsencode` gives its bytes, whatever they are."""
    label: str | None
    row: int
    """Row in the embeddings file."""


@dataclass(frozen=True)
class QueryResult:
    """A query image's path, as it was given, and its hits, the nearest first."""

    query: str
    hits: list[Hit]
    value_range: tuple[float, ...] = ()
    """(LOW, HIGH) that the deep pixels of all of them were scaled from; empty: all that they can hold."""

    def as_json(self) -> dict:
        """Query and hits, as plain JSON types."""
        return {"query": self.query, "hits": [asdict(hit) for hit in self.hits]}


def search_images(config: SearchConfig,
                  progress: Callable[[int, int], None] = lambda done, total: None,
                  note: Callable[[str], None] = say_nothing) -> list[QueryResult]:
    """Find the images of the collection that are nearest to each of `config.images`.

    `progress(done, total)` counts queries; `note(text)` is called with what a person should know of an encoder of
    others. Raises `UsageError` for missing files, `CollectionError` for a query that
    cannot be read, `MismatchError` when index, embeddings and encoder do not belong together, `FormatError` for a
    damaged file.
    """
    require_images(config.images)
    results: list[QueryResult] = []
    with Searcher(config, note) as searcher:
        for first in range(0, len(config.images), BATCH):
            names = config.images[first:first + BATCH]
            vectors = searcher.embed([searcher.read(name) for name in names])
            results += [QueryResult(name, hits, searcher.file.value_range)
                        for name, hits in zip(names, searcher.hits(vectors, config.k))]
            progress(len(results), len(config.images))
    return results


def require_images(names):
    """Raise `UsageError` unless every path exists and is no folder."""
    for name in names:
        if not os.path.exists(name) and split_at_shard(os.fsencode(name)) is None:
            raise UsageError(f"The image {name!r} does not exist. Give one or more: mocoembed search IMAGE...")
        if os.path.isdir(name):
            raise UsageError(f"{name!r} is a folder. Give images: mocoembed search IMAGE...")


def read_query(name: str, transform, full_decode: bool, with_torch: bool = True) -> np.ndarray:
    """(S, S, 3) uint8: the query as the encoder sees it; `CollectionError` when it cannot be read."""
    try:
        return transform.pixels(EncodedImage(read_path(name), full_decode, transform.value_range), with_torch)
    except Exception as error:  # whatever a decoder raises
        failure = Failure.of(0, error)
        raise CollectionError(f"The image {name!r} cannot be read: {failure.error}: {failure.reason}") from error


class Searcher:
    """An index, its embeddings file and its encoder, checked against each other; a context manager.

    `config` is a `SearchConfig`, or anything with its fields `workspace`, `index`, `embeddings`, `encoder`, `root`,
    `device` and `torch`.
    """

    def __init__(self, config, note: Callable[[str], None] = say_nothing):
        workspace = Workspace(config.workspace)
        require_device(config.device)  # a wrong one is refused before anything is read, and so is a root
        require_root(config.root)
        self.index = SearchIndex.open(workspace.index_file(config.index))
        self.root = config.root
        self.file = open_embeddings(self.index, config.embeddings)
        self._encoder = query_encoder(config, workspace, self.index, self.file, note)
        self.transform = replace(self._encoder.transform, value_range=self.file.value_range)
        self._ids, self._labels, self._label_names = self.file.ids(), self.file.labels(), self.file.label_names

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def read(self, name: str) -> np.ndarray:
        """(S, S, 3) uint8: a query image, decoded as the collection's were; `CollectionError` if it cannot be."""
        return read_query(name, self.transform, self.file.full_decode, not is_without_torch(self._encoder))

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        """(Q, D) float32, from Q images (S, S, 3) uint8."""
        return self._encoder(np.stack(images))

    def hits(self, vectors: np.ndarray, k: int) -> list[list[Hit]]:
        """For each of `vectors` (Q, D), the k nearest images."""
        scores, ids = self.index.search(vectors, k)
        row_of = rows_of(self._ids, ids)
        return [[self._hit(rank, float(score), row_of[number])
                 for rank, (score, number) in enumerate(zip(some_scores, some_ids.tolist()), 1)]
                for some_scores, some_ids in zip(scores, ids)]

    def _hit(self, rank: int, score: float, row: int) -> Hit:
        label = int(self._labels[row])
        return Hit(rank, score, os.fsdecode(self.file.full_path(row, self.root)),
                   None if label == NO_LABEL else self._label_names[label], row)


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
