"""Pretraining from a folder of pictures to an exported encoder: loop, watch, save."""

import contextlib
import dataclasses
import math
import pathlib
import time
from dataclasses import dataclass

import torch

from mocoembed.checks import to_dict
from mocoembed.config import PretrainConfig
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import Failure, ViewBatch, steps_per_epoch, view_batches
from mocoembed.data.views import ViewSettings
from mocoembed.errors import CollectionError, TrainingError
from mocoembed.files import StopRequest, locked, write_json
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.loss import Contrast, chance_loss
from mocoembed.model.precision import Compute
from mocoembed.train.monitor import KnnMonitor, KnnReport, Meter, Recorder, StepReport, Watcher
from mocoembed.train.optim import learning_rate, set_learning_rate
from mocoembed.train.run import (
    Training,
    export_to_workspace,
    frozen_encoder,
    limited,
    resume,
    run_folder,
    set_up,
)
from mocoembed.train.step import shuffle_order, to_views, training_step
from mocoembed.workspace import Workspace

UNREADABLE_SHARE = 0.1  # of the pictures; more than this stops the run
SECONDS_BETWEEN_READINGS = 1.0  # on a GPU: reading the loss waits for it, so it is not done at every step


@dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` did."""

    run: pathlib.Path
    encoder: pathlib.Path
    fingerprint: str
    steps: int
    last: StepReport | None
    """Of the last step; `None` when the run was complete before."""
    knn: KnnReport | None
    """The last evaluation, with `--val`."""
    failed: int
    """Pictures that could not be read and were replaced."""


def pretrain(config: PretrainConfig, watcher: Watcher | None = None) -> PretrainResult:
    """Pretrain on a folder of pictures with Momentum Contrast and export the query encoder into the workspace.

    Resumes by itself when the run has a checkpoint. Raises `UsageError` for wrong settings, `CollectionError` for
    unusable pictures, `TrainingError` when the loss is not finite, `LockedError` when another process trains the
    same run, `Interrupted` after a signal, when all is saved.
    """
    watcher = watcher or Watcher()
    compute = Compute.of(config.device, config.precision)
    listing = limited(scan(config.images), config)
    steps_per_epoch(len(listing), config.batch_size, config.drop_last)  # refuses too few pictures
    monitor = KnnMonitor(config.val, compute, config.workers) if config.val else None
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        training = set_up(config, compute)
    run = run_folder(config)
    with locked(run / ".lock", f"Run {run.name!r}"):
        resume(training, run, config, listing, watcher.note)
        write_json(run / "config.json", to_dict(config))
        return Session(config, compute, listing, run, watcher).train(training, monitor)


class Session:
    """One process's part of a run: what stays the same from the first step to the last."""

    def __init__(self, config: PretrainConfig, compute: Compute, listing: Listing, run: pathlib.Path,
                 watcher: Watcher):
        self.config, self.compute, self.listing, self.run, self.watcher = config, compute, listing, run, watcher
        self.steps_per_epoch = steps_per_epoch(len(listing), config.batch_size, config.drop_last)
        self.steps = self.steps_per_epoch * config.epochs
        self.settings = ViewSettings.of(config)
        self.unreadable: dict[int, Failure] = {}
        self.meter = Meter()
        self.chance = chance_loss(config.queue_size)
        self.pending: list[tuple[StepReport, Contrast]] = []  # steps whose numbers have not been read yet
        self.last_step: StepReport | None = None
        self.last_knn: KnnReport | None = None

    def train(self, training: Training, monitor: KnnMonitor | None) -> PretrainResult:
        """From the training's step to the last one; then export the encoder."""
        for folder in self.listing.closed:
            self.watcher.note(f"could not be opened, left out with all in it: {folder!r}")
        self.watcher.note(f"{len(self.listing)} pictures, {self.steps_per_epoch} steps an epoch, {self.steps} steps; "
                          f"run {self.run}")
        batches = view_batches(self.listing, self.config, training.step, pin=self.compute.device.type == "cuda")
        with contextlib.closing(Recorder(self.run, training.step)) as self.recorder, StopRequest() as stop:
            for batch in self.meter.wait_for(batches):
                self._one_step(training, batch)
                self._after_step(training, monitor, stop)
        frozen = self._freeze(training)
        path = export_to_workspace(frozen, Workspace(self.config.workspace))
        return PretrainResult(self.run, path, frozen.fingerprint(), training.step, self.last_step, self.last_knn,
                              len(self.unreadable))

    def _one_step(self, training: Training, batch: ViewBatch):
        self._note_unreadable(batch)
        lr = learning_rate(self.config, training.step, self.steps_per_epoch)
        set_learning_rate(training.optimizer, lr)
        order = shuffle_order(self.config.seed, training.step, len(batch.rows), self.compute.device)
        views = to_views(batch, self.settings, self.compute)
        contrast = training_step(training.moco, training.optimizer, training.scaler, views, order, self.compute,
                                 self.config.symmetric)
        training.step += 1
        self.meter.images += len(batch.rows)
        filled = training.moco.queue.filled / self.config.queue_size
        report = StepReport(training.step, batch.epoch, lr=lr, chance=self.chance, queue_filled=filled)
        self.pending.append((report, contrast))

    def _after_step(self, training: Training, monitor: KnnMonitor | None, stop: StopRequest):
        """Read the numbers, evaluate, save and stop, when each is due."""
        epoch, position = divmod(training.step, self.steps_per_epoch)
        stopping = stop.signal_number is not None  # asked once: a signal after this waits for the next step
        saving = stopping or position == 0 or training.step % self.config.checkpoint_every == 0
        on_gpu = self.compute.device.type == "cuda"
        if saving or not on_gpu or time.perf_counter() - self.meter.begun > SECONDS_BETWEEN_READINGS:
            self._read_numbers()
        if saving:
            training.save(self.run, self.config, self.listing, epoch)
            self.meter.rates()  # saving is nobody's images per second
        if stopping:
            stop.raise_if_set(f"Stopped after step {training.step} of {self.steps}; saved in {self.run}. "
                              "Run the same command again to go on.")
        if monitor and position == 0 and (epoch in (1, self.config.epochs) or epoch % self.config.val_every == 0):
            self._evaluate(training, monitor, epoch)

    def _evaluate(self, training: Training, monitor: KnnMonitor, epoch: int):
        self.last_knn = monitor.evaluate(self._freeze(training), training.step, epoch - 1)
        self.recorder.record(self.last_knn)
        self.watcher.note(f"epoch {epoch}: kNN accuracy {self.last_knn.knn_top1:.2f} % "
                          f"(k {self.last_knn.knn_k}, {self.last_knn.pictures} pictures)")
        self.meter.rates()

    def _read_numbers(self):
        """Turn the pending steps' tensors into reports; `TrainingError` when a loss is not finite."""
        images_per_second, waiting = self.meter.rates()
        for report, contrast in self.pending:
            loss, top1, top5 = (float(value) for value in contrast)
            self.last_step = dataclasses.replace(report, loss=loss, top1=top1, top5=top5, waiting=waiting,
                                                 images_per_second=images_per_second)
            if not math.isfinite(loss):
                raise TrainingError(f"The loss is {loss} at step {report.step} (learning rate {report.lr:g}, precision "
                                    f"{self.config.precision}). No checkpoint holds it: start over with a lower --lr, "
                                    "or --precision fp32.")
            self.recorder.record(self.last_step)
            self.watcher.step(self.last_step, self.steps)
        self.pending.clear()

    def _freeze(self, training: Training) -> FrozenEncoder:
        return frozen_encoder(training.moco.encoder_q, self.config, training.source(self.steps_per_epoch))

    def _note_unreadable(self, batch: ViewBatch):
        for failure in batch.failures:
            if failure.row not in self.unreadable:
                self.unreadable[failure.row] = failure
                self.watcher.note(f"unreadable, replaced by the next picture: {self.listing.paths[failure.row]!r}: "
                                  f"{failure.error}: {failure.reason}")
        if len(self.unreadable) > UNREADABLE_SHARE * len(self.listing) or int(batch.rows.min()) < 0:
            raise CollectionError(f"{len(self.unreadable)} of {len(self.listing)} pictures so far cannot be "
                                  f"read, more than {UNREADABLE_SHARE:.0%} or too many in a row. Mend or remove them; "
                                  "they are named above.")
