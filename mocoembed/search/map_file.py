"""The file of a map, `embeddings.map` beside `embeddings.h5`: places in two dimensions, bound to the rows' identity.

A line of JSON (format, kind, identity of the embeddings, method, whether it is provisional, count, how many of them
were placed since the last arrangement, SHA-256 of the rest), then little-endian arrays: ids int64 (N,), places float32
(N, 2), agreement float32 (N,), NaN where nothing is known.
"""

import hashlib
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.errors import FormatError
from mocoembed.files import write_bytes

FORMAT_VERSION, KIND = 1, "mocoembed map"
SUFFIX = ".map"
MOST_HEADER = 4096  # bytes


@dataclass(frozen=True)
class ImageMap:
    """Where each image lies."""

    identity: str
    """Of the embeddings file that it was made from."""
    method: str
    ids: np.ndarray
    """(N,) int64, in the order of the rows."""
    places: np.ndarray
    """(N, 2) float32."""
    agreement: np.ndarray
    """(N,) float32: the share of an image's nearest neighbours that have its label; NaN for one without a label."""
    provisional: bool = False
    """Whether a better arrangement is being computed, which will take its place."""
    placed: int = 0
    """Images that were put among their neighbours since all were arranged."""

    def __len__(self):
        return len(self.ids)


@dataclass(frozen=True)
class MapFacts:
    """What the first line of a map's file says."""

    identity: str
    method: str
    provisional: bool
    digest: str
    """SHA-256 of the rest of the file, which differs between two maps."""


def map_file_of(embeddings) -> pathlib.Path:
    """Where the map of an embeddings file lies."""
    return pathlib.Path(embeddings).with_suffix(SUFFIX)


def write_map(path, made: ImageMap):
    """Replace `path` by the map."""
    body = b"".join((made.ids.astype("<i8").tobytes(), made.places.astype("<f4").tobytes(),
                     made.agreement.astype("<f4").tobytes()))
    header = {"format": FORMAT_VERSION, "kind": KIND, "embeddings": made.identity, "method": made.method,
              "provisional": made.provisional, "count": len(made), "placed": made.placed,
              "sha256": hashlib.sha256(body).hexdigest()}
    write_bytes(path, json.dumps(header).encode() + b"\n" + body)


def read_map(path) -> ImageMap:
    """The map in `path`; `FormatError` when it is none, or damaged. Raises `OSError` when there is no such file."""
    data = pathlib.Path(path).read_bytes()
    header, end = _header(path, data[:MOST_HEADER])
    body, count = data[end + 1:], header.get("count")
    if type(count) is not int or len(body) != 20 * count or hashlib.sha256(body).hexdigest() != header.get("sha256"):
        raise FormatError(f"{path} is damaged: its bytes are not those that were written. Make it again: "
                          "mocoembed map --fresh")
    ids, places = np.frombuffer(body, "<i8", count), np.frombuffer(body, "<f4", 2 * count, 8 * count)
    placed = header.get("placed")
    return ImageMap(str(header.get("embeddings")), str(header.get("method")), ids, places.reshape(count, 2),
                    np.frombuffer(body, "<f4", count, 16 * count), header.get("provisional") is True,
                    placed if type(placed) is int else 0)


def read_map_facts(path) -> MapFacts:
    """What the map in `path` says of itself, without reading all of it; raises what `read_map` raises."""
    with open(path, "rb") as file:
        header, _ = _header(path, file.read(MOST_HEADER))
    return MapFacts(str(header.get("embeddings")), str(header.get("method")), header.get("provisional") is True,
                    str(header.get("sha256")))


def _header(path, data: bytes) -> tuple[dict[str, Any], int]:
    """The first line, and where it ends."""
    end = data.find(b"\n")
    try:
        header = json.loads(data[:end]) if end > 0 else {}
    except ValueError:
        header = {}
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise FormatError(f"{path} is not a map. Make one with: mocoembed map")
    if header.get("format") != FORMAT_VERSION:
        raise FormatError(f"{path} has format {header.get('format')}; this version reads {FORMAT_VERSION}. "
                          "Make it again: mocoembed map --fresh")
    return header, end
