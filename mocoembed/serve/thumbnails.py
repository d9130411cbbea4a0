"""Images of the collection as JPEG files without metadata, made only of the bytes that were embedded.

An image is shown when its bytes still have the row's SHA-256. Where the embeddings file does not know it (vectors of
another tool), its file must lie within the collection's root, links followed.
"""

import hashlib
import os
import threading
from collections import OrderedDict

from mocoembed.data.facts import UNKNOWN, Failure
from mocoembed.data.shards import read_path, split_at_shard
from mocoembed.data.thumbnail import QUALITY, SIDE, jpeg
from mocoembed.serve.answers import Refusal
from mocoembed.serve.collection import Collection
from mocoembed.serve.thumbnail_files import ThumbnailFiles

LARGEST, LARGE, LARGE_QUALITY = 4096, 2048, 90  # of images
KEPT = 64 << 20  # bytes of thumbnails that are kept in memory
LARGE_PIXELS = 4_000_000  # from which on an image is large

GONE = "The image of row {row} is gone: its file has been removed or changed since it was embedded."


def original(collection: Collection, row: int) -> bytes:
    """The bytes of a row's image; a `Refusal` (410) when they are not those that were embedded."""
    path, (digest,) = collection.path(row), collection.file.digests_at([row])
    try:
        if digest == UNKNOWN and not _is_inside(path, collection.root):
            raise Refusal(410, GONE.format(row=row), "outside")
        data = read_path(path)
    except Refusal:
        raise
    except Exception as error:  # whatever the file system and the reader of shards raise
        raise Refusal(410, GONE.format(row=row), "gone") from error
    if digest not in (UNKNOWN, hashlib.sha256(data).digest()):
        raise Refusal(410, GONE.format(row=row), "changed")
    return data


def _is_inside(path: bytes, root: bytes) -> bool:
    """Whether a file (or its shard) lies within a folder once all links are followed."""
    inside = split_at_shard(path)
    real, root = os.path.realpath(path if inside is None else inside[0]), os.path.realpath(root)
    return real.startswith(root.rstrip(b"/") + b"/")


def shown(collection: Collection, row: int, side: int = SIDE, quality: int = QUALITY) -> bytes:
    """A JPEG file of a row's image; a `Refusal` when it is gone (410) or cannot be decoded (422)."""
    return jpeg_of(collection, original(collection, row), "The image", side, quality)


def jpeg_of(collection: Collection, data: bytes, name: str, side: int, quality: int) -> bytes:
    """A JPEG file of an image's bytes, decoded as those of the collection; a `Refusal` (422) when they are none."""
    try:
        return jpeg(data, side, quality, collection.file.value_range)
    except Exception as error:  # whatever a decoder raises
        raise Refusal(422, f"{name} cannot be decoded: {Failure.of(0, error).said}.", "undecodable") from error


class Thumbnails:
    """Small JPEG files of rows; the latest `KEPT` bytes of them are kept in memory, those of large images in files."""

    def __init__(self, most: int = KEPT, files: ThumbnailFiles | None = None):
        self._most, self._size = most, 0
        self._kept: OrderedDict[tuple, bytes] = OrderedDict()
        self._lock, self._files = threading.Lock(), files or ThumbnailFiles()

    def get(self, collection: Collection, row: int) -> bytes:
        """The thumbnail of a row; a `Refusal` when its image is gone."""
        state = _state(collection.path(row))
        key = (collection.version, row, state)
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        made = self._of_large(collection, row, state) if _is_large(collection, row) else shown(collection, row)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size += len(made)
            while self._size > self._most:
                self._size -= len(self._kept.popitem(last=False)[1])
        return made

    def _of_large(self, collection: Collection, row: int, state: tuple) -> bytes:
        """From a file, as long as the image's own has the size and time that it had when it was embedded."""
        digest, file = collection.digest(row), collection.file
        is_same = state[2:] == (int(file.size[row]), int(file.mtime_ns[row]))
        if digest and is_same and (found := self._files.get(digest)) is not None:
            return found
        made = shown(collection, row)
        if digest:
            self._files.put(digest, made)
        return made


def _is_large(collection: Collection, row: int) -> bool:
    return int(collection.width[row]) * int(collection.height[row]) >= LARGE_PIXELS


def _state(path: bytes) -> tuple:
    """What changes when a file does: device, inode, size, time."""
    inside = split_at_shard(path)
    try:
        status = os.stat(path if inside is None else inside[0])
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
