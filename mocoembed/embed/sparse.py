"""A file in memory of which only the pages that are written take room, whatever its size.

HDF5 makes its part of an embeddings file in one: it crashes when a disk refuses it, and a memory does not.
"""

import io
import os

PAGE = 4096


class SparseFile(io.RawIOBase):
    """Bytes that were never written are zeros."""

    def __init__(self):
        self._pages: dict[int, bytearray] = {}
        self._at = self._size = 0

    def readable(self):
        """True."""
        return True

    def writable(self):
        """True."""
        return True

    def seekable(self):
        """True."""
        return True

    def tell(self):
        """Where the next byte is read or written."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET):
        """Go to a place."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def truncate(self, size: int | None = None):
        """Set the size."""
        self._size = self._at if size is None else size
        return self._size

    def _pieces(self, length: int):
        """(place in the data, page, place in it, length) of what lies in each page, from here on."""
        done = 0
        while done < length:
            page, start = divmod(self._at + done, PAGE)
            some = min(PAGE - start, length - done)
            yield done, page, start, some
            done += some

    def readinto(self, buffer):
        """Read into a buffer; the number of bytes."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._at))
        for done, page, start, some in self._pieces(length):
            found = self._pages.get(page)
            view[done:done + some] = found[start:start + some] if found else bytes(some)
        self._at += length
        return length

    def write(self, data):
        """Write all of `data`; the number of bytes."""
        view = memoryview(data).cast("B")
        for done, page, start, some in self._pieces(len(view)):
            self._pages.setdefault(page, bytearray(PAGE))[start:start + some] = view[done:done + some]
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def part(self, first: int, end: int) -> bytes:
        """The bytes from `first` to `end` - 1."""
        self.seek(first)
        return self.read(end - first)
