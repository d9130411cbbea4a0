"""Reading the embeddings file (HDF5), which `store_writer` writes whole: `EmbeddingFile`.

Row i of every dataset is the same image; rows are sorted by path. `docs/format.md` describes the file for other
readers. These two modules alone import h5py.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import h5py
import numpy as np

from mocoembed.data.deep import shown_range
from mocoembed.data.facts import FACTS, reason_for_people
from mocoembed.embed.aside import HashAside
from mocoembed.embed.column import column, digests, float32, in_place, texts
from mocoembed.embed.seal import MARK, check_seal
from mocoembed.errors import FormatError, MismatchError

FORMAT_VERSION = 1
KIND = "mocoembed embeddings"
PIECE = 8192  # rows that are hashed at a time
FACT_NAMES = ("width", "height", "size", "mtime_ns")
ROW_DATASETS = ("digest", "embeddings", "height", "ids", "labels", "mtime_ns", "paths", "size", "width")


class FailedImage(NamedTuple):
    """A listed image that could not be embedded."""

    path: bytes
    error: str
    reason: str

    @property
    def said(self) -> str:
        """Why not, for people."""
        return reason_for_people(self.error, self.reason)


def rows_digest(file: h5py.File, see: Callable[[str, int, np.ndarray], None] = lambda name, first, rows: None) -> str:
    """SHA-256 over the name, shape and bytes of every dataset that has a row per image.

    `see(name, first, rows)` is shown each piece, while a thread hashes it.
    """
    with HashAside() as digest:
        for name in ROW_DATASETS:
            dataset = file[name]
            digest.update(f"{name} {dataset.shape}".encode())
            for first in range(0, len(dataset), PIECE):
                rows = np.ascontiguousarray(dataset[first:first + PIECE])
                digest.update(rows.reshape(-1).view(np.uint8))
                see(name, first, rows)
        return digest.hexdigest()


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
        self._mapped: dict[tuple[int, str], np.ndarray | None] = {}
        self._datasets: dict[str, h5py.Dataset] = {}
        self._open()

    @classmethod
    def open(cls, path) -> "EmbeddingFile":
        """The embeddings file at `path`, open."""
        return cls(path)

    def _open(self):
        with open(self._absolute, "rb") as file:  # a missing or forbidden file is not a damaged one
            sealed = file.read(len(MARK)) == MARK
        if sealed:
            check_seal(self._absolute)  # HDF5 may hang in what is damaged
        try:
            self._handle = h5py.File(self._absolute, "r", locking=False)
        except OSError as error:
            raise FormatError(f"{self.path} is not an embeddings file. "
                              "Make one with: mocoembed embed FOLDER") from error
        self._process, self._datasets = os.getpid(), {}
        try:
            if not sealed:
                raise FormatError(f"{self.path} is an HDF5 file, but not one of mocoembed's embeddings.")
            self._check()
            self._identity = self.identity
        except BaseException as error:
            self.close()
            if isinstance(error, KeyError | OSError | RuntimeError | TypeError | UnicodeDecodeError | ValueError):
                raise FormatError(f"{self.path} is damaged: HDF5 cannot read it ({error}). "
                                  "Embed the collection again with --fresh.") from error
            raise

    @property
    def _file(self) -> h5py.File:
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        if self._handle is None or self._process != os.getpid():  # unpickled, or on the other side of a fork
            self._open()
        return self._handle

    def dataset(self, name: str) -> h5py.Dataset:
        """A dataset, looked up once: HDF5 takes longer for that than for reading a few rows."""
        file = self._file
        if (found := self._datasets.get(name)) is None:
            found = self._datasets[name] = file[name]
        return found

    def __getstate__(self):
        return {**vars(self), "_handle": None, "_mapped": {}, "_datasets": {}}

    def _check(self):
        attributes = self._file.attrs
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
        self._handle, self._datasets, self._closed = None, {}, True

    def __len__(self):
        return len(self.dataset("ids"))

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self.dataset("embeddings").shape[1]

    @property
    def features(self) -> str:
        """`backbone` or `projection`."""
        return str(self._file.attrs["features"])

    @functools.cached_property
    def normalized(self) -> bool:
        """Whether every vector has length 1."""
        return bool(self._file.attrs["normalized"])

    @property
    def precision(self) -> str:
        """Arithmetic of the encoder: `fp64`, `fp32`, `bf16` or `fp16`."""
        return str(self._file.attrs["precision"])

    @functools.cached_property
    def full_decode(self) -> bool:
        """Whether JPEG files were decoded at full size."""
        return bool(self._file.attrs.get("full_decode", False))

    @functools.cached_property
    def value_range(self) -> tuple[float, ...]:
        """(LOW, HIGH) that deep pixels were scaled from; empty: all that they can hold."""
        return tuple(map(float, self._file.attrs.get("value_range", ())))

    @property
    def dtype(self) -> str:
        """Of the vectors in the file, `float32` or `float16`; `embeddings` gives them in float32."""
        return self._file["embeddings"].dtype.name

    def required(self) -> dict:
        """What must be equal for vectors to stand in one file, as `Settings.required` tells it."""
        return {"encoder": self.fingerprint, "features": self.features, "normalize": self.normalized,
                "precision": self.precision, "full_decode": self.full_decode, "labels": self.labels_from,
                "dtype": self.dtype, "value_range": shown_range(self.value_range)}

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
        """Absolute path of the collection when it was embedded: a folder, a list file, shards or an image."""
        return self._file.attrs.get("source", self._file.attrs["root"]).tobytes()

    @property
    def label_names(self) -> list[str]:
        """Names of the labels; `labels` are indices into it."""
        return [name.decode("utf-8") for name in texts(self._file["label_names"][:])]

    embeddings = column("embeddings", "(N, D) float32: the vectors.", float32)
    ids = column("ids", "(N,) int64: the stable id of every row.")
    labels = column("labels", "(N,) int32: index into `label_names`, or -1 where unknown.")
    paths = column("paths", "Paths relative to `root`, as the bytes of their names; several are a list.", texts)
    width = column("width", "(N,) int32: pixels of the upright image; 0 where unknown.")
    height = column("height", "(N,) int32: pixels of the upright image; 0 where unknown.")
    size = column("size", "(N,) int64: bytes of the image; 0 where unknown.")
    mtime_ns = column("mtime_ns", "(N,) int64: when the image's file was changed last, in ns; 0 where unknown.")
    digest = column("digest", "SHA-256 of the image's bytes, several are a list; zeros where unknown.", digests)

    def vectors_at(self, rows: np.ndarray | slice) -> np.ndarray:
        """(..., D) float32: the vectors of rows in any order and shape, or a slice, read where they lie in the file.

        For few rows of many this takes a tenth of the time that `embeddings[rows]` takes.
        """
        if (mapped := self.vectors_in_place()) is None:
            if isinstance(rows, slice):
                return self.embeddings[rows]
            rising, places = np.unique(rows, return_inverse=True)
            return self.embeddings[rising][places.reshape(np.shape(rows))]
        return float32(mapped[rows])

    def vectors_in_place(self) -> np.ndarray | None:
        """(N, D): all vectors as they lie in the file, mapped; `None` where they cannot be."""
        return self._in_place("embeddings")

    def paths_at(self, rows: list[int] | np.ndarray) -> list[bytes]:
        """`paths` of rows in any order, read where they lie in the file."""
        mapped = self._in_place("paths")
        return self.paths[rows] if mapped is None else texts(mapped[rows])

    def digests_at(self, rows: list[int] | np.ndarray) -> list[bytes]:
        """`digest` of rows in any order, read where they lie in the file."""
        mapped = self._in_place("digest")
        return self.digest[rows] if mapped is None else digests(mapped[rows])

    def _in_place(self, name: str) -> np.ndarray | None:
        key = os.getpid(), name
        if key not in self._mapped:
            self._mapped[key] = in_place(self._file[name])
        return self._mapped[key]

    def facts(self) -> np.ndarray:
        """(N,) records of the loader's `FACTS`: width, height, size, mtime_ns and digest of every row."""
        facts = np.zeros(len(self), FACTS)
        for name in (*FACT_NAMES, "digest"):
            facts[name] = self._file[name][:]
        return facts

    def full_path(self, row: int, root: str | None = None) -> bytes:
        """Absolute path of a row's image, below `root` if the collection has moved."""
        return os.path.join(os.fsencode(root) if root else self.root, self.paths[row])

    def full_names(self, rows, root: str | None = None) -> tuple[list[bytes], list[str | None]]:
        """Absolute paths, below `root` if the collection has moved, and labels of several rows; `None`: unknown."""
        above, names = os.fsencode(os.path.abspath(root)) if root else self.root, [*self.label_names, None]  # [-1]
        return [os.path.join(above, path) for path in self.paths[rows]], [names[one] for one in self.labels[rows]]

    def failed(self) -> list[FailedImage]:
        """The listed images that could not be embedded."""
        group = self._file["failed"]
        columns = [texts(group[name][:]) for name in ("paths", "errors", "reasons")]
        return [FailedImage(path, error.decode(), reason.decode()) for path, error, reason in zip(*columns)]

    def verify(self, see: Callable[[str, int, np.ndarray], None] = lambda name, first, rows: None):
        """Recompute the hashes of all that is in the file; `FormatError` when one differs from the stored one.

        `see(name, first, rows)` is shown each piece of each dataset with a row per image on the way, as it is stored.
        """
        check_seal(self._absolute)
        if rows_digest(self._file, see) != self.identity:
            raise FormatError(f"{self.path} is damaged: its rows do not match the stored SHA-256. "
                              "Embed the collection again with --fresh.")

    def describe(self) -> dict:
        """Everything the file knows about itself, as plain JSON types."""
        return {"kind": KIND, "format": int(self._file.attrs["format_version"]), "count": len(self),
                "dimension": self.dimension, "dtype": self.dtype, "listed": int(self._file.attrs["listed"]),
                "failed": [{"path": os.fsdecode(one.path), "error": one.error, "reason": one.reason}
                           for one in self.failed()],
                "features": self.features, "normalized": self.normalized, "precision": self.precision,
                "full_decode": self.full_decode, "value_range": list(self.value_range) or None,
                "root": os.fsdecode(self.root),
                "source": os.fsdecode(self.source), "labels_from": self.labels_from, "label_names": self.label_names,
                "rows_sha256": self.identity, "mocoembed": str(self._file.attrs["mocoembed"]),
                "encoder": self.encoder}
