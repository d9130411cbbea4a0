"""What should pretraining on one's own images look like, for what a laptop does in some minutes?

In: a folder of photographs and CIFAR-10 as images, both in class folders. Each cell is one pretraining with a fixed
budget of processor time; what it gave is one line of results.jsonl in OUTPUT. A cell that stands there is not run
again; one that was interrupted is run again from its start.

    python -m benchmarks.own_images OUTPUT --images flowers flowers --images cifar-5000 cifar --minutes 5
    python -m benchmarks.own_images OUTPUT --images flowers flowers --minutes 15 --cell base --cell size-96 --seed 1
    python -m benchmarks.own_images OUTPUT --images flowers flowers --minutes 5 --cell lightly   # pip install lightly
    python -m benchmarks.own_images OUTPUT --report > tables.md

A minute is that of two cores: 120 seconds of processor, used up by one thread that also loads the images, so that other
work on the machine changes little. How many epochs fit is measured first, by some steps of the same pretraining, and
the learning rate's schedule ends with them; `used` are the seconds that the training then took in fact.

kNN: k 20, T 0.1, backbone features, no labels learned from. flowers: 640 of 800 images are learned from (by a hash of
their names); `held-out`: the 160 others against those 640; `all`: each of the 800 against the 799 others. cifar-N: N
training images are learned from; `held-out`: 2,000 test images against 5,000 training images.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import statistics
import time

import click
import torch
from torch.nn import functional

from benchmarks.lightly_moco import LightlyMoCo, batches_of, momenta
from mocoembed.config import PretrainConfig
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import evaluation_batches, steps_per_epoch
from mocoembed.demo import pixel_vectors
from mocoembed.knn import accuracy, classify, knn_accuracy_of
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder
from mocoembed.model.precision import Compute
from mocoembed.train.loop import pretrain
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import encoder_spec, frozen_encoder, set_up

SECONDS_A_MINUTE = 120  # of processor: two cores
K, TEMPERATURE = 20, 0.1
PROBED, SKIPPED = 6, 2  # steps timed, after so many that are not
ANCHORS = UNTRAINED, PIXELS = "untrained", "raw-pixels"
LIGHTLY = "lightly"
HELD_OUT, BANK, QUERIES = 5, 5000, 2000  # every fifth flower; of CIFAR-10

# What every cell begins with, and what each changes. 640 flowers, K 512: a queue of four fifths of the images.
FLOWERS = {"recipe": "small", "width": 0.25, "image_size": 64, "batch_size": 64, "bn_groups": 1, "queue_size": 512,
           "momentum": 0.99, "lr": 0.06, "warmup_epochs": 3.0}
CIFAR = {"recipe": "cifar10", "width": 0.5, "stem": "3x3s2", "batch_size": 128, "bn_groups": 4, "queue_size": 4096,
         "momentum": 0.99, "lr": 0.06, "warmup_epochs": 1.0}
FLOWER_CELLS: dict[str, dict] = {
    "base": {},
    "size-96": {"image_size": 96}, "size-128": {"image_size": 128},
    "width-0.5": {"width": 0.5}, "width-0.5-size-96": {"width": 0.5, "image_size": 96}, "width-1": {"width": 1.0},
    "resnet50-0.25": {"arch": "resnet50"},
    "K-128": {"queue_size": 128}, "K-4096": {"queue_size": 4096},
    "m-0.9": {"momentum": 0.9}, "m-0.996": {"momentum": 0.996}, "m-0.999": {"momentum": 0.999},
    "batch-32": {"batch_size": 32, "lr": 0.03}, "batch-128": {"batch_size": 128, "lr": 0.12},
    "lr-0.03": {"lr": 0.03}, "lr-0.12": {"lr": 0.12}, "no-warmup": {"warmup_epochs": 0.0},
    "T-0.1": {"temperature": 0.1}, "T-0.5": {"temperature": 0.5}, "symmetric": {"symmetric": True, "lr": 0.03},
    "end-to-end": {"dictionary": "end-to-end"},
    "end-to-end-batch-128": {"dictionary": "end-to-end", "batch_size": 128, "lr": 0.12},
    "v2-views": {"crop_scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "blur_probability": 0.5},
    "crop-0.2": {"crop_scale": (0.2, 1.0)}, "hue-0.1": {"jitter": (0.4, 0.4, 0.4, 0.1)},
    "blur": {"blur_probability": 0.5}, "groups-4": {"bn_groups": 4}, "groups-8": {"bn_groups": 8},
    "moco-v2": {"recipe": "moco-v2", "width": 1.0, "arch": "resnet50", "image_size": 224, "queue_size": 65536,
                "momentum": 0.999, "batch_size": 64, "bn_groups": 2, "lr": 0.0075, "warmup_epochs": 0.0},
}
CIFAR_CELLS: dict[str, dict] = {
    "base": {}, "width-0.25": {"width": 0.25}, "width-1": {"width": 1.0}, "stem-3x3s1": {"stem": "3x3s1"},
    "K-256": {"queue_size": 256}, "K-1024": {"queue_size": 1024}, "K-16384": {"queue_size": 16384},
    "m-0.999": {"momentum": 0.999},
    "batch-64": {"batch_size": 64, "bn_groups": 2, "lr": 0.03}, "lr-0.03": {"lr": 0.03},
    "batch-256": {"batch_size": 256, "bn_groups": 8, "lr": 0.12}, "T-0.2": {"temperature": 0.2},
    "mlp": {"head": "mlp"}, "mlp-T-0.2": {"head": "mlp", "temperature": 0.2}, "one-group": {"bn_groups": 1},
    "end-to-end": {"dictionary": "end-to-end"},
    "small": {"recipe": "small", "stem": "3x3s2", "image_size": 32},
    "crop-0.2": {"crop_scale": (0.2, 1.0)}, "crop-0.4": {"crop_scale": (0.4, 1.0)},
}


class Collection:
    """Images to learn from, and how their encoder is measured."""

    def __init__(self, name: str, folder: str, output: pathlib.Path):
        self.name, self.photographs = name, name == "flowers"
        self.base = FLOWERS if self.photographs else CIFAR
        self.cells = FLOWER_CELLS if self.photographs else CIFAR_CELLS
        if self.photographs:
            self.bank, self.queries = _split(scan(folder))
        else:
            train, test = scan(f"{folder}/train"), scan(f"{folder}/test")
            self.learned = train.subset(_spread(len(train), int(name.removeprefix("cifar-"))))
            self.bank = train.subset(_spread(len(train), BANK))
            self.queries = test.subset(_spread(len(test), QUERIES))
        self.list = output / f"{name}.txt"
        learned = self.bank if self.photographs else self.learned
        self.count = len(learned)
        self.list.write_bytes(b"".join(learned.full_path(row) + b"\n" for row in range(len(learned))))

    def measured(self, vectors) -> dict:
        """kNN accuracies in percent, of vectors that `vectors(listing)` gives (N, D), for the queries and for all."""
        bank, queries = (functional.normalize(vectors(one), dim=1) for one in (self.bank, self.queries))
        bank_labels, labels = (torch.from_numpy(one.labels).long() for one in (self.bank, self.queries))
        found, = classify(queries, bank, bank_labels, [(K, TEMPERATURE)])
        result = {"held-out": accuracy(found, labels).top1}
        if self.photographs:
            result["all"] = knn_accuracy_of(torch.cat([bank, queries]), torch.cat([bank_labels, labels]), K,
                                            TEMPERATURE)
        return result


def _split(listing: Listing) -> tuple[Listing, Listing]:
    """(learned from, held out): a fifth of the images is held out, by a hash of their names."""
    order = sorted(range(len(listing)), key=lambda row: hashlib.sha256(listing.paths[row]).hexdigest())
    held_out = len(order) // HELD_OUT
    return listing.subset(sorted(order[held_out:])), listing.subset(sorted(order[:held_out]))


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` rows of `count`, evenly over all, so that every class has its share."""
    return [row * count // wanted for row in range(wanted)]


def features_of(frozen: FrozenEncoder):
    """A function from a listing to its backbone features (N, D)."""
    embedder = Embedder(frozen, Compute.of("cpu", "fp32"), "backbone", normalized=True)
    return lambda listing: torch.cat([embedder(batch.pixels) for batch in
                                      evaluation_batches(listing, frozen.transform, 128, 0)])


class _Probed(Exception):
    """Enough steps have been timed."""


def seconds_a_step(config: PretrainConfig) -> float:
    """Seconds of processor that a step of this pretraining takes."""
    times: list[float] = []

    def step(report, steps):
        times.append(time.process_time())
        if len(times) > SKIPPED + PROBED:
            raise _Probed

    with contextlib.suppress(_Probed):
        pretrain(config, Watcher(step=step))
    return statistics.median(later - earlier for earlier, later in zip(times[SKIPPED:], times[SKIPPED + 1:]))


def run_cell(collection: Collection, cell: str, seed: int, minutes: float) -> dict:
    """Pretrain for that long and measure: what stands in a line of the results."""
    settings = {**collection.base, **collection.cells[cell]}
    recipe, scratch = settings.pop("recipe"), collection.list.parent / "workspace"
    shutil.rmtree(scratch, ignore_errors=True)

    def config(epochs: int) -> PretrainConfig:
        return PretrainConfig.of(recipe, str(collection.list), workspace=str(scratch), run="run", fresh=True, seed=seed,
                                 workers=0, cache="ram", device="cpu", epochs=epochs, checkpoint_every=10**9,
                                 **settings)

    each = seconds_a_step(config(10**4)) * steps_per_epoch(collection.count, settings["batch_size"], True)
    epochs = max(1, round(minutes * SECONDS_A_MINUTE / each))
    reports: list = []
    begun = time.process_time()
    result = pretrain(config(epochs), Watcher(step=lambda report, steps: reports.append(report)))
    used = time.process_time() - begun
    last = reports[-max(1, len(reports) // 20):]
    means = {name: statistics.mean(getattr(one, name) for one in last) for name in ("loss", "top1", "spread")}
    knn = collection.measured(features_of(load_encoder(result.encoder)))
    shutil.rmtree(scratch)
    return {"settings": {"recipe": recipe, **settings}, "epochs": epochs, "steps": len(reports), "used": used,
            "images_per_second": len(reports) * settings["batch_size"] / used, **means, "chance": last[-1].chance,
            **knn}


def run_anchor(collection: Collection, cell: str, seed: int, minutes: float) -> dict:
    """Raw pixels, or the base cell's encoder before its first step."""
    if cell == PIXELS:
        return collection.measured(lambda listing: pixel_vectors(listing)[0])
    settings = dict(collection.base)
    config = PretrainConfig.of(settings.pop("recipe"), str(collection.list), seed=seed, **settings)
    state = set_up(config, Compute.of("cpu", "fp32"), collection.count).method.encoder_q.state_dict()
    return collection.measured(features_of(frozen_encoder(state, config, {"epochs": 0})))


def run_lightly(collection: Collection, cell: str, seed: int, minutes: float) -> dict:
    """lightly's MoCo on the base cell's backbone, with transform, head, loss and update of theirs.

    The numbers are those of their example (examples/pytorch/moco.py): batch 256, K 4096, SGD with a constant lr of 0.06
    and without momentum or decay, m rising from 0.996 to 1, the other settings by default (T 0.5). An epoch is timed
    first, to know how many fit.
    """
    settings = dict(collection.base)
    config = PretrainConfig.of(settings.pop("recipe"), "-", **settings)
    torch.manual_seed(seed)
    begun = time.process_time()
    _train_lightly(Encoder(encoder_spec(config)), collection.list, config.image_size, 1)
    epochs = max(1, round(minutes * SECONDS_A_MINUTE / (time.process_time() - begun)))
    torch.manual_seed(seed)
    encoder, begun = Encoder(encoder_spec(config)), time.process_time()
    steps, loss = _train_lightly(encoder, collection.list, config.image_size, epochs)
    used = time.process_time() - begun
    frozen = frozen_encoder(encoder.state_dict(), config, {"epochs": epochs})
    return {"epochs": epochs, "steps": steps, "used": used, "loss": loss, "images_per_second": 256 * steps / used,
            **collection.measured(features_of(frozen))}


def _train_lightly(encoder: Encoder, images: pathlib.Path, size: int, epochs: int) -> tuple[int, float]:
    """Train the encoder's backbone on the images of a list: the number of steps, and the last loss."""
    from lightly.transforms import MoCoV2Transform

    method = LightlyMoCo(encoder.backbone)
    batches = batches_of(images.read_text().splitlines(), MoCoV2Transform(input_size=size))
    optimizer = torch.optim.SGD(method.encoder_q.parameters(), lr=0.06)
    return epochs * len(batches), method.train(optimizer, batches, momenta(epochs))


class Results:
    """results.jsonl: one line for each cell that is done."""

    def __init__(self, output: pathlib.Path):
        self.path = output / "results.jsonl"

    def read(self) -> list[dict]:
        """All lines."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def has(self, *key) -> bool:
        """Whether (collection, cell, minutes, seed) is done."""
        return any((one["collection"], one["cell"], one["minutes"], one["seed"]) == key for one in self.read())

    def add(self, key: tuple, values: dict):
        """Append a line, and show it."""
        line = {**dict(zip(("collection", "cell", "minutes", "seed"), key)), **values}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        click.echo(" ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                            for name, value in line.items() if name != "settings"), err=True)


def report(results: Results):
    """Print a Markdown table for each collection: a row for each cell and budget, the seeds side by side."""
    rows: dict[tuple, list[dict]] = {}
    for one in results.read():
        rows.setdefault((one["collection"], one["minutes"], one["cell"]), []).append(one)
    columns = ("held-out", "all", "epochs", "loss", "chance", "top1", "images_per_second")
    for number, name in enumerate(dict.fromkeys(key[0] for key in rows)):
        click.echo("\n" * bool(number) + f"| {name} | minutes | seeds | " + " | ".join(columns) + " |")
        click.echo("|" + " --- |" * (len(columns) + 3))
        for (collection, minutes, cell), runs in sorted(rows.items(), key=lambda item: item[0][:2]):
            if collection == name:
                cells = [" / ".join(f"{run[column]:.4g}" if column in run else "" for run in runs)
                         for column in columns]
                seeds = ", ".join(str(run["seed"]) for run in runs)
                click.echo(f"| {cell} | {minutes:g} | {seeds} | " + " | ".join(cells) + " |")


@click.command()
@click.argument("output", type=click.Path(path_type=pathlib.Path, file_okay=False))
@click.option("--images", nargs=2, multiple=True, metavar="NAME FOLDER", help="flowers, cifar-5000 or cifar-50000.")
@click.option("--minutes", default=5.0, show_default=True, help="Of two cores, for every cell.")
@click.option("--cell", "cells", multiple=True, help="Only this; repeatable. By default all but lightly.")
@click.option("--seed", default=0, show_default=True)
@click.option("--report", "only_report", is_flag=True, help="Print tables of what is there.")
def main(output, images, minutes, cells, seed, only_report):
    """Run the cells whose results are not in OUTPUT yet, with one thread."""
    output.mkdir(parents=True, exist_ok=True)
    results = Results(output)
    if only_report:
        return report(results)
    torch.set_num_threads(1)
    for name, folder in images:
        collection = Collection(name, folder, output)
        for cell in cells or (*ANCHORS, *collection.cells):
            of_time = 0 if cell in ANCHORS else minutes
            if not results.has(name, cell, of_time, seed):
                run = {LIGHTLY: run_lightly, **dict.fromkeys(ANCHORS, run_anchor)}.get(cell, run_cell)
                results.add((name, cell, of_time, seed), run(collection, cell, seed, minutes))


if __name__ == "__main__":
    main()
