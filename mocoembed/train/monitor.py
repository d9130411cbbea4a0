"""Watching a run: what each step and each evaluation gave, for people, scripts and TensorBoard."""

import contextlib
import json
import math
import pathlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from mocoembed import geometry
from mocoembed.config import PretrainConfig
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import Place, TwoViews, evaluation_batches
from mocoembed.data.views import ViewSettings, apply_views
from mocoembed.data.workers import Batches
from mocoembed.errors import CollectionError
from mocoembed.files import write_bytes, write_error
from mocoembed.knn import leave_one_out
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import Ranks
from mocoembed.notes import say_nothing

KNN_K, KNN_TEMPERATURE = 200, 0.1
ALIGNED = 512  # images whose two views are compared
AT_A_TIME = 64  # images to embed: their memory stays below that of a step


@dataclass(frozen=True)
class StepReport:
    """One line of `metrics.jsonl`: what a step gave."""

    step: int
    """Steps done, this one included."""
    epoch: int
    """Epoch of the step, from 0."""
    lr: float
    chance: float
    """ln(K+1): the loss of an encoder that cannot tell the positive from the negatives."""
    queue_filled: float
    """Share of the queue that holds real keys (0 to 1)."""
    loss: float
    """Like the three below, the mean over all ranks."""
    top1: float
    """Share of queries whose positive is the most similar of the K + 1 keys (0 to 1)."""
    top5: float
    spread: float
    """Standard deviation of q over the batch times the square root of C: 1 evenly spread, 0 collapsed."""
    images_per_second: float
    """Of all ranks."""
    waiting: float
    """Share of the step's time that rank 0 spent waiting for data (0 to 1)."""
    waiting_mean: float
    """The same share over all steps since this command began to train."""


@dataclass(frozen=True)
class KnnReport:
    """One line of `metrics.jsonl`: an evaluation of the query encoder on held-out, labelled images."""

    step: int
    epoch: int
    knn_top1: float
    """Leave-one-out kNN accuracy in percent, on backbone features."""
    knn_k: int
    knn_T: float
    images: int
    rankme: float | None
    """Effective number of directions (`mocoembed.geometry`) of the same vectors; `None` where it is not defined."""
    rankme_n: int
    """Images that it and the uniformity are of: the same in every evaluation of a run."""
    uniformity: float | None
    """0 collapsed, about -4 evenly spread."""
    alignment: float | None
    """Mean squared distance of two views as in training; `None` for a memory bank, which has one view of an image."""
    alignment_n: int

    def summary(self) -> str:
        """For a line of the progress."""
        more = [f"{name} {value:.{digits}f}" for name, value, digits in (
            ("RankMe", self.rankme, 1), ("uniformity", self.uniformity, 2), ("alignment", self.alignment, 2))
            if value is not None]
        return f"kNN accuracy {self.knn_top1:.2f} % (k {self.knn_k}, {self.images} images), {', '.join(more)}"


class JsonLines:
    """A file of one JSON object a line, appended to as the work goes on."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (closed by close)

    def keep(self, wanted):
        """Drop the lines for which `wanted(object)` is false, and a last one that was cut off."""
        kept = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                if wanted(json.loads(line)):
                    kept.append(line + "\n")
        self._file.close()
        write_bytes(self.path, "".join(kept).encode())
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115

    def read(self) -> list[dict]:
        """All objects in it."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def append(self, value: dict):
        """Add one object; `MocoembedError` when the disk refuses it."""
        with _told_of(self.path):
            self._file.write(json.dumps(value) + "\n")

    def close(self):
        """Close the file; `MocoembedError` when the disk refuses what it still lacks."""
        with _told_of(self.path):
            self._file.close()


@contextlib.contextmanager
def _told_of(path: pathlib.Path):
    """Turn a write that was refused within the block into the `MocoembedError` of `path`."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def _excepthook(args):
    """TensorBoard's thread keeps its error for the next call, which raises it; nobody needs its traceback too."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(args)


NOT_DRAWN = ("step", "epoch", "images", "knn_k", "knn_T", "rankme_n", "alignment_n")


class Recorder:
    """Writes reports to `metrics.jsonl` and TensorBoard events in the run's folder."""

    def __init__(self, run: pathlib.Path, step: int):
        """Go on after `step`: what an interrupted run wrote about later steps is cut off."""
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.lines = JsonLines(run / "metrics.jsonl")
        self.lines.keep(lambda line: line["step"] <= step)
        threading.excepthook, self._hook_before = _excepthook, threading.excepthook
        with _told_of(run):
            self.board = SummaryWriter(str(run), purge_step=step + 1)

    def record(self, report: StepReport | KnnReport):
        """Add one report."""
        values = asdict(report)
        self.lines.append(values)
        with _told_of(self.run):
            for name, value in values.items():
                if value is not None and name not in NOT_DRAWN:
                    self.board.add_scalar(name, value, report.step)

    def close(self):
        """Flush and close both; `MocoembedError` when the disk refuses it."""
        try:
            with contextlib.closing(self.lines), _told_of(self.run):
                self.board.close()
        finally:
            threading.excepthook = self._hook_before


