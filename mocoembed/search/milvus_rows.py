"""How an embeddings file stands in a Milvus collection: rows, their hashes, what the properties say. No pymilvus here.

A collection holds the rows of one or more embeddings files, its *parts*. A row's `part` is a number made of the file's
name and the collection that it was embedded from, so the file may be moved, and grow. `row_hash` is made of all that is
stored of a row, so a row that differs in anything is known to differ.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.data.deep import shown_range
from mocoembed.data.facts import UNKNOWN
from mocoembed.data.images import NO_LABEL
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MismatchError
from mocoembed.search.milvus import ABOUT, LONGEST_TEXT, PART
from mocoembed.version import __version__

KIND, FORMAT_VERSION = "mocoembed collection", 1
METRICS = {True: "IP", False: "L2"}  # of vectors of length 1, and of others
SAME = {"encoder": "encoder", "features": "features", "normalized": "normalization", "dimension": "dimension",
        "precision": "precision", "full_decode": "decoding (--full-decode)", "value_range": "value range"}
LABELS_KEPT = 1000  # characters of the names of labels in the properties, to tell the nearest


def text_of(path: bytes) -> str:
    """A path as text: a backslash is doubled, bytes that are not UTF-8 become `\\xff`. `path_of` undoes it."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def path_of(text: str) -> bytes:
    """The path whose `text_of` this is."""
    pieces = text.split("\\\\")
    return b"\\".join(b"".join(_piece(number, part) for number, part in enumerate(piece.split("\\x")))
                      for piece in pieces)


def _piece(number: int, text: str) -> bytes:
    return text.encode() if number == 0 else bytes.fromhex(text[:2]) + text[2:].encode()


def number_of(data: bytes) -> int:
    """63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def part_of(file: EmbeddingFile) -> int:
    """The number of a file's part."""
    return number_of(os.fsencode(file.path.name) + b"\0" + file.source)


def part_key(part: int) -> str:
    """The property that describes a part."""
    return f"{PART}{part:016x}"


def about(file: EmbeddingFile) -> dict:
    """What a collection says about all its vectors; other files must say the same to be pushed into it."""
    return {"kind": KIND, "format": FORMAT_VERSION, "mocoembed": __version__, "encoder": file.fingerprint,
            "features": file.features, "normalized": file.normalized, "dimension": file.dimension,
            "metric": METRICS[file.normalized], "precision": file.precision, "full_decode": file.full_decode,
            "value_range": list(file.value_range)}


def require_ours(properties: dict[str, dict], collection: Any) -> dict:
    """What the collection says about its vectors; raises `MismatchError` unless `mocoembed push` made it."""
    found = properties.get(ABOUT)
    if found is None or found.get("kind") != KIND or not set(SAME) <= set(found):
        raise MismatchError(f"The Milvus collection {collection} was not made by mocoembed push. "
                            "Give another name with --collection.")
    if found["format"] > FORMAT_VERSION:
        raise FormatError(f"The Milvus collection {collection} has format {found['format']}; this version reads up to "
                          f"{FORMAT_VERSION}. Install a newer mocoembed.")
    return found


def require_same(here: dict, there: dict, path: Any, what: Any):
    """Raise `MismatchError` unless the vectors of the file `path`, described by `here`, belong to those of `what`."""
    for name, word in SAME.items():
        if here[name] != there[name]:
            raise MismatchError(f"{what} holds vectors of {word} {_shown(name, there[name])}, but {path} has "
                                f"{_shown(name, here[name])}.\n"
                                "Give another --collection, or add --fresh to push this file alone.")


def _shown(name: str, value) -> str:
    if name == "encoder":
        return str(value)[:12]
    if name == "value_range":
        return shown_range(tuple(value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


@dataclass(frozen=True)
class Part:
    """What the properties say about a part: which file, which rows, and whether they are all there."""

    file: str
    """Name of the embeddings file, as text of `text_of`."""
    root: str
    """Folder that its paths are relative to."""
    rows_sha256: str
    count: int
    whole: bool
    """Whether the rows are all there, and no others."""
    before: int
    """Rows of the last push that came to its end; 0: none did."""
    digests: bool
    """Whether the bytes of its images are known."""
    labels: list[str]
    """Names of some labels."""
    recall_at_10: float | None = None
    latency_ms: float | None = None

    @classmethod
    def of(cls, file: EmbeddingFile, before: int) -> "Part":
        """The part of a file that is about to be pushed."""
        labels, length = [], 0
        for name in file.label_names:
            length += len(name)
            if length > LABELS_KEPT:
                break
            labels.append(name)
        known = any(digest != UNKNOWN for digest in file.digest[:100])
        return cls(text_of(os.fsencode(file.path.name)), text_of(file.root), file.identity, len(file), False, before,
                   known, labels)

    @classmethod
    def all_in(cls, properties: dict[str, dict]) -> dict[int, "Part"]:
        """{number: part} of a collection."""
        names = set(cls.__dataclass_fields__)
        try:
            return {int(key.removeprefix(PART), 16): cls(**{name: value[name] for name in names if name in value})
                    for key, value in properties.items() if key.startswith(PART)}
        except (TypeError, ValueError) as error:
            raise FormatError(f"A property of the Milvus collection is damaged ({error}). "
                              "Push again with --fresh.") from error


def rows_of(file: EmbeddingFile, rows: np.ndarray, part: int) -> Iterator[dict]:
    """The rows of a file (rising), as they stand in the collection; `FormatError` for what Milvus cannot hold."""
    names: list[str | None] = [*file.label_names, None]
    vectors, ids = file.embeddings[rows], file.ids[rows].tolist()
    if not np.isfinite(vectors).all():
        first = int(rows[np.argmin(np.isfinite(vectors).all(axis=1))])
        raise FormatError(f"{file.path}: row {first} ({os.fsdecode(file.paths[first])!r}) holds a number that is not "
                          "finite. Embed the folder again with --fresh.")
    columns = zip(ids, vectors, file.paths[rows], file.labels[rows].tolist(), file.width[rows].tolist(),
                  file.height[rows].tolist(), file.digest[rows])
    for number, vector, path, label, width, height, digest in columns:
        row: dict[str, Any] = {"id": number, "vector": vector, "path": text_of(path),
               "label": None if label == NO_LABEL else names[label], "width": width, "height": height,
               "digest": "" if digest == UNKNOWN else digest.hex(), "part": part}
        for name in ("path", "label"):
            if len((row[name] or "").encode()) > LONGEST_TEXT:
                raise FormatError(f"{file.path}: the {name} of {os.fsdecode(path)[:60]!r}... is longer than "
                                  f"{LONGEST_TEXT} bytes, more than Milvus holds.")
        yield row | {"row_hash": hash_of(row)}


def hash_of(row: dict) -> int:
    """63 bits of SHA-256 of everything in a row but its id."""
    texts = [row["path"], "\0" if row["label"] is None else row["label"], str(row["width"]), str(row["height"]),
             row["digest"]]
    return number_of(np.asarray(row["vector"], "<f4").tobytes() + "\0\0".join(texts).encode())
