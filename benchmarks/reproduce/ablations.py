"""The ablations of both MoCo papers on two cores, with error bars: each cell a `mocoembed pretrain`, three seeds each.

In: CIFAR-10 as images in class folders. Out: one JSON file a cell and seed, tables, plots.

    python -m benchmarks.reproduce.ablations cifar/train cifar/test                    everything (12 hours at most)
    python -m benchmarks.reproduce.ablations cifar/train cifar/test --only a-dictionary --seconds 540
    python -m benchmarks.reproduce.ablations cifar/train cifar/test --only queue-64 --seed 3
    python -m benchmarks.reproduce.ablations --report ablations                        tables and plots of what is there

Cells, claims and what is expected of them, written before looking: `cells.py`. Two cells at a time, one thread each, at
low priority. A cell whose file is in OUTPUT/cells is not run again; one that was stopped goes on where it was. Exit
status: 0 all done, 1 a cell failed (its log says why), 3 there is more to do.

kNN: backbone features of the second folder's images, leave-one-out, k 200, T 0.1, after the last epoch. Linear: a
logistic regression on half of the same features, measured on the other half (`probe.py`). Loss and pretext accuracies:
means of the last 100 steps. Every figure is from the run's own files. Intervals are 95 % t-intervals over the seeds,
which change weights, order, views and the choice of 10,000 images; differences are paired by seed. The seeds say how
much a figure varies between runs; that the test images are a sample adds about half a point, the same for all cells.
"""

import json
import pathlib
import shutil
import statistics
import sys
import time
from functools import partial
from typing import NamedTuple

import click

from benchmarks.machine import about
from benchmarks.reproduce.cells import BASE, CELLS, STUDIES
from benchmarks.reproduce.queue_of_work import Work, ended, is_done, run_all
from benchmarks.reproduce.tables import results, write_report
from mocoembed.data.images import scan
from mocoembed.files import write_json

LAST_STEPS, SEEDS, AT_A_TIME = 100, (0, 1, 2), 2
QUICK = ["--limit", "80", "--width", "0.125", "--batch-size", "16", "--bn-groups", "2", "--epochs", "2", "--precision",
         "fp32"]


def options_of(cell: str, seed: int, quick: bool) -> list[str]:
    """All that decides what a cell gives, as options of `mocoembed pretrain`; of one given twice the last counts."""
    one = CELLS[cell]
    return [*BASE, "--epochs", str(one.epochs), *one.options, "--seed", str(seed), *(QUICK if quick else [])]


def result_of(metrics: pathlib.Path) -> dict:
    """The numbers of a complete run, from its `metrics.jsonl`."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    knn, last = [line for line in lines if "knn_top1" in line][-1], steps[-LAST_STEPS:]
    return {
        "knn_top1": knn["knn_top1"], "knn_images": knn["images"], "steps": steps[-1]["step"],
        "loss": statistics.mean(step["loss"] for step in last), "chance": last[-1]["chance"],
        "pretext_top1": 100 * statistics.mean(step["top1"] for step in last),
        "images_per_second": statistics.median(step["images_per_second"] for step in steps)}


class Images(NamedTuple):
    """Folders to learn from and to measure on, and the digest of what is learned from."""

    learn: str
    measure: str
    digest: str


def run_cell(name: str, cell: str, seed: int, images: Images, output: pathlib.Path, quick: bool, work: Work):
    """Run one cell, or finish it, and keep what it gave."""
    workspace, options = output / "work" / name, options_of(cell, seed, quick)
    tool, place = [sys.executable, "-m", "mocoembed"], ["--workspace", str(workspace)]
    workspace.mkdir(parents=True, exist_ok=True)
    run = workspace / "runs" / "run"
    with open(workspace / "log.txt", "a") as log:
        work.run([*tool, "pretrain", images.learn, *options, "--val", images.measure, "--run", "run", *place],
                 log)
        work.run([*tool, "embed", images.measure, "--device", "cpu", "--workers", "1", *place], log)
        probe = work.run([sys.executable, "-m", "benchmarks.reproduce.probe", str(workspace / "embeddings.h5")], log)
    result = {"cell": cell, "seed": seed, "quick": quick, "options": options, **result_of(run / "metrics.jsonl"),
              **json.loads(probe), "images_digest": images.digest, **about()}
    kept = output / "runs" / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.jsonl", "config.json"):
        shutil.copy(run / file, kept / file)
    write_json(output / "cells" / f"{name}.json", result)
    shutil.rmtree(workspace)


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False))
@click.option("--output", type=click.Path(path_type=pathlib.Path), default="ablations", show_default=True,
              help="Folder of the results.")
@click.option("--only", multiple=True, type=click.Choice([*STUDIES, *CELLS]), metavar="STUDY|CELL", help="Repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Only this; repeatable. By default 0, 1 and 2.")
@click.option("--seconds", default=0.0, help="Stop after about so many; 0: when all is done.")
@click.option("--quick", is_flag=True, help="Tiny runs, to know that it works.")
@click.option("--report", type=click.Path(path_type=pathlib.Path, exists=True), metavar="FOLDER",
              help="Run nothing: write tables and plots of the results in this folder.")
def main(folders, output, only, seeds, seconds, quick, report):
    """Run the cells on FOLDERS (images to learn from, images to measure on), or report."""
    if report:
        if not results(report):
            raise click.UsageError(f"{report} has no results: cells/*.json.")
        return click.echo(write_report(report))
    if len(folders) != 2:
        raise click.UsageError("Give two folders: images to learn from, and images to measure on.")
    wanted = dict.fromkeys(cell for name in only or STUDIES for cell in STUDIES.get(name, [name]))
    work = Work(time.monotonic() + (seconds or 1e6))
    todo, images = [], Images(*folders, scan(folders[0]).digest())
    for seed in seeds or SEEDS:  # one seed of all before the next, so that a part is a whole study
        for cell in wanted:
            name = f"{cell}-seed{seed}"
            if not is_done(output, name, options_of(cell, seed, quick), images.digest):
                todo.append((name, partial(run_cell, name, cell, seed, images, output, quick, work)))
    (output / "cells").mkdir(parents=True, exist_ok=True)
    left, failed = run_all(work, todo, AT_A_TIME, lambda text: click.echo(text, err=True))
    if any((output / "cells").iterdir()):
        click.echo(write_report(output))
    ended(left, failed, lambda name: output / "work" / name / "log.txt")


if __name__ == "__main__":
    main()
