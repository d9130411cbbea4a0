"""The index file: written with its manifest, opened only when it is whole, searched.

Vectors of length 1 are compared by their inner product, which is then the cosine similarity; others by the Euclidean
distance. A score is higher for what is nearer: the inner product, or minus the squared distance.
"""

import hashlib
import io
import pathlib
from typing import Any

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MismatchError, MocoembedError, UsageError
from mocoembed.files import StopRequest, replacing, require_file, require_space
from mocoembed.memory import MIB, within_memory
from mocoembed.search.exact import PAYS, ExactRows, require_finite
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.index_rows import Effort, IndexRows
from mocoembed.search.kinds import ID_BYTES
from mocoembed.search.trailer import MAGIC, damaged, read_manifest, read_trailer, sha256_start, trailer
from mocoembed.search.tuning import chosen
from mocoembed.verified import has_digest

__all__ = ["MAGIC", "SearchIndex", "read_manifest", "write_index"]

MAPPED_FROM = 64 * MIB  # an index of so many bytes stays in its file; a smaller one is faster when it is read


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


def write_index(output: pathlib.Path, index: FaissIndex, size: int, stamps: np.ndarray, manifest: dict,
                stop: StopRequest) -> dict:
    """Replace `output` by the index, its stamps (N,) uint64 and its manifest; the manifest as written.

    `size` is about what FAISS will write, in bytes.
    """
    require_space(output, size + stamps.nbytes + (1 << 16))
    with replacing(output) as temporary, open(temporary, "wb") as file:
        writer = _HashingWriter(file, stop)
        index.write(writer)
        manifest = {**manifest, "index_bytes": writer.length, "index_sha256": writer.sha256.hexdigest()}
        if len(stamps):
            data = stamps.astype("<u8").tobytes()
            file.write(data)
            manifest |= {"stamps_bytes": len(data), "stamps_sha256": hashlib.sha256(data).hexdigest()}
        file.write(trailer(manifest))
    return manifest


def _digest(file: io.BufferedReader, manifest: dict) -> str:
    """SHA-256 of FAISS's bytes, and of the stamps where there are some."""
    index, stamps = sha256_start(file, manifest["index_bytes"]), file.read(manifest.get("stamps_bytes", 0))
    return index + (hashlib.sha256(stamps).hexdigest() if "stamps_bytes" in manifest else "")


def read_stamps(path: pathlib.Path, manifest: dict) -> np.ndarray:
    """(N,) uint64: the stamps in an index file that was opened before, of its ids in rising order.

    `FormatError` when they are not those of `manifest`, as when the file has been replaced meanwhile.
    """
    with open(path, "rb") as file:
        file.seek(manifest["index_bytes"])
        data = file.read(manifest.get("stamps_bytes", 0))
    if hashlib.sha256(data).hexdigest() != manifest.get("stamps_sha256"):
        raise damaged(path, "its stamps do not match their SHA-256")
    return np.frombuffer(data, "<u8")


def _is_small(manifest: dict) -> bool:
    """Whether NumPy compares its vectors one and all as quickly as FAISS does."""
    return manifest.get("type", "flat") == "flat" and 4 * manifest["count"] * manifest["dimension"] <= PAYS


