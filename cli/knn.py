"""`mocoembed knn`: embeddings.h5 -> how often neighbours share a label."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, one_line, put, table
from mocoembed.cli.progress import counter
from mocoembed.config import KnnConfig

SHOWN_CLASSES = 20


@click.command()
@click.argument("bank", required=False)
@click.argument("queries", required=False)
@options_of(KnnConfig, leave_out=("bank", "queries"))
@json_option
def knn(as_json, **values):
    """Measure the kNN accuracy: the share of images whose nearest neighbours vote for their label.

    The labelled images of the embeddings file BANK vote on those of QUERIES. Without QUERIES, each image of BANK
    is classified by all the others (leave-one-out). Every k is combined with every temperature. Accuracies are in
    percent. The table lists up to twenty classes, for the first k and temperature; --json has all of them.

    \b
      mocoembed knn
      mocoembed knn train.h5 val.h5 --preset dino
      mocoembed knn train.h5 val.h5 -k 1,20,200 --temperature 0.07,0.1 --json
    """
    from mocoembed.evaluate.accuracy import knn_accuracy

    with counter("knn", "images") as progress:
        result = knn_accuracy(KnnConfig(**values), progress)
    for line in result.notes():
        note(line)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
        return
    put(table(["k", "T", "top-1", "top-5"], [[str(one.k), f"{one.temperature:g}", f"{one.top1:.2f}",
                                                     f"{one.top5:.2f}"] for one in result.scores], "k T top-1 top-5"))
    put(result.summary())
    if len(result.per_class) <= SHOWN_CLASSES:
        rows = [[one_line(name), str(count), f"{top1:.2f}"] for name, (count, top1) in result.per_class.items()]
        put("\n" + table(["class", "images", "top-1"], rows, "images top-1"))
