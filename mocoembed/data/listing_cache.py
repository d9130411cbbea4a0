"""The listings of large collections, kept in the user's cache folder: one file for each collection, kind
of labels and set of exclusions.

A kept listing is used when everything that it was read from is as it was: every folder (inode, size, times of the
last change), or the list file, or every shard. That sees each file that is added, removed or renamed. It does not see
what a scan would not have seen either (an image's new content), nor a link to nowhere whose target appears, nor, on
network file systems, what another machine did in the last seconds. A file that is damaged in any way is not used.

A listing also depends on which suffixes can be read, so it is not used once another decoder is installed.

The file: a line of JSON, then the arrays that it names, one after the other.
"""

import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mocoembed.data.formats import suffixes_read
from mocoembed.data.found import State
from mocoembed.data.listing import Listing, PathTable, Shards
from mocoembed.errors import MocoembedError
from mocoembed.files import replacing
from mocoembed.version import __version__
from mocoembed.workspace import cache_folder

CACHED_FROM = 10_000  # images; fewer are listed in a moment
SETTLED_NS = 3_000_000_000  # what changed later before the scan may change again without its time showing it
KIND = "mocoembed listing"


class How(NamedTuple):
    """What a listing depends on besides the collection."""

    labels: str
    exclude: tuple[str, ...] = ()


def _suffixes() -> list[str]:
    """Of which a listing depends: a decoder that is installed later makes other files images."""
    return [suffix.decode() for suffix in suffixes_read()]


def _file_of(source: bytes, how: How) -> pathlib.Path:
    name = json.dumps([os.fsdecode(source), *how]).encode()
    return cache_folder() / "listings" / hashlib.sha256(name).hexdigest()


def cached_listing(source: bytes, how: How) -> Listing | None:
    """The kept listing of a collection by its absolute path, if there is one and it still holds."""
    try:
        with open(_file_of(source, how), "rb") as file:
            header = json.loads(file.readline())
            body = bytearray(file.read())
        if [header["kind"], header["mocoembed"], header["source"], header["how"], header["suffixes"],
                header["sha256"]] != [
                KIND, __version__, os.fsdecode(source), [how.labels, list(how.exclude)], _suffixes(),
                hashlib.sha256(body).hexdigest()]:
            return None
        arrays, at = {}, 0
        for name, kind, shape in header["arrays"]:
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(body, kind, count, at).reshape(shape)
            at += count * arrays[name].itemsize
        witnesses = PathTable.of_arrays(arrays["witnesses"], arrays["witness_ends"])
        if any(State.of(path) != tuple(state) for path, state in zip(witnesses, arrays["states"].tolist())):
            return None
        return _listing(header, arrays, source)
    except (OSError, ValueError, KeyError, TypeError):  # none, gone, or not what was written
        return None


def _listing(header: dict, arrays: dict[str, np.ndarray], source: bytes) -> Listing:
    shards = None
    if "places" in arrays:
        shards = Shards.of_arrays(PathTable.of_arrays(arrays["shards"], arrays["shard_ends"]),
                                  arrays["shard_states"], arrays["places"])
    return Listing(os.fsencode(header["root"]), PathTable.of_arrays(arrays["paths"], arrays["path_ends"]),
                   arrays["labels"], tuple(header["label_names"]), Counter(header["skipped"]), (), source,
                   header["repeated"], shards, header["excluded"])


def keep_listing(listing: Listing, how: How, witnesses: dict[bytes, State], begun: int,
                 note: Callable[[str], None]):
    """Keep a listing that was begun at `begun` (ns since 1970), if it is large and everything in it has settled.

    A cache folder that cannot be written is said by `note` and stops nobody.
    """
    if len(listing) < CACHED_FROM or listing.closed:
        return
    if max(max(state.mtime_ns, state.ctime_ns) for state in witnesses.values()) > begun - SETTLED_NS:
        return
    files = PathTable(list(witnesses))
    columns = {"paths": listing.paths.blob, "path_ends": listing.paths.offsets, "labels": listing.labels,
               "witnesses": files.blob, "witness_ends": files.offsets,
               "states": np.array(list(witnesses.values()), np.int64)}
    if listing.shards is not None:
        names = listing.shards.names
        columns |= {"shards": names.blob, "shard_ends": names.offsets, "shard_states": listing.shards.states,
                    "places": listing.shards.places}
    arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))  # so that all are aligned
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.data)
    header = {"kind": KIND, "mocoembed": __version__, "source": os.fsdecode(listing.source), "how": how,
              "sha256": digest.hexdigest(), "root": os.fsdecode(listing.root), "label_names": listing.label_names,
              "skipped": listing.skipped, "suffixes": _suffixes(), "repeated": listing.repeated,
              "excluded": listing.excluded,
              "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()]}
    try:
        with replacing(_file_of(listing.source, how)) as temporary, open(temporary, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            for array in arrays.values():
                file.write(array.data)
    except (OSError, MocoembedError) as error:
        note(f"the listing could not be kept for the next run: {error}")
