"""Images of the collection as JPEG files without metadata, made only of the bytes that were embedded.

An image is shown when its bytes still have the row's SHA-256. Where the embeddings file does not know it (vectors of
another tool), its file must lie within the collection's root, links followed.
"""

import hashlib
import io
import os
import threading
from collections import OrderedDict

from PIL import Image

from mocoembed.data.decode import EncodedImage
from mocoembed.data.shards import read_path, split_at_shard
from mocoembed.search.duplicates import UNKNOWN
from mocoembed.serve.answers import Refusal
from mocoembed.serve.collection import Collection

SIDE, QUALITY = 320, 82  # of thumbnails: 320 pixels the longer side
LARGEST, LARGE, LARGE_QUALITY = 4096, 2048, 90  # of images
KEPT = 64 << 20  # bytes of thumbnails that are kept

GONE = "The image of row {row} is gone: its file has been removed or changed since it was embedded."


def original(collection: Collection, row: int) -> bytes:
    """The bytes of a row's image; a `Refusal` (410) when they are not those that were embedded."""
    path, digest = collection.path(row), collection.file.digest[row]
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


def jpeg(data: bytes, side: int, quality: int, collection: Collection) -> bytes:
    """A JPEG file of an image, upright, at most `side` pixels wide and high."""
    try:
        image = EncodedImage(data, value_range=collection.file.value_range)
        pixels = image.rgb(max(1.0, max(image.width, image.height) / (2 * side) if side <= SIDE else
                               max(image.width, image.height) / side))
        pixels.thumbnail((side, side), Image.Resampling.BILINEAR if side <= SIDE else Image.Resampling.LANCZOS)
        pixels.info.clear()  # or Pillow writes the comment again
        out = io.BytesIO()
        pixels.save(out, "JPEG", quality=quality)
        return out.getvalue()
    except Exception as error:  # whatever a decoder raises
        raise Refusal(422, f"The image cannot be decoded: {type(error).__name__}.", "undecodable") from error


class Thumbnails:
    """Small JPEG files of rows; the latest `KEPT` bytes of them are kept."""

    def __init__(self, most: int = KEPT):
        self._most, self._size = most, 0
        self._kept: OrderedDict[tuple, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, collection: Collection, row: int) -> bytes:
        """The thumbnail of a row; a `Refusal` when its image is gone."""
        key = (collection.version, row, _state(collection.path(row)))
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        made = jpeg(original(collection, row), SIDE, QUALITY, collection)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size += len(made)
            while self._size > self._most:
                self._size -= len(self._kept.popitem(last=False)[1])
        return made


def _state(path: bytes) -> tuple:
    """What changes when a file does."""
    inside = split_at_shard(path)
    try:
        status = os.stat(path if inside is None else inside[0])
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
