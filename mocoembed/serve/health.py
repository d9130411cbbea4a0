"""What a collection holds, and what looks wrong in it: failed images, labels that neighbours disagree with, outliers.

The `NEIGHBOURS` nearest images of each image are looked at, without itself. A label is suspected when most
of them have the same other label; those where they agree most, and are nearest, come first. Outliers are the images
that are least like their neighbours.
"""

import math
import os
from collections import Counter
from typing import Any

import numpy as np

from mocoembed.data.images import NO_LABEL
from mocoembed.search.index_rows import others
from mocoembed.serve.collection import Collection
from mocoembed.serve.jobs import Job

NEIGHBOURS = 10
BLOCK = 512  # rows at a time
SHOWN, SUSPECTED = 60, 500  # outliers and suspected labels
OUTLIERS = 0.05  # of the images are listed as outliers at most
MOST_FAILED = 500
LEAST_SHARE = 0.7  # of the neighbours that agree on another label


def report(collection: Collection, job: Job) -> dict[str, Any]:
    """The report, as plain JSON types."""
    file = collection.file
    paths = [path for first in range(0, len(file), 65_536) for path in file.paths[first:first + 65_536]]
    suffixes = Counter(os.path.splitext(os.fsdecode(path))[1].lower() or "none" for path in paths)
    failed = file.failed()
    found: dict[str, Any] = {
        "version": collection.version, "images": len(collection), "failed_images": len(failed),
        **collection.first_labels(),
        "suffixes": [{"suffix": name, "count": count} for name, count in suffixes.most_common()],
        "failed": [{"path": os.fsdecode(one.path), "error": one.error, "reason": one.reason}
                   for one in failed[:MOST_FAILED]]}
    rows, scores = _neighbours(collection, job)
    return {**found, **_suspected(collection, rows, scores), "outliers": _outliers(collection, scores)}


def _neighbours(collection: Collection, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, k) and scores of the nearest images of every image, without itself; -1 where there are fewer."""
    count = len(collection)
    k = min(NEIGHBOURS, max(0, count - 1))
    rows, scores = np.full((count, k), -1), np.zeros((count, k), np.float32)
    for first in range(0, count if k else 0, BLOCK):
        some = np.arange(first, min(first + BLOCK, count))
        near, found = collection.pair.nearest(collection.file.embeddings[some], k + 1)
        other = others(found, some)
        rows[some], scores[some] = found[other].reshape(-1, k), near[other].reshape(-1, k)
        job.progress(int(some[-1]) + 1, count)
        job.raise_if_set()
    return rows, scores


def _suspected(collection: Collection, rows: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Images whose neighbours agree on another label, the clearest first; and the share of agreeing neighbours."""
    labels, k = collection.labels, rows.shape[1]
    known = labels != NO_LABEL
    if not k or not known.any():
        return {"neighbours_agree": None, "suspected_total": 0, "suspected_labels": []}
    theirs = np.where(rows >= 0, labels[rows], NO_LABEL)  # N x k
    own, other, most = np.zeros((3, len(labels)), np.int64)
    for first in range(0, len(labels), BLOCK):
        block = slice(first, first + BLOCK)
        own[block], other[block], most[block] = _votes(theirs[block], labels[block])
    suspected = np.flatnonzero(known & (most >= LEAST_SHARE * k))
    clearest = np.lexsort((-scores[suspected].mean(axis=1), own[suspected] - most[suspected]))
    order = suspected[clearest][:SUSPECTED].tolist()
    return {"neighbours_agree": round(float((theirs == labels[:, None])[known].mean()), 4),
            "suspected_total": len(suspected),
            "suspected_labels": [{**facts, "suggested": collection.label_names[other[row]],
                                  "agreement": round(float(most[row] / k), 2)}
                                 for row, facts in zip(order, collection.facts(order))]}


def _votes(theirs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For n rows with neighbours (n, k): votes for their own label, the other label with the most votes, and these."""
    each, mine = np.arange(len(theirs)), (theirs == labels[:, None]) & (theirs != NO_LABEL)
    votes = (theirs[:, :, None] == theirs[:, None, :]).sum(axis=2)  # n x k: for the label of each neighbour
    votes[mine | (theirs == NO_LABEL)] = 0
    most = votes.argmax(axis=1)
    return mine.sum(axis=1), theirs[each, most], votes[each, most]


def _outliers(collection: Collection, scores: np.ndarray) -> list[dict]:
    """The images that are least like their neighbours, the least similar first."""
    if not scores.shape[1]:
        return []
    near = scores.mean(axis=1)
    rows = np.argsort(near, kind="stable")[:min(SHOWN, math.ceil(OUTLIERS * len(near)))]
    return [{**facts, "similarity": round(float(near[row]), 4)}
            for row, facts in zip(rows.tolist(), collection.facts(rows.tolist()))]
