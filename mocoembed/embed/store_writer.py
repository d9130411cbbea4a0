"""Writing the embeddings file (HDF5), whole: rows sorted by path, row i of every dataset the same image.

All shapes are fixed and nothing holds a time of writing, so the bytes depend on the images, the encoder and the
settings alone. `docs/format.md` describes the file for other readers.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

import h5py
import numpy as np

from mocoembed.data.deep import shown_range
from mocoembed.data.images import Listing
from mocoembed.embed.aside import HashAside, made_ahead
from mocoembed.embed.seal import SEAL, make_seal, outside
from mocoembed.embed.sparse import SparseFile
from mocoembed.embed.store import FACT_NAMES, FORMAT_VERSION, KIND, ROW_DATASETS, FailedImage
from mocoembed.files import replacing, reserve, write_at
from mocoembed.version import __version__


class Settings(NamedTuple):
    """What an embeddings file says about how its vectors were made."""

    encoder: dict
    """Metadata of the encoder's file, its fingerprint included."""
    features: str
    normalized: bool
    dimension: int
    precision: str
    labels: str
    full_decode: bool = False
    dtype: str = "float32"
    """Of the vectors in the file: `float32` or `float16`."""
    value_range: tuple[float, ...] = ()
    """(LOW, HIGH) that deep pixels were scaled from; empty: all that they can hold."""

    def required(self) -> dict:
        """What must be equal for vectors to stand in one file, as `EmbeddingFile.required` tells it."""
        return {"encoder": self.encoder["fingerprint"], "features": self.features, "normalize": self.normalized,
                "precision": self.precision, "full_decode": self.full_decode, "labels": self.labels,
                "dtype": self.dtype, "value_range": shown_range(self.value_range)}


def write_embeddings(path, listing: Listing, settings: Settings, done: np.ndarray, facts: np.ndarray,
                     blocks: Iterable[np.ndarray], failed: list[FailedImage]):
    """Replace `path` by the embeddings file of a listing.

    `done` (N,) bool marks the images that have a row; `facts` (N,) are the loader's records; `blocks` are the
    rows' vectors in order, in pieces of any size (n, D), stored as `settings.dtype`; `failed` are the other images.

    HDF5 makes its part in memory and says where each dataset lies; everything reaches the disk by plain writes, because
    HDF5 does not survive a disk that refuses one.
    """
    rows = np.flatnonzero(done)
    columns = _columns(listing, rows, facts)
    image = SparseFile()
    with replacing(path) as temporary, h5py.File(image, "w", userblock_size=SEAL) as file:
        for name, value in columns.items():
            _reserve(file, name, value.shape, value.dtype)
        _reserve(file, "embeddings", (len(rows), settings.dimension), vector_type(settings.dtype))
        _describe(file, listing, settings, failed)
        file.flush()
        places = {name: (file[name].id.get_offset() or 0, file[name].shape) for name in ROW_DATASETS}
        extents = sorted([at, file[name].nbytes] for name, (at, _) in places.items() if at)
        size = file.id.get_filesize()
        with open(temporary, "w+b") as disk:
            reserve(disk.fileno(), size, path)
            stored = (block.astype(vector_type(settings.dtype), copy=False) for block in blocks)
            file.attrs.modify("rows_sha256", _write_rows(disk.fileno(), columns, stored, places, path))
            file.close()
            for first, end in outside(extents, size):
                write_at(disk.fileno(), image.part(first, end), first, path)
            write_at(disk.fileno(), make_seal(disk.fileno(), extents), 0, path)


def vector_type(name: str) -> np.dtype:
    """Of stored vectors: `float32` or `float16`, little-endian."""
    return np.dtype(name).newbyteorder("<")


def _columns(listing: Listing, rows: np.ndarray, facts: np.ndarray) -> dict[str, np.ndarray]:
    """All that has a row per image, but the vectors."""
    paths = [listing.paths[row] for row in rows]
    columns = {name: facts[name][rows] for name in (*FACT_NAMES, "digest")}
    columns["ids"] = stable_ids(paths)
    columns["labels"] = listing.labels[rows].astype(np.int32)
    columns["paths"] = np.array(paths, f"S{max(map(len, paths), default=1)}")
    return columns


def _describe(file: h5py.File, listing: Listing, settings: Settings, failed: list[FailedImage]):
    """Write all that has no row per image; the hash of the rows is put in later."""
    _store(file, "label_names", np.array([name.encode() for name in listing.label_names], "S"))
    group = file.create_group("failed")
    _store(group, "paths", np.array([one.path for one in failed], "S"))
    _store(group, "errors", np.array([one.error.encode() for one in failed], "S"))
    _store(group, "reasons", np.array([one.reason.encode("utf-8", "backslashreplace") for one in failed], "S"))
    file.attrs.update({
        "kind": KIND, "format_version": FORMAT_VERSION, "mocoembed": __version__,
        "root": np.void(listing.root), "source": np.void(listing.source or listing.root),
        "labels_from": settings.labels, "listed": len(listing), "full_decode": settings.full_decode,
        "features": settings.features, "normalized": settings.normalized, "precision": settings.precision,
        "encoder_fingerprint": settings.encoder["fingerprint"],
        "encoder": json.dumps(settings.encoder, sort_keys=True),
        "rows_sha256": "0" * 64,
    })
    if settings.value_range:
        file.attrs["value_range"] = np.array(settings.value_range, "<f8")


def _type(dtype: np.dtype):
    """Of a dataset: byte strings are fixed-length UTF-8 (raw bytes where a name is not UTF-8)."""
    return h5py.string_dtype("utf-8", max(1, dtype.itemsize)) if dtype.kind == "S" else dtype


def _store(group, name: str, value: np.ndarray):
    """A small dataset of fixed shape."""
    dtype = _type(value.dtype)
    # HDF5 does not convert ASCII to UTF-8 by itself
    group.create_dataset(name, data=value.astype(dtype), dtype=dtype, track_times=False)


def _reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype):
    """A dataset of fixed shape whose place in the file is settled at once, and which HDF5 does not fill."""
    kept = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    kept.set_layout(h5py.h5d.CONTIGUOUS)
    kept.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    kept.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kept.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(_type(dtype)), logical=True)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), kept)


def _write_rows(descriptor: int, columns: dict[str, np.ndarray], blocks: Iterable[np.ndarray],
                places: dict[str, tuple[int, tuple[int, ...]]], path) -> str:
    """Put all rows at their places (offset, shape); their SHA-256, as `rows_digest` computes it."""
    with HashAside() as digest, contextlib.closing(made_ahead(blocks)) as vectors:
        for name in ROW_DATASETS:
            at, shape = places[name]
            digest.update(f"{name} {shape}".encode())
            rows = 0
            for piece in vectors if name == "embeddings" else [columns[name]]:
                data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
                digest.update(data.data)
                write_at(descriptor, data, at, path)
                rows, at = rows + len(piece), at + len(data)
            if rows != shape[0]:
                raise ValueError(f"{rows} rows of {name}, not {shape[0]}")
        return digest.hexdigest()


def stable_ids(paths: list[bytes]) -> np.ndarray:
    """(N,) int64: 63 bits of SHA-256 of each path; a path whose number is taken is hashed again with a suffix."""
    ids, taken = np.empty(len(paths), np.int64), set()
    for row, path in enumerate(paths):
        attempt = path
        while (number := int.from_bytes(hashlib.sha256(attempt).digest()[:8], "big") >> 1) in taken:
            attempt += b"\0"
        taken.add(number)
        ids[row] = number
    return ids
