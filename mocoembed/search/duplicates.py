"""Images that are there more than once: embeddings.h5 -> groups of near-duplicates, exact copies told apart.

Two images are near-duplicates when the cosine of their vectors is `threshold` or more, or their bytes are the same.
Groups are what is connected by such pairs, so that a chain of small changes is one group, whose ends may be less alike:
every member tells its similarity to the keeper. Each block of rows is looked for among the rows before it, so a
matrix of all similarities is never made. Nothing is deleted.

Components are found by union-find over an array of numbers, ten lines; SciPy's would need all pairs in memory.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from mocoembed.config import DuplicatesConfig
from mocoembed.data.images import require_root
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import UsageError
from mocoembed.files import StopRequest
from mocoembed.memory import within_memory
from mocoembed.search.build import require_vectors
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.kinds import ID_BYTES, WORKING_BYTES
from mocoembed.search.threshold import Threshold, choose_threshold
from mocoembed.workspace import Workspace

EXACT_ROWS = 200_000  # up to so many rows every pair is compared
PROBED = 32  # cells of the index that are looked into beyond that
TRAINED_ON = 64  # vectors for each cell
PAIR_BYTES = 1 << 28  # memory that the pairs of a block may take if every one is found
MOST_ROWS, LEAST_ROWS = 2048, 16  # in a block
UNKNOWN = bytes(32)  # digest of an image whose bytes nobody has read


@dataclass(frozen=True)
class Member:
    """An image of a group."""

    path: str
    """Full path; `os.fsencode` gives its bytes, whatever they are."""
    row: int
    """Row in the embeddings file."""
    label: str | None
    similarity: float
    """Cosine to the keeper's vector; in a chain it may be below the threshold."""
    width: int
    height: int
    size: int
    """Bytes of the file; 0 where unknown, as width and height."""
    identical: int | None
    """Members of the group with the same number have the same bytes; `None`: no other has these."""

    @property
    def pixels(self) -> str:
        """`640 x 480`; empty where unknown."""
        return f"{self.width} x {self.height}" if self.width else ""


@dataclass(frozen=True)
class Group:
    """Near-duplicates: the suggested keeper (the largest image) first, then the others, the most similar first."""

    members: tuple[Member, ...]

    @property
    def keeper(self) -> Member:
        """The image with the most pixels, then the most bytes, then the first path."""
        return self.members[0]


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
            needed = len(file) * (4 * file.dimension + ID_BYTES) + WORKING_BYTES + PAIR_BYTES
            with within_memory(f"Comparing {len(file)} vectors of dimension {file.dimension}", needed):
                threshold = _threshold(config, file, digests)
                compared = _join_near(file, components, threshold.cosine, progress, stop)
        groups = []
        for rows in components.groups():
            groups.append(_group(file, rows, config.root))
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


def _join_near(file: EmbeddingFile, components: Components, threshold: float, progress, stop: StopRequest) -> str:
    """Join the rows whose vectors are near enough; how they were looked for."""
    count = len(file)
    index, breadth, compared = FaissIndex.empty(file.dimension, "Flat"), 0, "all pairs"
    if count > EXACT_ROWS:
        cells = 1 << int(np.log2(4 * np.sqrt(count)))
        index, breadth = FaissIndex.empty(file.dimension, f"IVF{cells},Flat"), PROBED
        compared = f"IVF{cells}, {PROBED} cells probed"
        sample = np.linspace(0, count - 1, min(count, TRAINED_ON * cells)).astype(np.int64)
        index.train(unit(file.embeddings[sample]))
    step = min(MOST_ROWS, max(LEAST_ROWS, PAIR_BYTES // (12 * count)))
    least = np.nextafter(np.float32(threshold), np.float32(0)) - np.float32(1e-6)  # FAISS wants more, not equal
    for first in range(0, count, step):
        vectors = unit(file.embeddings[first:first + step])
        index.add(vectors, np.arange(first, first + len(vectors)))  # first, so that a block finds itself
        bounds, found = index.within(vectors, float(least), breadth)
        for row in range(len(vectors)):
            near, itself = found[bounds[row]:bounds[row + 1]], first + row
            if len(near) > 1 or (len(near) == 1 and near[0] != itself):
                components.join(np.append(near, itself))
        done = first + len(vectors)
        progress(done, count)
        stop.raise_if_set(f"Stopped after {done} of {count} images; there is no result. "
                          "Run the same command again.")
    return compared


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows (n, D) scaled to length 1; one of zeros stays."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def _group(file: EmbeddingFile, rows: np.ndarray, root: str | None) -> Group:
    facts = {name: getattr(file, name)[rows].tolist() for name in ("width", "height", "size")}
    digests, (paths, labels) = file.digest[rows], file.full_names(rows, root)
    order = sorted(range(len(rows)), key=lambda i: (-facts["width"][i] * facts["height"][i], -facts["size"][i],
                                                    paths[i]))
    keeper = order[0]
    vectors = unit(file.embeddings[rows]).astype(np.float64)
    similarity = (vectors @ vectors[keeper]).clip(-1, 1)
    repeated = [digest for digest, times in Counter(digests).items() if times > 1 and digest != UNKNOWN]
    number = {digest: place for place, digest in enumerate(repeated, 1)}
    order[1:] = sorted(order[1:], key=lambda i: (-round(similarity[i], 6), paths[i]))
    return Group(tuple(Member(
        os.fsdecode(paths[i]), int(rows[i]), labels[i], round(float(similarity[i]), 6), facts["width"][i],
        facts["height"][i], facts["size"][i], number.get(digests[i])) for i in order))
