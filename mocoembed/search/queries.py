"""What is searched for: files, folders, standard input and rows of the collection -> names, bytes and regions."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.data.decode import MAX_BYTES, EncodedImage
from mocoembed.data.deep import ValueRange
from mocoembed.data.facts import UNKNOWN
from mocoembed.data.given import GivenImage
from mocoembed.data.images import scan
from mocoembed.data.shards import read_path, split_at_shard
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import UnreadableImage, UsageError
from mocoembed.search.exact import require_finite
from mocoembed.search.left_out import LeftOut

STANDARD_INPUT = "-"
FILE_BYTES = bytes | bytearray | memoryview
UNLIKE = "mocoembed search IMAGE --unlike FILE"  # how images that a query should be unlike are given
UNIT = 1e-3  # by which the length of a vector may differ from 1
NOTHING = 1e-6  # length of a vector of which nothing is left


def is_one(images: Any) -> bool:
    """Whether this is one image (a path, bytes, a Pillow image, an array of uint8) or vector, and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim not in (2, 4) or (images.ndim == 2 and images.dtype == np.uint8)
    is_named = isinstance(images, str | FILE_BYTES | os.PathLike)
    return is_named or GivenImage.is_pil(images) or not hasattr(images, "__iter__")


def is_vector(image: Any) -> bool:
    """Whether this is a vector: an array with one axis."""
    return isinstance(image, np.ndarray) and image.ndim == 1


def decoded(image: Any, full: bool, value_range: ValueRange) -> EncodedImage | GivenImage:
    """One image from its path, its file's bytes, a Pillow image or an array; `UsageError` for anything else."""
    if isinstance(image, str | os.PathLike):
        return EncodedImage(read_path(image), full, value_range)
    if isinstance(image, FILE_BYTES):
        return EncodedImage(bytes(image), full, value_range)
    if GivenImage.is_pil(image) or isinstance(image, np.ndarray):
        return GivenImage.of(image)
    raise UsageError(f"Not a query, but of type {type(image).__name__}. Give a path, the bytes of an image file, a "
                     "Pillow image, an array (height, width, 3) of uint8, or a vector.")


@dataclass(frozen=True)
class Query:
    """One image to search for: a file, standard input, or a row of the collection."""

    name: str
    row: int | None = None


def queries_of(images: Iterable[str], rows: Sequence[int], file: EmbeddingFile,
               path_of: Callable[[int], str]) -> list[Query]:
    """The images, those of a row named by `path_of(row)`; `UsageError` for a row that there is not."""
    for row in rows:
        if row >= len(file):
            raise UsageError(f"--row {row}: {file.path} has rows 0 to {len(file) - 1}.")
    return [*map(Query, images), *(Query(path_of(row), row) for row in rows)]


def query_names(given: Sequence[str], note: Callable[[str], None],
                usage: str = "mocoembed search IMAGE...") -> list[str]:
    """The images that are named, those of a folder (searched recursively) in the order of their paths.

    Raises `UsageError` for what does not exist, with the `usage`; `CollectionError` for a folder without images.
    """
    names: list[str] = []
    for name in given:
        if os.path.isdir(name):
            listing = scan(name, "none", "The folder of queries", note)
            names += [os.path.join(name, os.fsdecode(path)) for path in listing.paths]
        elif name == STANDARD_INPUT or os.path.exists(name) or split_at_shard(os.fsencode(name)) is not None:
            names.append(name)
        else:
            raise UsageError(f"The image {name!r} does not exist. Give one or more: {usage}")
    return names


