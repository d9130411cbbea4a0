"""Embed collections: listing -> plan -> batches -> frozen encoder -> work file -> embeddings file.

A second run reads only what is new or has changed. An interrupted run goes on where it was committed last, also when
the collection has changed meanwhile. The published file is always a whole one. With several processes each fills its
parts of the work file; rank 0 prepares and publishes.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from mocoembed.config import EmbedConfig
from mocoembed.data.deep import RangeWatch, shown_range
from mocoembed.data.digests import DigestTable
from mocoembed.data.images import scan
from mocoembed.data.loader import EvaluationBatch, EvaluationImages, worker_count
from mocoembed.data.workers import Batches
from mocoembed.embed.claim import output_file, output_lock
from mocoembed.embed.fill import fill, slices
from mocoembed.embed.prepare import Job, prepare, remove_unfinished, work_file
from mocoembed.embed.publish import Counts, Rows, publish
from mocoembed.embed.store import FailedImage
from mocoembed.embed.store_writer import Settings
from mocoembed.embed.work import WorkFile, part_count
from mocoembed.errors import CollectionError, Interrupted, MismatchError, MocoembedError, ProcessError
from mocoembed.files import StopRequest, sync_folder
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder, keep_encoder
from mocoembed.model.graph_export import keep_graph
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import Ranks
from mocoembed.notes import say_nothing
from mocoembed.train.export import open_encoder
from mocoembed.train.launch import run_on_ranks, share_of_cores
from mocoembed.workspace import Workspace

SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_images` did."""

    path: pathlib.Path
    listed: int
    failed: list[FailedImage]
    counts: Counts
    skipped: dict[str, int]
    """Files that were not taken for images, by suffix or as `hidden`."""
    closed: tuple[bytes, ...]
    """Folders that could not be opened, relative to the root."""
    excluded: dict[str, int]
    """{glob or usual name: files and folders that it left out; a folder counts once}."""
    resumed_from: int
    """Images that an earlier, interrupted run had already done."""
    images_per_second: float
    """Of the images that were read."""

    @property
    def embedded(self) -> int:
        """Rows of the file."""
        return self.listed - len(self.failed)


@dataclass
class Watcher:
    """What a caller of `embed_images` wants to be told."""

    progress: Callable[[int, int], None]
    """Called with the images that are done and the number of all."""
    note: Callable[[str], None]
    """Called with a line for people."""


def embed_images(config: EmbedConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                 note: Callable[[str], None] = say_nothing) -> EmbedResult | None:
    """Embed every image of one or several collections into an embeddings file.

    Starts as many processes as `process_count` says, unless torchrun or srun has started them: then it joins, and
    gives its result on rank 0 and `None` on the others. `progress(done, total)` is called after every batch,
    `note(text)` with what a person should know.

    Raises `UsageError` for wrong paths, `CollectionError` when no image can be read, `MismatchError` when the output
    holds another folder's or another encoder's embeddings, `LockedError` when another process writes it,
    `ProcessError` when one of several processes dies, `Interrupted` after a signal.
    """
    with output_lock(config) as lock:
        try:
            return run_on_ranks(embed_rank, config, Watcher(progress, note), lock)
        except MocoembedError as error:
            if config.fresh and work_file(output_file(config)).exists() and not isinstance(error, Interrupted):
                note("what was saved is kept by the same command without --fresh")
            raise


def embed_rank(config: EmbedConfig, ranks: Ranks, watcher: Watcher) -> EmbedResult | None:
    """One process's part of `embed_images`, in a group that it has joined; all ranks give the same config."""
    say = watcher.note if ranks.first else say_nothing
    workspace = Workspace(config.workspace)
    frozen = _same_encoder(config, workspace, ranks, say)
    compute = Compute.of(config.device, config.precision)
    settings = Settings(frozen.metadata(), config.features, config.normalize, frozen.dimension(config.features),
                        config.precision, config.labels, config.full_decode, config.dtype,
                        config.value_range or frozen.transform.value_range)
    if settings.value_range != frozen.transform.value_range:
        say(f"--value-range {shown_range(settings.value_range)}; the encoder's own is "
            f"{shown_range(frozen.transform.value_range)}")
    if ranks.first and (slow := compute.slowness()):
        say(slow)

    def first_job() -> Job:
        listing = scan(config.collections, config.labels, note=say, root=config.root, exclude=config.exclude)
        return prepare(config, listing, settings, say)

    job = ranks.from_first(first_job)
    seconds = 0.0
    if ranks.rank < part_count(len(job.plan.todo), config.batch_size):
        embedder = Embedder(frozen, compute, config.features, config.normalize, config.compile, watcher.note)
        with compute.keeping_memory():
            seconds = Share(job, config, ranks, watcher).fill(embedder)
    if not ranks.first:
        return None
    result = finish(job, settings, seconds)
    keep_encoder(workspace.encoder_of(settings.encoder["fingerprint"]), frozen)  # `search` needs it for its queries
    keep_graph(workspace.graph_of(settings.encoder["fingerprint"]), frozen, say)
    return result


