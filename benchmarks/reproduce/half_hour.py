"""The best kNN accuracy on CIFAR-10's test images that two cores reach in half an hour of pretraining.

    python -m benchmarks.reproduce.half_hour tune cifar/train                      choices, on a held-out fifth
    python -m benchmarks.reproduce.half_hour final cifar/train cifar/test          the chosen one, three seeds
    python -m benchmarks.reproduce.half_hour lightly cifar/train cifar/test        lightly's MoCo in the same time
    python -m benchmarks.reproduce.half_hour solo-learn cifar/train cifar/test --checkout solo-learn     solo-learn's

`tune` learns from four fifths of the training images and measures on the fifth one (kNN of the learned ones, backbone,
k 200, T 0.1). Every candidate changes one thing of `base` and gets the same minutes: a short trial tells its images/s,
from which its number of epochs follows, so that its schedule ends in time. Then `together` has all changes that gained
more than `GAIN` points. The best of all is chosen, whatever it is. `final` trains that one on all training images with
three seeds and looks at the test images once for each; what it prints is the result. Results are JSON files in OUTPUT;
what is there is not run again, and a pretraining that was stopped goes on. Nothing else should run on the machine: each
command has both cores.

Expected, before it ran: 56 % or more, 49.2 % having been reached by `base` with 14 epochs in bf16. End-to-end and a
smaller K gain, because few steps are taken; a wider network loses, because it takes fewer.
"""

import json
import pathlib
import statistics
import sys
import time

import click
import numpy as np

from benchmarks.reproduce.queue_of_work import Stopped, Work
from benchmarks.reproduce.statistics_of_seeds import mean_of
from mocoembed.data.images import scan
from mocoembed.files import write_bytes, write_json

BASE = ["--recipe", "cifar10", "--width", "0.375", "--stem", "3x3s2", "--batch-size", "256", "--bn-groups", "4",
        "--cache", "ram", "--workers", "1", "--device", "cpu", "--processes", "1"]
CANDIDATES: dict[str, list[str]] = {
    "base": [], "warm-up": ["--warmup-epochs", "1"], "one-group": ["--bn-groups", "1"],
    "k-1024": ["--queue-size", "1024"], "k-256": ["--queue-size", "256"], "m-0.98": ["--momentum", "0.98"],
    "m-0.995": ["--momentum", "0.995"], "lr-0.03": ["--lr", "0.03"], "lr-0.12": ["--lr", "0.12"],
    "batch-128": ["--batch-size", "128", "--lr", "0.03"], "width-0.25": ["--width", "0.25"],
    "width-0.5": ["--width", "0.5"], "stem-3x3s1": ["--stem", "3x3s1"], "symmetric": ["--symmetric"],
    "end-to-end": ["--dictionary", "end-to-end"], "crop-0.2": ["--crop-scale", "0.2,1.0"],
    "mlp": ["--head", "mlp", "--temperature", "0.2"], "bf16": ["--precision", "bf16"], "compile": ["--compile"]}
PEERS = ("lightly", "solo-learn")
GAIN = 0.5  # points, about the sampling error of 10,000 images
SEEDS, TRIAL_STEPS, SHARE = (0, 1, 2), 30, 0.95
"""SHARE: of the time, that the epochs may take by the trial's rate."""
TOOL = [sys.executable, "-m", "mocoembed"]


