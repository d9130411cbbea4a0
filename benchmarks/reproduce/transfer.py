"""Transfer, as in section 4.2 of the MoCo paper, on generated scenes: a pretrained backbone against a random one.

    python -m benchmarks.reproduce.transfer                                       everything
    python -m benchmarks.reproduce.transfer --only detection-random --trial 0 --seconds 540
    python -m benchmarks.reproduce.transfer --report transfer                     tables of what is there

A ResNet-18 (width 1, stem 7x7s2-pool) is pretrained by `mocoembed pretrain` on generated images of one object each and
exported by `mocoembed export --format torchvision`. The other one is the same network with random weights, others in
each trial. Both are fine-tuned in torchvision's Faster R-CNN with a feature pyramid and in its FCN, with the same
settings (`transfer_models.py`, `transfer_trial.py`), on scenes of one to three objects (`scenes.py`), and measured on
other scenes. Five trials of each, as the authors do: mean, standard deviation and 95 % t-interval; trial i of both
starts with the same new layers and sees the same batches, so differences are paired. There is one pretraining: what
another one would give is in none of the intervals.

BatchNorm is trained with the batch's statistics, in the new layers too, as in the paper; `-frozen` is what
torchvision's detectors do with supervised weights. Needs pycocotools. One JSON file a trial in OUTPUT/cells; what is
there is not run again. Exit status: 0 all done, 1 a trial failed (OUTPUT/log.txt says why), 3 there is more to do.

The claims and what is expected of them (`CLAIMS`) were written before any pretrained backbone had been fine-tuned. The
learning rate was tried with random backbones alone, with another seed.
"""

import json
import pathlib
import statistics
import sys
import time
from functools import partial
from typing import NamedTuple

import click

from benchmarks.machine import about
from benchmarks.reproduce.cells import Claim
from benchmarks.reproduce.queue_of_work import Work, ended, is_done, run_all
from benchmarks.reproduce.statistics_of_seeds import mean_of
from benchmarks.reproduce.tables import Found, markdown, results, sections
from benchmarks.reproduce.transfer_trial import FIGURES
from mocoembed.data.sample import write_collection
from mocoembed.files import write_bytes, write_json

TRIALS, AT_A_TIME = (0, 1, 2, 3, 4), 2
LEARN, MEASURE = 8000, 800  # images of one object: to pretrain on, and for kNN
PRETRAIN = ["--recipe", "small", "--width", "1", "--stem", "7x7s2-pool", "--image-size", "32", "--warmup-epochs", "1",
            "--batch-size", "32", "--lr", "0.04", "--epochs", "5", "--precision", "fp32", "--cache", "ram",
            "--workers", "1", "--device", "cpu", "--processes", "1"]
QUICK_PRETRAIN = ["--limit", "64", "--epochs", "1", "--queue-size", "32", "--batch-size", "16"]
STEPS, NICENESS = {"detection": 100, "segmentation": 80}, 5
QUICK = ["--steps", "2", "--scenes", "16", "--test-scenes", "8"]
TOOL = [sys.executable, "-m", "mocoembed"]


class Cell(NamedTuple):
    """One row of the table."""

    label: str
    task: str
    pretrained: bool
    norm: str = "trained"


CELLS = {
    "detection-random": Cell("random", "detection", False),
    "detection-pretrained": Cell("pretrained", "detection", True),
    "detection-random-frozen": Cell("random, BatchNorm frozen", "detection", False, "frozen"),
    "detection-pretrained-frozen": Cell("pretrained, BatchNorm frozen", "detection", True, "frozen"),
    "segmentation-random": Cell("random", "segmentation", False),
    "segmentation-pretrained": Cell("pretrained", "segmentation", True)}
CLAIMS = [
    Claim("detection", "AP: pretrained is more than 3 points above random", "detection-pretrained", "detection-random",
          3.0, "AP"),
    Claim("detection", "AP50: pretrained is above random", "detection-pretrained", "detection-random", 0.0, "AP50"),
    Claim("detection", "AP75: pretrained is above random", "detection-pretrained", "detection-random", 0.0, "AP75"),
    Claim("detection", "AP: a frozen BatchNorm harms a random backbone", "detection-random",
          "detection-random-frozen", 0.0, "AP"),
    Claim("detection", "AP: a frozen BatchNorm harms a pretrained backbone", "detection-pretrained",
          "detection-pretrained-frozen", 0.0, "AP", "open: it has statistics, but of single objects"),
    Claim("segmentation", "mIoU: pretrained is more than 3 points above random", "segmentation-pretrained",
          "segmentation-random", 3.0, "mIoU")]


def options_of(cell: str, seed: int, quick: bool) -> list[str]:
    """All that decides what a trial gives, beside the pretrained weights."""
    one = CELLS[cell]
    return [one.task, str(seed), "--norm", one.norm, *(QUICK if quick else ["--steps", str(STEPS[one.task])])]


