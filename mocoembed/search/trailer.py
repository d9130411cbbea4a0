"""The index file: FAISS's own bytes, then our manifest, so that one rename commits both.

    FAISS index | stamps | manifest (JSON) | SHA-256 of the JSON (32 bytes) | its length (8, little-endian) | MAGIC (8)

FAISS reads its part and ignores what follows. `docs/format.md` describes the manifest for other readers.
"""

import hashlib
import json
import os
import shlex
import struct
from typing import BinaryIO

from mocoembed.errors import FormatError, MocoembedError
from mocoembed.files import CHUNK

KIND = "mocoembed index"
FORMAT_VERSION = 2  # 1: exact ones, which older versions can search too
MAGIC = b"MOCOEIDX"
FOOTER = struct.Struct("<32sQ8s")
LONGEST = 1 << 20  # bytes of a manifest
REQUIRED = {"format", "index_bytes", "index_sha256", "count", "dimension", "metric", "normalized", "features",
            "encoder", "embeddings"}
FAISS_STARTS = (b"Ix", b"Iw")  # of an index in general, and of an inverted file
# first bytes of files that people give by mistake -> what they are
OTHER_KINDS = {b"mocoembed embed": "an embeddings file", b"\x89HDF\r\n\x1a\n": "an HDF5 file",
               b"PK\x03\x04": "a checkpoint or zip archive",
               **dict.fromkeys(FAISS_STARTS, "a FAISS index without mocoembed's manifest, or a truncated index")}


def trailer(manifest: dict) -> bytes:
    """What is appended to FAISS's bytes."""
    text = json.dumps(manifest, separators=(",", ":"), allow_nan=False).encode()
    return text + FOOTER.pack(hashlib.sha256(text).digest(), len(text), MAGIC)


def read_manifest(path) -> dict:
    """The manifest of the index file at `path`; `FormatError` when it is none, damaged or of a newer version."""
    try:
        with open(path, "rb") as file:
            return read_trailer(file, path)
    except OSError as error:
        raise MocoembedError(f"Cannot read {path}: {error.strerror}.") from error


def read_trailer(file: BinaryIO, path) -> dict:
    """`read_manifest` of an open file; the index's own bytes are not looked at."""
    size = os.fstat(file.fileno()).st_size
    footer = _tail(file, size, FOOTER.size)
    if footer[-len(MAGIC):] != MAGIC:
        raise not_an_index(file, path)
    digest, length, _ = FOOTER.unpack(footer)
    text = _tail(file, size - FOOTER.size, min(length, LONGEST))
    if hashlib.sha256(text).digest() != digest:
        raise damaged(path, "its manifest does not match its SHA-256")
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise not_an_index(file, path)
    if missing := sorted(REQUIRED - manifest.keys()):
        raise damaged(path, f"its manifest lacks {', '.join(missing)}")
    if manifest["format"] > FORMAT_VERSION:
        raise FormatError(f"{path} has index format {manifest['format']}; this version reads up to {FORMAT_VERSION}. "
                          "Install a newer mocoembed.")
    whole = manifest["index_bytes"] + manifest.get("stamps_bytes", 0) + length + FOOTER.size
    if whole != size:
        raise damaged(path, f"it has {size} bytes instead of {whole}")
    return manifest


def _tail(file: BinaryIO, end: int, length: int) -> bytes:
    """Up to `length` bytes that stop at `end`."""
    start = max(0, end - length)
    file.seek(start)
    return file.read(end - start)


def sha256_start(file: BinaryIO, length: int) -> str:
    """Hexadecimal SHA-256 of the first `length` bytes of an open file."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (chunk := file.read(min(CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()


def damaged(path, how: str) -> FormatError:
    """The error for an index file that is not what it was when it was written."""
    again = shlex.join(["mocoembed", "index", "EMBEDDINGS", "--output", os.fspath(path), "--fresh"])
    return FormatError(f"{path} is damaged: {how}. Build it again, from the embeddings that it was made of: {again}")


def not_an_index(file: BinaryIO, path) -> FormatError:
    """The error for a file that is no index, saying what it is instead."""
    file.seek(0)
    head = file.read(16)
    what = next((kind for start, kind in OTHER_KINDS.items() if head.startswith(start)), None)
    if what is None:
        what = "an encoder" if head[8:10] == b'{"' else "of another kind" if head else "empty"
    return FormatError(f"{path} is not a mocoembed index; it is {what}. Make one with: mocoembed index EMBEDDINGS")
