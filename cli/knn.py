"""`mocoembed knn`: embeddings.h5 -> how often neighbours share a label."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, one_line, put, put_classes, put_result, table, value_text
from mocoembed.cli.progress import counter
from mocoembed.config import KnnConfig
from mocoembed.evaluate.words import CLASSIFIED, words


@click.command()
@click.argument("bank", required=False)
@click.argument("queries", required=False)
@options_of(KnnConfig, leave_out=("bank", "queries"))
@json_option
@click.option("--sheet", metavar="FILE", help="Also draw the suspected wrong labels into this PNG file.")
def knn(as_json, sheet, **values):
    """Measure the kNN accuracy: the share of images whose nearest neighbours vote for their label.

    The labelled images of the embeddings file BANK vote on those of QUERIES. Without QUERIES, each image of BANK
    is classified by all the others (leave-one-out). Every k is combined with every temperature. Values are in percent,
    with 95 % confidence intervals. majority: every vote counts the same. balanced: mean top-1 of the classes. AP: mean
    average precision of the classes, by their share of the vote. The table lists up to twenty classes, for the first k
    and temperature; --json has all of them.

    \b
      mocoembed knn
      mocoembed knn train.h5 val.h5 --preset dino
      mocoembed knn train.h5 val.h5 -k 1,20,200 --temperature 0.07,0.1 --json
      mocoembed knn train.h5 val.h5 --tune
      mocoembed knn -k 20 --suspects --sheet suspects.png
    """
    config = KnnConfig(**{**values, "suspects": values["suspects"] or bool(sheet)})
    from mocoembed.evaluate.knn.accuracy import knn_accuracy
    from mocoembed.search.sheet import require_sheet

    require_sheet(sheet)
    with counter("knn", "images") as progress:
        result = knn_accuracy(config, progress)
    for line in result.notes():
        note(line)
    if as_json:
        put_result(result.as_json())
    else:
        _show(result, values["suspects"])
    if sheet:
        _draw(result, sheet)


def _show(result, suspects: bool):
    """The tables of a result."""
    names = [name for name in CLASSIFIED if any(name in one.values for one in result.scores)]
    header = ["k", "T", *map(words, names)]
    put(table(header, [[str(one.k), f"{one.temperature:g}", *(value_text(one.values.get(name), name == "top1")
                                                             for name in names)] for one in result.scores],
              " ".join(header)))
    put(result.summary())
    if result.tuned:
        put(f"k and T: the best of {len(result.tuned.scores)} settings on {result.tuned.held_out} held-out images of "
            "the bank")
    put("\n" + table(["baseline", "top-1"], [[name, value_text(one.values["top1"])]
                                             for name, one in result.baselines.found.items()], "top-1"))
    put_classes(result.by_class, {"top1": "top-1", "precision": "precision"})
    if suspects and result.suspects:
        rows = [[one_line(one.label), f"{one.own_share:.0f}", one_line(one.suggested), f"{one.share:.0f}",
                 one_line(one.path)] for one in result.suspects]
        put("\nsuspected wrong labels, the clearest first\n"
            + table(["label", "vote %", "suggested", "vote %", "path"], rows, "vote %"))
    elif suspects:
        put("no suspected wrong labels")


def _draw(result, sheet):
    """The contact sheet of the suspects."""
    from mocoembed.evaluate.knn.suspects import suspects_sheet

    if result.suspects:
        suspects_sheet(result.suspects, sheet)
        note(f"sheet: {sheet}")
    else:
        note("no sheet drawn: no suspected wrong labels")
