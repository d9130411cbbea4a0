"""Updating an index in place: what was added, dropped or changed in the embeddings file since it was built.

An inverted file takes vectors out and in by their ids. A flat index is copied anew, which takes no longer, and so is
a graph, which cannot forget. The curve of recall is measured anew on stored rows. When more than a third has changed,
or no point of it reaches the target, the index is built anew.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.config import IndexConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MocoembedError
from mocoembed.files import StopRequest
from mocoembed.memory import within_memory
from mocoembed.search.index import SearchIndex, read_stamps, write_index
from mocoembed.search.index_rows import Effort
from mocoembed.search.kinds import Plan, kind_of
from mocoembed.search.matching import is_of
from mocoembed.search.trailer import read_manifest
from mocoembed.search.tuning import Sample, curve, described

MOST_CHANGED = 1 / 3  # of the vectors, since the lists were made
SAME = {"encoder": "encoder", "features": "features", "dimension": "dimension", "normalized": "normalization",
        "metric": "metric"}
ROWS_AT_ONCE = 8192
STOPPED = "Stopped while updating; the index is as it was. Run the same command again."


@dataclass(frozen=True)
class Changes:
    """What an index lacks."""

    gone: np.ndarray
    """Ids that are no longer in the embeddings file, or have another vector there."""
    rows: np.ndarray
    """Rows of the embeddings file that the index lacks, or holds another vector of."""
    added: int
    dropped: int
    changed: int

    @classmethod
    def between(cls, old_ids: np.ndarray, old_stamps: np.ndarray, ids: np.ndarray, stamps: np.ndarray) -> "Changes":
        """From the index's ids, rising, and the file's, in the order of its rows; each with its stamps."""
        places = np.minimum(np.searchsorted(old_ids, ids), max(0, len(old_ids) - 1))
        known = old_ids[places] == ids
        other = known & (old_stamps[places] != stamps)
        dropped = np.setdiff1d(old_ids, ids, assume_unique=True)
        return cls(np.concatenate([dropped, ids[other]]), np.flatnonzero(~known | other), int((~known).sum()),
                   len(dropped), int(other.sum()))

    def __str__(self):
        return f"{self.added} added, {self.dropped} dropped, {self.changed} changed"


def update_index(output: pathlib.Path, file: EmbeddingFile, stamps: np.ndarray, config: IndexConfig, description: dict,
                 note: Callable[[str], None], stop: StopRequest) -> tuple[dict, str] | None:
    """Bring the index at `output` up to the embeddings file, whose rows have these stamps; its manifest, what was done.

    `None` when it has to be built anew; `note` is told why.
    """
    if not output.exists():
        return None
    old = read_manifest(output)
    kind = old.get("type", "flat")
    if why := _why_anew(old, kind, config, description):
        note(f"building anew: {why}")
        return None
    if is_of(old, file):
        SearchIndex.open(output)  # whole?
        target = old.get("recall_target", 0)
        if kind != "flat" and config.recall < target:
            note(f"the index was made for a recall of {target:g} and keeps it; --fresh builds it for {config.recall:g}")
        return old, "up to date"
    if kind == "flat" or "stamps_bytes" not in old:
        note(f"building anew: the embeddings have changed, and an index of type {kind} cannot be updated")
        return None
    plan = Plan(kind_of(kind), len(file), file.dimension)
    with within_memory("Updating the index", plan.peak):
        return _updated(output, file, stamps, old, description, note, stop)


def _why_anew(old: dict, kind: str, config: IndexConfig, description: dict) -> str:
    """Why an index of that kind is of no use for what is asked for; empty where it may be."""
    if config.type not in ("auto", kind):
        return f"the index is of type {kind}"
    if others := [word for name, word in SAME.items() if old[name] != description[name]]:
        return f"the embeddings are of another {', '.join(others)}"
    if kind != "flat" and old.get("recall_target", 0) < config.recall and not config.allow_lower_recall:
        return f"the index was made for a recall of {old.get('recall_target', 0):g}"
    return ""


def _updated(output: pathlib.Path, file: EmbeddingFile, stamps: np.ndarray, old: dict, description: dict,
             note: Callable[[str], None], stop: StopRequest) -> tuple[dict, str] | None:
    search = SearchIndex.open(output, to_change=True)
    index, ids = search.index, file.ids()
    changes = Changes.between(np.sort(index.ids()), read_stamps(output, old), ids, stamps)
    moved = old.get("moved", 0) + len(changes.rows) + changes.dropped
    if moved > MOST_CHANGED * len(file):
        note(f"building anew: {moved} of {len(file)} rows have changed since the index was built ({changes} now)")
        return None
    if (removed := index.remove(changes.gone)) != len(changes.gone):
        raise MocoembedError(f"{output} lacks ids that it should hold ({removed} of {len(changes.gone)} found). "
                             "Build it again with: mocoembed index --fresh")
    for first in range(0, len(changes.rows), ROWS_AT_ONCE):
        rows = changes.rows[first:first + ROWS_AT_ONCE]
        index.add(file.vectors_at(rows), ids[rows])
        stop.raise_if_set(STOPPED)
    sample = Sample.of_stored(file, stop)
    points = list(curve(index, file, sample, kind_of(old["type"]).reranks, stop, ids))
    floor = old.get("recall_floor", min(old["recall_target"], old["recall_at_10"]))
    point = _kept(points, Effort.of(old["parameters"]).breadth, floor)
    if point is None:
        note(f"building anew: {changes}, and the recall has fallen to {points[-1]['recall_at_10']:.3f}")
        return None
    manifest = {**old, **description, **described(point), "recall_floor": floor, "measured_on": len(sample.rows),
                "moved": moved, "curve": points}
    note(f"updating: {changes}")
    order = np.argsort(ids, kind="stable")
    return write_index(output, index, old["index_bytes"], stamps[order], manifest, stop), "updated"


def _kept(points: list[dict], breadth: int, floor: float) -> dict | None:
    """The point of the new curve to search with: of that breadth, or the first larger one that reaches the floor.

    A recall reaches it unless it is below by more than its standard error. A curve that ends earlier finds all there.
    """
    wide = [point for point in points if Effort.of(point).breadth >= breadth] or points[-1:]
    return next((point for point in wide if point["recall_at_10"] + point["recall_error"] >= floor), None)
