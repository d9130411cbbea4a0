"""What is searched: an index, its embeddings file and the encoder of the queries, checked against each other.

Index, embeddings file and encoder must belong together; a foreign or outdated one is refused. A `Pair` never changes:
it stays with the files that it has opened, also when others take their place.
"""

import contextlib
import functools
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mocoembed.checks import is_gpu
from mocoembed.config import SearchConfig
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import Failure
from mocoembed.data.found import State
from mocoembed.data.images import NO_LABEL, require_root
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.search.encoding import is_without_torch, query_encoder, require_device
from mocoembed.search.exact import ExactRows, NoIndex
from mocoembed.search.filters import Filter
from mocoembed.search.groups import unit
from mocoembed.search.hits import HIGHEST, Hit
from mocoembed.search.index import SearchIndex
from mocoembed.search.matching import default_index, embeddings_path, open_both
from mocoembed.search.on_gpu import GpuVectors, source_on
from mocoembed.search.queries import Region, decoded, is_one, is_vector, read_bytes, scaled, shown
from mocoembed.search.ranking import Ranking, Wishes
from mocoembed.search.threshold import choose_threshold
from mocoembed.workspace import Workspace

BATCH = 64  # query images embedded at a time
MASKS = 15  # of filters that are remembered by a pair


def state_of(path) -> State | None:
    """The state of a file, which differs when it is replaced; `None` where it cannot be told."""
    try:
        return State.of(path)
    except OSError:
        return None


def query_pixels(data: bytes, name: str, transform, full_decode: bool, crop: Sequence[int] = (),
                 with_torch: bool = True) -> np.ndarray:
    """(S, S, 3) uint8: the query `name`, or its region `crop`, as the encoder sees it.

    Raises `CollectionError` when it cannot be read, `UsageError` for a region outside of it.
    """
    with readable(shown(name)):
        image = EncodedImage(data, full_decode, transform.value_range)
        return transform.pixels(Region(image, crop, name) if crop else image, with_torch)


@contextlib.contextmanager
def readable(what: str):
    """Turn whatever is raised while the image `what` is read into a `CollectionError`; `UsageError` stays."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever a decoder raises
        raise CollectionError(f"The image {what} cannot be read: {Failure.of(0, error).said}") from error


def _require_wishes(k: Any, chosen: Any, min_score: Any):
    """Raise `UsageError` for what cannot be wished for from Python; on the command line, the configuration does."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise UsageError(f"k {k!r}: must be a whole number, 1 or more.")
    if not isinstance(chosen, Filter | None):
        raise UsageError(f"filter {chosen!r}: must be a mocoembed.Filter, such as Filter(labels=('cats',)).")
    if not isinstance(min_score, int | float | np.number) or math.isnan(min_score):
        raise UsageError(f"min_score {min_score!r}: must be a number.")


