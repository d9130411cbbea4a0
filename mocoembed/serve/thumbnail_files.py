"""Thumbnails of large images on the disk, by the SHA-256 of the image; small images are decoded anew as quickly.

They lie in the user's cache folder, at most `MOST` bytes of them: the least lately used are deleted. A disk that is
full or cannot be written to costs nothing but time.
"""

import contextlib
import os
import pathlib
import threading

from mocoembed.workspace import cache_folder

MOST = 256 << 20  # bytes
LOOKED_AFTER = 200  # thumbnails that are written before the sum is taken again
START, END = b"\xff\xd8", b"\xff\xd9"  # of a JPEG file


class ThumbnailFiles:
    """A folder of JPEG files, named by digests."""

    def __init__(self, folder: pathlib.Path | None = None, most: int = MOST):
        self._folder, self._most = folder or cache_folder() / "thumbnails", most
        self._lock, self._written = threading.Lock(), 0

    def get(self, digest: str) -> bytes | None:
        """The thumbnail of the image with that digest."""
        try:
            path = self._folder / f"{digest}.jpg"
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if data.startswith(START) and data.endswith(END) else None

    def put(self, digest: str, data: bytes):
        """Keep a thumbnail."""
        with self._lock, contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._folder / f".{digest}.{os.getpid()}.tmp"
            temporary.write_bytes(data)
            os.replace(temporary, self._folder / f"{digest}.jpg")
            self._written += 1
            if self._written % LOOKED_AFTER == 1:
                self._forget()

    def _forget(self):
        """Delete the least lately used ones, until a tenth of the room is free."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        size = sum(one for _, one, _ in found)
        if size <= self._most:
            return
        for _, one, path in sorted(found):
            with contextlib.suppress(OSError):
                os.unlink(path)
                size -= one
            if size <= 0.9 * self._most:
                return
