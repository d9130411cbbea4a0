"""The index: embeddings.h5 -> embeddings.faiss -> the nearest ids of a vector. The only module that imports faiss.

Vectors of length 1 are compared by their inner product, which is then the cosine similarity; others by the Euclidean
distance. A score is higher for what is nearer: the inner product, or minus the squared distance.
"""

import hashlib
import io
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from mocoembed.config import IndexConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MismatchError, MocoembedError, UsageError
from mocoembed.files import StopRequest, locked, replacing, require_file, require_space
from mocoembed.memory import within_memory
from mocoembed.search.trailer import (
    FORMAT_VERSION,
    KIND,
    MAGIC,
    damaged,
    read_manifest,
    read_trailer,
    sha256_start,
    trailer,
)
from mocoembed.verified import has_digest
from mocoembed.version import __version__
from mocoembed.workspace import Workspace

__all__ = ["MAGIC", "IndexResult", "SearchIndex", "build_index", "read_manifest"]

FACTORIES = {"auto": "IDMap2,Flat", "flat": "IDMap2,Flat"}  # both compare with every vector, so they are exact
METRICS = {"inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
BLOCK_BYTES = 1 << 25  # memory that a block of vectors takes while it is compared with the sample
ID_BYTES = 112  # memory for each id: in FAISS's list and hash table, and while ids are looked up
WORKING_BYTES = 1 << 27  # what building takes beside vectors and ids
SAMPLE, NEIGHBOURS = 100, 10  # recall@10 and latency are measured on up to 100 stored vectors
TOLERANCE = 1e-5  # relative; FAISS adds up in float32, the reference in float64
STOPPED_MEASURING = "Stopped while measuring; no index was written. Run the same command again."

_loading = threading.Lock()  # FAISS's limit is one for the whole process


@dataclass(frozen=True)
class IndexResult:
    """What `build_index` did."""

    path: pathlib.Path
    manifest: dict
    """As stored in the file: factory, metric, count, dimension, recall_at_10, latency_ms and more."""


# ------------------------------------------------------------------------------------------------ building


def build_index(config: IndexConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> IndexResult:
    """Build the index of an embeddings file and measure it.

    `progress(done, total)` counts vectors. Raises `UsageError` for wrong paths, `FormatError` for an embeddings file
    that is damaged, empty or holds vectors that are not finite, `LockedError` when another process writes the index,
    `Interrupted` after a signal, `MocoembedError` when the memory or the disk is too small. An index that is already
    there is replaced when the new one is whole.
    """
    source = Workspace(config.workspace).embeddings_file(config.embeddings)
    output = pathlib.Path(config.output) if config.output else source.with_suffix(".faiss")
    require_replaceable(output, source, config.fresh)
    with EmbeddingFile(source) as file, locked(output.with_name(f".{output.name}.lock"), str(output)):
        require_vectors(file)
        needed = len(file) * (4 * file.dimension + ID_BYTES) + WORKING_BYTES
        what = f"An index of {len(file)} vectors of dimension {file.dimension}"
        with StopRequest() as stop, within_memory(what, needed):
            index = faiss.index_factory(file.dimension, FACTORIES[config.type], METRICS[metric_of(file)])
            _fill(index, file, progress, stop)
            manifest = {**_description(file, output), "type": "flat", "factory": FACTORIES[config.type],
                        "parameters": {}, **measure(index, file, stop)}
            return IndexResult(output, _write(output, index, manifest, stop))


def empty_index(dimension: int, factory: str = "Flat") -> faiss.Index:
    """A new FAISS index of inner products, for work that is not kept: rows are numbered as they are added."""
    return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)


def metric_of(file: EmbeddingFile) -> str:
    """How the vectors of a file are compared: `inner_product` if they have length 1, else `l2`."""
    return "inner_product" if file.normalized else "l2"


def require_replaceable(output: pathlib.Path, source: pathlib.Path, fresh: bool):
    """Raise `UsageError` when `output` is there and is not a whole index of ours, of the embeddings `source`.

    `fresh` allows any other index to be replaced, but never a file that is none.
    """
    if not output.exists():
        return
    if output.is_dir():
        raise UsageError(f"--output {output}: is a folder. Give the name of a file.")
    try:
        before = read_manifest(output)["embeddings"]["path"]
    except FormatError as error:
        if fresh and _begins_like_an_index(output):
            return
        raise UsageError(f"--output {output}: exists and is not a mocoembed index, or is damaged. "
                         "Give another name, or add --fresh if it is an index.") from error
    if not fresh and os.path.normpath(output.parent / before) != os.path.normpath(source):
        raise UsageError(f"{output} is the index of {before}, not of {source}. Add --fresh to replace it, "
                         "or give another --output.")


def _begins_like_an_index(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"Ix"  # as every index of FAISS does


def require_vectors(file: EmbeddingFile):
    """Raise `FormatError` unless the file has a vector and its rows match their SHA-256."""
    if len(file) == 0:
        raise FormatError(f"{file.path} holds no vectors. Embed images with: mocoembed embed FOLDER --fresh")
    file.verify()


def _blocks(file: EmbeddingFile) -> Iterator[tuple[slice, np.ndarray]]:
    """The vectors of a file in slices of rows."""
    step = max(1, BLOCK_BYTES // row_bytes(file.dimension))
    for first in range(0, len(file), step):
        rows = slice(first, min(first + step, len(file)))
        yield rows, file.embeddings(rows)


def row_bytes(dimension: int) -> int:
    """Memory for a vector in a block: itself in float32 and float64, and the sample's scores in four arrays."""
    return 12 * dimension + 4 * 8 * SAMPLE


def _fill(index: faiss.Index, file: EmbeddingFile, progress, stop: StopRequest):
    """Add every vector under its id."""
    ids = file.ids()
    _reserve(index, len(file))
    for rows, vectors in _blocks(file):
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            row = rows.start + int(np.argmin(finite))
            raise FormatError(f"{file.path}: row {row} ({os.fsdecode(file.paths(slice(row, row + 1))[0])!r}) holds a "
                              "number that is not finite. Embed the folder again with --fresh.")
        index.add_with_ids(np.ascontiguousarray(vectors), ids[rows])
        progress(rows.stop, len(file))
        stop.raise_if_set(f"Stopped after {rows.stop} of {len(file)} vectors; no index was written. "
                          "Run the same command again.")


def _reserve(index: faiss.Index, count: int):
    """Take the memory of a flat index at once: growing it step by step would take twice as much."""
    flat: Any = faiss.downcast_index(index.index)  # type: ignore[attr-defined]  # it is an IndexIDMap2
    flat.codes.resize(count * flat.code_size)
    flat.codes.resize(0)


def _description(file: EmbeddingFile, output: pathlib.Path) -> dict:
    """The part of the manifest that comes from the embeddings file."""
    relative = os.path.relpath(file.path.resolve(), output.parent.resolve())
    return {"kind": KIND, "format": FORMAT_VERSION, "mocoembed": __version__, "faiss": faiss.__version__,
            "count": len(file), "dimension": file.dimension, "metric": metric_of(file),
            "normalized": file.normalized, "features": file.features, "encoder": file.fingerprint,
            "embeddings": {"path": relative, "count": len(file), "rows_sha256": file.identity}}


class _HashingWriter:
    """Passes what FAISS writes on to a file, and hashes it; a signal stops it."""

    def __init__(self, file: io.BufferedWriter, stop: StopRequest):
        self.file, self.stop, self.sha256, self.length = file, stop, hashlib.sha256(), 0

    def __call__(self, data: bytes) -> int:
        self.stop.raise_if_set("Stopped while writing; no index was written. Run the same command again.")
        self.file.write(data)
        self.sha256.update(data)
        self.length += len(data)
        return len(data)


def _write(output: pathlib.Path, index: faiss.Index, manifest: dict, stop: StopRequest) -> dict:
    """Replace `output` by the index and its manifest; the manifest as written."""
    require_space(output, index.ntotal * (4 * index.d + 8) + (1 << 16))
    with replacing(output) as temporary, open(temporary, "wb") as file:
        writer = _HashingWriter(file, stop)
        faiss.write_index(index, faiss.PyCallbackIOWriter(writer))  # type: ignore[attr-defined]  # FAISS's types lack it
        manifest = {**manifest, "index_bytes": writer.length, "index_sha256": writer.sha256.hexdigest()}
        file.write(trailer(manifest))
    return manifest


# ----------------------------------------------------------------------------------------------- measuring


def measure(index: faiss.Index, file: EmbeddingFile, stop: StopRequest) -> dict:
    """Recall@10 and median latency (milliseconds for a query alone), on stored vectors at even distances."""
    rows = np.unique(np.linspace(0, len(file) - 1, SAMPLE).astype(np.int64))
    queries = file.embeddings(rows)
    found, seconds = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(index.search(query[None], min(NEIGHBOURS, len(file)))[1][0])
        seconds.append(time.perf_counter() - begun)
        stop.raise_if_set(STOPPED_MEASURING)
    return {"recall_at_10": recall(file, queries, np.stack(found), stop), "latency_ms": 1e3 * float(np.median(seconds)),
            "measured_on": len(rows)}


def recall(file: EmbeddingFile, queries: np.ndarray, found: np.ndarray, stop: StopRequest) -> float:
    """Share of the ids `found` (S, k) that are among the k nearest of `queries` (S, D) by brute force.

    A found image counts when it is as near as the k-th nearest, so that ties do not matter.
    """
    k, metric = found.shape[1], metric_of(file)
    best = np.full((len(queries), k), -np.inf)
    for _, vectors in _blocks(file):
        stop.raise_if_set(STOPPED_MEASURING)
        scores = np.concatenate([best, _scores(queries, vectors, metric)], axis=1)  # S x (k + block)
        best = -np.partition(-scores, k - 1, axis=1)[:, :k]
    least = best.min(axis=1)
    row_of = rows_of(file.ids(), found)
    right = 0
    for query, ids, bound in zip(queries, found, least - TOLERANCE * np.maximum(1, abs(least))):
        rows = sorted(row_of[number] for number in ids.tolist() if number in row_of)
        right += int((_scores(query[None], file.embeddings(rows), metric) >= bound).sum())
    return right / found.size


def _scores(queries: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    """(S, B) float64: inner products, or minus the squared distances."""
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    products = queries @ vectors.T
    if metric == "inner_product":
        return products
    return 2 * products - (vectors**2).sum(axis=1) - (queries**2).sum(axis=1)[:, None]


def rows_of(ids: np.ndarray, wanted: np.ndarray) -> dict[int, int]:
    """Id -> row, for those of `wanted` (any shape) that are among `ids` (N,)."""
    rows = np.flatnonzero(np.isin(ids, wanted))
    return dict(zip(ids[rows].tolist(), rows.tolist()))


# ----------------------------------------------------------------------------------------------- searching


class SearchIndex:
    """An index in memory, ready to be searched. `open` makes one; `manifest` is what the file says about it."""

    def __init__(self, path: pathlib.Path, manifest: dict, index: faiss.Index):
        self.path, self.manifest, self._index = path, manifest, index

    @classmethod
    def open(cls, path, verify: bool = False) -> "SearchIndex":
        """Load the index file at `path`.

        Manifest and SHA-256 are checked before FAISS sees a byte, dimension and count after. A file that was checked
        before and has not changed since is not hashed again, except with `verify`. Raises `FormatError` for
        any other or damaged file, `MocoembedError` when the memory is too small. The file may be replaced meanwhile.
        """
        path = require_file(path, "The index", "mocoembed index")
        try:
            with open(path, "rb") as file:
                manifest = read_trailer(file, path)
                with within_memory(f"The index {path}", manifest["index_bytes"] + ID_BYTES * manifest["count"]):
                    length, digest = manifest["index_bytes"], manifest["index_sha256"]
                    if not has_digest(file, digest, lambda: sha256_start(file, length), verify):
                        raise damaged(path, "its bytes do not match their SHA-256")
                    index = _load(file, manifest["index_bytes"], path)
        except OSError as error:
            raise MocoembedError(f"Cannot read {path}: {error.strerror}.") from error
        found = (index.d, index.ntotal, index.metric_type)
        if found != (manifest["dimension"], manifest["count"], METRICS.get(manifest["metric"])):
            raise damaged(path, f"its manifest says {manifest['count']} vectors of dimension {manifest['dimension']}, "
                                f"the index has {index.ntotal} of {index.d}")
        return cls(path, manifest, index)

    def __len__(self):
        return self.manifest["count"]

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n, k) float32 and ids (n, k) int64 of the k nearest to `vectors` (n, D), the nearest first.

        A k larger than the index is cut to its size. Raises `UsageError` for a k below 1, `MismatchError` for vectors
        of another length and `FormatError` for values that are not finite.
        """
        if k < 1:
            raise UsageError(f"-k {k}: must be 1 or more.")
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest["dimension"]:
            raise MismatchError(f"{self.path} holds vectors of dimension {self.manifest['dimension']}; the queries "
                                f"have shape {vectors.shape}. Embed them with the same encoder and features.")
        if not np.isfinite(vectors).all():
            raise FormatError("A query's vector holds a number that is not finite; it cannot be searched.")
        scores, ids = self._index.search(vectors, min(k, len(self)))
        return (scores if self.manifest["metric"] == "inner_product" else -scores), ids


def _load(file: io.BufferedReader, length: int, path: pathlib.Path) -> faiss.Index:
    """FAISS's index from an open file; no part of it may be longer than the whole."""
    file.seek(0)
    try:
        with _loading:
            if hasattr(faiss, "set_deserialization_vector_byte_limit"):
                faiss.set_deserialization_vector_byte_limit(length)
            reader = faiss.PyCallbackIOReader(file.read)  # type: ignore[attr-defined]  # FAISS's types lack it
            return faiss.read_index(reader)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{path} cannot be read by FAISS {faiss.__version__}: {reason}") from error
