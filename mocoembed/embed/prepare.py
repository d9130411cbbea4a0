"""Before anything is embedded: what is there, what may be replaced, what is left to do -> `Job`.

Beside the output may lie unfinished work (`.work`). The same listing goes on with it. When the collection has changed
since, what was done is first saved as an embeddings file of its own (`.salvaged`), on which the new work builds.
"""

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.config import EmbedConfig
from mocoembed.data.images import NO_LABEL, Listing, PathTable
from mocoembed.embed.claim import output_file
from mocoembed.embed.plan import Plan
from mocoembed.embed.publish import Rows
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.embed.work import EMBEDDED, WorkFile, read_header
from mocoembed.errors import MismatchError, UsageError
from mocoembed.files import require_space, sync_folder

ROW_BYTES = 512  # of an embeddings file, beside the vector


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
    for path in (work_file(output), _salvaged_file(output)):
        path.unlink(missing_ok=True)
    sync_folder(output.parent)


def prepare(config: EmbedConfig, listing: Listing, settings: Settings, note: Callable[[str], None]) -> Job:
    """Find out what is to be done, and have the work file for it ready.

    Raises `MismatchError` when the output comes from another source, `UsageError` when the unfinished work does,
    `FormatError` when either is not ours, `MocoembedError` when the disk is too small.
    """
    output = output_file(config)
    if config.fresh:
        if output.exists():
            EmbeddingFile(output).close()  # what is not ours is not replaced
        if output.parent.exists():
            remove_unfinished(output)
    key = {"source": os.fsdecode(listing.source), "encoder": settings.encoder["fingerprint"],
           "features": settings.features, "normalize": settings.normalized, "precision": settings.precision,
           "full_decode": settings.full_decode, "labels": settings.labels}
    if work_file(output).exists():
        job = _go_on(config, listing, settings, key, note)
        if job is not None:
            return job
    return _begin(config, listing, settings, key)


def _go_on(config: EmbedConfig, listing: Listing, settings: Settings, key: dict, note) -> Job | None:
    """The job of the work that is there; `None` when the collection has changed, after saving what was done."""
    output = output_file(config)
    header = read_header(work_file(output))
    other = [name for name, value in key.items() if header["key"].get(name) != value]
    if config.root is not None and "source" in other:
        other.remove("source")  # it has moved
    if other:
        raise UsageError(f"{work_file(output)} holds unfinished work with other settings ({', '.join(other)}). "
                         "Add --fresh to drop it, or give another --output.")
    base = _with_identity(header["base"], output)
    with WorkFile(work_file(output)) as work:
        done = work.done()
        plan = Plan(work.array("before"), work.array("todo"))
        if header["base"] is not None and base is None:
            if done < work.slots:
                raise UsageError(f"{output} has been replaced since {work.path} was begun. Add --fresh to drop the "
                                 "unfinished work, or give another --output.")
        elif header["listing"] == listing.digest() and header["batch_size"] == config.batch_size:
            return Job(output, listing, plan, base, done, changes=True)
        else:
            saved = _salvage(work, plan, base, output, settings)
            note(f"the collection or --batch-size has changed since the interrupted run; {saved} pictures of it are "
                 "kept")
    work_file(output).unlink()
    return None


def _salvage(work: WorkFile, plan: Plan, base_path: pathlib.Path | None, output: pathlib.Path,
             settings: Settings) -> int:
    """Write what an interrupted run had done as embeddings; how many pictures."""
    paths = PathTable.of_arrays(work.array("blob"), work.array("offsets"))
    listing = Listing(os.fsencode(work.header["root"]), paths, np.full(len(paths), NO_LABEL, np.int32), (), 0,
                      source=os.fsencode(work.header["key"]["source"]))
    base = EmbeddingFile(base_path) if base_path else None
    try:
        rows = Rows(listing, plan, work, base, whole=False)
        done = rows.status == EMBEDDED
        if done.any():
            write_embeddings(_salvaged_file(output), listing, settings, done, rows.facts, rows.vectors(), [])
    finally:
        if base is not None:
            base.close()
    return int(done.sum())


def _with_identity(identity: str | None, output: pathlib.Path) -> pathlib.Path | None:
    """Of output and salvaged embeddings, the file that has these rows."""
    for path in (_salvaged_file(output), output):
        if identity is not None and path.exists():
            with EmbeddingFile(path) as file:
                if file.identity == identity:
                    return path
    return None


def _begin(config: EmbedConfig, listing: Listing, settings: Settings, key: dict) -> Job:
    output = output_file(config)
    candidates = [_salvaged_file(output), *([] if config.fresh else [output])]
    base = next((path for path in candidates if path.exists()), None)
    identity, changes = None, True
    if base is None:
        plan = Plan.of(listing, None)
    else:
        require_replaceable(base, listing, settings, moved=config.root is not None)
        with EmbeddingFile(base) as file:
            plan, identity = Plan.of(listing, file), file.identity
            changes = base != output or len(plan.todo) > 0 or not _describes(file, listing)
    require_space(output, len(listing) * (settings.dimension * 4 + ROW_BYTES))
    WorkFile.begin(work_file(output), {
        "key": key, "listed": len(listing), "listing": listing.digest(), "root": os.fsdecode(listing.root),
        "base": identity, "batch_size": config.batch_size,
    }, {"before": plan.before, "todo": plan.todo, "blob": listing.paths.blob.numpy(),
        "offsets": listing.paths.offsets.numpy()}, len(plan.todo), settings.dimension, config.batch_size)
    return Job(output, listing, plan, base, 0, changes)


def _describes(file: EmbeddingFile, listing: Listing) -> bool:
    """Whether a file with a row for each of its pictures says of the listing what there is to say."""
    return (len(file) == len(listing) and file.root == listing.root and file.source == (listing.source or listing.root)
            and file.label_names == list(listing.label_names) and bool((file.labels() == listing.labels).all()))


def require_replaceable(output: pathlib.Path, listing: Listing, settings: Settings, moved: bool):
    """Raise `MismatchError` if the embeddings file comes from another source: collection, encoder or settings.

    A collection that has `moved` may be elsewhere.
    """
    with EmbeddingFile(output) as existing:
        sides = [("folder", _shown(existing.source), _shown(listing.source)),
                 ("encoder", existing.fingerprint[:12], settings.encoder["fingerprint"][:12]),
                 ("features", existing.features, settings.features),
                 ("normalize", existing.normalized, settings.normalized),
                 ("precision", existing.precision, settings.precision),
                 ("full decode", existing.full_decode, settings.full_decode),
                 ("labels", existing.labels_from, settings.labels)]
    for what, old, new in sides[moved:]:
        if old != new:
            moving = " If the collection has only moved, add --root with the folder where it is now." * (
                what == "folder")
            raise MismatchError(f"{output} holds embeddings with another {what}: {old}, now {new}. Add --fresh to "
                                f"replace it, or give another --output.{moving}")


def _shown(source: bytes) -> str:
    """One or several collections, for people."""
    return ", ".join(os.fsdecode(one) for one in source.split(b"\0"))
