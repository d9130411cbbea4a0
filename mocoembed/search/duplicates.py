"""Images that are there more than once: embeddings.h5 -> groups of near-duplicates, exact copies told apart.

Two images are near-duplicates when the cosine of their vectors is `threshold` or more, or their bytes are the same.
Groups are what is connected by such pairs, so that a chain of small changes is one group, whose ends may be less alike:
every member tells its similarity to the keeper. Each block of rows is looked for among the rows before it, so a
matrix of all similarities is never made. Nothing is deleted.

Components are found by union-find over an array of numbers, ten lines; SciPy's would need all pairs in memory.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mocoembed.checks import is_gpu
from mocoembed.config import DuplicatesConfig
from mocoembed.data.facts import UNKNOWN
from mocoembed.data.images import require_root
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import UsageError
from mocoembed.files import StopRequest
from mocoembed.memory import within_memory
from mocoembed.search.build import require_vectors
from mocoembed.search.encoding import require_device
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.groups import Group, groups_of, unit
from mocoembed.search.index import SearchIndex
from mocoembed.search.kinds import ID_BYTES, WORKING_BYTES
from mocoembed.search.matching import index_by_cosine, told
from mocoembed.search.on_gpu import GpuVectors, move
from mocoembed.search.threshold import Threshold, choose_threshold
from mocoembed.workspace import Workspace

EXACT_ROWS = 200_000  # up to so many rows every pair is compared
PROBED = 32  # cells of the index that are looked into beyond that
TRAINED_ON = 64  # vectors for each cell
PAIR_BYTES = 1 << 28  # memory that the pairs of a block may take if every one is found
MOST_ROWS, LEAST_ROWS = 2048, 16  # in a block
NEIGHBOURS, MOST_NEIGHBOURS = 10, 1000  # that an index is asked for, which join whole groups by their chains


@dataclass(frozen=True)
class DuplicatesResult:
    """What `find_duplicates` found; the largest groups first."""

    groups: tuple[Group, ...]
    count: int
    """Images that were looked at."""
    threshold: float | None
    """`None`: only bytes were compared."""
    compared: str
    """How pairs were looked for: `all pairs`, an approximate index, or `bytes`."""
    bytes_known: bool
    """Whether the file has digests; without them nothing is said about bytes."""
    value_range: tuple[float, ...] = ()
    """(LOW, HIGH) that deep pixels were scaled from; empty: all that they can hold."""
    threshold_reason: str = ""
    """Why it is that threshold, when it was chosen from the collection."""

    @property
    def extra(self) -> int:
        """Images besides the keepers."""
        return sum(len(group.members) - 1 for group in self.groups)

    @property
    def copies(self) -> int | None:
        """Images whose bytes another one before them in their group has."""
        if not self.bytes_known:
            return None
        return sum(len(known) - len(set(known)) for known in (
            [member.identical for member in group.members if member.identical is not None] for group in self.groups))

    @property
    def extra_bytes(self) -> int | None:
        """Bytes of the images besides the keepers."""
        sizes = (member.size for group in self.groups for member in group.members[1:])
        return sum(sizes) if self.bytes_known else None

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"count": self.count, "threshold": self.threshold, "threshold_reason": self.threshold_reason,
                "compared": self.compared,
                "groups": [{"keep": group.keeper.path, "members": [asdict(one) for one in group.members]}
                           for group in self.groups],
                "extra": self.extra, "identical_copies": self.copies, "extra_bytes": self.extra_bytes}


def find_duplicates(config: DuplicatesConfig,
                    progress: Callable[[int, int], None] = lambda done, total: None) -> DuplicatesResult:
    """Groups of images of an embeddings file that are nearly or exactly the same.

    `progress(done, total)` counts rows. Raises `UsageError` for a missing file or root, or when bytes alone are to be
    compared and the file does not know them, `FormatError` for one that is damaged or empty, `MocoembedError` when the
    memory is too small, `Interrupted` after a signal.
    """
    require_root(config.root)
    require_device(config.device)
    with EmbeddingFile(Workspace(config.workspace).embeddings_file(config.embeddings)) as file, StopRequest() as stop:
        require_vectors(file)
        components = Components(len(file))
        digests = np.array(file.digest(), "V32")
        bytes_known = bool((digests != np.void(UNKNOWN)).any())
        if config.exact_only and not bytes_known:
            raise UsageError(f"--exact-only: {file.path} does not know the bytes of its images, as its vectors come "
                             "from another tool. Leave the option out, or embed the images: mocoembed embed FOLDER")
        for rows in same_bytes(digests):
            components.join(rows)
        compared, threshold = "bytes", None
        if not config.exact_only:
            index = None if config.index is None else index_by_cosine(config.index, file)
            if index is not None and is_gpu(config.device):
                move(index, config.device)
            held = 0 if index is not None or is_gpu(config.device) else len(file) * (4 * file.dimension + ID_BYTES)
            needed = held + WORKING_BYTES + PAIR_BYTES
            with within_memory(f"Comparing {len(file)} vectors of dimension {file.dimension}", needed):
                threshold = _threshold(config, file, digests)
                if index is not None:
                    compared = _join_found(index, file, components, threshold.cosine, progress, stop)
                else:
                    compared = _join_near(file, components, threshold.cosine, progress, stop, config.device)
        groups = []
        for group in groups_of(file, components.groups(), config.root):
            groups.append(group)
            stop.raise_if_set("Stopped; there is no result. Run the same command again.")
        groups.sort(key=lambda group: (-len(group.members), os.fsencode(group.keeper.path)))
        cosine, reason = (threshold.cosine, threshold.reason) if threshold else (None, "")
        return DuplicatesResult(tuple(groups), len(file), cosine, compared, bytes_known, file.value_range, reason)


def _threshold(config: DuplicatesConfig, file: EmbeddingFile, digests: np.ndarray) -> Threshold:
    """The threshold that was given, or the collection's own."""
    if isinstance(config.threshold, str):
        return choose_threshold(len(file), lambda rows: unit(file.embeddings[rows]), digests)
    return Threshold(config.threshold, "")


