"""Pretraining from a folder of images to an exported encoder: loop, watch, save."""

import contextlib
import hashlib
import pathlib
from dataclasses import dataclass, replace

from mocoembed.checks import to_dict
from mocoembed.config import PretrainConfig
from mocoembed.config.pretrain import AUTO
from mocoembed.data.deep import RangeWatch
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import Places, ViewBatch, steps_per_epoch, view_batches, worker_count
from mocoembed.data.resident import ResidentImages
from mocoembed.data.skipped import skipped_text
from mocoembed.data.workers import Batches
from mocoembed.errors import Interrupted, TrainingError
from mocoembed.files import StopRequest, locked, write_json
from mocoembed.model.loss import chance_loss, course_of_loss
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import ALONE, Ranks
from mocoembed.notes import counted
from mocoembed.train.filling import SAMPLE, Filling
from mocoembed.train.guard import Guard
from mocoembed.train.launch import joined_ranks, process_count, run_on_ranks, share_of_cores
from mocoembed.train.memory_plan import available_to, plan, running_out_said
from mocoembed.train.monitor import (
    KnnMonitor,
    KnnReport,
    Recorder,
    StepReport,
    Watcher,
    labelled_images,
)
from mocoembed.train.optim import learning_rate, set_learning_rate
from mocoembed.train.resolve import Machine, resolved
from mocoembed.train.run import (
    Training,
    export_to_workspace,
    limited,
    origin,
    require_a_batch,
    require_shares,
    resume,
    run_folder,
    set_up,
    settled,
)
from mocoembed.train.start import begin, find_start
from mocoembed.train.step import NUMBERS, make_views, training_step
from mocoembed.train.waiting import SHARE_OF_STRETCH, Meter, advice
from mocoembed.workspace import Workspace


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
    """Images that could not be read and were replaced."""
    waiting: float
    """Share of the time that rank 0 spent waiting for data (0 to 1)."""


def pretrain(config: PretrainConfig, watcher: Watcher | None = None) -> PretrainResult | None:
    """Pretrain on a folder of images and export the query encoder into the workspace.

    Starts as many processes as `process_count` says, unless torchrun or srun has started them: then it joins, and
    gives its result on rank 0 and `None` on the others. Resumes by itself when the run has a checkpoint.

    Raises `UsageError` for wrong settings, `CollectionError` for unusable images, `TrainingError` when the loss is
    not finite or q collapses, `ProcessError` when a process dies, `LockedError` when another process trains the same
    run, `Interrupted` after a signal, when all is saved.
    """
    joined = joined_ranks()
    if config.recipe != AUTO:  # whose batch is not known yet
        require_shares(config, joined.size if joined else process_count(config),
                       on_gpu=Compute.of(config.device, "fp32").device.type == "cuda")
    return run_on_ranks(pretrain_rank, config, watcher or Watcher())


def pretrain_rank(config: PretrainConfig, ranks: Ranks, watcher: Watcher) -> PretrainResult | None:
    """One process's part of `pretrain`, in a group that it has joined; all ranks give the same config."""
    say = watcher.note if ranks.first else lambda text: None
    compute = Compute.of(config.device, config.precision)
    compute.tune()
    listing = ranks.from_first(lambda: limited(scan(config.images, "none", note=say, exclude=config.exclude), config))
    workers = worker_count(config.workers, len(listing), share_of_cores(ranks))
    config, lines = _resolved(config, listing, compute, ranks, workers)
    config, notes = settled(config, len(listing), ranks.size)
    require_a_batch(config, len(listing), ranks.size)
    run = run_folder(config)
    start = ranks.from_first(lambda: find_start(config, run, say))
    config = replace(config, **start.settings)
    monitor = None
    if (val := config.val) is not None:
        labelled = ranks.from_first(lambda: labelled_images(val, config.exclude, say))
        monitor = KnnMonitor(labelled, config, compute, workers, ranks)
    training = set_up(config, compute, len(listing), ranks)
    begin(training, start)
    with contextlib.ExitStack() as held:
        ranks.from_first(lambda: held.enter_context(locked(run / ".lock", f"Run {run.name!r}")))
        for text in (*lines, *notes):
            say(text)
        if ranks.first and (slow := compute.slowness()):
            say(slow)
        memory = plan(training, workers, say, _to_be_cached(training, listing))
        resume(training, run, listing, say)
        if ranks.first:
            write_json(run / "config.json", {**to_dict(config), **origin(training.started_from),
                                             "collection": {"images": len(listing), "listing": listing.digest()}})
            watcher.begin(config)
        held.enter_context(compute.keeping_memory())
        held.enter_context(running_out_said(memory, training))
        return Session(training, listing, run, watcher).train(workers, monitor)