class KnnMonitor:
    """Leave-one-out kNN accuracy on a labelled folder that is never learned from, and how its vectors lie."""

    def __init__(self, listing: Listing, config: PretrainConfig, compute: Compute, workers: int, ranks: Ranks):
        """`listing` is of `labelled_images`; each rank embeds its share of it. `config` says how views are made."""
        self.all, self.config = listing, config
        self.listing = listing.subset(range(ranks.rank, len(listing), ranks.size)) if ranks.size > 1 else listing
        self.compute, self.workers, self.ranks = compute, workers, ranks

    def evaluate(self, frozen: FrozenEncoder, step: int, epoch: int) -> KnnReport:
        """Embed the folder with a copy of the query encoder, in evaluation mode, and classify; called by all ranks.

        Each rank embeds and classifies its share, on its device; all count what all have found.
        """
        embedder = Embedder(frozen, self.compute, "backbone", normalized=True)
        on_gpu = self.compute.device.type == "cuda"
        features = torch.empty(len(self.listing), frozen.dimension("backbone"))
        labels = torch.from_numpy(self.listing.labels).long()
        for batch in evaluation_batches(self.listing, frozen.transform, AT_A_TIME, self.workers, on_gpu):
            features[batch.first:batch.first + len(batch.facts)] = embedder(batch.pixels)
            labels[[failure.row for failure in batch.failures]] = -1
        features, labels = map(torch.cat, zip(*self.ranks.objects((features, labels))))
        images = int((labels >= 0).sum())
        k = min(KNN_K, images - 1)
        with Compute(self.compute.device, "fp32").exact():  # whatever the training allows
            right, _ = leave_one_out(features.to(self.compute.device), labels, k, KNN_TEMPERATURE, self.ranks.rank,
                                     self.ranks.size)
            lie = self.ranks.from_first(lambda: self._how_they_lie(self._in_order(features)[
                self._in_order(labels) >= 0], embedder))
        return KnnReport(step, epoch, 100 * sum(self.ranks.objects(right)) / images, k, KNN_TEMPERATURE, images, *lie)

    def _in_order(self, shares: torch.Tensor) -> torch.Tensor:
        """(N, ...) in the order of the listing, from the ranks' shares one after another."""
        rows = torch.cat([torch.arange(rank, len(self.all), self.ranks.size) for rank in range(self.ranks.size)])
        return shares[rows.argsort()]

    def _how_they_lie(self, features: torch.Tensor, embedder: Embedder) -> tuple:
        """The last five fields of a `KnnReport`, from the features (N, D) of the readable images."""
        drawn = features[geometry.sample(len(features))].to(self.compute.device)
        one, other = self._two_views(embedder) if self.config.dictionary != "memory-bank" else (drawn[:0], drawn[:0])
        numbers = [value if math.isfinite(value) else None for value in (
            geometry.rankme(drawn), geometry.uniformity(drawn), geometry.alignment(one, other))]
        return numbers[0], len(drawn), numbers[1], numbers[2], len(one)

    def _two_views(self, embedder: Embedder) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (N, D) of two views of the first images of an even share, the same views in every evaluation."""
        listing = self.all.subset(range(0, len(self.all), max(1, len(self.all) // ALIGNED))[:ALIGNED])
        rows = [np.arange(first, min(first + AT_A_TIME, len(listing))) for first in range(0, len(listing), AT_A_TIME)]
        places, settings = [Place(0, 0, some, None, some) for some in rows], ViewSettings.of(self.config)
        views: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        on_gpu = self.compute.device.type == "cuda"
        for batch in Batches(TwoViews(listing, self.config), places, self.workers, on_gpu):
            there = batch.rows >= 0
            for found, crops, parameters in zip(views, batch.crops, (batch.queries[0], batch.keys[0])):
                made = apply_views(crops.to(self.compute.device), parameters, settings, self.compute.dtype)
                found.append(embedder(made)[there])
        return torch.cat(views[0]), torch.cat(views[1])


def labelled_images(folder: str, exclude: tuple[str, ...] = (), note: Callable[[str], None] = say_nothing) -> Listing:
    """The images of `--val`; `UsageError` or `CollectionError` when it is not there or cannot measure anything."""
    listing = scan(folder, what="The collection of --val", note=note, exclude=exclude)
    if len(listing.label_names) < 2:
        raise CollectionError(f"--val {folder} holds images of one label only ({listing.label_names[0]}): "
                              "any encoder gets 100 %. Give a folder with a folder for each label.")
    return listing


@dataclass
class Watcher:
    """What a caller of `pretrain` wants to be told; every part does nothing by default."""

    step: Callable[[StepReport, int], None] = lambda report, steps: None
    """Called with each step's report and the number of all steps."""
    note: Callable[[str], None] = lambda text: None
    """Called with a line for people."""
    begin: Callable[[PretrainConfig], None] = lambda config: None
    """Called before the first step with the config that is run: all that `auto` chose is in it."""
