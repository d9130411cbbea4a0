"""A pretraining in a report: a run folder -> its settings, its curves and the command to repeat it.

In: `config.json` and `metrics.jsonl` of the run. Out: a `Run` that was read, and its section of the page.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.checks import from_dict
from mocoembed.config import PretrainConfig
from mocoembed.errors import FormatError, MocoembedError
from mocoembed.files import read_json
from mocoembed.report.charts import Chart, Curve, chart
from mocoembed.report.html import Element, command, element, facts, section, settings

FIELDS = ("step", "epoch", "lr", "chance", "queue_filled", "loss", "top1", "top5", "spread", "images_per_second",
          "waiting")


@dataclass(frozen=True)
class Run:
    """A run folder, as it was read."""

    path: pathlib.Path
    config: dict[str, Any]
    """What `config.json` holds."""
    steps: dict[str, np.ndarray]
    """Field of the steps' lines -> its values (S,)."""
    evaluations: list[dict[str, Any]]
    """The lines of evaluations."""

    @property
    def epochs(self) -> np.ndarray:
        """(S,) how many epochs were done after each step."""
        return self.steps["step"] / self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> float:
        """As the lines tell it; while the first epoch is not over, its steps so far."""
        epoch = self.steps["epoch"]
        return float((epoch == epoch[0]).sum())

    @property
    def command(self) -> str | None:
        """The command to repeat it and its evaluations; `None` where the settings are of another version."""
        from mocoembed.train.resolve import command_of  # loads torch, which a report of results does without

        names = {field.name for field in dataclasses.fields(PretrainConfig)}
        with contextlib.suppress(MocoembedError, TypeError, ValueError):
            return command_of(from_dict(PretrainConfig, {name: value for name, value in self.config.items()
                                                         if name in names}), ("val", "val_every"))
        return None


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is one of a run."""
    return (folder / "metrics.jsonl").is_file() or (folder / "config.json").is_file()


def read_run(folder: pathlib.Path) -> Run:
    """The run in a folder; `FormatError` for one without a step, or whose files are something else.

    A last line that is cut off is left out: the run may be going on.
    """
    lines, evaluations = folder / "metrics.jsonl", []
    columns: dict[str, list[float]] = {name: [] for name in FIELDS}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if lines.is_file():
        with open(lines, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict) and "loss" in value:
                        for name in FIELDS:
                            columns[name].append(number(value.get(name)))
                    elif isinstance(value, dict) and "knn_top1" in value:
                        evaluations.append(value)
    if not columns["step"]:
        raise FormatError(f"{folder} is a run without a step: there is nothing to report yet. Go on with it: "
                          "mocoembed pretrain IMAGES")
    return Run(folder, config, {name: np.array(values) for name, values in columns.items()}, evaluations)


def number(value: Any) -> float:
    """The value as a float; NaN for what is none."""
    return float(value) if isinstance(value, int | float) else math.nan


def run_section(run: Run) -> Element:
    """Settings, curves and the command of a run."""
    return section(f"Pretraining: {run.path.name}", facts(_settings(run)),
                   element("div", *filter(lambda one: one is not None, map(chart, charts_of(run))), class_="charts"),
                   _every_setting(run), command(run.command), anchor=f"run-{run.path.name}")


def _settings(run: Run):
    config, last = run.config, run.steps
    yield "images", config.get("images")
    if collection := config.get("collection"):
        yield "collection", f"{collection['images']:,} images, listing {collection['listing'][:12]}"
    yield "recipe", config.get("recipe")
    yield "network", config and " ".join(str(config.get(name)) for name in ("arch", "stem")) \
        + f", width {number(config.get('width')):g}, head {config.get('head')}, C {config.get('dim')}"
    yield "dictionary", config and f"{config.get('dictionary')}, K {config.get('queue_size')}, m " \
        f"{config.get('momentum')}, T {config.get('temperature')}"
    yield "optimisation", config and f"batch {config.get('batch_size')}, lr {config.get('lr')}, " \
        f"{config.get('schedule')}, weight decay {config.get('weight_decay')}, {config.get('precision')}"
    yield "views", config and f"{config.get('image_size')} pixels"
    done, epochs = int(last["step"][-1]), config.get("epochs")
    yield "done", f"{done:,} steps, {run.epochs[-1]:.4g}" + (f" of {epochs} epochs" if epochs else " epochs")
    yield "kNN on", config.get("val")


def _every_setting(run: Run) -> Element | None:
    if not run.config:
        return None
    return element("details", element("summary", "All settings"), settings(run.config), class_="printed")


def charts_of(run: Run) -> list[Chart]:
    """Every chart of a run, those of the learning first."""
    epochs, steps = run.epochs, run.steps
    flat = epochs[[0, -1]]
    at = np.array([number(one.get("step")) for one in run.evaluations]) / run.steps_per_epoch

    def evaluated(name: str) -> np.ndarray:
        return np.array([number(one.get(name)) for one in run.evaluations])

    last = run.evaluations[-1] if run.evaluations else {}
    return [
        Chart("Loss", [Curve("loss", epochs, steps["loss"]),
                       Curve(f"ln(K+1) = {steps['chance'][-1]:.2f}, chance", flat, steps["chance"][[0, -1]], True)]),
        Chart("Pretext accuracy", [Curve("top-1", epochs, 100 * steps["top1"]),
                                   Curve("top-5", epochs, 100 * steps["top5"])], " %", from_zero=True, digits=1),
        Chart("kNN accuracy", [Curve("kNN top-1", at, evaluated("knn_top1"))], " %",
              detail=f"k {last.get('knn_k')}, {number(last.get('images')):,.0f} images"),
        Chart("Learning rate", [Curve("learning rate", epochs, steps["lr"])], from_zero=True, digits=4),
        Chart("Images per second", [Curve("speed", epochs, steps["images_per_second"])], from_zero=True, digits=0),
        Chart("Waiting for images", [Curve("waiting", epochs, 100 * steps["waiting"])], " %", from_zero=True, digits=1),
        Chart("Spread of the queries", [Curve("spread", epochs, steps["spread"])], from_zero=True,
              detail="1 even, 0 collapsed"),
        Chart("RankMe", [Curve("RankMe", at, evaluated("rankme"))], digits=1,
              detail=f"n {number(last.get('rankme_n')):,.0f}"),
        Chart("Uniformity and alignment", [Curve("uniformity", at, evaluated("uniformity")),
                                           Curve("alignment", at, evaluated("alignment"))]),
    ]
