"""A tar file, or several one after the other -> their members, in order.

`cat a.tar b.tar` leaves the end mark of the first, blocks of zeros, in the middle, where `tar` and WebDataset stop
without a word. Here, as by `tar --ignore-zeros`, all members are read; but what is neither zeros nor a member is an
error, wherever it stands.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from mocoembed.errors import FormatError

BLOCK = tarfile.BLOCKSIZE
AT_A_TIME = 1 << 20  # bytes of zeros


def tar_members(file: bytes) -> Iterator[tarfile.TarInfo]:
    """All members but the folders, none of them kept; `FormatError` for what is not a whole, uncompressed tar file."""
    name, count = os.fsdecode(file), 0
    begin: int | None = 0
    with open(file, "rb") as stream:
        while begin is not None:
            stream.seek(begin)
            try:
                with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                    while (member := tar.next()) is not None:
                        tar.members = []  # type: ignore[attr-defined]  # else every member is remembered
                        count += 1
                        if not member.isdir():
                            yield member
                    end = tar.offset
            except tarfile.TarError as error:
                raise FormatError(f"{name!r} is not a whole, uncompressed tar file: {error}. Copy it again, unpack it "
                                  "(gunzip) or leave it out.") from error
            following = _after_zeros(stream, end)
            if following == end:  # tarfile takes a damaged header for the end
                if end == begin > 0:
                    raise FormatError(f"{name!r}: after the end mark, from byte {end} on, there are neither zeros nor "
                                      "another tar file. Copy it again, or exclude it.")
                raise FormatError(f"{name!r} is damaged or truncated after {count} members: no end mark. "
                                  "Copy it again, or exclude it.")
            begin = following


def _after_zeros(stream: BinaryIO, end: int) -> int | None:
    """The first block from `end` on that is not all zeros: `end` without an end mark, `None` if there is none."""
    at = end
    stream.seek(at)
    while chunk := stream.read(AT_A_TIME):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return (at + zeros) // BLOCK * BLOCK
        at += len(chunk)
    return None if at - end >= BLOCK else end
