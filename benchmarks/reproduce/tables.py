"""Tables and plots of `ablations.py`, from the JSON files of its cells."""

import json
import pathlib
import statistics
from collections.abc import Callable, Iterable

from benchmarks.reproduce.cells import CELLS, CLAIMS, MOMENTA, STUDIES, Claim
from benchmarks.reproduce.statistics_of_seeds import correlation, mean_of, paired, verdict
from mocoembed.files import write_bytes

TITLES = {"a-dictionary": "Dictionary size", "b-momentum": "Momentum of the key encoder", "c-batchnorm": "BatchNorm",
          "d-v1-to-v2": "From v1 to v2", "e-symmetric": "Symmetric loss", "keys": "Encoders and views of the keys"}
PLACES = {"a-dictionary": "K (negatives)", "b-momentum": "m"}
Found = dict[str, dict[int, dict]]
"""Cell -> seed -> its result."""
COLUMNS = {"kNN top-1, %": "knn_top1", "linear top-1, %": "linear_top1", "loss": "loss",
           "pretext top-1, %": "pretext_top1"}


def results(output: pathlib.Path) -> Found:
    """What there is."""
    found: Found = {}
    for path in sorted((output / "cells").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["cell"], {})[result["seed"]] = result
    return found


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def study_table(study: str, found: Found) -> str:
    """The cells of a study that have results: means with t-intervals over the seeds."""
    rows = [["cell", "", *COLUMNS, "chance", "images/s", "papers, %"]]
    for name in STUDIES[study]:
        if seeds := found.get(name):
            runs = list(seeds.values())
            rate = statistics.median(run["images_per_second"] for run in runs)
            rows.append([f"`{name}`", CELLS[name].label,
                         *(mean_of([run[key] for run in runs]).shown(2 if key == "loss" else 1)
                           for key in COLUMNS.values()),
                         f"{runs[0]['chance']:.2f}", f"{rate:.0f}", CELLS[name].published])
    return markdown(rows) if len(rows) > 1 else ""


def claims_table(claims: Iterable[Claim], found: Found) -> str:
    """Claims decided beforehand, and what the paired differences say of those whose cells have results."""
    rows = [["claim", "expected", "difference, paired by seed", "found"]]
    for claim in claims:
        if {claim.one, claim.other} <= set(found):
            one, other = ({seed: run[claim.figure] for seed, run in found[cell].items()}
                          for cell in (claim.one, claim.other))
            difference = paired(one, other)
            if difference:
                rows.append([claim.text, claim.expected, difference.shown(), verdict(difference, claim.above)])
    return markdown(rows) if len(rows) > 1 else ""


def sections(found: Found, names: Iterable[str], table: Callable[[str, Found], str],
             claims: Iterable[Claim]) -> list[str]:
    """Of each study its table and that of its claims, as parts of a Markdown text."""
    parts, claims = [], list(claims)
    if any(run["quick"] for seeds in found.values() for run in seeds.values()):
        parts.append("**Tiny runs (--quick): no figure here says anything.**\n")
    for name in names:
        if text := table(name, found):
            own = [claim for claim in claims if claim.study == name]
            parts += [f"## {name}\n", text, "", claims_table(own, found), ""]
    return parts


def linear_text(found: Found) -> str:
    """Study f: how kNN and linear accuracy go together over all encoders."""
    runs = [run for seeds in found.values() for run in seeds.values()]
    if len(runs) < 3:
        return ""
    value = correlation([run["knn_top1"] for run in runs], [run["linear_top1"] for run in runs])
    return (f"## f: kNN against linear accuracy\n\nOver {len(runs)} encoders: correlation {value:.3f}. "
            "Expected before looking: above 0.8, since both grow with the training.\n")


def report_text(found: Found) -> str:
    """All tables as Markdown."""
    return "\n".join([*sections(found, STUDIES, study_table, CLAIMS), linear_text(found)])


def write_report(output: pathlib.Path) -> str:
    """Write OUTPUT/ablations.md and, where matplotlib is installed, one plot a study; the text of the tables."""
    found = results(output)
    text = report_text(found)
    write_bytes(output / "ablations.md", text.encode())
    try:
        from matplotlib.figure import Figure  # needed here alone; not a dependency of the package
    except ImportError:
        return text + "\nNo plots: pip install matplotlib.\n"
    for study in STUDIES:
        if any(name in found for name in STUDIES[study]):
            figure = Figure(figsize=(7, 3.6), layout="constrained")
            plot_study(figure.subplots(), study, found)
            figure.savefig(output / f"{study}.png", dpi=100)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes, drawn = figure.subplots(), set[str]()
    for study in STUDIES:  # some cells are in two
        runs = [run for name in STUDIES[study] if name not in drawn for run in found.get(name, {}).values()]
        drawn.update(STUDIES[study])
        if runs:
            axes.plot([run["knn_top1"] for run in runs], [run["linear_top1"] for run in runs], "o", label=study,
                      markersize=4)
    axes.set(xlabel="kNN top-1, %", ylabel="linear top-1, %")
    axes.legend(fontsize="small")
    figure.savefig(output / "f-linear.png", dpi=100)
    return text


def plot_study(axes, study: str, found: Found):
    """kNN accuracy of the cells: means with intervals, a point for each seed; lines where cells have a place.

    What the papers have stands below the interval, in the first study that has the cell.
    """
    names = [name for name in STUDIES[study] if name in found]
    before = {name for other in list(STUDIES)[:list(STUDIES).index(study)] for name in STUDIES[other]}
    placed = study in PLACES
    for line in dict.fromkeys(CELLS[name].line if placed else "" for name in names):
        own = [name for name in names if not placed or CELLS[name].line == line]
        places = [CELLS[name].place if placed else names.index(name) for name in own]
        means = [mean_of([run["knn_top1"] for run in found[name].values()]) for name in own]
        bars = axes.errorbar(places, [one.mean for one in means], [one.half if one.n > 1 else 0 for one in means],
                             fmt="o-" if placed else "o", capsize=3, label=line)
        for place, name, mean in zip(places, own, means):
            if CELLS[name].published and name not in before:
                low = mean.mean - (mean.half if mean.n > 1 else 0)
                axes.annotate(f"paper: {CELLS[name].published}", (place, low), (0, -9), ha="center",
                              fontsize="x-small", textcoords="offset points")
            values = [run["knn_top1"] for run in found[name].values()]
            axes.plot([place] * len(values), values, ".", color=bars[0].get_color(), markersize=3)
    if placed:
        axes.legend(fontsize="small")
        axes.set(xlabel=PLACES[study])
    if study == "a-dictionary":
        axes.set_xscale("log", base=4)
        ticks = sorted({CELLS[name].place for name in names})
        axes.set(xticks=ticks, xticklabels=[f"{tick:g}" for tick in ticks])
    elif placed:
        axes.set_xticks(range(len(MOMENTA)), MOMENTA)
    else:
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
    axes.margins(0.12)
    axes.set(ylabel="kNN top-1, %", title=TITLES[study])
