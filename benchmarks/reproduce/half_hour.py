"""The best kNN accuracy on CIFAR-10's test images that two cores reach in half an hour of pretraining.

    python -m benchmarks.reproduce.half_hour tune cifar/train                      choices, on a held-out fifth
    python -m benchmarks.reproduce.half_hour final cifar/train cifar/test          the chosen one, three seeds
    python -m benchmarks.reproduce.half_hour lightly cifar/train cifar/test        lightly's MoCo in the same time
    python -m benchmarks.reproduce.half_hour solo-learn cifar/train cifar/test --checkout solo-learn     solo-learn's

`tune` learns from four fifths of the training images and measures on the fifth one (kNN of the learned ones, backbone,
k 200, T 0.1). Every candidate changes one thing of `base` and gets the same minutes: a short trial tells its images/s,
from which follow its number of epochs and how many images it learns from, so that its schedule fills the time. Those
that cost the same share one trial. bf16 is left out where it is slower. Then `together` has all changes that gained
more than `GAIN` points. The best of all is chosen, whatever it is; a candidate that fails is left out and told, and
tried again the next time. `final` trains that one on all training images with three seeds and looks at the test images
once for each; what it prints is the result. Results are JSON files in OUTPUT; what is there is not run again, and a
pretraining that was stopped goes on. What was made with other options, minutes or folders is refused. Nothing else
should run on the machine: each command has both cores.

Expected, before it ran: 56 % or more, 49.2 % having been reached by 14 epochs with a queue in bf16. `base` is
end-to-end since it was 7.5 points better on 5,000 images in ten minutes. A wider network loses: it takes fewer steps.
"""

import json
import math
import pathlib
import signal
import statistics
import sys
import time

import click
import numpy as np

from benchmarks.reproduce.queue_of_work import MORE_TO_DO, Stopped, Work
from benchmarks.reproduce.statistics_of_seeds import mean_of
from mocoembed.data.images import scan
from mocoembed.errors import MocoembedError
from mocoembed.files import write_bytes, write_json
from mocoembed.model.precision import Compute

BASE = ["--recipe", "cifar10", "--dictionary", "end-to-end", "--width", "0.375", "--stem", "3x3s2",
        "--batch-size", "256", "--bn-groups", "2", "--cache", "ram", "--workers", "1", "--device", "cpu",
        "--processes", "2"]
CANDIDATES: dict[str, list[str]] = {
    "base": [], "by-step": ["--schedule", "cosine-by-step"], "crop-0.2": ["--crop-scale", "0.2,1.0"],
    "width-0.25": ["--width", "0.25"], "batch-64": ["--batch-size", "64", "--lr", "0.03"],
    "lr-0.12": ["--lr", "0.12"], "mlp": ["--head", "mlp", "--temperature", "0.2"], "t-0.2": ["--temperature", "0.2"],
    "batch-128": ["--batch-size", "128", "--lr", "0.06"], "lr-0.24": ["--lr", "0.24"],
    "stem-3x3s1": ["--width", "0.25", "--stem", "3x3s1"], "queue": ["--dictionary", "queue"],
    "queue-256": ["--dictionary", "queue", "--queue-size", "256"], "image-size-24": ["--image-size", "24"],
    "width-0.5": ["--width", "0.5"], "decay-1e-4": ["--weight-decay", "1e-4"],
    "warm-up": ["--warmup-epochs", "1"], "lr-0.03": ["--lr", "0.03"], "bf16": ["--precision", "bf16"],
    "batch-512": ["--batch-size", "512", "--lr", "0.12"], "groups-4": ["--bn-groups", "4"],
    "symmetric": ["--symmetric"], "compile": ["--compile"]}
COSTLY = ("--width", "--stem", "--dictionary", "--batch-size", "--bn-groups", "--symmetric", "--compile", "--processes",
          "--image-size", "--precision")
"""Options that change images/s: candidates that differ in others learn from as many images as each other."""
PEERS = ("lightly", "solo-learn")
GAIN = 0.5  # points, about the sampling error of 10,000 images
SEEDS, TRIAL_STEPS, SHARE = (0, 1, 2), 40, 0.95
"""SHARE: of the time, that the epochs may take by the trial's rate."""
TOOL = [sys.executable, "-m", "mocoembed"]


