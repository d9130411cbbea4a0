"""Before anything is embedded: what is there, what may be replaced, what is left to do -> `Job`.

Beside the output may lie unfinished work (`.work`). The same listing goes on with it. When the collection has changed
since, what was done is first saved as an embeddings file of its own (`.salvaged`), on which the new work builds.
"""

import contextlib
import hashlib
import heapq
import itertools
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from mocoembed.config import EmbedConfig
from mocoembed.data.images import NO_LABEL, Listing, PathTable
from mocoembed.embed.claim import output_file
from mocoembed.embed.plan import Plan, rows_by_path
from mocoembed.embed.publish import Rows
from mocoembed.embed.seal import MARK
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, vector_type, write_embeddings
from mocoembed.embed.work import EMBEDDED, WorkFile, read_header, record_type
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.files import require_space, sha256_json, sync_folder

ROW_BYTES = 80  # of an embeddings file, beside vector and path


@dataclass(frozen=True)
class Job:
    """What every process must know of the work."""

    output: pathlib.Path
    listing: Listing
    plan: Plan
    base: pathlib.Path | None
    """The embeddings file whose rows are used again."""
    resumed_from: int
    """Slots that were done before."""
    changes: bool
    """Whether the output has to be written."""

    @property
    def work(self) -> pathlib.Path:
        """The work file."""
        return work_file(self.output)

    @property
    def todo(self) -> bool:
        """Whether there is anything to read."""
        return len(self.plan.todo) > 0

    def pictures(self) -> Listing:
        """The pictures to read: slot -> picture."""
        return self.listing if len(self.plan.todo) == len(self.listing) else self.listing.subset(self.plan.todo)


def work_file(output: pathlib.Path) -> pathlib.Path:
    """Where the unfinished work of an output lies."""
    return output.with_name(f"{output.name}.work")


