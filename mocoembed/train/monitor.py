"""Watching a run: what each step and each evaluation gave, for people, scripts and TensorBoard."""

import contextlib
import json
import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from mocoembed.config import PretrainConfig
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.errors import CollectionError
from mocoembed.files import write_bytes, write_error
from mocoembed.knn import leave_one_out
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import Ranks
from mocoembed.notes import say_nothing

KNN_K, KNN_TEMPERATURE = 200, 0.1
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
        try:
            self._file.write(json.dumps(value) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self):
        """Close the file."""
        self._file.close()


class Recorder:
    """Writes reports to `metrics.jsonl` and TensorBoard events in the run's folder."""

    def __init__(self, run: pathlib.Path, step: int):
        """Go on after `step`: what an interrupted run wrote about later steps is cut off."""
        from torch.utils.tensorboard import SummaryWriter

        self.lines = JsonLines(run / "metrics.jsonl")
        self.lines.keep(lambda line: line["step"] <= step)
        self.board = SummaryWriter(str(run), purge_step=step + 1)

    def record(self, report: StepReport | KnnReport):
        """Add one report."""
        values = asdict(report)
        self.lines.append(values)
        for name, value in values.items():
            if name not in ("step", "epoch", "images", "knn_k", "knn_T"):
                self.board.add_scalar(name, value, report.step)

    def close(self):
        """Flush and close both."""
        self.lines.close()
        self.board.close()


class KnnMonitor:
    """Leave-one-out kNN accuracy on a labelled folder that is never learned from."""

    def __init__(self, listing: Listing, compute: Compute, workers: int, ranks: Ranks):
        """`listing` is of `labelled_images`; each rank embeds its share of it."""
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
        return KnnReport(step, epoch, 100 * sum(self.ranks.objects(right)) / images, k, KNN_TEMPERATURE, images)


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