class Bench:
    """Where results are kept, and how long a pretraining may take."""

    def __init__(self, output: pathlib.Path, minutes: float, work: Work):
        self.output, self.minutes, self.work = output.resolve(), minutes, work
        self.output.mkdir(parents=True, exist_ok=True)

    def kept(self, name: str) -> dict | None:
        """A result that is there."""
        path = self.output / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def measured(self, name: str, options: list[str], learn: str, measure: str) -> dict:
        """Pretrain for the minutes, embed both, and the kNN accuracy; from the file if it is there."""
        if found := self.kept(name):
            return found
        workspace = self.output / name
        workspace.mkdir(exist_ok=True)
        common = ["--workspace", str(workspace), "--device", "cpu"]
        with open(workspace / "log.txt", "a") as log:
            epochs = self.epochs(name, options, learn, log)
            command = [*TOOL, "pretrain", learn, *BASE, *options, "--epochs", str(epochs), "--run", "run", *common]
            self.work.run(command, log)
            for part, images in (("learned", learn), ("other", measure)):
                self.work.run([*TOOL, "embed", images, "--output", str(workspace / f"{part}.h5"), *common], log)
            found = json.loads(self.work.run([*TOOL, "knn", str(workspace / "learned.h5"), str(workspace / "other.h5"),
                                              "--preset", "lightly", "--json", *common], log))
        lines = _lines(workspace, "run")
        batch = json.loads((workspace / "runs" / "run" / "config.json").read_text())["batch_size"]
        result = {"name": name, "options": options, "epochs": epochs, "knn_top1": found["results"][0]["top1"],
                  "minutes": sum(batch / line["images_per_second"] for line in lines) / 60,
                  "images_per_second": statistics.median(line["images_per_second"] for line in lines),
                  "command": " ".join(command[2:])}
        write_json(self.output / f"{name}.json", result)
        return result

    def epochs(self, name: str, options: list[str], learn: str, log) -> int:
        """As many as fit into the minutes, by the rate of a trial of `TRIAL_STEPS` steps; kept, for going on."""
        if found := self.kept(f"{name}-trial"):
            return found["epochs"]
        workspace = self.output / f"{name}-trial"
        batch = int(_last(options, "--batch-size") or _last(BASE, "--batch-size") or 0)
        self.work.run([*TOOL, "pretrain", learn, *BASE, *options, "--limit", str(TRIAL_STEPS * batch // 2), "--epochs",
                       "2", "--run", "run", "--fresh", "--workspace", str(workspace)], log)
        lines = _lines(workspace, "run")
        rate = statistics.median(line["images_per_second"] for line in lines[len(lines) // 3:])
        images = len(scan(learn))
        epochs = max(1, int(SHARE * 60 * self.minutes * rate / images))
        write_json(self.output / f"{name}-trial.json", {"images_per_second": rate, "epochs": epochs})
        return epochs


def _last(options: list[str], name: str) -> str | None:
    places = [place for place, option in enumerate(options) if option == name]
    return options[places[-1] + 1] if places else None


def _lines(workspace: pathlib.Path, run: str) -> list[dict]:
    text = (workspace / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8")
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
    found = {name: bench.measured(f"tune-{name}", options, learn, held_out) for name, options in CANDIDATES.items()}
    gains = [name for name in CANDIDATES if found[name]["knn_top1"] > found["base"]["knn_top1"] + GAIN]
    if len(gains) > 1:
        options = [option for name in sorted(gains, key=lambda name: found[name]["knn_top1"])
                   for option in CANDIDATES[name]]  # of one option given twice the last counts: the better one's
        found["together"] = bench.measured("tune-together", options, learn, held_out)
    best = max(found.values(), key=lambda result: result["knn_top1"])
    write_json(bench.output / "chosen.json", best)
    return best


def final(bench: Bench, train: str, test: str) -> list[dict]:
    """The chosen candidate on all training images, three seeds."""
    chosen = bench.kept("chosen")
    if chosen is None:
        raise click.UsageError("Nothing has been chosen yet. Run `tune` first.")
    return [bench.measured(f"final-seed{seed}", [*chosen["options"], "--seed", str(seed)], train, test)
            for seed in SEEDS]


def peer(bench: Bench, train: str, test: str, name: str, checkout: str | None) -> list[dict]:
    """lightly's or solo-learn's MoCo as they have it, and with the chosen network, batch size and our settings."""
    script, results = [sys.executable, "-m", "benchmarks.reproduce.half_hour_peers", name], []
    where = ["--checkout", checkout] if checkout else []
    chosen = bench.kept("chosen") or {"options": []}
    for kind, options in (("as-it-is", []), ("with-ours", [*BASE, *chosen["options"]])):
        if (result := bench.kept(f"{name}-{kind}")) is None:
            network = [_last(options, one) or "" for one in ("--width", "--stem", "--batch-size")]
            ours = ["--network", *network, "--ours"] if options else []
            with open(bench.output / f"{name}-{kind}.log", "a") as log:
                output = bench.work.run([*script, train, test, "--minutes", str(bench.minutes), *where, *ours], log)
            result = {"name": f"{name}-{kind}", **json.loads(output.splitlines()[-1])}
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
    bench = Bench(output, minutes, Work(time.monotonic() + (seconds or 1e6), threads=2))
    try:
        found = (peer(bench, *folders, what, checkout) if what in PEERS
                 else {"tune": tune, "final": final}[what](bench, *folders))
    except (Stopped, KeyboardInterrupt):
        bench.work.stop()
        click.echo("Stopped. Run the same command again to go on.", err=True)
        raise SystemExit(3) from None
    for result in found if isinstance(found, list) else [found]:
        click.echo(f"{result['name']}: kNN {result['knn_top1']:.1f} %, {result['epochs']} epochs in "
                   f"{result['minutes']:.1f} min")
    if what == "final":
        click.echo(f"kNN top-1 on the test images: {mean_of([one['knn_top1'] for one in found]).shown()} %")


if __name__ == "__main__":
    main()