def name_together(names: Sequence[str]) -> str:
    """What several queries that are searched for as one are called."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def shown(name: str) -> str:
    """A query image in a message."""
    return "on standard input" if name == STANDARD_INPUT else repr(name)


def read_bytes(name: str) -> bytes:
    """The bytes of a query image; raises `OSError` or `UnreadableImage`."""
    if name != STANDARD_INPUT:
        return read_path(name)
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"more than {MAX_BYTES} bytes")
    return data


class Region:
    """A part of an `EncodedImage`, which an encoder's transform takes in place of the whole."""

    def __init__(self, image: Any, crop: Sequence[int], name: str):
        """`crop`: left, top, width, height in pixels of the upright image `name`."""
        left, top, self.width, self.height = crop
        self._image, self._box = image, (left, top, left + self.width, top + self.height)
        if self._box[2] > image.width or self._box[3] > image.height:
            raise UsageError(f"--crop {','.join(map(str, crop))}: the image {name!r} has {image.width} x "
                             f"{image.height} pixels, and the region must lie inside it.")

    def rgb(self, shrink: float = 1.0):
        """The region as 8-bit RGB, decoded at full size."""
        return self._image.rgb().crop(self._box)


def combined(vectors: np.ndarray, unlike: np.ndarray | None, together: bool, normalized: bool) -> np.ndarray:
    """(Q, D), or (1, D) `together`: what is compared, from the vectors (Q, D) of queries and (U, D) of `unlike`.

    The mean of the queries' vectors, minus the mean of those of `unlike`; scaled to length 1 again if the collection's
    vectors have that. Raises `UsageError` when nothing is left.
    """
    if unlike is None and not together:
        return vectors
    if together:
        vectors = vectors.mean(axis=0, keepdims=True, dtype=np.float64)
    if unlike is not None:
        if not normalized:
            raise UsageError("--unlike needs vectors of length 1. Embed the collection without --no-normalize.")
        vectors = vectors - unlike.mean(axis=0, dtype=np.float64)
    if normalized:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if lengths.min() < NOTHING:
            raise UsageError("The query and the images that it should be unlike have the same vector.")
        vectors = vectors / lengths
    return vectors.astype(np.float32)


def scaled(vectors: np.ndarray) -> np.ndarray:
    """(Q, D) float32: given vectors, at the length of 1 that those of the collection have; others cannot be compared.

    Vectors of that length stay as they are. Raises `UsageError` for one of length 0, `FormatError` for one with a
    number that is not finite.
    """
    require_finite(vectors)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise UsageError("A vector of length 0 has no direction; it cannot be searched for.")
    return np.where(abs(lengths - 1) < UNIT, vectors, vectors / lengths).astype(np.float32)


def combined_each(names: Sequence[str], vectors: np.ndarray, unlike: np.ndarray | None, normalized: bool,
                  left_out: LeftOut) -> tuple[list[int], np.ndarray]:
    """Places of the queries of which `unlike` leaves something, and (n, D): what is compared for each of these.

    The others go to `left_out`.
    """
    if unlike is None or not normalized:
        return list(range(len(names))), combined(vectors, unlike, False, normalized)
    places, asked = [], [np.empty((0, vectors.shape[1]), np.float32)]
    for place, (name, vector) in enumerate(zip(names, vectors)):
        try:
            asked.append(combined(vector[None], unlike, False, normalized))
            places.append(place)
        except UsageError as error:
            left_out.add(UsageError(f"The image {shown(name)}: {error}"))
    return places, np.concatenate(asked)


class Selves:
    """The rows of a collection that a query is itself: those with its bytes, and its own."""

    def __init__(self, file: EmbeddingFile):
        self._digests = np.array(file.digest(), "V32")
        self._known = bool((self._digests != np.void(UNKNOWN)).any())
        self._path = file.path

    def rows(self, query: Query, data: bytes | None) -> np.ndarray:
        """(n,) int64; `data` are the bytes of a query that is no row. Raises `UsageError` where bytes are unknown."""
        if query.row is None:
            if not self._known:
                raise UsageError(f"--exclude-self: {self._path} does not know the bytes of its images. Leave it out, "
                                 "or give the query by --row.")
            return np.flatnonzero(self._digests == np.void(hashlib.sha256(data or b"").digest()))
        digest = self._digests[query.row]
        if digest == np.void(UNKNOWN):
            return np.array([query.row])
        return np.flatnonzero(self._digests == digest)
