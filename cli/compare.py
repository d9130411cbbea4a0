"""`mocoembed compare`: results of evaluations -> a table, and differences query by query."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, one_line, put, table
from mocoembed.config import CompareConfig
from mocoembed.evaluate.words import words

MOST_MEASURES = 6  # in the table; --json has all


@click.command()
@click.argument("results", nargs=-1, metavar="RESULT...")
@options_of(CompareConfig, leave_out=("results",))
@json_option
def compare(as_json, **values):
    """Compare results of evaluations: side by side, and the difference of each to the first on the same queries.

    RESULT is a file with what knn, linear, retrieval or finetune print with --json. The interval of a difference is a
    paired bootstrap over the queries; p is McNemar's exact test for right and wrong. Of a result over several seeds, a
    query counts by the share of the seeds that are right, and there is no p. Results of different protocols or images
    are refused, because their difference is not one between encoders; --anyway compares them nevertheless.

    \b
      mocoembed knn resnet18.h5 -k 20 --json > resnet18.json
      mocoembed knn resnet50.h5 -k 20 --json > resnet50.json
      mocoembed compare resnet18.json resnet50.json
    """
    from mocoembed.evaluate.compare import compare_results

    comparison = compare_results(CompareConfig(**values))
    for line in comparison.differs:
        note(f"not the same: {line}")
    for line in comparison.remarks:
        note(line)
    if as_json:
        click.echo(json.dumps(comparison.as_json(), indent=2))
    else:
        _show(comparison)


def _show(comparison):
    from mocoembed.evaluate.compare import measures_in, name_of, setting_of
    from mocoembed.evaluate.result_file import value_of

    names = measures_in(comparison)[:MOST_MEASURES]
    header = ["result", "task", "encoder", "features", "setting", *map(words, names)]
    rows = []
    for path, entry in comparison.rows():
        result = comparison.results[path]
        rows.append([one_line(name_of(path)), result["task"], str(result["encoder"].get("fingerprint", ""))[:12],
                     str(result["encoder"].get("features", "")), setting_of(entry),
                     *(_text(value_of(entry, name)) for name in names)])
    put(table(header, rows, map(words, names)))
    lines = [[one_line(name_of(one.second)), words(one.measure), f"{one.value.value:+.2f}",
              f"{one.value.ci95[0]:+.2f} to {one.value.ci95[1]:+.2f}", str(one.value.n),
              f"{one.mcnemar.p:.2g}" if one.mcnemar else ""] for one in comparison.differences]
    first = one_line(name_of(comparison.differences[0].first))
    put("\n" + table([f"to {first}", "measure", "difference", "95 %", "queries", "p"], lines, "difference queries p"))


def _text(value: dict | None) -> str:
    if value is None or value["value"] is None:
        return ""
    interval = value.get("ci95")
    return f"{value['value']:.2f}" + (f" ({interval[0]:.1f}-{interval[1]:.1f})" if interval else "")