class Components:
    """Union-find over rows 0 to N - 1; the root of a component is its least row."""

    def __init__(self, count: int):
        self.parent = np.arange(count)

    def roots(self, rows: np.ndarray) -> np.ndarray:
        """The root of each row, which every row on the way then points to."""
        at = self.parent[rows]
        while not np.array_equal(above := self.parent[at], at):
            at = above
        self.parent[rows] = at
        return at

    def join(self, rows: np.ndarray):
        """Make the components of these rows one."""
        roots = np.unique(self.roots(rows))
        self.parent[roots] = roots[0]

    def join_pairs(self, a: np.ndarray, b: np.ndarray):
        """Make the components of rows a and b (n,) one, for each of the n pairs."""
        while True:
            a, b = self.roots(a), self.roots(b)
            apart = a != b
            if not apart.any():
                return
            a, b = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
            np.minimum.at(self.parent, b, a)

    def groups(self) -> list[np.ndarray]:
        """The rows of every component of two or more, rising."""
        roots = self.roots(np.arange(len(self.parent)))
        return pieces(np.argsort(roots, kind="stable"), np.bincount(roots, minlength=len(roots)))


def pieces(order: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """`order` cut into pieces of `counts` rows; those of two or more."""
    counts = counts[counts > 0]
    ends = np.cumsum(counts)
    return [order[end - count:end] for end, count in zip(ends, counts) if count > 1]


def same_bytes(digests: np.ndarray) -> list[np.ndarray]:
    """The rows of images whose bytes are the same, by their SHA-256 (N,) of V32; two or more rows each."""
    known = np.flatnonzero(digests != np.void(UNKNOWN))
    _, number, counts = np.unique(digests[known], return_inverse=True, return_counts=True)
    return pieces(known[np.argsort(number, kind="stable")], counts)


def _join_near(file: EmbeddingFile, components: Components, threshold: float, progress, stop: Any,
               device: str) -> str:
    """Join the rows whose vectors are near enough; how they were looked for."""
    on_gpu = is_gpu(device)
    pairs = (GpuVectors(file, device, unit).pairs(float(_least(threshold)),
                                                  lambda done: _advance(done, len(file), progress, stop))
             if on_gpu else near_pairs(file, threshold, progress, stop))
    for a, b, _ in pairs:
        components.join_pairs(a, b)
    return f"all pairs on {device}" if on_gpu else how_compared(len(file))


def how_compared(count: int) -> str:
    """How pairs are looked for among `count` vectors."""
    return "all pairs" if count <= EXACT_ROWS else f"IVF{_cells(count)}, {PROBED} cells probed"


def _cells(count: int) -> int:
    return 1 << int(np.log2(4 * np.sqrt(count)))


def near_pairs(file: EmbeddingFile, threshold: float, progress: Callable[[int, int], None],
               stop: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs of rows with a cosine of `threshold` or more: rows a > b (n,), and their cosines, in pieces.

    `stop.raise_if_set(message)` may end it.
    """
    count = len(file)
    index, breadth = FaissIndex.empty(file.dimension, "Flat"), 0
    if count > EXACT_ROWS:
        cells = _cells(count)
        index, breadth = FaissIndex.empty(file.dimension, f"IVF{cells},Flat"), PROBED
        sample = np.linspace(0, count - 1, min(count, TRAINED_ON * cells)).astype(np.int64)
        index.train(unit(file.embeddings[sample]))
    least, first = _least(threshold), 0
    while first < count:
        step = min(MOST_ROWS, max(LEAST_ROWS, PAIR_BYTES // (12 * (index.most_within(breadth) + MOST_ROWS))))
        vectors = unit(file.embeddings[first:first + step])
        index.add(vectors, np.arange(first, first + len(vectors)))  # first, so that a block finds itself
        bounds, cosines, found = index.within(vectors, float(least), breadth)
        ends = np.asarray(bounds[1:], np.int64)
        rows = first + np.searchsorted(ends, np.arange(len(found)), side="right")
        earlier = found < rows
        yield rows[earlier], found[earlier], cosines[earlier]
        first += len(vectors)
        _advance(first, count, progress, stop)


def _least(threshold: float) -> np.float32:
    """FAISS wants more, not equal."""
    return np.nextafter(np.float32(threshold), np.float32(0)) - np.float32(1e-6)


def _advance(done: int, count: int, progress, stop: StopRequest):
    progress(done, count)
    stop.raise_if_set(f"Stopped after {done} of {count} images; there is no result. Run the same command again.")


def _join_found(index: SearchIndex, file: EmbeddingFile, components: Components, threshold: float, progress,
                stop: StopRequest) -> str:
    """The same by an index: each row's nearest neighbours, more and more while the last one is near enough."""
    count, source, least = len(file), index.rows(file), _least(threshold)
    for first in range(0, count, MOST_ROWS):
        rows, wanted = np.arange(first, min(first + MOST_ROWS, count)), min(NEIGHBOURS, count)
        vectors = unit(file.embeddings[first:first + MOST_ROWS])
        while len(rows):
            scores, found = source.nearest(vectors, wanted)
            near = (scores >= least) & (found >= 0)
            for row in np.flatnonzero((near & (found != rows[:, None])).any(axis=1)):
                components.join(np.append(found[row][near[row]], rows[row]))
            more = near.all(axis=1) & (wanted < min(count, MOST_NEIGHBOURS))
            rows, vectors, wanted = rows[more], vectors[more], min(4 * wanted, count)
        _advance(min(first + MOST_ROWS, count), count, progress, stop)
    return told(index)
