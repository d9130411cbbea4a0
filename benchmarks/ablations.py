"""Does the shape of the paper's ablations show in minutes on a CPU? Momentum, dictionary and BatchNorm.

In: CIFAR-10 as images in class folders. Each cell is one `mocoembed pretrain` in a workspace of its own below
--output, with a narrow ResNet-18 and 10,000 images; what it gave is kept there as one JSON file. A cell whose file is
there is not run again, and one that was interrupted goes on where it stopped. Runs and --report can be mixed.

    python benchmarks/ablations.py cifar/train cifar/test                         # everything, seed 0
    python benchmarks/ablations.py cifar/train cifar/test --study momentum --seed 1
    python benchmarks/ablations.py cifar/train cifar/test --cell bank-512
    python benchmarks/ablations.py --report benchmarks > tables.md                # needs matplotlib

kNN is the monitor's: backbone features, leave-one-out on the second folder, k 200, T 0.1, after the last epoch. Loss
and pretext accuracies are means of the last 100 steps; minutes are those of training at the median rate. Values of
several seeds stand side by side.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import click

from mocoembed import __version__
from mocoembed.files import write_json

BATCH, LAST_STEPS = 128, 100
BASE = ["--recipe", "cifar10", "--width", "0.25", "--stem", "3x3s2", "--limit", "10000", "--batch-size", str(BATCH),
        "--lr", "0.04", "--warmup-epochs", "1", "--no-mask-same-image", "--precision", "bf16", "--workers", "0",
        "--val-every", "1000000"]
GROUPS = ["--bn-groups", "4"]
CELLS = {
    "base": GROUPS,
    "m-0": [*GROUPS, "--momentum", "0"],
    "m-0.9": [*GROUPS, "--momentum", "0.9"],
    "m-0.999": [*GROUPS, "--momentum", "0.999"],
    "queue-127": [*GROUPS, "--queue-size", "127"],
    "queue-512": [*GROUPS, "--queue-size", "512"],
    "bank-512": [*GROUPS, "--queue-size", "512", "--dictionary", "memory-bank"],
    "bank-4096": [*GROUPS, "--dictionary", "memory-bank"],
    "end-to-end": [*GROUPS, "--dictionary", "end-to-end"],
    "shuffled": ["--bn-groups", "8"],
    "unshuffled": ["--bn-groups", "8", "--batchnorm", "none"],
    "shuffled-32": ["--bn-groups", "32"],
    "unshuffled-32": ["--bn-groups", "32", "--batchnorm", "none"],
}
STUDIES = {
    "momentum": {"m-0": "0", "m-0.9": "0.9", "base": "0.99", "m-0.999": "0.999"},
    "dictionary": {"end-to-end": ("end-to-end", BATCH - 1), "bank-512": ("memory bank", 512),
                   "bank-4096": ("memory bank", 4096), "queue-127": ("queue", BATCH - 1),
                   "queue-512": ("queue", 512), "base": ("queue", 4096)},
    "batchnorm": {"shuffled": "8 groups, shuffled keys", "unshuffled": "8 groups, unshuffled",
                  "shuffled-32": "32 groups, shuffled keys", "unshuffled-32": "32 groups, unshuffled"},
}


def options_of(cell: str, seed: int, epochs: int) -> list[str]:
    """All that decides what a cell gives, as options of `mocoembed pretrain`."""
    return [*BASE, *CELLS[cell], "--epochs", str(epochs), "--seed", str(seed)]


def pretrain(images: str, val: str, options: list[str], workspace: pathlib.Path):
    """The command itself; leaves the program with its status when that is not 0."""
    command = [sys.executable, "-m", "mocoembed", "pretrain", images, *options, "--val", val,
               "--workspace", str(workspace), "--run", "run"]
    child = subprocess.Popen(command)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        status = child.wait()  # it got the signal too: it saves and ends by itself
    if status:
        sys.exit(status)


def result_of(metrics: pathlib.Path) -> dict:
    """The numbers of a complete run, from its `metrics.jsonl`."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    knn = [line for line in lines if "knn_top1" in line][-1]
    last, epochs = steps[-LAST_STEPS:], sorted({step["epoch"] for step in steps})
    rate = statistics.median(step["images_per_second"] for step in steps)
    return {
        "knn_top1": knn["knn_top1"], "knn_images": knn["images"], "steps": steps[-1]["step"],
        **{name: statistics.mean(step[name] for step in last) for name in ("loss", "top1", "top5")},
        "chance": last[-1]["chance"],
        "images_per_second": rate, "minutes": len(steps) * BATCH / rate / 60,
        "top1_by_epoch": [statistics.mean(step["top1"] for step in steps if step["epoch"] == epoch)
                          for epoch in epochs]}


def run_cell(cell: str, seed: int, epochs: int, folders: tuple[str, str], output: pathlib.Path):
    """Run one cell, or finish it, unless its result is there."""
    name = f"{cell}-seed{seed}"
    kept, options = output / f"{name}.json", options_of(cell, seed, epochs)
    if kept.exists():
        if json.loads(kept.read_text(encoding="utf-8"))["options"] != options:
            raise click.UsageError(f"{kept} was made with other options. Remove it, or give another --output.")
        return
    click.echo(f"{name}: {' '.join(options)}", err=True)
    pretrain(*folders, options, output / name)
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    write_json(kept, {"cell": cell, "seed": seed, "options": options, "version": __version__, "threads": threads,
                      **result_of(output / name / "runs" / "run" / "metrics.jsonl")})