def pretrain(output: pathlib.Path, quick: bool, work: Work):
    """Pretrain or finish it, measure kNN accuracy beside its baselines, and export to OUTPUT/backbone.pth."""
    weights, done = output / "backbone.pth", output / "pretrained.json"
    if done.exists():
        return
    learn, measure, count = output / "learn", output / "measure", 64 if quick else LEARN
    write_collection(learn, count)
    write_collection(measure, count if quick else MEASURE, first=LEARN)
    options, place = [*PRETRAIN, *(QUICK_PRETRAIN if quick else [])], ["--workspace", str(output)]
    with open(output / "log.txt", "a") as log:
        work.run([*TOOL, "pretrain", str(learn), *options, "--run", "run", *place], log)
        work.run([*TOOL, "embed", str(measure), "--device", "cpu", "--workers", "1", *place], log)
        knn = json.loads(work.run([*TOOL, "knn", "-k", "20", "--baselines", "--json", *place], log))
        work.run([*TOOL, "export", str(output / "runs" / "run"), "--format", "torchvision", "--output", str(weights),
                  "--fresh", *place], log)
    write_json(done, {"options": options, "knn": knn})


def run_trial(name: str, cell: str, seed: int, output: pathlib.Path, quick: bool, work: Work):
    """Run one trial and keep what it gave."""
    options = options_of(cell, seed, quick)
    weights = ["--weights", str(output / "backbone.pth")] if CELLS[cell].pretrained else []
    with open(output / "log.txt", "a") as log:
        found = work.run([sys.executable, "-m", "benchmarks.reproduce.transfer_trial", *options, *weights], log)
    write_json(output / "cells" / f"{name}.json", {
        "cell": cell, "seed": seed, "quick": quick, "options": options, **json.loads(found), **about()})


def task_table(task: str, found: Found) -> str:
    """The cells of a task that have results: mean with t-interval, and standard deviation over the trials."""
    rows = [["backbone", *(head for figure in FIGURES[task] for head in (f"{figure}, %", "deviation"))]]
    for name, cell in CELLS.items():
        if cell.task == task and name in found:
            trials = list(found[name].values())
            columns = [[trial[figure] for trial in trials] for figure in FIGURES[task]]
            diverged = sum("diverged" in trial for trial in trials)
            label = f"{cell.label} ({diverged} of {len(trials)} diverged: 0)" if diverged else cell.label
            rows.append([label, *(text for values in columns
                                       for text in (mean_of(values).shown(), _deviation(values)))])
    return markdown(rows) if len(rows) > 1 else ""


def _deviation(values: list[float]) -> str:
    return f"{statistics.stdev(values):.1f}" if len(values) > 1 else ""


def report_text(output: pathlib.Path) -> str:
    """All tables as Markdown, from the files in OUTPUT."""
    return "\n".join(sections(results(output), FIGURES, task_table, CLAIMS))


@click.command()
@click.option("--output", type=click.Path(path_type=pathlib.Path), default="transfer", show_default=True)
@click.option("--only", multiple=True, type=click.Choice([*CELLS]), metavar="CELL", help="Repeatable.")
@click.option("--trial", "trials", multiple=True, type=int, help="Only this; repeatable. By default 0 to 4.")
@click.option("--at-a-time", default=AT_A_TIME, show_default=True, help="Trials, of one thread each.")
@click.option("--seconds", default=0.0, help="Stop after about so many; 0: when all is done.")
@click.option("--quick", is_flag=True, help="Tiny runs, to know that it works.")
@click.option("--report", type=click.Path(path_type=pathlib.Path, exists=True), metavar="FOLDER",
              help="Run nothing: print the tables of the results in this folder.")
def main(output, only, trials, at_a_time, seconds, quick, report):
    """Pretrain, run the trials, and print the tables."""
    if report:
        return click.echo(report_text(report))
    say = partial(click.echo, err=True)
    output, end = output.resolve(), time.monotonic() + (seconds or 1e6)
    (output / "cells").mkdir(parents=True, exist_ok=True)
    work, todo = Work(end, niceness=NICENESS), []
    for seed in trials or TRIALS:  # one trial of all before the next, so that a part says something
        for cell in only or CELLS:
            name = f"{cell}-trial{seed}"
            if not is_done(output, name, options_of(cell, seed, quick)):
                todo.append((name, partial(run_trial, name, cell, seed, output, quick, work), CELLS[cell].pretrained))
    left, failed = [], {}
    if any(pretrained for *_, pretrained in todo):
        both = Work(end, 2, NICENESS)
        left, failed = run_all(both, [("pretraining", partial(pretrain, output, quick, both))], 1, say)
    if not left and not failed:
        left, failed = run_all(work, [(name, run) for name, run, _ in todo], at_a_time, say)
    text = report_text(output)
    write_bytes(output / "transfer.md", text.encode())
    click.echo(text)
    ended(left, failed, lambda name: output / "log.txt")


if __name__ == "__main__":
    main()