class Bench:
    """Where results are kept, and how long a pretraining may take."""

    def __init__(self, output: pathlib.Path, minutes: float, work: Work):
        self.output, self.minutes, self.work = output.resolve(), minutes, work
        self.output.mkdir(parents=True, exist_ok=True)

    def kept(self, name: str, asked: dict | None = None) -> dict | None:
        """A result that is there; `UsageError` when something else was asked then, or it cannot be read."""
        path = self.output / f"{name}.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise click.UsageError(f"{path} is damaged ({error}). Remove it to run it again.") from None
        if asked is not None and (before := found.get("asked")) != asked:
            raise click.UsageError(f"{path} is of another question: {before}, not {asked}. Remove it with its folder, "
                                   "or give another --output.")
        return found

    def measured(self, name: str, options: list[str], learn: str, measure: str) -> dict:
        """Pretrain for the minutes, embed both, and the kNN accuracy; from the file if it is there."""
        asked = {"options": [*BASE, *options], "minutes": self.minutes, "learn": learn, "measure": measure}
        if found := self.kept(name, asked):
            return found
        workspace = self.output / name
        workspace.mkdir(exist_ok=True)
        common = ["--workspace", str(workspace), "--device", "cpu"]
        with open(workspace / "log.txt", "a") as log:
            epochs, limit = self.schedule(options, learn, log)
            command = [*TOOL, "pretrain", learn, *BASE, *options, "--epochs", str(epochs), "--limit", str(limit),
                       "--run", "run", *common]
            self.work.run(command, log)
            for part, images in (("learned", learn), ("other", measure)):
                self.work.run([*TOOL, "embed", images, "--output", str(workspace / f"{part}.h5"), *common], log)
            found = json.loads(self.work.run([*TOOL, "knn", str(workspace / "learned.h5"), str(workspace / "other.h5"),
                                              "--preset", "lightly", "--json", *common], log))
        lines = _lines(workspace)
        batch = json.loads((workspace / "runs" / "run" / "config.json").read_text())["batch_size"]
        result = {"name": name, "options": options, "asked": asked, "epochs": epochs, "limit": limit,
                  "knn_top1": found["results"][0]["top1"],
                  "minutes": sum(batch / line["images_per_second"] for line in lines) / 60,
                  "images_per_second": statistics.median(line["images_per_second"] for line in lines),
                  "command": " ".join(command[2:])}
        write_json(self.output / f"{name}.json", result)
        return result

    def schedule(self, options: list[str], learn: str, log) -> tuple[int, int]:
        """Epochs and images that fill the minutes, by the rate of a trial: whole epochs of nearly all images."""
        images = len(scan(learn))
        seen = SHARE * 60 * self.minutes * self.rate(options, learn, log)
        epochs = max(1, math.ceil(seen / images))
        return epochs, max(1000, int(seen / epochs))

    def rate(self, options: list[str], learn: str, log) -> float:
        """Images/s in a trial of `TRIAL_STEPS` steps with those options that are `COSTLY`; kept."""
        costly = _costly(options)
        name = "-".join(["trial", *(one.strip("-") for one in costly)])
        asked = {"options": [*BASE, *costly]}
        if found := self.kept(name, asked):
            return found["images_per_second"]
        batch = int(_last([*BASE, *costly], "--batch-size") or 0)
        self.work.run([*TOOL, "pretrain", learn, *BASE, *costly, "--limit", str(TRIAL_STEPS * batch // 2), "--epochs",
                       "2", "--run", "run", "--fresh", "--workspace", str(self.output / name)], log)
        rate = settled_rate(self.output / name)
        write_json(self.output / f"{name}.json", {"images_per_second": rate, "asked": asked})
        return rate


def _costly(options: list[str]) -> list[str]:
    """Those options, with their values, that change images/s; of one given twice the last."""
    found: dict[str, list[str]] = {}
    for place, option in enumerate(options):
        if option in COSTLY:
            value = [one for one in options[place + 1:place + 2] if not one.startswith("--")]
            found[option] = [option, *value]
    return [part for option in sorted(found) for part in found[option]]


def _last(options: list[str], name: str) -> str | None:
    places = [place for place, option in enumerate(options) if option == name]
    return options[places[-1] + 1] if places else None


def settled_rate(workspace: pathlib.Path) -> float:
    """Images/s of the workspace's pretraining `run`: the median after the first third of its lines."""
    lines = _lines(workspace)
    return statistics.median(line["images_per_second"] for line in lines[len(lines) // 3:])


def _lines(workspace: pathlib.Path) -> list[dict]:
    text = (workspace / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def split(folder: str, output: pathlib.Path) -> tuple[str, str]:
    """Lists of four fifths of the images, to learn from, and of the fifth one, to measure on."""
    listing = scan(folder)
    paths = [bytes(listing.full_path(row)) for row in range(len(listing))]
    order = np.random.default_rng(0).permutation(len(paths))
    border = len(paths) * 4 // 5
    for name, rows in (("learned.txt", order[:border]), ("held-out.txt", order[border:])):
        write_bytes(output / name, b"\n".join(paths[row] for row in sorted(rows)) + b"\n")
    return str(output / "learned.txt"), str(output / "held-out.txt")


def tune(bench: Bench, folder: str) -> dict:
    """Every candidate, then all gains together; the best one, also as chosen.json."""
    learn, held_out = split(folder, bench.output)
    found = {}
    for name, options in CANDIDATES.items():
        if name == "bf16" and (slow := Compute.of("cpu", "bf16").slowness()):
            click.echo(f"bf16 is left out: {slow}", err=True)
            continue
        try:
            found[name] = bench.measured(f"tune-{name}", options, learn, held_out)
        except RuntimeError as error:
            click.echo(f"{name} is left out: {error} ({bench.output / f'tune-{name}' / 'log.txt'})", err=True)
    if "base" not in found:
        raise click.ClickException("The base failed, to which the others are compared.")
    gains = [name for name in found if found[name]["knn_top1"] > found["base"]["knn_top1"] + GAIN]
    if len(gains) > 1:
        options = [option for name in sorted(gains, key=lambda name: found[name]["knn_top1"])
                   for option in CANDIDATES[name]]  # of one option given twice the last counts: the better one's
        found["together"] = bench.measured("tune-together", options, learn, held_out)
    best = max(found.values(), key=lambda result: result["knn_top1"])
    write_json(bench.output / "chosen.json", best)
    return best


def _chosen(bench: Bench) -> dict:
    if (chosen := bench.kept("chosen")) is None:
        raise click.UsageError("Nothing has been chosen yet. Run `tune` first.")
    return chosen


def final(bench: Bench, train: str, test: str) -> list[dict]:
    """The chosen candidate on all training images, three seeds."""
    chosen = _chosen(bench)
    return [bench.measured(f"final-seed{seed}", [*chosen["options"], "--seed", str(seed)], train, test)
            for seed in SEEDS]


def peer(bench: Bench, train: str, test: str, name: str, checkout: str | None) -> list[dict]:
    """lightly's or solo-learn's MoCo as they have it, and with the chosen network, batch size and our settings."""
    script, results = [sys.executable, "-m", "benchmarks.reproduce.half_hour_peers", name], []
    where = ["--checkout", checkout] if checkout else []
    chosen = _chosen(bench)
    settings = str(bench.output / chosen["name"] / "runs" / "run" / "config.json")
    for kind, options in (("as-it-is", []), ("with-ours", ["--ours", settings])):
        asked = {"options": chosen["options"] if options else [], "minutes": bench.minutes, "learn": train,
                 "measure": test}
        if (result := bench.kept(f"{name}-{kind}", asked)) is None:
            with open(bench.output / f"{name}-{kind}.log", "a") as log:
                output = bench.work.run([*script, train, test, "--minutes", str(bench.minutes), *where, *options], log)
            result = {"name": f"{name}-{kind}", "asked": asked, **json.loads(output.splitlines()[-1])}
            write_json(bench.output / f"{name}-{kind}.json", result)
        results.append(result)
    return results


@click.command()
@click.argument("what", type=click.Choice(["tune", "final", *PEERS]))
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--output", type=click.Path(path_type=pathlib.Path), default="half-hour", show_default=True)
@click.option("--minutes", default=30.0, show_default=True, help="Of pretraining, for each.")
@click.option("--seconds", default=0.0, help="Stop after about so many; 0: when all is done.")
@click.option("--checkout", type=click.Path(exists=True, file_okay=False), help="Of solo-learn's repository.")
def main(what, folders, output, minutes, seconds, checkout):
    """Tune on a held-out fifth, measure the chosen one on the test images, or a peer."""
    if len(folders) != (1 if what == "tune" else 2):
        raise click.UsageError("tune takes the training images; the others take training and test images.")
    folders = [str(pathlib.Path(folder).resolve()) for folder in folders]
    bench = Bench(output, minutes, Work(time.monotonic() + (seconds or 1e6), threads=2))
    signal.signal(signal.SIGTERM, bench.work.stop)  # what runs saves first
    try:
        found = (peer(bench, *folders, what, checkout) if what in PEERS
                 else {"tune": tune, "final": final}[what](bench, *folders))
    except (Stopped, KeyboardInterrupt):
        bench.work.stop()
        click.echo("Stopped. Run the same command again to go on.", err=True)
        raise SystemExit(MORE_TO_DO) from None
    except (MocoembedError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    for result in found if isinstance(found, list) else [found]:
        click.echo(f"{result['name']}: kNN {result['knn_top1']:.1f} %, {result['epochs']} epochs in "
                   f"{result['minutes']:.1f} min")
    if what == "final":
        click.echo(f"kNN top-1 on the test images: {mean_of([one['knn_top1'] for one in found]).shown()} %")


if __name__ == "__main__":
    main()