def results(output: pathlib.Path, epochs: int) -> dict[str, list[dict]]:
    """{cell: its results with this number of epochs, by seed}, for the cells that have one."""
    found: dict[str, list[dict]] = {}
    for path in sorted(output.glob("*-seed*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["options"] == options_of(result["cell"], result["seed"], epochs):
            found.setdefault(result["cell"], []).append(result)
        else:
            click.echo(f"{path} is left out: it was made with other options", err=True)
    return found


def table(study: str, found: dict[str, list[dict]]) -> str:
    """The cells of a study that have results, as a Markdown table."""
    columns = {"kNN top-1, %": ("knn_top1", 1, ".1f"), "loss": ("loss", 1, ".2f"), "chance": ("chance", 1, ".2f"),
               "pretext top-1, %": ("top1", 100, ".1f"), "top-5, %": ("top5", 100, ".1f"),
               "images/s": ("images_per_second", 1, ".0f"), "minutes": ("minutes", 1, ".1f")}
    lines = [["cell", study, "seeds", *columns], ["---"] * (len(columns) + 3)]
    for cell, label in STUDIES[study].items():
        if runs := found.get(cell):
            shown = label if isinstance(label, str) else f"{label[0]}, {label[1]} negatives"
            values = [" / ".join(format(run[key] * factor, form) for run in runs)
                      for key, factor, form in columns.values()]
            lines.append([f"`{cell}`", shown, ", ".join(str(run["seed"]) for run in runs), *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean(runs: list[dict], key: str) -> float:
    """Over the seeds."""
    return statistics.mean(run[key] for run in runs)


def draw(axes, places: list, cells: list[list[dict]], key: str, label=None, marker=None):
    """A line through the means of the cells, and a point for each seed."""
    line, = axes.plot(places, [mean(runs, key) for runs in cells], label=label, marker=marker)
    for place, runs in zip(places, cells):
        axes.plot([place] * len(runs), [run[key] for run in runs], "o", color=line.get_color(), markersize=4)


def plot_momentum(figure, found: dict[str, list[dict]]):
    """kNN accuracy and loss against m."""
    labels, cells = zip(*((label, found[cell]) for cell, label in STUDIES["momentum"].items() if cell in found))
    for axes, key, title in zip(figure.subplots(1, 2), ("knn_top1", "loss"), ("kNN top-1, %", "loss, last 100 steps")):
        draw(axes, list(range(len(labels))), list(cells), key)
        axes.set(xticks=range(len(labels)), xticklabels=labels, xlabel="momentum m", title=title)


def plot_dictionary(figure, found: dict[str, list[dict]]):
    """kNN accuracy against the number of negatives, one line for each dictionary (the paper's Figure 3)."""
    axes = figure.subplots()
    for kind, marker in (("end-to-end", "D"), ("memory bank", "s"), ("queue", "^")):
        points = [(label[1], found[cell]) for cell, label in STUDIES["dictionary"].items()
                  if cell in found and label[0] == kind]
        if points:
            places, cells = zip(*points)
            draw(axes, list(places), list(cells), "knn_top1", label=kind, marker=marker)
    axes.set_xscale("log", base=2)
    ticks = sorted({label[1] for label in STUDIES["dictionary"].values()})
    axes.set(xticks=ticks, xticklabels=ticks, xlabel="K (negatives)", ylabel="kNN top-1, %")
    axes.legend()


def plot_batchnorm(figure, found: dict[str, list[dict]]):
    """Pretext accuracy over the steps, kNN accuracy in the legend (the paper's Figure 7)."""
    axes = figure.subplots()
    for cell, label in STUDIES["batchnorm"].items():
        for run in found.get(cell, []):
            accuracies = run["top1_by_epoch"]
            steps = [run["steps"] * (epoch + 1) / len(accuracies) for epoch in range(len(accuracies))]
            axes.plot(steps, [100 * value for value in accuracies], "--" if "unshuffled" in cell else "-",
                      label=f"{label}, seed {run['seed']}: kNN {run['knn_top1']:.1f} %")
    axes.set(xlabel="step", ylabel="pretext top-1, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")


def report(output: pathlib.Path, epochs: int, plots: pathlib.Path):
    """Print the tables; write ablation-<study>.png for every study with results."""
    from matplotlib.figure import Figure  # needed here alone; not a dependency of the package

    found = results(output, epochs)
    for study, plot in {"momentum": plot_momentum, "dictionary": plot_dictionary, "batchnorm": plot_batchnorm}.items():
        if any(cell in found for cell in STUDIES[study]):
            click.echo(f"{table(study, found)}\n")
            figure = Figure(figsize=(7, 3.6), layout="constrained")
            plot(figure, found)
            figure.savefig(plots / f"ablation-{study}.png", dpi=100)


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False))
@click.option("--output", type=click.Path(path_type=pathlib.Path), default="ablations", show_default=True,
              help="Folder of the results and workspaces.")
@click.option("--study", "studies", multiple=True, type=click.Choice(list(STUDIES)), help="Only this; repeatable.")
@click.option("--cell", "cells", multiple=True, type=click.Choice(list(CELLS)), help="Only this; repeatable.")
@click.option("--seed", default=0, show_default=True, help="Of weights, order, views and the 10,000 images.")
@click.option("--epochs", default=12, show_default=True, help="Of every cell.")
@click.option("--report", "plots", type=click.Path(path_type=pathlib.Path, exists=True), metavar="FOLDER",
              help="Run nothing: print tables of what is there, and draw the plots into this folder.")
def main(folders, output, studies, cells, seed, epochs, plots):
    """Run the cells on FOLDERS (images to learn from, images to measure on), or report."""
    if plots:
        return report(output, epochs, plots)
    if len(folders) != 2:
        raise click.UsageError("Give two folders: images to learn from, and images to measure on.")
    wanted = cells or dict.fromkeys(cell for study in studies or STUDIES for cell in STUDIES[study])
    for cell in wanted:
        run_cell(cell, seed, epochs, folders, output)


if __name__ == "__main__":
    main()
