"""The embeddings file (HDF5): written once, whole, by `write_embeddings`; read through `EmbeddingFile`.

Row i of every dataset is the same picture; rows are sorted by path. All shapes are fixed and nothing holds a time
of writing, so the bytes depend on the pictures, the encoder and the settings alone. `docs/format.md` describes the
file for other readers. This is the only module that imports h5py.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import h5py
import numpy as np

from mocoembed.data.images import Listing
from mocoembed.data.loader import FACTS
from mocoembed.embed.column import column, digests, float32, texts
from mocoembed.errors import FormatError, MismatchError
from mocoembed.files import replacing, reserve, write_at
from mocoembed.version import __version__

FORMAT_VERSION = 1
KIND = "mocoembed embeddings"
FACT_NAMES = ("width", "height", "size", "mtime_ns")
ROW_DATASETS = ("digest", "embeddings", "height", "ids", "labels", "mtime_ns", "paths", "size", "width")


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


class FailedPicture(NamedTuple):
    """A listed picture that could not be embedded."""

    path: bytes
    error: str
    reason: str


def write_embeddings(path, listing: Listing, settings: Settings, done: np.ndarray, facts: np.ndarray,
                     blocks: Iterable[np.ndarray], failed: list[FailedPicture]):
    """Replace `path` by the embeddings file of a listing.

    `done` (N,) bool marks the pictures that have a row; `facts` (N,) are the loader's records; `blocks` are the
    rows' vectors in order, in pieces of any size (n, D) float32; `failed` are the other pictures.

    HDF5 makes the file and says where each dataset lies; the rows are written there by plain writes, because HDF5
    does not survive a disk that refuses one.
    """
    rows = np.flatnonzero(done)
    columns = _columns(listing, rows, facts)
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", track_order=False) as file:
            for name, value in columns.items():
                _reserve(file, name, value.shape, value.dtype)
            _reserve(file, "embeddings", (len(rows), settings.dimension), np.dtype("<f4"))
            _describe(file, listing, settings, failed)
            places = {name: (file[name].id.get_offset() or 0, file[name].shape) for name in ROW_DATASETS}
        with open(temporary, "r+b") as file:
            reserve(file.fileno(), os.fstat(file.fileno()).st_size, path)
            digest = _write_rows(file.fileno(), columns, blocks, places, path)
        with h5py.File(temporary, "r+") as file:
            file.attrs.modify("rows_sha256", digest)
            file.attrs.modify("rest_sha256", _rest_digest(file))


def _columns(listing: Listing, rows: np.ndarray, facts: np.ndarray) -> dict[str, np.ndarray]:
    """All that has a row per picture, but the vectors."""
    paths = [listing.paths[row] for row in rows]
    columns = {name: facts[name][rows] for name in (*FACT_NAMES, "digest")}
    columns["ids"] = stable_ids(paths)
    columns["labels"] = listing.labels[rows].astype(np.int32)
    columns["paths"] = np.array(paths, f"S{max(map(len, paths), default=1)}")
    return columns


def _describe(file: h5py.File, listing: Listing, settings: Settings, failed: list[FailedPicture]):
    """Write all that has no row per picture; the two digests are put in later."""
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
        "rows_sha256": "0" * 64, "rest_sha256": "0" * 64,
    })


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
    """Put all rows at their places (offset, shape); their SHA-256, as `_rows_digest` computes it."""
    digest = hashlib.sha256()
    for name in ROW_DATASETS:
        at, shape = places[name]
        digest.update(f"{name} {shape}".encode())
        rows = 0
        for piece in blocks if name == "embeddings" else [columns[name]]:
            data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            write_at(descriptor, data, at, path)
            digest.update(data)
            rows, at = rows + len(piece), at + len(data)
        if rows != shape[0]:
            raise ValueError(f"{rows} rows of {name}, not {shape[0]}")
    return digest.hexdigest()


def _rows_digest(file: h5py.File) -> str:
    """SHA-256 over the name, shape and bytes of every dataset that has a row per picture."""
    digest = hashlib.sha256()
    for name in ROW_DATASETS:
        dataset = file[name]
        digest.update(f"{name} {dataset.shape}".encode())
        for start in range(0, len(dataset), 8192):
            digest.update(np.ascontiguousarray(dataset[start:start + 8192]).tobytes())
    return digest.hexdigest()


def _rest_digest(file: h5py.File) -> str:
    """SHA-256 over everything that has no row per picture: the other datasets and the attributes but this one."""
    digest = hashlib.sha256()
    for name in ("label_names", "failed/errors", "failed/paths", "failed/reasons"):
        digest.update(f"{name} {file[name].shape}".encode() + file[name][:].tobytes())
    for name in sorted(set(file.attrs) - {"rest_sha256"}):
        value = file.attrs[name]
        digest.update(name.encode() + (value.tobytes() if hasattr(value, "tobytes") else str(value).encode()))
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


class EmbeddingFile:
    """An embeddings file open for reading; a context manager.

    Raises `FormatError` for anything that is not a whole embeddings file of a known version. Every dataset is a
    `Column`, read only where it is indexed: `file.embeddings[10:20]`, `file.paths[3]`, `file.labels[mask]`; so a file
    larger than the memory is no problem. It may be pickled, forked and spawned (a DataLoader's workers do): another
    process opens the file anew, and raises `MismatchError` if other rows have taken its place.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._absolute = self.path.absolute()
        self._identity, self._handle, self._closed = None, None, False
        self._open()

    @classmethod
    def open(cls, path) -> "EmbeddingFile":
        """The embeddings file at `path`, open."""
        return cls(path)

    def _open(self):
        with open(self._absolute, "rb"):  # a missing or forbidden file is not a damaged one
            pass
        try:
            self._handle = h5py.File(self._absolute, "r", locking=False)
        except OSError as error:
            raise FormatError(f"{self.path} is not an embeddings file. "
                              "Make one with: mocoembed embed FOLDER") from error
        self._process = os.getpid()
        try:
            self._check()
        except BaseException:
            self.close()
            raise
        self._identity = self.identity

    @property
    def _file(self) -> h5py.File:
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if self._handle is None or self._process != os.getpid():  # unpickled, or on the other side of a fork
            self._open()
        return self._handle

    def __getstate__(self):
        return {**vars(self), "_handle": None}

    def _check(self):
        attributes = self._file.attrs
        if attributes.get("kind") != KIND:
            raise FormatError(f"{self.path} is an HDF5 file, but not one of mocoembed's embeddings.")
        if (version := int(attributes["format_version"])) > FORMAT_VERSION:
            raise FormatError(f"{self.path} has embeddings format {version}; this version reads up to "
                              f"{FORMAT_VERSION}. Install a newer mocoembed.")
        for name in (*ROW_DATASETS, "label_names"):
            link = self._file.get(name, getlink=True)
            dataset = self._file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.hasobject or dataset.external:
                raise FormatError(f"{self.path} lacks a proper dataset {name!r}; it is damaged.")
        for name in ROW_DATASETS:
            if (rows := len(self._file[name])) != len(self):
                raise FormatError(f"{self.path}: dataset {name!r} has {rows} rows, ids have {len(self)}; "
                                  "it is damaged.")
        if self._identity not in (None, self.identity):
            raise MismatchError(f"{self.path} has been replaced since it was opened: other rows are in it now. "
                                "Open it again.")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Close the file; arrays already read stay."""
        if self._handle is not None:
            self._handle.close()
        self._handle, self._closed = None, True

    def __len__(self):
        return len(self._file["ids"])

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._file["embeddings"].shape[1]

    @property
    def features(self) -> str:
        """`backbone` or `projection`."""
        return str(self._file.attrs["features"])

    @property
    def normalized(self) -> bool:
        """Whether every vector has length 1."""
        return bool(self._file.attrs["normalized"])

    @property
    def precision(self) -> str:
        """Arithmetic of the encoder: `fp64`, `fp32`, `bf16` or `fp16`."""
        return str(self._file.attrs["precision"])

    @property
    def full_decode(self) -> bool:
        """Whether JPEG files were decoded at full size."""
        return bool(self._file.attrs.get("full_decode", False))

    @property
    def labels_from(self) -> str:
        """Where the labels come from: `parent`, `first` or `none`."""
        return str(self._file.attrs["labels_from"])

    @property
    def encoder(self) -> dict:
        """Metadata of the encoder that made the vectors."""
        return json.loads(self._file.attrs["encoder"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder that made the vectors."""
        return str(self._file.attrs["encoder_fingerprint"])

    @property
    def identity(self) -> str:
        """SHA-256 of the rows, as stored: which embeddings these are."""
        return str(self._file.attrs["rows_sha256"])

    @property
    def root(self) -> bytes:
        """Absolute path of the folder that the paths are relative to, when they were embedded."""
        return self._file.attrs["root"].tobytes()

    @property
    def source(self) -> bytes:
        """Absolute path of the collection when it was embedded: a folder, a list file, shards or a picture."""
        return self._file.attrs.get("source", self._file.attrs["root"]).tobytes()

    @property
    def label_names(self) -> list[str]:
        """Names of the labels; `labels` are indices into it."""
        return [name.decode("utf-8") for name in texts(self._file["label_names"][:])]

    embeddings = column("embeddings", "(N, D) float32: the vectors.", float32)
    ids = column("ids", "(N,) int64: the stable id of every row.")
    labels = column("labels", "(N,) int32: index into `label_names`, or -1 where unknown.")
    paths = column("paths", "Paths relative to `root`, as the bytes of their names; several are a list.", texts)
    width = column("width", "(N,) int32: pixels of the upright picture; 0 where unknown.")
    height = column("height", "(N,) int32: pixels of the upright picture; 0 where unknown.")
    size = column("size", "(N,) int64: bytes of the picture; 0 where unknown.")
    mtime_ns = column("mtime_ns", "(N,) int64: when the picture's file was changed last, in ns; 0 where unknown.")
    digest = column("digest", "SHA-256 of the picture's bytes, several are a list; zeros where unknown.", digests)

    def facts(self) -> np.ndarray:
        """(N,) records of the loader's `FACTS`: width, height, size, mtime_ns and digest of every row."""
        facts = np.zeros(len(self), FACTS)
        for name in (*FACT_NAMES, "digest"):
            facts[name] = self._file[name][:]
        return facts

    def full_path(self, row: int, root: str | None = None) -> bytes:
        """Absolute path of a row's picture, below `root` if the collection has moved."""
        return os.path.join(os.fsencode(root) if root else self.root, self.paths[row])

    def failed(self) -> list[FailedPicture]:
        """The listed pictures that could not be embedded."""
        group = self._file["failed"]
        columns = [texts(group[name][:]) for name in ("paths", "errors", "reasons")]
        return [FailedPicture(path, error.decode(), reason.decode()) for path, error, reason in zip(*columns)]

    def verify(self):
        """Recompute both SHA-256; `FormatError` when one differs from the stored one."""
        for what, found, stored in [("rows", _rows_digest(self._file), self.identity),
                                    ("description", _rest_digest(self._file), str(self._file.attrs["rest_sha256"]))]:
            if found != stored:
                raise FormatError(f"{self.path} is damaged: its {what} do not match the stored SHA-256. "
                                  "Embed the folder again with --fresh.")

    def describe(self) -> dict:
        """Everything the file knows about itself, as plain JSON types."""
        return {"kind": KIND, "format": int(self._file.attrs["format_version"]), "count": len(self),
                "dimension": self.dimension, "listed": int(self._file.attrs["listed"]),
                "failed": [{"path": os.fsdecode(one.path), "error": one.error, "reason": one.reason}
                           for one in self.failed()],
                "features": self.features, "normalized": self.normalized, "precision": self.precision,
                "full_decode": self.full_decode, "root": os.fsdecode(self.root),
                "source": os.fsdecode(self.source), "labels_from": self.labels_from, "label_names": self.label_names,
                "rows_sha256": self.identity, "mocoembed": str(self._file.attrs["mocoembed"]),
                "encoder": self.encoder}
