"""Splitting labelled images: stratified folds and a held-out part, by seed, with copies of an image kept together.

In: the label of every image and the group it belongs to (`same_image`: images with equal bytes are one group). Out: a
fold for every image, or a mask. The same names, groups and seed give the same split on every machine. Which images are
near-duplicates depends on the encoder; so these move into one fold after that (`gathered`), and all others are in the
same folds for every encoder.
"""

from collections import Counter

import numpy as np

from mocoembed.checks import parse_labels
from mocoembed.errors import CollectionError, UsageError
from mocoembed.notes import counted
from mocoembed.search.duplicates import Components, pieces


def same_image(digests: np.ndarray) -> np.ndarray:
    """(N,) int64: equal for images with equal bytes; `digests` (N,) V32, where zeros are unknown bytes, equal to none.

    The numbers rise with the first row of a group.
    """
    unknown = digests == np.void(bytes(digests.dtype.itemsize))
    _, first, number = np.unique(digests, return_index=True, return_inverse=True)
    groups = first[number]
    groups[unknown] = np.flatnonzero(unknown)
    return groups


def folds_of(names: list[str], groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,) int64: the fold, 0 to count - 1, of every image; every class is spread evenly and groups stay whole.

    A group whose images have several labels counts for the label of its first. Raises `UsageError` for fewer than two
    folds, `CollectionError` when a class has fewer groups than there are folds.
    """
    if count < 2:
        raise UsageError(f"--folds {count}: must be 2 or more.")
    fold, start = np.zeros(len(names), np.int64), 0
    for name, ordered in _shuffled(names, groups, seed).items():
        if len(ordered) < count:
            fewer = f"--folds {len(ordered)}, or " if len(ordered) > 1 else ""
            raise CollectionError(f"class {name!r} has {counted(len(ordered), 'different image')}, too few for {count} "
                                  f"folds. Give {fewer}more images of it.")
        filled = np.zeros(count, np.int64)
        for rows in ordered:
            # the emptiest of the class, and of these the one after where the last class ended: so sizes are even, too
            at = min(range(count), key=lambda one: (filled[one], (one - start) % count))
            fold[rows] = at
            filled[at] += len(rows)
        start = (start + len(ordered)) % count
    return fold


def near_duplicates(similarities: np.ndarray, rows: np.ndarray, cosine: float, names: list[str],
                    groups: np.ndarray) -> tuple[np.ndarray, int]:
    """(N,) int64: the first of the near-duplicates of each image, itself if it has none; and how many stay apart.

    similarities, rows (N, k): the images that are most similar to each. What is connected by a cosine of `cosine` or
    more, or by equal bytes (`groups`, of `same_image`), belongs together, unless that is more than half of a class: it
    would leave too little of it to learn from. Then only equal bytes do.
    """
    components, counts, apart = Components(len(names)), Counter(names), 0
    image, place = np.nonzero(similarities >= cosine)
    components.join_pairs(image, rows[image, place])
    components.join_pairs(np.arange(len(names)), groups)
    first = components.roots(np.arange(len(names)))
    for together in components.groups():
        if any(2 * count > counts[name] for name, count in Counter(names[row] for row in together).items()):
            first[together] = groups[together]
            apart += len(together) if np.ptp(groups[together]) else 0
    return first, apart


def gathered(fold: np.ndarray, first: np.ndarray, names: list[str]) -> np.ndarray:
    """(N,) int64: the folds when images with the same `first` of `near_duplicates` have moved into its fold.

    Where all others of its class are in that fold, so that none would be left to learn from elsewhere, they move into
    the fold with the fewest.
    """
    fold, (_, label) = fold.copy(), np.unique(names, return_inverse=True)
    filled = np.zeros((label.max() + 1, fold.max() + 1), np.int64)  # images of each class in each fold
    np.add.at(filled, (label, fold), 1)
    for rows in pieces(np.argsort(first, kind="stable"), np.bincount(first)):
        np.subtract.at(filled, (label[rows], fold[rows]), 1)
        others, at = filled[label[rows[0]]], fold[rows[0]]
        fold[rows] = at if others[at] < others.sum() else others.argmin()
        np.add.at(filled, (label[rows], fold[rows]), 1)
    return fold


def held_out(names: list[str], groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: the stratified part, `share` of every class, on which settings are chosen; groups stay whole.

    Of a class, at least one group is held out and at least one is left; the only group of a class is left. Raises
    `CollectionError` when that leaves nothing to choose on.
    """
    chosen = np.zeros(len(names), bool)
    for ordered in _shuffled(names, groups, seed).values():
        total, taken = sum(map(len, ordered)), 0
        for place, rows in enumerate(ordered[:-1]):
            if place and taken + len(rows) / 2 > share * total:
                break
            chosen[rows] = True
            taken += len(rows)
    if not chosen.any():
        raise CollectionError("every class has a single image, so none can be held out to choose settings on. Give "
                              "more images of each class, or the settings themselves.")
    return chosen


def few_of_each(names: list[str], groups: np.ndarray, labels: str, seed: int) -> np.ndarray:
    """(N,) bool: the images whose labels are used; `labels` is `1%`, `10%`, or a number for each class, `5-per-class`.

    Balanced by seed: of every class the same number, or the same share (rounded, one at least); of images with equal
    bytes only one is taken. A larger number takes what a smaller one takes, and more. Raises `UsageError` for another
    text, `CollectionError` when a class has fewer images.
    """
    share, number = parse_labels(labels)
    chosen = np.zeros(len(names), bool)
    counts = Counter(names)
    for name, ordered in _shuffled(names, groups, seed).items():
        wanted = number if share is None else max(1, round(share * counts[name]))
        if share is not None:
            wanted = min(wanted, len(ordered))
        if wanted > len(ordered):
            raise CollectionError(f"--labels {labels}: class {name!r} has {counted(len(ordered), 'different image')}. "
                                  f"Give --labels {len(ordered)}-per-class, or fewer.")
        chosen[[rows[0] for rows in ordered[:wanted]]] = True
    return chosen


def few_labels_notes(names: list[str], labels: str | None) -> list[str]:
    """A line when `labels` is a share that is less than one image of a class."""
    share = parse_labels(labels)[0] if labels else None
    if share is None:
        return []
    counts = Counter(names).values()
    few = sum(round(share * count) < 1 for count in counts)
    return [f"--labels {labels}: {few} of {len(counts)} classes have less than one image by that share; one of each is "
            "used"] if few else []


def _shuffled(names: list[str], groups: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """Label -> the rows of each of its groups, in an order that the seed and the label decide, sorted by label."""
    order = np.argsort(groups, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []
    by_class: dict[str, list[np.ndarray]] = {}
    for rows in sorted(pieces, key=lambda rows: rows[0]):
        by_class.setdefault(names[rows[0]], []).append(rows)
    shuffled = {}
    for number, (name, ordered) in enumerate(sorted(by_class.items())):
        random = np.random.Generator(np.random.PCG64([seed, number]))
        shuffled[name] = [ordered[place] for place in random.permutation(len(ordered))]
    return shuffled
