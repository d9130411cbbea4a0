"""A map: embeddings.h5 -> a place in two dimensions for every image, alike ones near each other -> embeddings.map.

t-SNE (van der Maaten and Hinton 2008) with FFT interpolation (Linderman et al. 2019) by openTSNE, over neighbours that
FAISS finds, from the first two principal components. Of three libraries it is the most faithful and the smallest:
`docs/page.md` has the figures. The only module that imports openTSNE.

Where a map is there already, its images stay where they are, and new ones are put among their nearest neighbours; when
more than a fifth were added this way, at once or little by little, all are arranged again. If no more than half
are new, the optimisation goes on from the old places, without early exaggeration, so that images move little; beyond
that, it begins from the old places made small, as from principal components. The places that an arrangement begins
from are written first, as a provisional map: principal components, or old places, which the page shows until it is
done.
"""

import functools
import importlib.util
import logging
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.config import MapConfig
from mocoembed.data.images import NO_LABEL
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import StopRequest, locked
from mocoembed.memory import within_memory
from mocoembed.search.build import require_vectors
from mocoembed.search.duplicates import EXACT_ROWS, PROBED, TRAINED_ON, unit
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.index_rows import others
from mocoembed.search.kinds import WORKING_BYTES
from mocoembed.search.map_file import ImageMap, map_file_of, read_map, write_map
from mocoembed.workspace import Workspace

PERPLEXITY = 30
PCA = "PCA"
FEWEST = 10  # images for t-SNE; fewer are placed by their principal components
VOTING = 10  # neighbours that agreement is counted over
PLACING = 5  # neighbours that a new image is put among
NEW_SHARE = 0.2  # of images that may be put among their neighbours since all were arranged
GOES_ON = 0.5  # of images that may be new where the arrangement goes on from the old places
EARLY, NORMAL = 250, 500  # iterations, openTSNE's own defaults
TOLD_EACH = 10  # iterations
ON_ONE_CORE = 2_000  # images at most; for so few, threads wait for each other longer than they work
START = 1e-4  # standard deviation of the first coordinate that t-SNE begins from
BLOCK = 2048  # rows that are searched for at a time
STOPPED = "Stopped; the map was not arranged. Run the same command again."


@dataclass(frozen=True)
class MapResult:
    """What `make_map` did."""

    path: pathlib.Path
    count: int
    method: str
    new: int
    """Images that were not on the map before."""
    arranged: bool
    """Whether all were arranged; otherwise those that were on the map before stay where they were."""
    agreement: float | None
    """Mean share of the ten nearest neighbours with the image's own label; `None` without labels."""
    seconds: float


def make_map(config: MapConfig,
             progress: Callable[[int, int], None] = lambda done, total: None) -> MapResult:
    """Make or update the map of an embeddings file.

    `progress(done, total)` counts steps. Raises `UsageError` for a missing file or library, `FormatError` for an
    embeddings file that is damaged or empty, `LockedError` when another process makes the map, `Interrupted` after a
    signal, `MocoembedError` when the memory is too small.
    """
    begun, source = time.perf_counter(), Workspace(config.workspace).embeddings_file(config.embeddings)
    output = map_file_of(source)
    with EmbeddingFile(source) as file, locked(output.with_name(f".{output.name}.lock"), str(output)):
        require_vectors(file)
        needed = len(file) * (8 * file.dimension + 3 * PERPLEXITY * 24) + WORKING_BYTES
        what = f"A map of {len(file)} vectors of dimension {file.dimension}"
        with StopRequest() as stop, within_memory(what, needed):
            old, making, ids = _old(output), _Making(file, progress, stop), file.ids()

            def show(places: np.ndarray, method: str):
                """Until the arrangement is done, unless there is one of these rows."""
                if old is None or old.identity != file.identity:
                    unknown = np.full(len(ids), np.nan, np.float32)
                    write_map(output, ImageMap(file.identity, method, ids, places, unknown, provisional=True))

            before = None if config.fresh else old
            places, new, method, arranged = making.places(before, show)
            placed = 0 if before is None or arranged else placed_on(before, len(ids), new)
            made = ImageMap(file.identity, method, ids, places, making.agreement(), placed=placed)
            write_map(output, made)
    known = made.agreement[np.isfinite(made.agreement)]
    return MapResult(output, len(made), method, new, arranged, float(known.mean()) if len(known) else None,
                     time.perf_counter() - begun)


