"""Find images: a folder, a list file, tar shards, one image, or several of these -> `Listing`.

The listing of a large collection is kept in the user's cache folder and used again as long as none of the folders, or
the list file, or the shards that it was read from has changed.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from mocoembed.data.exclude import Exclude, excluded_text
from mocoembed.data.folder import find_in_folder
from mocoembed.data.formats import IMAGE_SUFFIXES, suffixes_read
from mocoembed.data.found import Found, State, folder_label
from mocoembed.data.joining import joined
from mocoembed.data.list_file import READERS, find_in_list, require_slashes
from mocoembed.data.listing import NO_LABEL, Listing, PathTable
from mocoembed.data.listing_cache import How, cached_listing, keep_listing
from mocoembed.data.shards import find_in_shards
from mocoembed.data.skipped import skipped_text
from mocoembed.errors import CollectionError, UsageError
from mocoembed.notes import counted

__all__ = ["NO_LABEL", "Listing", "PathTable", "require_root", "scan"]

KINDS = ("a folder, a list (.txt, .csv, .tsv, .jsonl), tar shards ('shard-{000..009}.tar') or an image")
LOOKED_FOR = 100  # images of lists, when a root is given


def scan(collections, labels: str = "parent", what: str = "The collection",
         note: Callable[[str], None] = lambda text: None, root=None, exclude: Sequence[str] = ()) -> Listing:
    """List the images of a collection: a folder (searched recursively), list file, tar shards (with braces), image.

    Or of a sequence of several, as one: each image once, by its path below the deepest folder that all lie in, with
    the label that its own collection gives it.

    `labels` names an image by its own folder (`parent`), by the first folder below the root (`first`) or not at
    all (`none`); with the first two, labels in a list file or in shards count before folders. `note(text)` tells how
    far a long scan has come. `root` is the folder that paths are to be relative to: folders, shards and images must
    lie in it; for lists, it stands for the root that their listing has without it, which is how to say where the
    images have been moved.

    `exclude` holds globs of what is left out (see `Exclude`); in folders and shards thumbnails and the like (`USUAL`)
    are, too, but not in a list, which names its images itself.

    Raises `UsageError` when a collection or `root` does not exist, `FormatError` for a list or shard that is damaged
    and `CollectionError` when there are no images.
    """
    given = [collections] if isinstance(collections, str | bytes | os.PathLike) else list(collections)
    if not given:
        raise UsageError(f"No collection is given. Give {KINDS}, or several of these.")
    finders = dict(_finder(os.fspath(each), what) for each in given)
    how = How(labels, (exclude,) if isinstance(exclude, str) else tuple(exclude))
    listings = [_scan_one(source, find, how, note) for source, find in sorted(finders.items())]
    listing = _as_one(listings) if root is None else _below(os.path.abspath(os.fsencode(root)), listings)
    if not len(listing):
        where = ", ".join(repr(os.fsdecode(each)) for each in given)
        texts = [skipped_text(listing.skipped)] if listing.skipped else []
        texts += [excluded_text(listing.excluded)] if listing.excluded else []
        others = f" ({'; '.join(texts)})" if texts else ""
        raise CollectionError(f"{what} {where} holds no images{others}. Searched recursively for "
                              f"{', '.join(suffix.decode() for suffix in suffixes_read())}.")
    for each in listings:
        if not len(each):
            note(f"{os.fsdecode(each.source)!r} holds no images")
    if root is None and any(_is_list(each.source) for each in listings):
        require_slashes(listing)
    if listing.excluded:
        note(excluded_text(listing.excluded))
    if listing.repeated:
        note(f"listed more than once, used once: {counted(listing.repeated, 'image')}")
    return listing


def _scan_one(source: bytes, find, how: How, note: Callable[[str], None]) -> Listing:
    """The listing of one collection, which may be empty; the kept one if it holds."""
    listing = cached_listing(source, how)
    if listing is None:
        begun = time.time_ns()
        found = find(how.labels, Teller(f"listing {os.fsdecode(source)}", note), how.exclude)
        listing = found.listing(source)
        keep_listing(listing, how, found.witnesses, begun, note)
    return listing


def _as_one(listings: list[Listing]) -> Listing:
    return listings[0] if len(listings) == 1 else joined(
        listings, os.path.commonpath([listing.root for listing in listings]))


def require_root(root):
    """Raise `UsageError` unless `root` (or `None`) is a folder."""
    if root is not None and not os.path.isdir(root):
        raise UsageError(f"The root {os.fsdecode(root)!r} is not a folder. Give the one that the images are in now.")


def _below(root: bytes, listings: list[Listing]) -> Listing:
    """All as one with this root, which stands for the root of the lists among them."""
    require_root(root)
    here: list[Listing] = []
    lists: list[Listing] = []
    for listing in listings:
        (lists if _is_list(listing.source) else here).append(listing)
    for listing in here:
        if os.path.commonpath([root, listing.root]) != root:
            raise UsageError(f"{os.fsdecode(listing.source)!r} is not inside the root {os.fsdecode(root)!r}. Give a "
                             "root that holds it, or none.")
    if lists:
        there = _as_one(lists)
        here.append(dataclasses.replace(there, root=root))
        require_slashes(here[-1])
        _require_some(here[-1], there.root)
    return here[0] if len(here) == 1 and here[0].root == root else joined(here, root)


def _is_list(source: bytes) -> bool:
    return os.path.splitext(source)[1].lower() in READERS and not os.path.isdir(source)


def _require_some(listing: Listing, before: bytes):
    """Raise `CollectionError` when none of the images of some lists, taken here and there, is below the new root."""
    rows = np.unique(np.linspace(0, len(listing) - 1, min(LOOKED_FOR, len(listing))).astype(np.int64))
    if len(rows) and (listing.states(rows)["size"] < 0).all():
        raise CollectionError(f"Nothing was found in the root {os.fsdecode(listing.root)!r} of {len(rows)} images "
                              f"looked for, such as {os.fsdecode(listing.full_path(int(rows[0])))!r}. The root stands "
                              f"for {os.fsdecode(before)!r}: give the folder that has that one's content now.")


def _finder(given: str | bytes, what: str):
    """A collection's absolute path and how to list it, a function of (labels, tell, globs).

    Raises `UsageError` where there is none.
    """
    source = os.path.abspath(os.fsencode(given))
    suffix = os.path.splitext(source)[1].lower()
    if os.path.isdir(source):
        return source, lambda labels, tell, globs: find_in_folder(source, labels, tell, Exclude(globs, usual=True))
    if suffix == b".tar":
        return source, lambda labels, tell, globs: find_in_shards(os.fsdecode(given), labels, tell,
                                                                 Exclude(globs, usual=True))
    if not os.path.exists(source):
        raise UsageError(f"{what} {os.fsdecode(given)!r} does not exist. Give {KINDS}.")
    if suffix in READERS:
        return source, lambda labels, tell, globs: find_in_list(source, labels, tell, Exclude(globs))
    if suffix in IMAGE_SUFFIXES:  # it is tried, whatever is installed
        return source, lambda labels, tell, globs: _one(source, labels, Exclude(globs))
    raise UsageError(f"{what} {os.fsdecode(given)!r} is a file that holds no images. Give {KINDS}.")


def _one(path: bytes, labels: str, exclude: Exclude) -> Found:
    """A single image."""
    root, name = os.path.split(path)
    found = Found(root)
    found.excluded = exclude.counts
    if exclude.takes(name):
        found.extend([name], [folder_label(name, root, labels)])
    found.witnesses[path] = State.of(path)
    return found


class Teller:
    """Called with the number of images so far; says it after 1, 2, 4, ... seconds, then every half minute."""

    def __init__(self, what: str, note: Callable[[str], None], total: int | None = None):
        self.what, self.note, self.pause = what, note, 1.0
        self.end = "images so far" if total is None else f"of {total:,} images"
        self.due = time.monotonic() + self.pause

    def __call__(self, count: int):
        if (now := time.monotonic()) >= self.due:
            self.pause = min(30.0, 2 * self.pause)
            self.due = now + self.pause
            self.note(f"{self.what}: {count:,} {self.end}")
