"""Before anything is embedded: what is there, what may be replaced, what is left to do -> `Job`.

Beside the output may lie unfinished work (`.work`). The same listing goes on with it. When the collection has changed
since, what was done is first saved as an embeddings file of its own (`.salvaged`), on which the new work builds.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.config import EmbedConfig
from mocoembed.data.images import Listing
from mocoembed.embed.claim import output_file
from mocoembed.embed.plan import Plan, rows_by_path
from mocoembed.embed.salvage import is_published, salvage
from mocoembed.embed.seal import MARK
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, vector_type
from mocoembed.embed.work import WorkFile, read_header, record_type
from mocoembed.errors import CollectionError, FormatError, MismatchError, UsageError
from mocoembed.files import require_space, sha256_json, sync_folder

DAMAGED, OF_OTHERS = "damaged", "of others"
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

    def open_base(self, header: dict):
        """A context with the embeddings that are used again, or `None`; `MismatchError` when others are there now."""
        if self.base is None:
            return contextlib.nullcontext()
        file = EmbeddingFile(self.base)
        if file.identity != header["base"]:
            file.close()
            raise MismatchError(f"{self.base} has been replaced while new embeddings were to build on it. What was "
                                "done is kept; put the file back, or add --fresh to embed everything.")
        return file

    def require_same_output(self, header: dict):
        """Raise `MismatchError` when the output is not what it was when the work was begun."""
        if _identity(self.output) not in (None, header["output"]):
            raise MismatchError(f"{self.output} has been replaced while the images were embedded. What was done is "
                                "kept; move that file away, or add --fresh to replace it.")

    def images(self) -> Listing:
        """The images to read: slot -> image."""
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
    `CollectionError` when images that have rows cannot be seen, `FormatError` when a file is not ours or is damaged,
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
        "images": sha256_json([listing.digest(), hashlib.sha256(states.data).hexdigest(), os.fsdecode(listing.root)]),
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
        other.remove("source")  # it has moved; whether it is the same one is seen from its images
    if other:
        raise UsageError(f"{work_file(output)} is an unfinished embedding with other settings ({', '.join(other)}). "
                         "Add --fresh to drop it, or give another --output.")
    with WorkFile(work_file(output)) as work:
        if described["output"] not in (None, header["output"]):
            if not is_published(work, output):
                raise UsageError(f"{output} has been replaced since {work.path} was started. Add --fresh to drop the "
                                 "unfinished work, or give another --output.")
            remove_unfinished(output)  # killed after publishing it
            return _begin(config, listing, settings, described, states, fresh=False)
        if lost := work.take_back_damaged(header["batch_size"]):
            note(f"{work.path} is damaged; {lost} of its images are embedded again")
        base, salvaged = _with_identity(header["base"], output), _salvaged_file(output)
        base_is_gone = base is None and header["base"] is not None
        if not base_is_gone and all(header[name] == described[name] for name in ("images", "batch_size")):
            require_space(output, _bytes_of_output(listing, settings))
            if base != salvaged:  # killed while salvaging, and then the collection was again as before
                salvaged.unlink(missing_ok=True)
            return Job(output, listing, Plan(work.array("before"), work.array("todo")), base, work.done(),
                       changes=True)
        if base_is_gone and _identity(salvaged) not in (None, DAMAGED, OF_OTHERS):
            note("continuing the interrupted run")  # killed after salvaging, which replaced the base
        else:
            saved = salvage(work, base, salvaged, settings)
            what = "the embeddings on which it was to build are gone" if base_is_gone else (
                "the collection or --batch-size has changed since the interrupted run")
            note(f"{what}; {saved} images of it are kept")
    # The old work stays until the new one takes its place: it tells what may be done to the output.
    return _begin(config, listing, settings, described, states, header["fresh"])


def _require_ours(output: pathlib.Path):
    """Raise `FormatError` unless the file is an embeddings file, be it damaged, or empty, as HDF5 may leave one."""
    if not _may_be_ours(output):
        EmbeddingFile(output).close()


def _may_be_ours(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return MARK.startswith(file.read(len(MARK)))


def _identity(path: pathlib.Path) -> str | None:
    """Which rows an embeddings file has; `None` when there is no file, `DAMAGED` or `OF_OTHERS` when it has none."""
    try:
        with EmbeddingFile(path) as file:
            return file.identity
    except FileNotFoundError:
        return None
    except FormatError:
        return DAMAGED if _may_be_ours(path) else OF_OTHERS


def _with_identity(identity: str | None, output: pathlib.Path) -> pathlib.Path | None:
    """Of salvaged embeddings and output, the file that has these rows; `None` when none has."""
    return next((path for path in (_salvaged_file(output), output)
                 if identity is not None and _identity(path) == identity), None)


def _bytes_of_output(listing: Listing, settings: Settings) -> int:
    """About the size of the embeddings file of a listing."""
    longest = int(np.diff(listing.paths.offsets).max(initial=0))
    return len(listing) * (settings.dimension * vector_type(settings.dtype).itemsize + longest + ROW_BYTES)


def _begin(config: EmbedConfig, listing: Listing, settings: Settings, described: dict, states: np.ndarray,
           fresh: bool) -> Job:
    """A new job, built on salvaged embeddings or, unless it starts `fresh`, on the output."""
    output = output_file(config)
    candidates = [_salvaged_file(output), *([] if fresh else [output])]
    there = [path for path in candidates if path.exists()]
    for path in there:
        with EmbeddingFile(path) as file:
            require_replaceable(file, listing, settings, states, moved=config.root is not None)
    base, identity = next(iter(there), None), None
    if base is None:
        plan = Plan.of(listing, None, states)
    else:
        with EmbeddingFile(base) as file:
            plan, identity = Plan.of(listing, file, states), file.identity
            _require_seen(file, listing, plan)
            if base == output and not len(plan.todo) and _describes(file, listing):
                return Job(output, listing, plan, base, 0, changes=False)
            file.verify()  # before hours are spent on what would have to build on it
    work_bytes = len(plan.todo) * record_type(settings.dimension, settings.dtype).itemsize
    require_space(output, _bytes_of_output(listing, settings) + work_bytes)
    WorkFile.begin(work_file(output), {**described, "base": identity, "fresh": fresh}, {
        "before": plan.before, "todo": plan.todo, "blob": listing.paths.blob,
        "offsets": listing.paths.offsets}, len(plan.todo), config.batch_size,
        record_type(settings.dimension, settings.dtype))
    return Job(output, listing, plan, base, 0, changes=True)


def _describes(file: EmbeddingFile, listing: Listing) -> bool:
    """Whether a file with a row for each of its images says of the listing what there is to say."""
    return (len(file) == len(listing) and not file.failed() and file.root == listing.root
            and file.source == (listing.source or listing.root) and file.label_names == list(listing.label_names)
            and bool((file.labels() == listing.labels).all()))


def _require_seen(file: EmbeddingFile, listing: Listing, plan: Plan):
    """Raise `CollectionError` when rows would be dropped because a folder cannot be opened."""
    if not listing.closed:
        return
    gone = np.ones(len(file), bool)
    gone[plan.before[plan.before >= 0]] = False
    paths = [path for path in file.paths[np.flatnonzero(gone)] if path.startswith(
        tuple(os.path.join(folder, b"") for folder in listing.closed))]
    if paths:
        raise CollectionError(f"{os.fsdecode(listing.closed[0])!r} cannot be opened, and {len(paths)} images that "
                              "have been embedded would be dropped. Make it readable, or add --fresh to go without.")


def require_replaceable(file: EmbeddingFile, listing: Listing, settings: Settings, states: np.ndarray, moved: bool):
    """Raise `MismatchError` if an embeddings file comes from another source: collection, encoder or settings.

    A collection that has `moved` may be elsewhere, if at least half of the images are there with the same sizes.
    """
    now = settings.required()
    for what, old in file.required().items():
        if old != now[what]:
            name, was, wanted = what.replace("_", " "), _short(str(old)), _short(str(now[what]))
            raise MismatchError(f"{file.path} was made with another {name}: {was}, now {wanted}. Add --fresh "
                                "to replace it, or give another --output.")
    if file.source == listing.source:
        return
    another = (f"{file.path} was made from another collection: {_shown(file.source)}, now "
               f"{_shown(listing.source)}.")
    if not moved:
        raise MismatchError(f"{another} Add --fresh to replace it, or give another --output. If the collection has "
                            "only moved, add --root with its present folder.")
    before = rows_by_path(listing, file)
    same = int((file.size()[before[before >= 0]] == states["size"][before >= 0]).sum())
    if 2 * same < min(len(file), len(listing)):
        raise MismatchError(f"{another} Only {same} of its {len(file)} images are there, so it has not merely moved. "
                            "Add --fresh to replace it, or give another --output.")


def _short(value: str) -> str:
    """A fingerprint's beginning; other values as they are."""
    return value[:12] if len(value) == 64 else value


def _shown(source: bytes) -> str:
    """One or several collections, for people."""
    return ", ".join(os.fsdecode(one) for one in source.split(b"\0"))