def _salvaged_file(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(f"{output.name}.salvaged")


def remove_unfinished(output: pathlib.Path):
    """Delete work and salvaged embeddings, once the output is whole or they are not wanted."""
    for path in (_salvaged_file(output), work_file(output)):  # in this order: work without its base is seen to be done
        path.unlink(missing_ok=True)
    sync_folder(output.parent)


def prepare(config: EmbedConfig, listing: Listing, settings: Settings, note: Callable[[str], None]) -> Job:
    """Find out what is to be done, and have the work file for it ready.

    Raises `MismatchError` when the output comes from another source, `UsageError` when the unfinished work does,
    `CollectionError` when pictures that have rows cannot be seen, `FormatError` when a file is not ours or is damaged,
    `MocoembedError` when the disk is too small.
    """
    output = output_file(config)
    if config.fresh:
        if output.exists():
            _require_ours(output)
        if output.parent.exists():
            remove_unfinished(output)
    states = listing.states()
    described = {
        "key": {"source": os.fsdecode(listing.source), **settings.required()},
        "listed": len(listing), "root": os.fsdecode(listing.root), "batch_size": config.batch_size,
        "pictures": sha256_json([listing.digest(), hashlib.sha256(states).hexdigest(), os.fsdecode(listing.root)]),
        "output": _identity(output)}
    if work_file(output).exists():
        return _go_on(config, listing, settings, described, states, note)
    return _begin(config, listing, settings, described, states, config.fresh)


def _go_on(config: EmbedConfig, listing: Listing, settings: Settings, described: dict, states: np.ndarray,
           note) -> Job:
    """The job of the work that is there; when there is no going on, that which builds on what it had done."""
    output = output_file(config)
    header = read_header(work_file(output))
    other = [name for name, value in described["key"].items() if header["key"].get(name) != value]
    if config.root is not None and "source" in other:
        other.remove("source")  # it has moved; whether it is the same one is seen from its pictures
    if other:
        raise UsageError(f"{work_file(output)} holds unfinished work with other settings ({', '.join(other)}). "
                         "Add --fresh to drop it, or give another --output.")
    with WorkFile(work_file(output)) as work:
        if lost := work.take_back_damaged(header["batch_size"]):
            note(f"{work.path} is damaged; {lost} pictures in it are done again")
        done = work.done()
        if described["output"] not in (None, header["output"]):
            if done < work.slots:
                raise UsageError(f"{output} has been replaced since {work.path} was begun. Add --fresh to drop the "
                                 "unfinished work, or give another --output.")
            remove_unfinished(output)  # killed after publishing it
            return _begin(config, listing, settings, described, states, fresh=False)
        base = _with_identity(header["base"], output)
        base_is_gone = base is None and header["base"] is not None
        if not base_is_gone and all(header[name] == described[name] for name in ("pictures", "batch_size")):
            require_space(output, _bytes_of_output(listing, settings))
            return Job(output, listing, Plan(work.array("before"), work.array("todo")), base, done, changes=True)
        if base_is_gone and _salvaged_file(output).exists():
            note("what the interrupted run had done is kept")  # killed after salvaging, which replaced the base
        else:
            saved = _salvage(work, base, output, settings)
            what = f"{output}, on which it was to build, is gone" if base_is_gone else (
                "the collection or --batch-size has changed since the interrupted run")
            note(f"{what}; {saved} pictures of it are kept")
    work_file(output).unlink()
    fresh = header["base"] is None and header["output"] is not None  # the output is to be replaced, not built on
    return _begin(config, listing, settings, described, states, fresh)


def _salvage(work: WorkFile, base_path: pathlib.Path | None, output: pathlib.Path, settings: Settings) -> int:
    """Write as embeddings what an interrupted run had done, and what it built on; how many pictures it had done.

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
        listing = Listing(os.fsencode(work.header["root"]), paths, np.full(len(paths), NO_LABEL, np.int32), (), 0,
                          source=os.fsencode(work.header["key"]["source"]))
        rows = Rows(listing, plan, work, base, whole=False)
        read = int((rows.status[plan.todo] == EMBEDDED).sum())
        if read:
            rows.fall_back()
            done = rows.status == EMBEDDED
            write_embeddings(_salvaged_file(output), listing, settings, done, rows.facts, rows.vectors(), [])
    return read


def _with_all_of(base: EmbeddingFile, paths: PathTable, plan: Plan) -> tuple[PathTable, Plan]:
    """A plan's pictures and those that only its base has, whose bytes may yet be found under other paths."""
    every, places, before = [], [], []
    of_listing = ((path, True, -1) for path in paths)
    of_base = ((path, False, row) for row, path in enumerate(base.paths()))
    for path, found in itertools.groupby(heapq.merge(of_listing, of_base), key=itemgetter(0)):
        _, listed, rows = zip(*found)
        if any(listed):
            places.append(len(every))
        every.append(path)
        before.append(max(rows))
    return PathTable(every), Plan(np.array(before, np.int64), np.array(places, np.int64)[plan.todo])


def _require_ours(output: pathlib.Path):
    """Raise `FormatError` unless the file is an embeddings file, be it damaged, or empty, as HDF5 may leave one."""
    with open(output, "rb") as file:
        begin = file.read(len(MARK))
    if begin not in (b"", MARK):
        EmbeddingFile(output).close()


def _identity(path: pathlib.Path) -> str | None:
    """Which rows an embeddings file has; `None` when there is no file."""
    try:
        with EmbeddingFile(path) as file:
            return file.identity
    except FileNotFoundError:
        return None
    except FormatError:
        return "damaged"


def _with_identity(identity: str | None, output: pathlib.Path) -> pathlib.Path | None:
    """Of salvaged embeddings and output, the file that has these rows; `None` when none has."""
    return next((path for path in (_salvaged_file(output), output)
                 if identity is not None and _identity(path) == identity), None)


def _bytes_of_output(listing: Listing, settings: Settings) -> int:
    """About the size of the embeddings file of a listing."""
    longest = int(np.diff(listing.paths.offsets.numpy()).max(initial=0))
    return len(listing) * (settings.dimension * vector_type(settings.dtype).itemsize + longest + ROW_BYTES)


def _begin(config: EmbedConfig, listing: Listing, settings: Settings, described: dict, states: np.ndarray,
           fresh: bool) -> Job:
    """A new job, built on salvaged embeddings or, unless it starts `fresh`, on the output."""
    output = output_file(config)
    candidates = [_salvaged_file(output), *([] if fresh else [output])]
    base = next((path for path in candidates if path.exists()), None)
    identity = None
    if base is None:
        plan = Plan.of(listing, None, states)
    else:
        with EmbeddingFile(base) as file:
            require_replaceable(file, listing, settings, states, moved=config.root is not None)
            plan, identity = Plan.of(listing, file, states), file.identity
            _require_seen(file, listing, plan)
            if base == output and not len(plan.todo) and _describes(file, listing):
                return Job(output, listing, plan, base, 0, changes=False)
    work_bytes = len(plan.todo) * record_type(settings.dimension, settings.dtype).itemsize
    require_space(output, _bytes_of_output(listing, settings) + work_bytes)
    WorkFile.begin(work_file(output), {**described, "base": identity}, {
        "before": plan.before, "todo": plan.todo, "blob": listing.paths.blob.numpy(),
        "offsets": listing.paths.offsets.numpy()}, len(plan.todo), config.batch_size,
        record_type(settings.dimension, settings.dtype))
    return Job(output, listing, plan, base, 0, changes=True)


def _describes(file: EmbeddingFile, listing: Listing) -> bool:
    """Whether a file with a row for each of its pictures says of the listing what there is to say."""
    return (len(file) == len(listing) and file.root == listing.root and file.source == (listing.source or listing.root)
            and file.label_names == list(listing.label_names) and bool((file.labels() == listing.labels).all()))


def _require_seen(file: EmbeddingFile, listing: Listing, plan: Plan):
    """Raise `CollectionError` when rows would be dropped because a folder cannot be opened."""
    if not listing.closed:
        return
    gone = np.ones(len(file), bool)
    gone[plan.before[plan.before >= 0]] = False
    paths = [path for path in file.paths[np.flatnonzero(gone)] if path.startswith(
        tuple(os.path.join(folder, b"") for folder in listing.closed))]
    if paths:
        raise CollectionError(f"{os.fsdecode(listing.closed[0])!r} cannot be opened, and {len(paths)} pictures that "
                              "have been embedded would be dropped. Make it readable, or add --fresh to go without.")


def require_replaceable(file: EmbeddingFile, listing: Listing, settings: Settings, states: np.ndarray, moved: bool):
    """Raise `MismatchError` if an embeddings file comes from another source: collection, encoder or settings.

    A collection that has `moved` may be elsewhere, if at least half of the pictures are there with the same sizes.
    """
    now = settings.required()
    for what, old in file.required().items():
        if old != now[what]:
            name, was, wanted = what.replace("_", " "), str(old)[:12], str(now[what])[:12]
            raise MismatchError(f"{file.path} holds embeddings with another {name}: {was}, now {wanted}. Add --fresh "
                                "to replace it, or give another --output.")
    if file.source == listing.source:
        return
    another = (f"{file.path} holds embeddings with another folder: {_shown(file.source)}, now "
               f"{_shown(listing.source)}.")
    if not moved:
        raise MismatchError(f"{another} Add --fresh to replace it, or give another --output. If the collection has "
                            "only moved, add --root with the folder where it is now.")
    before = rows_by_path(listing, file)
    same = int((file.size()[before[before >= 0]] == states["size"][before >= 0]).sum())
    if 2 * same < min(len(file), len(listing)):
        raise MismatchError(f"{another} Only {same} of its {len(file)} pictures are there, so it has not merely moved. "
                            "Add --fresh to replace it, or give another --output.")


def _shown(source: bytes) -> str:
    """One or several collections, for people."""
    return ", ".join(os.fsdecode(one) for one in source.split(b"\0"))