def require_library():
    """Raise `UsageError` where openTSNE is not installed."""
    if importlib.util.find_spec("openTSNE") is None:  # loading it takes a second
        raise UsageError("mocoembed map needs openTSNE. Install it: pip install 'mocoembed[map]'")


def _old(path: pathlib.Path) -> ImageMap | None:
    """The map that is there; none if there is no whole one, or only principal components in place of one."""
    try:
        found = read_map(path)
    except (FileNotFoundError, FormatError):
        return None
    return None if found.provisional and found.method == PCA else found


def placed_on(old: ImageMap, count: int, new: int) -> int:
    """How many of `count` images were put among their neighbours since all were arranged, with `new` ones now."""
    return min(old.placed, count - new) + new


class _Making:
    """The vectors of an embeddings file, scaled to length 1, and the nearest neighbours of each."""

    def __init__(self, file: EmbeddingFile, progress: Callable[[int, int], None], stop: StopRequest):
        self.file, self._progress, self._stop = file, progress, stop
        self.vectors = unit(file.embeddings[:])
        self.blocks = -(-len(self.vectors) // BLOCK)
        self.total = self.blocks + EARLY + NORMAL

    def _tell(self, done: int):
        self._progress(min(done, self.total), self.total)
        self._stop.raise_if_set(STOPPED)

    @functools.cached_property
    def near(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, k) and Euclidean distances (N, k) of the k nearest others."""
        k = min(3 * PERPLEXITY, len(self.vectors) - 1)
        if k < 1:
            return np.empty((len(self.vectors), 0), np.int64), np.empty((len(self.vectors), 0), np.float32)
        index, rows, distances = Near(self.vectors), [], []
        for block in range(self.blocks):
            some = self.vectors[block * BLOCK:(block + 1) * BLOCK]
            cosines, found = index.search(some, k + 1)
            other = others(found, np.arange(block * BLOCK, block * BLOCK + len(some)))
            rows.append(found[other].reshape(-1, k))
            distances.append(np.sqrt((2 - 2 * cosines[other].reshape(-1, k)).clip(0)))
            self._tell(block + 1)
        return np.concatenate(rows), np.concatenate(distances)

    def agreement(self) -> np.ndarray:
        """(N,) float32: the share of the nearest `VOTING` others with the row's label; NaN without one."""
        labels, near = self.file.labels(), self.near[0][:, :VOTING]
        if not near.shape[1]:
            return np.full(len(labels), np.nan, np.float32)
        share = (labels[near] == labels[:, None]).mean(axis=1)
        return np.where(labels == NO_LABEL, np.nan, share).astype(np.float32)

    def places(self, old: ImageMap | None,
               show: Callable[[np.ndarray, str], None]) -> tuple[np.ndarray, int, str, bool]:
        """(N, 2) float32, how many of them are new, the method, and whether all were arranged.

        `show` gets what there is until they are.
        """
        ids = self.file.ids()
        at = {int(one): row for row, one in enumerate(old.ids)} if old is not None else {}
        source = np.array([at.get(int(one), -1) for one in ids], np.int64)
        new = int((source < 0).sum())
        if old is not None and new < len(ids):
            places = self._among_known(old.places, source)
            if placed_on(old, len(ids), new) <= NEW_SHARE * len(ids) and not old.provisional:
                return places, new, old.method, False
            first, method = places - places.mean(axis=0), old.method
        else:
            first, method = principal(self.vectors), PCA
        if len(ids) < FEWEST:
            return principal(self.vectors).astype(np.float32), new, PCA, True
        require_library()
        show(first.astype(np.float32), method)
        goes_on = old is not None and method != PCA and not old.provisional and new <= GOES_ON * len(ids)
        scale = 1.0 if goes_on else START / (first[:, 0].std() or 1.0)
        return self._arranged(first * scale, 0 if goes_on else EARLY), new, "t-SNE", True

    def _among_known(self, places: np.ndarray, source: np.ndarray) -> np.ndarray:
        """(N, 2): the old places, and for new rows the mean of those of their nearest known neighbours."""
        made = places[source].astype(np.float64)
        known, new = np.flatnonzero(source >= 0), np.flatnonzero(source < 0)
        if len(new):
            index = Near(self.vectors[known])
            cosines, found = index.search(self.vectors[new], min(PLACING, len(known)))
            weights = np.exp((cosines - cosines[:, :1]) / 0.05) * (found >= 0)
            made[new] = (places[source[known[found]]] * weights[..., None]).sum(1) / weights.sum(1, keepdims=True)
        return made.astype(np.float32)

    def _arranged(self, first: np.ndarray, early: int) -> np.ndarray:
        """(N, 2) float32 by t-SNE, which begins from `first` (N, 2) with `early` iterations of exaggeration."""
        from openTSNE import TSNE, affinity, nearest_neighbors

        count, last, before = len(first), 0, self.blocks + EARLY - early
        jobs = -1 if count > ON_ONE_CORE else 1

        def told(iteration: int, error: float, places: Any) -> bool:
            nonlocal last, before
            if iteration < last:  # the second phase counts anew
                before += EARLY
            last = iteration
            self._progress(min(before + iteration, self.total), self.total)
            return self._stop.signal_number is not None  # ends the optimisation

        logging.getLogger("openTSNE").setLevel(logging.ERROR)  # it warns of places that are large to begin from
        known = nearest_neighbors.PrecomputedNeighbors(*self.near)
        near = affinity.PerplexityBasedNN(perplexity=min(PERPLEXITY, (count - 1) / 3), knn_index=known, n_jobs=jobs)
        tsne = TSNE(early_exaggeration_iter=early, n_iter=NORMAL, n_jobs=jobs, random_state=0, callbacks=[told],
                    callbacks_every_iters=TOLD_EACH)
        places = tsne.fit(affinities=near, initialization=first.astype(np.float64))
        self._tell(self.total)
        return np.asarray(places, np.float32)


class Near:
    """The nearest of N vectors of length 1: exact up to `EXACT_ROWS` of them."""

    def __init__(self, vectors: np.ndarray):
        count, dimension = vectors.shape
        self._breadth, factory, cells = 0, "Flat", 0
        if count > EXACT_ROWS:
            cells = 1 << int(np.log2(4 * np.sqrt(count)))
            self._breadth, factory = PROBED, f"IVF{cells},Flat"
        self._index = FaissIndex.empty(dimension, factory)
        if cells:
            sample = np.linspace(0, count - 1, min(count, TRAINED_ON * cells)).astype(np.int64)
            self._index.train(vectors[sample])
        self._index.add(vectors, np.arange(count))

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (Q, k) and rows (Q, k)."""
        return self._index.search(vectors, k, self._breadth)


def principal(vectors: np.ndarray) -> np.ndarray:
    """(N, 2) float64: the first two principal components; a direction's sign is that of its largest element."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))  # D x D, rising
    two = directions[:, -2:][:, ::-1]
    two = two * np.sign(two[np.abs(two).argmax(axis=0), np.arange(two.shape[1])])
    made = centred @ two
    return made if made.shape[1] == 2 else np.concatenate([made, np.zeros((len(made), 1))], axis=1)
