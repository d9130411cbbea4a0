"""Embed a collection: listing -> batches -> frozen encoder -> work file -> embeddings file.

An interrupted run goes on where it was committed last; the published file is always a whole one.
"""

import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.config import EmbedConfig
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import Failure, evaluation_batches
from mocoembed.embed.store import EmbeddingFile, FailedPicture, Settings, write_embeddings
from mocoembed.embed.work import EMBEDDED, FAILED, WorkFile
from mocoembed.errors import CollectionError, MismatchError, MocoembedError
from mocoembed.files import StopRequest, locked, require_space
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import keep_encoder
from mocoembed.model.precision import Compute
from mocoembed.train.export import open_encoder, say_nothing
from mocoembed.workspace import Workspace

COMMIT_PICTURES, COMMIT_SECONDS = 1024, 10.0


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_images` did."""

    path: pathlib.Path
    listed: int
    embedded: int
    failed: list[FailedPicture]
    left_out: int
    """Hidden files and files without a picture's name."""
    closed: tuple[bytes, ...]
    """Folders that could not be opened, relative to the root."""
    resumed_from: int
    """Pictures that an earlier, interrupted run had already done."""
    images_per_second: float


def embed_images(config: EmbedConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                 note: Callable[[str], None] = say_nothing) -> EmbedResult:
    """Embed every picture of a collection into an embeddings file.

    `progress(done, total)` is called after every batch, `note(text)` with what a person should know of an encoder of
    others. Raises `UsageError` for wrong paths, `CollectionError` when
    no picture can be read, `MismatchError` when the output holds another folder's or another encoder's embeddings,
    `LockedError` when another process writes it, `Interrupted` after a signal.
    """
    workspace = Workspace(config.workspace)
    frozen = open_encoder(config.encoder, workspace, note)
    compute = Compute.of(config.device, config.precision)
    listing = scan(config.folder, config.labels, note=note)
    output = pathlib.Path(config.output) if config.output else workspace.embeddings
    settings = Settings(frozen.metadata(), config.features, config.normalize, frozen.dimension(config.features),
                        config.precision, config.labels, config.full_decode)
    with locked(output.with_name(f".{output.name}.lock"), str(output)):
        if output.exists():
            require_replaceable(output, listing, settings, config.fresh)
        work_path = output.with_name(f"{output.name}.work")
        if config.fresh:
            work_path.unlink(missing_ok=True)
        key = {"folder": os.fsdecode(listing.source), "listing": listing.digest(), "labels": config.labels,
               "encoder": settings.encoder["fingerprint"], "features": config.features,
               "normalize": config.normalize, "precision": config.precision, "batch_size": config.batch_size,
               "full_decode": config.full_decode}
        embedder = Embedder(frozen, compute, config.features, config.normalize)
        with WorkFile(work_path, key, len(listing), settings.dimension) as work:
            resumed_from, begun = work.committed, time.monotonic()
            _fill(work, listing, embedder, config, progress)
            seconds = time.monotonic() - begun
            failed = _publish(output, work, listing, settings)
            work.remove()
    keep_encoder(workspace.encoder_of(settings.encoder["fingerprint"]), frozen)  # `search` needs it for its queries
    return EmbedResult(output, len(listing), len(listing) - len(failed), failed, listing.left_out, listing.closed,
                       resumed_from, (len(listing) - resumed_from) / seconds)


def require_replaceable(output: pathlib.Path, listing: Listing, settings: Settings, fresh: bool):
    """Raise `FormatError` unless `output` is an embeddings file, `MismatchError` if it comes from another source.

    The source is folder, encoder and settings; `fresh` allows another one.
    """
    way_out = "Add --fresh to replace it, or give another --output."
    with EmbeddingFile(output) as existing:
        if fresh:
            return
        sides = [("folder", os.fsdecode(existing.source), os.fsdecode(listing.source)),
                 ("encoder", existing.fingerprint[:12], settings.encoder["fingerprint"][:12]),
                 ("features", existing.features, settings.features),
                 ("normalize", existing.normalized, settings.normalized),
                 ("precision", existing.precision, settings.precision),
                 ("full decode", existing.full_decode, settings.full_decode),
                 ("labels", existing.labels_from, settings.labels)]
    for what, old, new in sides:
        if old != new:
            raise MismatchError(f"{output} holds embeddings with another {what}: {old}, now {new}. {way_out}")


def _fill(work: WorkFile, listing: Listing, embedder: Embedder, config: EmbedConfig, progress):
    """Embed the slots that are not committed yet."""
    with StopRequest() as stop:
        last_commit = time.monotonic()
        transform = embedder.frozen.transform
        for batch in evaluation_batches(listing, transform, config.batch_size, config.workers, work.committed,
                                        config.full_decode):
            end = batch.first + len(batch.facts)
            vectors = embedder(batch.pixels).numpy()
            unreadable = {failure.row for failure in batch.failures}
            broken = [Failure(batch.first + int(place), "FloatingPointError", "the vector is not finite")
                      for place in np.flatnonzero(~np.isfinite(vectors).all(axis=1))
                      if batch.first + place not in unreadable]
            work.write(batch.first, vectors, batch.facts, batch.failures + broken)
            stopping = stop.signal_number is not None  # asked once: a signal after this waits for the next batch
            due = end - work.committed >= COMMIT_PICTURES or time.monotonic() - last_commit >= COMMIT_SECONDS
            if due or stopping or end == len(listing):
                work.commit(end)
                last_commit = time.monotonic()
            progress(end, len(listing))
            if stopping:
                stop.raise_if_set(f"Stopped after {end} of {len(listing)} pictures; they are kept. "
                                  "Run the same command again to go on.")


def _publish(output: pathlib.Path, work: WorkFile, listing: Listing, settings: Settings) -> list[FailedPicture]:
    """Write the embeddings file from the finished slots; the failed pictures."""
    require_space(output, len(listing) * (settings.dimension * 4 + 512))
    status, facts, failed = [], [], []
    for first, block in work.blocks():
        status.append(block["status"])
        facts.append(block["facts"])
        failed += [FailedPicture(listing.paths[first + int(place)], block["error"][place].decode(),
                                 block["reason"][place].decode())
                   for place in np.flatnonzero(block["status"] == FAILED)]
    status, facts = np.concatenate(status), np.concatenate(facts)
    if not np.isin(status, (EMBEDDED, FAILED)).all():
        raise MocoembedError(f"{work.path} is damaged. Run the same command with --fresh.")
    if len(failed) == len(listing):
        work.remove()
        raise CollectionError(f"None of the {len(listing)} pictures can be read; the first one said: "
                              f"{failed[0].error}: {failed[0].reason}")
    vectors = (block["vector"][block["status"] == EMBEDDED] for _, block in work.blocks())
    write_embeddings(output, listing, settings, status == EMBEDDED, facts, vectors, failed)
    return failed