class Pair:
    """An index, its embeddings file and its encoder, opened together; a context manager.

    Several threads may use it at once.
    """

    def __init__(self, config: SearchConfig, note: Callable[[str], None] = say_nothing, encoder: bool = True,
                 before: "Pair | None" = None):
        """Without `encoder` none is looked for, and vectors alone can be searched for.

        The encoder is that of the pair `before`, if that has the same.
        """
        workspace = Workspace(config.workspace)
        require_device(config.device)  # a wrong one is refused before anything is read, and so is a root
        require_root(config.root)
        self.root = config.root
        index_path = pathlib.Path(config.index or default_index(workspace, config.embeddings))
        index_state = state_of(index_path)  # before it is opened: a later change shows
        if config.index is None and not index_path.exists():
            path = workspace.embeddings_file(config.embeddings)
            embeddings_state, self.file = state_of(path), EmbeddingFile(path)
            self.index: SearchIndex | NoIndex = NoIndex.of(self.file, note)
        else:
            path = embeddings_path(workspace.index_file(str(index_path)), config.embeddings)
            embeddings_state = state_of(path)
            self.index, self.file = open_both(index_path, path)
        self.states: dict[pathlib.Path, State | None] = {index_path: index_state, path: embeddings_state}
        root = os.fsencode(config.root) if config.root else self.file.root
        self._above = os.path.join(root, b"")
        self._encoder: Any = None
        self.transform: EvaluationTransform | None = None
        self._embedding = threading.Lock()
        if encoder:
            self._take_encoder(config, workspace, note, before)
        self._ids, self._labels, self._label_names = self.file.ids(), self.file.labels(), self.file.label_names
        self._rows: Any = None if isinstance(self.index, NoIndex) else self.index.rows(
            self.file, config.recall, self._ids)
        self._exactly: Callable[[np.ndarray | None], Any] = functools.partial(ExactRows, self.file)
        if is_gpu(config.device):
            vectors = GpuVectors(self.file, config.device)
            self._rows, self._exactly = source_on(vectors, self.index, self._rows, note), vectors.rows
        self._masks: dict[Filter, np.ndarray] = {}

    def _take_encoder(self, config: SearchConfig, workspace: Workspace, note, before: "Pair | None"):
        if before is not None and before._encoder is not None and before._made_by() == self._made_by():
            self._encoder, self._embedding = before._encoder, before._embedding
        else:
            self._encoder = query_encoder(config, workspace, self.index, self.file, note)
        self.transform = replace(self._encoder.transform, value_range=self.file.value_range)

    def _made_by(self) -> tuple:
        """What the encoder of the queries depends on."""
        return (*(self.index.manifest[name] for name in ("encoder", "features", "normalized")), self.file.precision)

    def __enter__(self):
        return self

    def close(self):
        """Close the embeddings file."""
        self.file.close()

    def __exit__(self, *exception):
        self.file.close()

    def search(self, images, k: int = 10, filter: Filter | None = None, min_score: float = -math.inf,
               unique: bool = False, diverse: bool = False) -> list:
        """What `Searcher.search` gives."""
        _require_wishes(k, filter, min_score)
        some = [images] if is_one(images) else list(images)
        if not some:
            return []
        wishes = Wishes(k, self.mask(filter) if filter else None, min_score,
                        self.duplicates_from() if unique else None, diverse)
        hits = self.chosen(self._vectors(some), wishes)
        return hits[0] if is_one(images) else hits

    def mask(self, chosen: Filter) -> np.ndarray:
        """(N,) bool: the rows that a filter selects; the latest filters are remembered."""
        if (mask := self._masks.get(chosen)) is None:
            mask = chosen.mask(self.file)
            self._masks = {**dict(list(self._masks.items())[-MASKS:]), chosen: mask}
        return mask

    def _vectors(self, some: list) -> np.ndarray:
        """(Q, D) float32: those among the queries that are vectors, and those of the others."""
        dimension = self.file.dimension
        vectors, images = np.empty((len(some), dimension), np.float32), {}
        for place, one in enumerate(some):
            if is_vector(one):
                if len(one) != dimension:
                    raise UsageError(f"A vector of {len(one)} numbers; those of {self.file.path} have {dimension}.")
                vectors[place] = scaled(np.asarray(one, np.float32)[None])[0] if self.file.normalized else one
            else:
                images[place] = self._decoded(one, place)
        places = list(images)
        for first in range(0, len(places), BATCH):
            with self._embedding:
                vectors[places[first:first + BATCH]] = self.embed([images[i] for i in places[first:first + BATCH]])
        return vectors

    def _decoded(self, one: Any, place: int) -> np.ndarray:
        """(S, S, 3) uint8: an image as the encoder sees it."""
        if self.transform is None:
            raise UsageError("This searcher was opened without an encoder: give vectors, or leave encoder=False out.")
        with readable(repr(one) if isinstance(one, str) else f"of query {place}"):
            image = decoded(one, self.file.full_decode, self.file.value_range)
            return self.transform.pixels(image, not is_without_torch(self._encoder))

    def read(self, name: str) -> np.ndarray:
        """(S, S, 3) uint8: a query image, decoded as the collection's were; `CollectionError` if it cannot be."""
        return self.read_with_bytes(name)[0]

    def read_with_bytes(self, name: str, crop: Sequence[int] = ()) -> tuple[np.ndarray, bytes]:
        """The same of an image or its region `crop` (left, top, width, height), and the image's bytes."""
        with readable(shown(name)):
            data = read_bytes(name)
        return self.pixels(data, crop, name), data

    def pixels(self, data: bytes, crop: Sequence[int] = (), name: str = "query") -> np.ndarray:
        """(S, S, 3) uint8: the same of the bytes of an image file."""
        return query_pixels(data, name, self.transform, self.file.full_decode, crop,
                            not is_without_torch(self._encoder))

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        """(Q, D) float32, from Q images (S, S, 3) uint8."""
        return self._encoder(np.stack(images))

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) and rows (Q, k) of the images nearest to `vectors` (Q, D); -1 where there is none."""
        return (self._exactly(None) if self._rows is None else self._rows).nearest(vectors, k)

    def hits(self, vectors: np.ndarray, k: int) -> list[list[Hit]]:
        """For each of `vectors` (Q, D), the k nearest images."""
        return self.chosen(vectors, Wishes(k))

    def chosen(self, vectors: np.ndarray, wishes: Wishes, excluded: Sequence[np.ndarray] = ()) -> list[list[Hit]]:
        """For each of `vectors` (Q, D), the hits that are wished for; `excluded`: for each, rows that are none."""
        found = Ranking(self.file, self._rows, wishes, self._exactly).hits(vectors, excluded)
        rows = sorted({one.row for some in found for one in some})
        facts = dict(zip(rows, self._facts(rows)))  # in blocks: one row at a time takes as long as the search
        folds = wishes.unique is not None
        return [[Hit(rank, min(one.score, HIGHEST), *facts[one.row], len(one.folded) if folds else None, one.folded)
                 for rank, one in enumerate(some, 1)] for some in found]

    def _facts(self, rows: list[int]) -> Iterator[tuple[str, str | None, int, int]]:
        """Path, label, row and id of several rows."""
        labels = [None if one == NO_LABEL else self._label_names[one] for one in self._labels[rows].tolist()]
        return zip(self._full(self.file.paths_at(rows)), labels, rows, self._ids[rows].tolist())

    def _full(self, paths: list[bytes]) -> list[str]:
        """Full paths; they are decoded together, as one at a time takes as long as the search."""
        return os.fsdecode(b"\0".join([path if path.startswith(b"/") else self._above + path for path in paths])
                           ).split("\0")

    def path_of(self, row: int) -> str:
        """Full path of a row's image."""
        return self._full(self.file.paths_at([row]))[0]

    def duplicates_from(self) -> float:
        """The cosine from which on two images of the collection are near-duplicates."""
        file = self.file
        return choose_threshold(len(file), lambda rows: unit(file.embeddings[rows]),
                                np.array(file.digest(), "V32")).cosine