def _same_encoder(config: EmbedConfig, workspace: Workspace, ranks: Ranks, note) -> FrozenEncoder:
    """The encoder, which rank 0 opens first, as it may be downloaded; `MismatchError` when another rank has another."""
    opened: list[FrozenEncoder] = []

    def first() -> str:
        opened.append(open_encoder(config.encoder, workspace, note))
        return opened[0].fingerprint()

    fingerprint = ranks.from_first(first)
    if opened:
        return opened[0]
    frozen = open_encoder(config.encoder, workspace)
    if (found := frozen.fingerprint()) != fingerprint:
        raise MismatchError(f"Rank {ranks.rank} has the encoder {found[:12]}, rank 0 has {fingerprint[:12]}. Give all "
                            "of them the same file with --encoder.")
    return frozen


class Share:
    """The parts of a job that one process fills."""

    def __init__(self, job: Job, config: EmbedConfig, ranks: Ranks, watcher: Watcher):
        self.job, self.config, self.ranks, self.watcher = job, config, ranks, watcher

    def fill(self, embedder: Embedder) -> float:
        """Embed this process's share, and on rank 0 wait for the others; the seconds that it took."""
        begun, job = time.monotonic(), self.job
        with (WorkFile(job.work) as self.work, StopRequest(patient=self.ranks.size > 1) as self.stop,
              contextlib.ExitStack() as held):
            base = held.enter_context(job.open_base(self.work.header))
            known = DigestTable(base.facts()["digest"]) if base else None
            self.own = range(self.ranks.rank, self.work.parts, self.ranks.size)
            self.others = [part for part in range(self.work.parts) if part not in self.own]
            todo = slices(self.work, self.own, self.config.batch_size)
            transform = embedder.frozen.transform
            transform = replace(transform, value_range=self.config.value_range or transform.value_range)
            dataset = EvaluationImages(job.images(), transform, self.config.full_decode, known)
            workers = worker_count(self.config.workers, len(todo) * self.config.batch_size, share_of_cores(self.ranks))
            batches = Batches(dataset, todo, workers, pin=embedder.compute.device.type == "cuda")
            fill(self.work, self.own, self._watched(batches) if todo else [], embedder, self._report)
            self._leave_if_asked()
            if self.ranks.first:
                self._wait_for_others()
        return time.monotonic() - begun

    def _watched(self, batches: Iterable[EvaluationBatch]) -> Iterator[EvaluationBatch]:
        """The batches; warns, on rank 0, when deep images among them use little of their range."""
        ranges = RangeWatch(self.watcher.note if self.ranks.first else say_nothing)
        for batch in batches:
            ranges.add(batch.seen)
            yield batch
        ranges.close()

    def _report(self, own_done: int) -> bool:
        """Tell how far all processes are; whether to stop."""
        stopping = self.stop.signal_number is not None  # asked once: a signal after this waits for the next batch
        if self.ranks.first:
            self.watcher.progress(self._kept() + own_done + self.work.done(self.others), len(self.job.listing))
        return stopping

    def _kept(self) -> int:
        return len(self.job.listing) - self.work.slots

    def _leave_if_asked(self):
        if self.stop.signal_number is not None:
            again = "the same command again, without --fresh," if self.config.fresh else "the same command again"
            raise self.ranks.agreed(Interrupted(
                f"Stopped after {self._kept() + self.work.done()} of {len(self.job.listing)} images; they are kept. "
                f"Run {again} to continue.", self.stop.signal_number))

    def _wait_for_others(self):
        """Look at the work until the other processes have done theirs; who does nothing for too long is named."""
        own, done, moved = self.work.done(self.own), -1, time.monotonic()
        while (now := self.work.done(self.others)) + own < self.work.slots:
            if now != done:
                done, moved = now, time.monotonic()
                self._report(own)
            if time.monotonic() - moved > self.config.timeout:
                late = sorted({part % self.ranks.size for part in self.others
                               if self.work.committed(part) < self.work.range_of(part)[1]})
                raise ProcessError(f"Rank {', '.join(map(str, late))} has committed nothing within --timeout. What was "
                                   "saved is kept; run the same command again to continue.")
            self._leave_if_asked()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._report(own)


def finish(job: Job, settings: Settings, seconds: float) -> EmbedResult:
    """Publish a job whose slots are all done, and remove what was only there for it."""
    listing, failed, read = job.listing, [], 0
    counts = Counts(0, 0, len(listing), 0, 0, 0)
    if job.changes:
        with WorkFile(job.work) as work, job.open_base(work.header) as base:
            rows = Rows(listing, job.plan, work, base)
            failed, counts, read = rows.failed(), rows.counts(), work.slots - job.resumed_from
            if job.base != job.output or not rows.same_as_base():
                if base is not None:
                    base.verify()  # what is damaged is not to be sealed again
                job.require_same_output(work.header)
                _publish_or_clear(job, rows, settings)
    remove_unfinished(job.output)
    kept = len(listing) - len(job.plan.todo)
    return EmbedResult(job.output, len(listing), failed, counts, dict(listing.skipped), listing.closed,
                       listing.excluded,
                       kept + job.resumed_from if job.resumed_from else 0, read / seconds if seconds else 0.0)


def _publish_or_clear(job: Job, rows: Rows, settings: Settings):
    """`publish`; when there is nothing that can be read, no unfinished work is left behind, but what was salvaged."""
    try:
        publish(job.output, rows, settings)
    except CollectionError:
        job.work.unlink()
        sync_folder(job.output.parent)
        raise
