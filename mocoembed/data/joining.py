"""Several listings -> one `Listing`, with paths relative to a folder above them all."""

import os

import numpy as np

from mocoembed.data.found import Found
from mocoembed.data.listing import NO_LABEL, Listing, PathTable, Shards

AT_A_TIME = 10_000  # images
IN_FILE = (-1, 0, 0)  # the place of an image that is in no shard


def joined(listings: list[Listing], root: bytes) -> Listing:
    """The images of all, each once, by their paths below `root`, which is each listing's root or lies above it.

    Every image keeps the label that its own listing gives it, and a label counts before none. Raises
    `CollectionError` when an image has two labels.
    """
    found = Found(root)
    starts = [_start(listing.root, root) for listing in listings]
    for start, listing in zip(starts, listings):
        names = dict(enumerate(listing.label_names)) | {NO_LABEL: None}
        for first in range(0, len(listing), AT_A_TIME):
            rows = range(first, min(first + AT_A_TIME, len(listing)))
            found.extend([start + path for path in listing.paths.take(rows)],
                         [names[number] for number in listing.labels[rows].tolist()])
        found.skipped += listing.skipped
        found.repeated += listing.repeated
        for glob, count in listing.excluded.items():
            found.excluded[glob] = found.excluded.get(glob, 0) + count
    found.closed = list({(start + folder).removesuffix(b"/") for start, listing in zip(starts, listings)
                         for folder in listing.closed})
    if any(listing.shards for listing in listings):
        found.shards = _shards(starts, listings)
    return found.listing(b"\0".join(sorted({source for listing in listings for source in listing.sources})))


def _start(folder: bytes, root: bytes) -> bytes:
    """What paths relative to `folder` begin with when they are relative to `root`."""
    return b"" if folder == root else os.path.join(os.path.relpath(folder, root), b"")


def _shards(starts: list[bytes], listings: list[Listing]) -> Shards:
    """The shards of all, and of every image its place in them or that it is in none."""
    names: list[bytes] = []
    states, places = [], []
    for start, listing in zip(starts, listings):
        if listing.shards is None:
            places.append(np.tile(np.array(IN_FILE, np.int64), (len(listing), 1)))
            continue
        places.append(listing.shards.places + np.array([len(names), 0, 0]))
        names += [start + name for name in listing.shards.names]
        states.append(listing.shards.states)
    return Shards.of_arrays(PathTable(names), np.concatenate(states), np.concatenate(places))
