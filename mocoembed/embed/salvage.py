"""What an interrupted run had done -> an embeddings file of its own, on which new work builds; and whether all of it is
in the output already.
"""

import contextlib
import heapq
import itertools
import os
import pathlib
from collections import Counter
from operator import itemgetter

import numpy as np

from mocoembed.data.images import NO_LABEL, Listing, PathTable
from mocoembed.embed.plan import Plan
from mocoembed.embed.publish import Rows
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.embed.work import EMBEDDED, WorkFile
from mocoembed.errors import FormatError


def salvage(work: WorkFile, base_path: pathlib.Path | None, target: pathlib.Path, settings: Settings) -> int:
    """Write as embeddings what an interrupted run had done, and what it built on; how many images it had done.

    Without its base, what that run had kept of it is lost.
    """
    paths = PathTable.of_arrays(work.array("blob"), work.array("offsets"))
    plan = Plan(work.array("before"), work.array("todo"))
    if base_path is None:
        paths, plan = PathTable(paths.take(plan.todo)), Plan(np.full(work.slots, -1), np.arange(work.slots))
    with EmbeddingFile(base_path) if base_path else contextlib.nullcontext() as base:
        if base is not None:
            base.verify()
            paths, plan = _with_all_of(base, paths, plan)
        labels = np.full(len(paths), NO_LABEL, np.int32)
        listing = Listing(os.fsencode(work.header["root"]), paths, labels, (), Counter(),
                          source=os.fsencode(work.header["key"]["source"]))
        rows = Rows(listing, plan, work, base, whole=False)
        read = int((rows.status[plan.todo] == EMBEDDED).sum())
        if read:
            rows.fall_back()
            done = rows.status == EMBEDDED
            write_embeddings(target, listing, settings, done, rows.facts, rows.vectors(), [])
    return read


def _with_all_of(base: EmbeddingFile, paths: PathTable, plan: Plan) -> tuple[PathTable, Plan]:
    """A plan's images and those that only its base has, whose bytes may yet be found under other paths."""
    every: list[bytes] = []
    places, before = [], []
    of_listing = ((path, True, -1) for path in paths)
    of_base = ((path, False, row) for row, path in enumerate(base.paths()))
    for path, found in itertools.groupby(heapq.merge(of_listing, of_base), key=itemgetter(0)):
        _, listed, rows = zip(*found)
        if any(listed):
            places.append(len(every))
        every.append(path)
        before.append(max(rows))
    return PathTable(every), Plan(np.array(before, np.int64), np.array(places, np.int64)[plan.todo])


def is_published(work: WorkFile, output: pathlib.Path) -> bool:
    """Whether an embeddings file is what became of this work: of the same settings, with all that was embedded."""
    header = work.header
    if work.done() < work.slots:
        return False
    try:
        with EmbeddingFile(output) as file:
            same = (file.required().items() <= header["key"].items() and os.fsdecode(file.root) == header["root"]
                    and file.describe()["listed"] == header["listed"])
            digests = set(file.digest()) if same else set()
        return same and all(digests.issuperset(block["facts"]["digest"][block["status"] == EMBEDDED].tolist())
                            for _, block in work.blocks())
    except FormatError:
        return False
