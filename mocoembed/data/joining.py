"""Several listings -> one `Listing`, with paths relative to a folder above them all."""

import os

import torch

from mocoembed.data.listing import NO_LABEL, Found, Listing, PathTable, Shards

IN_FILE = (-1, 0, 0)  # the place of a picture that is in no shard


def joined(listings: list[Listing], root: bytes) -> Listing:
    """The pictures of all, each once, by their paths below `root`, which is each listing's root or lies above it.

    Every picture keeps the label that its own listing gives it, and a label counts before none. Raises
    `CollectionError` when a picture has two labels.
    """
    starts = [_start(listing.root, root) for listing in listings]
    found = Found(root, [start + path for start, listing in zip(starts, listings) for path in listing.paths],
                  [label for listing in listings for label in _labels(listing)], {})
    found.left_out = sum(listing.left_out for listing in listings)
    found.closed = tuple({(start + folder).removesuffix(b"/") for start, listing in zip(starts, listings)
                          for folder in listing.closed})
    found.repeated = sum(listing.repeated for listing in listings)
    if any(listing.shards for listing in listings):
        found.shards = _shards(starts, listings)
    return found.listing(b"\0".join(sorted({source for listing in listings for source in listing.sources})))


def _start(folder: bytes, root: bytes) -> bytes:
    """What paths relative to `folder` begin with when they are relative to `root`."""
    return b"" if folder == root else os.path.join(os.path.relpath(folder, root), b"")


def _labels(listing: Listing) -> list[str | None]:
    names = dict(enumerate(listing.label_names)) | {NO_LABEL: None}
    return [names[number] for number in listing.labels.tolist()]


def _shards(starts: list[bytes], listings: list[Listing]) -> Shards:
    """The shards of all, and of every picture its place in them or that it is in none."""
    names, states, places = [], [], []
    for start, listing in zip(starts, listings):
        if listing.shards is None:
            places.append(torch.tensor([IN_FILE]).expand(len(listing), 3))
            continue
        places.append(listing.shards.places + torch.tensor([len(names), 0, 0]))
        names += [start + name for name in listing.shards.names]
        states.append(listing.shards.states)
    return Shards(PathTable(names), torch.cat(states), torch.cat(places))
