"""Blocks of rows -> the same with thumbnails of their images, for `convert --to parquet --thumbnails`."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mocoembed.cores import cores
from mocoembed.data.deep import ValueRange
from mocoembed.data.shards import read_path
from mocoembed.data.thumbnail import SIDE, jpeg

UNKNOWN = "0" * 64  # digest of an image whose bytes nobody has read


def with_thumbnails(blocks: Iterator[Any], value_range: ValueRange, note: Callable[[str], None]) -> Iterator[Any]:
    """The blocks (of `convert.Block`) with a column `image`: {"bytes": a JPEG file, "path": name}, or `None`.

    `None` stands for an image that is gone, or whose bytes are no more those of its digest; `note` is told how many.
    """
    missing = 0
    with ThreadPoolExecutor(cores()) as pool:
        for block in blocks:
            def made(path: bytes, digest: str) -> bytes | None:
                return thumbnail(path, digest, value_range)

            found = list(pool.map(made, block.columns["path"], block.columns["digest"]))
            names = [os.path.basename(path).decode("utf-8", "backslashreplace") for path in block.columns["path"]]
            block.columns["image"] = [None if data is None else {"bytes": data, "path": name}
                                      for data, name in zip(found, names)]
            missing += found.count(None)
            yield block
    if missing:
        note(f"without a thumbnail: {missing} images that are gone or have changed; give --root if they have moved")


def thumbnail(path: bytes, digest: str, value_range: ValueRange, side: int = SIDE) -> bytes | None:
    """A JPEG file of an image; `None` for one that is gone, or whose bytes are no more those of its digest (hex)."""
    try:
        data = read_path(path)
        if digest not in (UNKNOWN, hashlib.sha256(data).hexdigest()):
            return None
        return jpeg(data, side, value_range=value_range)
    except Exception:  # whatever the file system and decoders raise; counted by the caller
        return None