class SearchIndex:
    """An index, ready to be searched. `open` makes one; `manifest` is what the file says about it."""

    def __init__(self, path: pathlib.Path, manifest: dict, index: FaissIndex | None):
        self.path, self.manifest = path, manifest
        self.index: Any = index

    @classmethod
    def open(cls, path, verify: bool = False, to_change: bool = False, for_rows: bool = False) -> "SearchIndex":
        """Load the index file at `path`; a large one stays in its file, unless it is opened `to_change` it.

        Manifest and SHA-256 are checked before FAISS sees a byte, dimension and count after. A file that was checked
        before and has not changed since is not hashed again, except with `verify`. `for_rows`: only `rows` will be
        asked for, to which a small exact index adds nothing: it is checked, and FAISS is not loaded. Raises
        `FormatError` for any other or damaged file, `MocoembedError` when the memory is too small. The file may be
        replaced meanwhile.
        """
        path = require_file(path, "The index", "mocoembed index")
        try:
            with open(path, "rb") as file:
                manifest = read_trailer(file, path)
                length = manifest["index_bytes"]
                digest = manifest["index_sha256"] + manifest.get("stamps_sha256", "")
                mapped = length >= MAPPED_FROM and not to_change
                with within_memory(f"The index {path}", (0 if mapped else length) + ID_BYTES * manifest["count"]):
                    if not has_digest(file, digest, lambda: _digest(file, manifest), verify):
                        raise damaged(path, "its bytes do not match their SHA-256")
                    if for_rows and _is_small(manifest):
                        return cls(path, manifest, None)
                    index = FaissIndex.read(file, length, path, mapped)
        except OSError as error:
            raise MocoembedError(f"Cannot read {path}: {error.strerror}.") from error
        if (index.dimension, len(index), index.metric) != (manifest["dimension"], manifest["count"],
                                                           manifest["metric"]):
            raise damaged(path, f"its manifest says {manifest['count']} vectors of dimension {manifest['dimension']}, "
                                f"the index has {len(index)} of {index.dimension}")
        return cls(path, manifest, index)

    def __len__(self):
        return self.manifest["count"]

    @property
    def exact(self) -> bool:
        """Whether every vector is compared with every query."""
        return self.manifest.get("type", "flat") == "flat"

    def to_gpu(self, number: int):
        """Have FAISS search it on the GPU of that number from now on."""
        self.index = self.index.on_gpu(number)

    def effort(self, recall: float | None = None) -> Effort:
        """How thoroughly to search: for that recall@10 by the curve that was measured, else as it was built for.

        `UsageError` for a recall that no point of the curve reaches.
        """
        if recall is None or self.exact:
            return Effort.of(self.manifest.get("parameters", {}))
        points = self._curve()
        if (point := chosen(points, recall)) is None:
            best = max(points, key=lambda point: point["recall_at_10"])
            raise UsageError(f"--recall {recall:g}: {self.path} reaches {best['recall_at_10']:.4f} "
                             f"(+- {best['recall_error']:.4f}) at most. Build it again with --recall {recall:g}, or "
                             "with --type flat, which is exact.")
        return Effort.of(point)

    def _curve(self) -> list[dict]:
        """The points that were measured; one alone, of an index that has no settings."""
        manifest = self.manifest
        return manifest.get("curve") or [{**manifest.get("parameters", {}), "recall_at_10": manifest["recall_at_10"],
                                          "recall_error": manifest.get("recall_error", 0.0)}]

    def rows(self, file: EmbeddingFile, recall: float | None = None,
             ids: np.ndarray | None = None) -> IndexRows | ExactRows:
        """The index as a source of rows of `file`, which it was built from, at that recall@10; `ids`: of all rows."""
        return ExactRows(file) if self.index is None else IndexRows(self, file, self.effort(recall), self.exact, ids)

    def search(self, vectors: np.ndarray, k: int, breadth: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n, k) float32 and ids (n, k) int64 of the k nearest to `vectors` (n, D), the nearest first.

        Of a quantised index these are candidates in a rough order; `IndexRows` ranks them by the vectors. A k larger
        than the index is cut to its size; an id of -1 stands where nothing was found. `breadth` is FAISS's `nprobe` or
        `efSearch`; by default, what the index was tuned to. Raises `UsageError` for a k below 1, `MismatchError` for
        vectors of another length and `FormatError` for values that are not finite.
        """
        if k < 1:
            raise UsageError(f"-k {k}: must be 1 or more.")
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest["dimension"]:
            raise MismatchError(f"{self.path} holds vectors of dimension {self.manifest['dimension']}; the queries "
                                f"have shape {vectors.shape}. Embed them with the same encoder and features.")
        require_finite(vectors)
        k = min(k, len(self))
        return self.index.search(vectors, k, self.effort().for_hits(k).breadth if breadth is None else breadth)
