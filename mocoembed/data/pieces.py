"""A file made of parts of others that lie in memory: nothing is copied."""

import os
from typing import IO, cast


class Pieces:
    """Reads a list of memory, one after the other, as a file."""

    def __init__(self, parts: list[memoryview]):
        self._parts, self._at, self._part, self._within = parts, 0, 0, 0
        self._size = sum(map(len, parts))

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or fewer at the end; all that is left with a negative size."""
        wanted = self._size - self._at if size < 0 else size
        found = []
        while wanted > 0 and self._part < len(self._parts):
            one = self._parts[self._part][self._within:self._within + wanted]
            found.append(one)
            wanted -= len(one)
            self._at += len(one)
            self._within += len(one)
            if self._within == len(self._parts[self._part]):
                self._part, self._within = self._part + 1, 0
        return b"".join(found)

    def tell(self) -> int:
        """Where the next byte lies."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; gives it."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        self._part, self._within = 0, self._at
        while self._part < len(self._parts) and self._within >= len(self._parts[self._part]):
            self._within -= len(self._parts[self._part])
            self._part += 1
        return self._at


def as_file(parts: list[memoryview]) -> IO[bytes]:
    """The parts as a file that Pillow reads, which takes no more than `Pieces` has."""
    return cast(IO[bytes], Pieces(parts))