def _resolved(config: PretrainConfig, listing: Listing, compute: Compute, ranks: Ranks, workers: int) \
        -> tuple[PretrainConfig, list[str]]:
    """What the recipe `auto` stands for here, as rank 0 decides, and what to say; any other config as it is."""
    if config.recipe != AUTO:
        return config, []
    memory = min((one for one in ranks.objects(available_to(compute.device, ranks.local_size)) if one is not None),
                 default=None)
    machine = Machine(compute.device.type == "cuda", ranks.size, memory, workers)
    chosen, lines = ranks.from_first(lambda: resolved(config, listing, machine))
    return replace(chosen, device=config.device), lines  # each rank has its own


def _to_be_cached(training: Training, listing: Listing) -> int:
    """About the bytes that `--cache ram` will take of this machine."""
    if training.config.cache != "ram":
        return 0
    filling = Filling(listing, training.config, 0, ALONE, lambda text: None, lambda: None)
    return training.ranks.from_first(lambda: filling.estimated(filling.sample(SAMPLE)))


class Session:
    """One process's part of a run, from its step to the last one."""

    def __init__(self, training: Training, listing: Listing, run: pathlib.Path, watcher: Watcher):
        self.training, self.config, self.ranks = training, training.config, training.ranks
        self.listing, self.run, self.watcher = listing, run, watcher
        self.say = watcher.note if self.ranks.first else lambda text: None
        self.steps_per_epoch = steps_per_epoch(len(listing), self.config.batch_size, self.config.drop_last)
        self.steps = self.steps_per_epoch * self.config.epochs
        self.guard, self.ranges = Guard(training, listing, watcher.note), RangeWatch(self.say)
        self.images: ResidentImages | None = None
        self.meter, self.advised = Meter(), False
        self.chance = chance_loss(self.config)
        self.last_step: StepReport | None = None
        self.last_knn: KnnReport | None = None

    def train(self, workers: int, monitor: KnnMonitor | None) -> PretrainResult | None:
        """Train to the last step; then, on rank 0, export the encoder."""
        self._say_what_comes(workers)
        places = Places(len(self.listing), self.config, self.training.step, self.ranks.rank, self.ranks.size)
        said = "mocoembed: stopping after this step" if self.ranks.first else ""
        with contextlib.ExitStack() as held, StopRequest(patient=self.ranks.size > 1, said=said) as stop:
            if self.ranks.first:
                self.recorder = held.enter_context(contextlib.closing(Recorder(self.run, self.training.step)))
            if monitor and self._evaluation_is_due() and not self.ranks.from_first(self._evaluated):
                self._evaluate(monitor)  # the run was stopped between saving and evaluating
            batches = self._batches(places, workers, stop)
            self.meter.restart()
            for batch in self.meter.wait_for(batches):
                self.ranges.add(batch.seen)
                self._one_step(batch, stop)
                self._after_step(monitor)
                self._look_at_waiting(batches.workers)
        if not self.ranks.first:
            return None
        frozen = self.training.frozen(self.steps_per_epoch)
        path = export_to_workspace(frozen, Workspace(self.config.workspace), self.say)
        return PretrainResult(self.run, path, frozen.fingerprint(), self.training.step, self.last_step, self.last_knn,
                              len(self.guard.unreadable), self.meter.mean)

    def _batches(self, places: Places, workers: int, stop: StopRequest) -> Batches:
        """The batches at `places`, from a cache when there is to be one."""
        cache, device = None, self.training.compute.device
        if self.config.cache == "ram" and len(places):
            cache = self._filling(workers, self.ranks, self.say, stop).cache()
            if cache.cropped_on_device:
                self.images = ResidentImages(cache, self.config.view_sizes, device)
                workers = workers if self.config.workers is not None else 1  # all it does is draw boxes, ahead
        return view_batches(self.listing, self.config, places, workers, device.type == "cuda", cache)

    def _filling(self, workers: int, ranks: Ranks, note, stop: StopRequest | None = None) -> Filling:
        def raise_if_stopped():
            if stop and stop.signal_number is not None:
                raise ranks.agreed(Interrupted("Stopped while reading the images into memory. Run the same command "
                                               "again to continue.", stop.signal_number))

        return Filling(self.listing, self.config, workers, ranks, note, raise_if_stopped)

    def _look_at_waiting(self, workers: int):
        """Say, once, what to do when much of a stretch has gone into waiting."""
        stretch = self.meter.stretch()
        if stretch and not self.advised and stretch[0] >= SHARE_OF_STRETCH and self.ranks.first:
            self.advised = True
            filling = self._filling(workers, ALONE, lambda text: None)
            self.say(advice(*stretch, share_of_cores(self.ranks), filling))
            self.meter.restart()

    def _say_what_comes(self, workers: int):
        self.say(course_of_loss(self.config))
        if self.listing.skipped:
            self.say(skipped_text(self.listing.skipped))
        for folder in self.listing.closed:
            self.say(f"could not be opened, skipped with everything in it: {folder!r}")
        self.say(f"{counted(len(self.listing), 'image')}, {counted(self.steps_per_epoch, 'step')} per epoch, "
                 f"{counted(self.steps, 'step')} in all; run {self.run}")
        if self.ranks.size > 1:
            config = self.config
            groups = "one over the whole batch" if config.batchnorm == "sync" else config.bn_groups // self.ranks.size
            self.say(f"{self.ranks.size} processes: each has {config.batch_size // self.ranks.size} of the batch's "
                     f"{config.batch_size} images, BatchNorm groups: {groups}, {workers} loading processes; the "
                     f"learning rate {config.lr:g} is for the whole batch")

    def _one_step(self, batch: ViewBatch, stop: StopRequest):
        training = self.training
        lr = learning_rate(self.config, training.step, self.steps_per_epoch)
        set_learning_rate(training.optimizer, lr)
        told = self.guard.told(batch, stop.signal_number)
        numbers = training_step(training, make_views(batch, training, self.images), told, self.guard.check)
        training.step += 1
        if self.ranks.size == 1:
            self.guard.signal_number = stop.signal_number or 0  # also one that came during the step, which may be long
        if self.config.check_ranks:
            require_equal_ranks(training)
        self.meter.images += self.config.batch_size if self.config.drop_last else len(batch.rows)
        images_per_second, waiting = self.meter.rates()
        queue = getattr(training.method, "queue", None)
        self.last_step = StepReport(
            training.step, batch.epoch, lr, self.chance, queue.filled / queue.size if queue else 1.0,
            **dict(zip(NUMBERS, numbers[:, :len(NUMBERS)].mean(dim=0).tolist())),
            images_per_second=images_per_second, waiting=waiting, waiting_mean=self.meter.mean)
        if self.ranks.first:
            self.recorder.record(self.last_step)
            self.watcher.step(self.last_step, self.steps)

    def _after_step(self, monitor: KnnMonitor | None):
        """Save, stop and evaluate, when each is due; all ranks decide alike."""
        step, signal_number = self.training.step, self.guard.signal_number
        if step % self.steps_per_epoch == 0:
            self.ranges.close()
        if signal_number or step % self.steps_per_epoch == 0 or step % self.config.checkpoint_every == 0:
            self.training.save(self.run, self.listing, self.steps_per_epoch)
            self.meter.restart()  # saving is nobody's images per second
        if signal_number:
            raise self.ranks.agreed(Interrupted(f"Stopped after step {step} of {self.steps}; saved in {self.run}. "
                                                "Run the same command again to continue.", signal_number))
        if monitor and self._evaluation_is_due():
            self._evaluate(monitor)

    def _evaluation_is_due(self) -> bool:
        epoch, position = divmod(self.training.step, self.steps_per_epoch)
        return epoch > 0 and position == 0 and (epoch in (1, self.config.epochs) or epoch % self.config.val_every == 0)

    def _evaluated(self) -> bool:
        """On rank 0: whether the run's metrics have an evaluation of the present step."""
        return any(line["step"] == self.training.step and "knn_top1" in line for line in self.recorder.lines.read())

    def _evaluate(self, monitor: KnnMonitor):
        epoch = self.training.step // self.steps_per_epoch
        self.last_knn = monitor.evaluate(self.training.frozen(self.steps_per_epoch), self.training.step, epoch - 1)
        if self.ranks.first:
            self.recorder.record(self.last_knn)
        self.say(f"epoch {epoch}: {self.last_knn.summary()}")
        self.meter.restart()


def require_equal_ranks(training: Training):
    """Raise `TrainingError` unless weights, statistics and dictionary are the same on all ranks, to the bit."""
    digest = hashlib.sha256()
    for tensor in training.method.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digests = training.ranks.objects(digest.hexdigest())
    different = [rank for rank, one in enumerate(digests) if one != digests[0]]
    if different:
        raise training.ranks.agreed(TrainingError(
            f"After step {training.step} the weights, the BatchNorm statistics or the dictionary of ranks "
            f"{', '.join(map(str, different))} differ from those of rank 0. This is a bug; please report it."))
