"""What a local file of Milvus Lite holds, as `mocoembed info` shows it."""

import pathlib
from typing import Any

from mocoembed.errors import FormatError, MismatchError
from mocoembed.search.milvus import INDEX, Milvus
from mocoembed.search.milvus_rows import Part, require_ours

TIMEOUT = 60.0  # seconds
SHOWN = ("encoder", "features", "normalized", "dimension", "metric")
OF_PART = ("root", "rows_sha256", "count", "whole", "recall_at_10", "latency_ms")


def is_milvus_lite(path: pathlib.Path) -> bool:
    """Whether the folder is one of Milvus Lite, which calls it a file."""
    return path.suffix == ".db" and (path / "collections").is_dir()


def describe_collections(path: pathlib.Path) -> dict[str, Any]:
    """Its collections by name: the encoder of the vectors, the index, and the embeddings files that were pushed.

    Raises `LockedError` while another process uses it.
    """
    names = sorted(one.parent.name for one in (path / "collections").glob("*/schema.json"))
    return {"kind": "Milvus Lite database", "collections": {name: _collection(str(path), name) for name in names}}


def _collection(uri: str, name: str) -> dict[str, Any]:
    with Milvus(uri, name, TIMEOUT) as collection:
        properties = collection.properties()
        try:
            about = require_ours(properties, collection)
        except MismatchError:
            return {"made_by": "another program"}
        except FormatError:
            return {"made_by": "a newer mocoembed"}
    parts = list(Part.all_in(properties).values())
    files = [part.file for part in parts]
    names = [one if files.count(one) == 1 else f"{one} of {part.root}" for one, part in zip(files, parts)]
    return {**{key: about[key] for key in SHOWN}, "count": sum(part.count for part in parts),
            "index": properties.get(INDEX),
            "parts": {name: {key: getattr(part, key) for key in OF_PART} for name, part in zip(names, parts)}}
