"""The first 512 bytes of an embeddings file, which HDF5 leaves to others (a user block): a hash of all that has no row.

Every bit of the file is in one of two hashes: the rows' bytes in `rows_sha256`, which is their identity, and
everything else, HDF5's own bytes included, in the seal. The seal is a line of text, a line of JSON (`sha256`, `size` of
the file, `rows`: offset and length of each dataset of rows) and NUL bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator

from mocoembed.errors import FormatError
from mocoembed.files import CHUNK

SEAL = 512  # bytes; HDF5 knows no smaller user block
MARK = b"mocoembed embeddings\n"
HDF5 = b"\x89HDF\r\n\x1a\n"  # how HDF5 files without a user block begin


def make_seal(descriptor: int, rows: list[list[int]]) -> bytes:
    """The seal of an open file whose rows lie at these places, sorted, (offset, length) each."""
    size = os.fstat(descriptor).st_size
    digest = hashlib.sha256(json.dumps([size, rows]).encode())
    for first, end in outside(rows, size):
        for at in range(first, end, CHUNK):
            digest.update(os.pread(descriptor, min(CHUNK, end - at), at))
    content = json.dumps({"sha256": digest.hexdigest(), "size": size, "rows": rows}, separators=(",", ":"))
    seal = MARK + content.encode() + b"\n"
    if len(seal) > SEAL:
        raise ValueError(f"{len(seal)} bytes do not fit into a seal of {SEAL}")
    return seal.ljust(SEAL, b"\0")


def outside(rows: list[list[int]], size: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of all that lies in a file of that size between the seal and the rows, which are sorted."""
    return zip([SEAL, *(at + length for at, length in rows)], [*(at for at, _ in rows), size])


def check_seal(path):
    """Raise `FormatError` when the seal of a file is broken, or there is none."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = os.pread(descriptor, SEAL, 0)
        rows = json.loads(found.removeprefix(MARK).rstrip(b"\0"))["rows"]
        whole = found.startswith(MARK) and make_seal(descriptor, rows) == found
    except (ValueError, KeyError, TypeError):  # not JSON, or not what is meant to be in it
        whole = False
    finally:
        os.close(descriptor)
    if not whole:
        raise FormatError(f"{path} is damaged: its description does not match the stored SHA-256. "
                          "Embed the collection again with --fresh.")
