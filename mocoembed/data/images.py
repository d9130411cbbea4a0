"""Find pictures: a folder, a list file, tar shards or one picture -> `Listing`.

The listing of a large collection is kept in the user's cache folder and used again as long as none of the folders, or
the list file, or the shards that it was read from has changed.
"""

import os
import time
from collections.abc import Callable

from mocoembed.data.folder import find_in_folder
from mocoembed.data.list_file import READERS, find_in_list
from mocoembed.data.listing import NO_LABEL, Found, Listing, PathTable, State, folder_label
from mocoembed.data.listing_cache import cached_listing, keep_listing
from mocoembed.data.picture import SUFFIXES
from mocoembed.data.shards import find_in_shards
from mocoembed.errors import CollectionError, UsageError

__all__ = ["NO_LABEL", "Listing", "PathTable", "scan"]

KINDS = ("a folder, a list (.txt, .csv, .jsonl), tar shards ('shard-{000..009}.tar') or a picture")


def scan(collection, labels: str = "parent", what: str = "The collection",
         note: Callable[[str], None] = lambda text: None) -> Listing:
    """List the pictures of a collection: a folder of any depth, a list file, tar shards (with braces), a picture.

    `labels` names a picture by its own folder (`parent`), by the first folder below the root (`first`) or not at
    all (`none`); with the first two, labels in a list file or in shards count before folders. `note(text)` tells how
    far a long scan has come. Raises `UsageError` when the collection does not exist, `FormatError` for a list or
    shard that is damaged and `CollectionError` when there are no pictures.
    """
    find, source = _finder(os.fspath(collection), what)
    listing = cached_listing(source, labels)
    if listing is None:
        begun = time.time_ns()
        found = find(labels, Teller(f"listing {os.fsdecode(collection)}", note))
        if not found.paths:
            raise CollectionError(f"{what} {os.fsdecode(collection)!r} holds no pictures ({found.left_out} other "
                                  f"files). Looked for {', '.join(suffix.decode() for suffix in SUFFIXES)} at any "
                                  "depth.")
        listing = found.listing(source)
        keep_listing(listing, labels, found.witnesses, begun, note)
    if listing.repeated:
        note(f"named more than once and used once: {listing.repeated} pictures")
    return listing


def _finder(given: str, what: str):
    """How to list a collection, as a function of (labels, tell), and its absolute path; `UsageError` for no such."""
    source = os.path.abspath(os.fsencode(given))
    suffix = os.path.splitext(source)[1].lower()
    if os.path.isdir(source):
        return (lambda *how: find_in_folder(source, *how)), source
    if suffix == b".tar":
        return (lambda *how: find_in_shards(os.fsdecode(given), *how)), source
    if not os.path.exists(source):
        raise UsageError(f"{what} {given!r} does not exist. Give {KINDS}.")
    if suffix in READERS:
        return (lambda *how: find_in_list(source, *how)), source
    if suffix in SUFFIXES:
        return (lambda *how: _one(source, *how)), source
    raise UsageError(f"{what} {given!r} is a file that holds no pictures. Give {KINDS}.")


def _one(path: bytes, labels: str, tell) -> Found:
    """A single picture."""
    root, name = os.path.split(path)
    return Found(root, [name], [folder_label(name, root, labels)], {path: State.of(path)})


class Teller:
    """Called with the number of pictures so far; says it after 1, 2, 4, ... seconds, then every half minute."""

    def __init__(self, what: str, note: Callable[[str], None], total: int | None = None):
        self.what, self.note, self.pause = what, note, 1.0
        self.end = "pictures so far" if total is None else f"of {total:,} pictures"
        self.due = time.monotonic() + self.pause

    def __call__(self, count: int):
        if (now := time.monotonic()) >= self.due:
            self.pause = min(30.0, 2 * self.pause)
            self.due = now + self.pause
            self.note(f"{self.what}: {count:,} {self.end}")
