"""Building the index: embeddings.h5 -> plan -> train -> add -> tune -> embeddings.faiss.

The vectors are read in blocks, and nothing holds all of them but the index itself. A type with settings is tuned on
rows that are held out of it, which are added at the end.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.checks import size_in_bytes
from mocoembed.config import IndexConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MocoembedError, UsageError
from mocoembed.files import StopRequest, locked
from mocoembed.memory import available_memory, within_memory
from mocoembed.notes import say_nothing
from mocoembed.search.blocks import blocks, finite
from mocoembed.search.faiss_index import FaissIndex, faiss_version, require_gpu
from mocoembed.search.index import write_index
from mocoembed.search.index_rows import Effort, IndexRows
from mocoembed.search.kinds import FLAT_BYTES, KINDS, POINTS, Kind, Plan, kind_of, lists_for, require_cap
from mocoembed.search.stamps import verified_stamps
from mocoembed.search.trailer import FAISS_STARTS, FORMAT_VERSION, KIND, MAGIC, read_manifest
from mocoembed.search.tuning import HELD_SHARE, Sample, chosen, curve, described, held_out_of, measure
from mocoembed.search.update import update_index
from mocoembed.version import __version__
from mocoembed.workspace import Workspace

RECALL = 0.99  # of a new index, unless another is asked for
LEAST_HELD_OUT = 2  # rows; a smaller collection is not tuned


@dataclass(frozen=True)
class IndexResult:
    """What `build_index` did."""

    path: pathlib.Path
    manifest: dict
    """As stored in the file: type, factory, metric, count, dimension, recall_at_10, latency_ms and more."""
    done: str = "built"
    """`built`, `updated` or `up to date`."""


def build_index(config: IndexConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                note: Callable[[str], None] = say_nothing) -> IndexResult:
    """Build the index of an embeddings file, or update the one that is there, and measure it.

    `progress(done, total)` counts vectors; `note(text)` is told the plan, and why an index is built anew. Raises
    `UsageError` for wrong paths and types, `FormatError` for an embeddings file that is damaged, empty or holds
    vectors that are not finite, `LockedError` when another process writes the index, `Interrupted` after a signal,
    `MocoembedError` when the memory or the disk is too small or the recall is missed. An index that is already there is
    replaced when the new one is whole.
    """
    source = Workspace(config.workspace).embeddings_file(config.embeddings)
    output = pathlib.Path(config.output) if config.output else source.with_suffix(".faiss")
    if config.gpu:
        require_gpu()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(EmbeddingFile(source))
        require_replaceable(output, source, config.fresh)
        stack.enter_context(locked(output.with_name(f".{output.name}.lock"), str(output)))
        require_some(file)
        config = _as_before(config, output)
        stamps, plans = verified_stamps(file), _plans(config, file)
        stop = stack.enter_context(StopRequest())
        if not config.fresh and (updated := update_index(output, file, stamps, config,
                                                         _description(file, output), note, stop)):
            return IndexResult(output, *updated)
        for plan in plans:
            note(f"plan: {plan}")
            manifest = _built(plan, file, stamps, config, output, progress, stop)
            if manifest is not None:
                return IndexResult(output, manifest)
            note(f"{plan.kind.name} does not reach a recall of {config.recall:g} on these vectors")
    raise MocoembedError(f"No index was written: none of {', '.join(plan.kind.name for plan in plans)} reaches "
                         f"--recall {config.recall:g} within the memory. Lower it, add --allow-lower-recall to keep "
                         "the index, or use --type flat, which is exact.")


def _as_before(config: IndexConfig, output: pathlib.Path) -> IndexConfig:
    """The settings, with type and recall of the index that is there where none are asked for."""
    old = read_manifest(output) if output.exists() and not config.fresh else {}
    kept = old["type"] if config.type == "auto" and old.get("type_given") else config.type
    recall = old.get("recall_target", RECALL) if config.recall is None else config.recall
    return dataclasses.replace(config, type=kept if kept == "auto" else kind_of(kept).name, recall=recall)


def _plans(config: IndexConfig, file: EmbeddingFile) -> list[Plan]:
    """What is tried, one after the other, each within the cap of memory; `MocoembedError` when nothing is."""
    given = size_in_bytes(config, "memory")
    cap = min((limit for limit in (given, available_memory()) if limit is not None), default=None)
    is_free = cap != given
    if config.type != "auto":
        plan = Plan(kind_of(config.type), len(file), file.dimension)
        require_cap(plan, cap, is_free)
        learned_from = len(file) - held_out_of(len(file))
        if plan.parts.lists > learned_from:
            raise UsageError(f"--type {config.type}: {plan.parts.lists} lists need as many vectors to learn from, and "
                             f"{file.path} has {learned_from} beside those that the recall is measured with. "
                             f"{lists_for(len(file))} lists are usual for so many.")
        return [plan]
    small = 4 * len(file) * file.dimension <= FLAT_BYTES
    plans = [Plan(KINDS[name], len(file), file.dimension) for name in (["flat"] if small else ["rabitq", "flat"])]
    if not small and cap is not None and plans[-1].peak > cap:
        plans[-1] = Plan(KINDS["ivf-sq8"], len(file), file.dimension)
    require_cap(min(plans, key=lambda plan: plan.peak), cap, is_free)
    return [plan for plan in plans if cap is None or plan.peak <= cap]


def _built(plan: Plan, file: EmbeddingFile, stamps: np.ndarray, config: IndexConfig, output: pathlib.Path, progress,
           stop: StopRequest) -> dict | None:
    """The manifest of the index that was written; `None` when it missed the recall and nothing was."""
    what = f"An index of type {plan.kind.name} of {len(file)} vectors of dimension {file.dimension}"
    with within_memory(what, plan.peak):
        index = FaissIndex.empty(file.dimension, plan.factory, metric_of(file))
        ids, exact = file.ids(), plan.kind.name == "flat"
        sample = None if exact or len(file) < LEAST_HELD_OUT / HELD_SHARE else Sample.held_out(file, stop)
        held = np.zeros(len(file), bool)
        if sample is not None:
            held[sample.rows] = True
            index.train(_training_rows(file, index.lists, held), config.gpu)
            stop.raise_if_set(_stopped(0, len(file)))
        index.reserve(len(file))
        _fill(index, file, ids, held, progress, stop)
        measured = _tuned(index, file, ids, sample, plan.kind, config, stop)
        if measured is None:
            return None
        if sample is not None:
            index.add(sample.queries, ids[sample.rows])
        manifest = {**_description(file, output), "type": plan.kind.name, "type_given": config.type != "auto",
                    "factory": plan.factory, **measured}
        manifest["format"] = 1 if exact else FORMAT_VERSION
        stamps = stamps[np.argsort(ids, kind="stable")] if index.can_remove else stamps[:0]
        return write_index(output, index, plan.size, stamps, manifest, stop)


def _tuned(index: FaissIndex, file: EmbeddingFile, ids: np.ndarray, sample: Sample | None, kind: Kind,
           config: IndexConfig, stop: StopRequest) -> dict | None:
    """What the manifest says of recall and latency; `None` when the recall is missed."""
    if sample is None:
        sample = Sample.of_stored(file, stop)
        measured = measure(IndexRows(index, file, Effort(), ids=ids), file, sample, stop)
        return {"parameters": {}, **measured, "recall_target": config.recall, "measured_on": len(sample.rows)}
    points = list(curve(index, file, sample, kind.reranks, stop))
    point = chosen(points, config.recall or RECALL)
    if point is None:
        best = max(points, key=lambda one: one["recall_at_10"])
        if not config.allow_lower_recall:
            if config.type == "auto":
                return None
            raise MocoembedError(f"--type {config.type} reaches a recall@10 of {best['recall_at_10']:.4f} "
                                 f"(+- {best['recall_error']:.4f}) at most, which does not safely reach --recall "
                                 f"{config.recall:g}; no index was written. Lower it, add --allow-lower-recall, or "
                                 "use --type flat, which is exact.")
        point = best
    return {**described(point), "recall_target": config.recall, "measured_on": len(sample.rows), "lists": index.lists,
            "curve": points}


def _training_rows(file: EmbeddingFile, lists: int, held: np.ndarray) -> np.ndarray:
    """(n, D) float32: vectors at even distances for k-means and codes, none of them held out."""
    others = np.flatnonzero(~held)
    places = np.unique(np.linspace(0, len(others) - 1, min(len(others), POINTS * max(lists, 256))).astype(np.int64))
    wanted, parts = others[places], []
    for rows, vectors in blocks(file):  # not `vectors_at`, which would map all of the file into memory
        some = wanted[np.searchsorted(wanted, rows.start):np.searchsorted(wanted, rows.stop)]
        parts.append(finite(file, vectors[some - rows.start], some))
    return np.concatenate(parts)


def _fill(index: FaissIndex, file: EmbeddingFile, ids: np.ndarray, held: np.ndarray, progress, stop: StopRequest):
    """Add every vector that is not held out under its id."""
    for rows, vectors in blocks(file):
        finite(file, vectors, np.arange(rows.start, rows.stop))
        kept = ~held[rows]
        index.add(vectors if kept.all() else vectors[kept], ids[rows][kept])
        progress(rows.stop, len(file))
        stop.raise_if_set(_stopped(rows.stop, len(file)))


def _stopped(done: int, total: int) -> str:
    return f"Stopped after {done} of {total} vectors; no index was written. Run the same command again."


def metric_of(file: EmbeddingFile) -> str:
    """How the vectors of a file are compared: `inner_product` if they have length 1, else `l2`."""
    return "inner_product" if file.normalized else "l2"


def require_replaceable(output: pathlib.Path, source: pathlib.Path, fresh: bool):
    """Raise `UsageError` when `output` is there and is not a whole index of ours, of the embeddings `source`.

    `fresh` allows any other index to be replaced, but never a file that is none.
    """
    if not output.exists():
        return
    if output.is_dir():
        raise UsageError(f"--output {output}: is a folder. Give the name of a file.")
    try:
        before = read_manifest(output)["embeddings"]["path"]
    except FormatError as error:
        if fresh and _may_be_an_index(output):
            return
        way = "." if fresh else ", or add --fresh if it is a damaged one."
        raise UsageError(f"{output} exists and is not a mocoembed index. Give another --output{way}") from error
    if not fresh and os.path.normpath(output.parent / before) != os.path.normpath(source):
        raise UsageError(f"{output} is the index of {before}, not of {source}. Add --fresh to replace it, "
                         "or give another --output.")


def _may_be_an_index(path: pathlib.Path) -> bool:
    """Whether it begins as an index does, ends as ours do, or is empty."""
    with open(path, "rb") as file:
        if not (begins := file.read(2)):
            return True
        file.seek(-min(len(MAGIC), os.fstat(file.fileno()).st_size), os.SEEK_END)
        return begins in FAISS_STARTS or file.read() == MAGIC


def require_some(file: EmbeddingFile):
    """Raise `FormatError` unless the file has a vector."""
    if len(file) == 0:
        raise FormatError(f"{file.path} holds no vectors. Embed images with: mocoembed embed FOLDER --fresh")


def require_vectors(file: EmbeddingFile):
    """Raise `FormatError` unless the file has a vector and its rows match their SHA-256."""
    require_some(file)
    file.verify()


def _description(file: EmbeddingFile, output: pathlib.Path) -> dict:
    """The part of the manifest that comes from the embeddings file."""
    relative = os.path.relpath(file.path.resolve(), output.parent.resolve())
    return {"kind": KIND, "format": FORMAT_VERSION, "mocoembed": __version__, "faiss": faiss_version(),
            "count": len(file), "dimension": file.dimension, "metric": metric_of(file),
            "normalized": file.normalized, "features": file.features, "encoder": file.fingerprint,
            "embeddings": {"path": relative, "count": len(file), "rows_sha256": file.identity}}
