"""Vectors of other tools: a `.npy` file and a list of their paths and labels -> an embeddings file of ours.

Such a file can be indexed, and searched for neighbours and duplicates; an image cannot be looked for, because the
encoder is not here. Its fingerprint begins with `foreign-`: of a name (`made_by`), so that files of one encoder may be
compared, or else of the vectors themselves.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from mocoembed.config import ConvertConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.data.list_file import READERS, find_in_list
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import locked, require_space, sha256_file

FOREIGN = "foreign-"  # how the fingerprint of an encoder begins that is not ours
BLOCK_BYTES = 1 << 24
UNIT = 1e-3  # how far from 1 the lengths of vectors of length 1 may be, as those in float16 are


def npy_header(count: int, dimension: int, dtype: np.dtype) -> dict:
    """The header of a `.npy` file of (count, dimension) numbers."""
    return {"descr": dtype.str, "fortran_order": False, "shape": (count, dimension)}


def is_foreign(fingerprint: str) -> bool:
    """Whether an embeddings file's encoder is unknown here, by its fingerprint."""
    return fingerprint.startswith(FOREIGN)


def read_vectors(config: ConvertConfig, source: pathlib.Path, list_file: pathlib.Path, output: pathlib.Path,
                 watch: Callable[[int, int], None]) -> tuple[int, int]:
    """Write the embeddings file `output` of the vectors in `source` and the paths in `list_file`; rows and length.

    `watch(done, total)` is called after every block. Raises `FormatError` for anything else than a matrix of finite
    floats with a path for every row, each path once.
    """
    vectors = open_vectors(source)
    listing, order = read_list(list_file, config.root)
    if len(order) != len(vectors):
        raise FormatError(f"{source} holds {len(vectors)} vectors, but {list_file} names {len(order)} paths. "
                          "Give one path per vector.")
    settings = Settings(foreign_encoder(config.made_by, source), "backbone",
                        all_of_length_one(vectors, source), vectors.shape[1], "unknown", "parent",
                        dtype="float16" if vectors.dtype.itemsize == 2 else "float32")
    output.parent.mkdir(parents=True, exist_ok=True)
    require_space(output, len(vectors) * (4 * vectors.shape[1] + 512))
    with locked(output.with_name(f".{output.name}.lock"), str(output)):
        _write(output, listing, settings, _in_order(vectors, order, watch))
    return vectors.shape


def _write(output: pathlib.Path, listing: Listing, settings: Settings, blocks: Iterator[np.ndarray]):
    """The one place where vectors of others become a file; sizes, times and digests are unknown: zeros."""
    write_embeddings(output, listing, settings, np.ones(len(listing), bool), np.zeros(len(listing), FACTS), blocks, [])


def open_vectors(path: pathlib.Path) -> np.ndarray:
    """The matrix in a `.npy` file, mapped and not read; `FormatError` when it is no matrix of floats."""
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:  # objects, which would have to be unpickled; a damaged header; too few bytes
        raise FormatError(f"{path} cannot be read: {error}.") from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or 0 in vectors.shape:
        raise FormatError(f"{path} holds an array of shape {vectors.shape} and type {vectors.dtype}; it must be a "
                          "matrix of floats with one row per image.")
    return vectors


def read_list(path: pathlib.Path, root: str | None) -> tuple[Listing, np.ndarray]:
    """The images that a list file names, sorted, and the line that each stands on, counted from 0.

    Paths are relative to `root` where that is given. Raises `FormatError` when a path comes twice.
    """
    name = os.fsencode(path.absolute())
    if os.path.splitext(name)[1].lower() not in READERS:
        raise UsageError(f"--paths {path}: must be a list file ({', '.join(one.decode() for one in READERS)}).")
    found = find_in_list(name, "parent", lambda count: None)
    names = list(found.paths)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    listing = found.listing(name)
    if listing.repeated:
        twice = next(one for one, other in itertools.pairwise(sorted(names)) if one == other)
        raise FormatError(f"{path} names {os.fsdecode(twice)!r} more than once; an embeddings file has one row for a "
                          "path.")
    if root is None:
        return listing, order
    above = os.path.join(os.path.abspath(os.fsencode(root)), b"")
    full = [os.path.join(listing.root, one) for one in listing.paths]
    for one in full:
        if not one.startswith(above):
            raise UsageError(f"--root {root}: {os.fsdecode(one)!r} in {path} does not lie below it.")
    below = PathTable([one[len(above):] for one in full])
    return dataclasses.replace(listing, root=above.rstrip(b"/") or b"/", paths=below), order


def foreign_encoder(made_by: str | None, source: pathlib.Path) -> dict:
    """What the file says about an encoder that is not here."""
    sha256 = sha256_file(source)
    identity = hashlib.sha256(made_by.encode() if made_by else sha256.encode()).hexdigest()
    return {"fingerprint": (FOREIGN + identity)[:64],
            "provenance": {"foreign": True, "made_by": made_by, "file": source.name, "file_sha256": sha256}}


def _step(vectors: np.ndarray) -> int:
    return max(1, BLOCK_BYTES // (8 * vectors.shape[1]))


def all_of_length_one(vectors: np.ndarray, path: pathlib.Path) -> bool:
    """Whether every vector has length 1; `FormatError` when a number is not finite in float32."""
    unit = True
    for first in range(0, len(vectors), _step(vectors)):
        with np.errstate(over="ignore"):
            block = np.asarray(vectors[first:first + _step(vectors)], np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise FormatError(f"{path}: row {first + int(np.argmin(finite))} holds a number that is not finite.")
        unit = unit and bool((abs(np.linalg.norm(block.astype(np.float64), axis=1) - 1) < UNIT).all())
    return unit


def _in_order(vectors: np.ndarray, order: np.ndarray, watch) -> Iterator[np.ndarray]:
    for first in range(0, len(order), _step(vectors)):
        rows = order[first:first + _step(vectors)]
        yield np.asarray(vectors[rows], np.float32)
        watch(first + len(rows), len(order))
