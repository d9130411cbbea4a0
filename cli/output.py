"""Results on standard output and notes on standard error, with the names of files whatever their bytes."""

import contextlib
import csv
import io
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import click

from mocoembed.cli.options import WORKSPACE_VARIABLE
from mocoembed.evaluate.words import CLASSIFIED, words

SHOWN_CLASSES = 20  # of which a table by class is printed


def table(header: list[str], rows: list[list[str]], right: str | Iterable[str] = "") -> str:
    """Text columns under a header, two spaces apart; the columns whose names `right` lists are aligned right."""
    lines, names = [header, *rows], right.split() if isinstance(right, str) else [*right]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    pads = [str.rjust if name in names else str.ljust for name in header]
    return "\n".join("  ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths)).rstrip()
                     for line in lines)


def one_line(text: str) -> str:
    """The text with control characters escaped, so that a file's name cannot break a table or steer a terminal."""
    return "".join(character if character.isprintable() or "\udc80" <= character <= "\udcff"
                   else character.encode("unicode_escape").decode() for character in text)


def value_text(value, with_interval: bool = True) -> str:
    """A measured value with two decimals, and the interval of 95 % behind it: `88.38 (86.1-90.5)`; empty for none."""
    if value is None:
        return ""
    interval = f" ({value.ci95[0]:.1f}-{value.ci95[1]:.1f})" if with_interval and value.ci95 else ""
    return f"{value.value:.2f}{interval}"


def put_classes(by_class: dict[str, dict], columns: dict[str, str]):
    """Print a table with a line for each class: its images and `columns` (key -> heading), with two decimals.

    A dash stands where there is no value, as for the precision of a class that nothing is taken for. Nothing
    for no classes, nor for more than are read.
    """
    if not 0 < len(by_class) <= SHOWN_CLASSES:
        return
    rows = [[one_line(name), str(one["count"]), *(two_decimals(one[key]) for key in columns)]
            for name, one in by_class.items()]
    put("\n" + table(["class", "images", *columns.values()], rows, " ".join(["images", *columns.values()])))


def put_measures(name: str, result):
    """Print what a classifier called `name` gets right: measures beside the baselines, a summary, a table by class."""
    names = [one for one in CLASSIFIED if one in result.values]
    rows = [[name, *(value_text(result.values[one]) for one in names)]]
    rows += [[who + " (not converged)" * (not baseline.converged),
              *(value_text(baseline.values.get(one), False) for one in names)]
             for who, baseline in result.baselines.found.items()]
    put(table(["", *map(words, names)], rows))
    put(result.summary())
    put_classes(result.per_class, {"top1": "top-1", "precision": "precision"})


def two_decimals(value: float | None) -> str:
    """A number as in tables; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.2f}"


def put_result(result: dict):
    """Print a result of an evaluation as JSON, with the command that was typed and its workspace, if it was set."""
    from mocoembed.evaluate.result import text_of

    typed = click.get_current_context().find_root().obj
    line = None if typed is None else shlex.join(["mocoembed", *typed])
    if line and (workspace := os.environ.get(WORKSPACE_VARIABLE)):
        line = f"{WORKSPACE_VARIABLE}={shlex.quote(workspace)} {line}"
    click.echo(text_of({**result, "command": line}))


def json_pieces(results: Iterable, empty: str = "") -> Iterator[str]:
    """Pieces of a JSON list with `as_json()` of each result, one after the other as they come; `empty` for none."""
    before = "["
    for one in results:
        yield f"{before}\n{textwrap.indent(json.dumps(one.as_json(), indent=2), '  ')}"
        before = ","
    yield "\n]\n" if before == "," else empty


def csv_pieces(header: Sequence[str], groups: Iterable[list]) -> Iterator[str]:
    """Pieces of a CSV table: the header with the first group of rows, then each group as it comes."""
    before = [header]
    for rows in groups:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*before, *rows])
        yield text.getvalue()
        before = []


def put(text: str, newline: bool = True):
    """Print a result on standard output; a name that is not UTF-8 comes out as the bytes it has on the disk."""
    click.echo(os.fsencode(text), nl=newline)


def note(text: str):
    """Print a line for people on standard error, in the same way, above the bar if there is one."""
    tqdm = sys.modules.get("tqdm")
    with tqdm.tqdm.external_write_mode(sys.stderr) if tqdm else contextlib.nullcontext():
        click.echo(os.fsencode(text), err=True)
