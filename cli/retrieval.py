"""`mocoembed retrieval`: embeddings.h5 -> how well searching ranks what belongs together."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put, put_classes, put_result, table, value_text
from mocoembed.cli.progress import counter
from mocoembed.config import RetrievalConfig
from mocoembed.evaluate.words import words

SHOWN = ("map", "map_at_r", "r_precision")  # of baselines


@click.command()
@click.argument("bank", required=False)
@click.argument("queries", required=False)
@options_of(RetrievalConfig, leave_out=("bank", "queries"))
@json_option
def retrieval(as_json, **values):
    """Measure how well searching ranks: whether the images with a query's label come first.

    Each image of the embeddings file QUERIES ranks all those of BANK. Without QUERIES, each image of BANK ranks all the
    others (leave-one-out). --pairs says what should be found instead of labels. Values are in percent, with 95 %
    confidence intervals, beside the values of a random ranking. R is the number of images that should be found. mAP@R
    and R-precision look at the first R hits, and `over` says what is divided by.

    \b
      mocoembed retrieval
      mocoembed retrieval gallery.h5 queries.h5 --at 1,10,100
      mocoembed retrieval products.h5 --pairs same-product.csv --exclude-identical --json
    """
    config = RetrievalConfig(**values)
    from mocoembed.evaluate.retrieval.measure import measure_retrieval

    with counter("retrieval", "queries") as progress:
        result = measure_retrieval(config, progress)
    for line in result.notes():
        note(line)
    if as_json:
        put_result(result.as_json())
        return
    rows = [[words(name), value_text(one), f"{result.chance[name]:.2f}" if name in result.chance else ""]
            for name, one in result.values.items()]
    put(table(["measure", "percent", "chance"], rows, "percent chance"))
    put(result.summary())
    if result.baselines.found:
        rows = [[name, *(value_text(one, False) for one in baseline.values.values())]
                for name, baseline in result.baselines.found.items()]
        put("\n" + table(["baseline", *map(words, SHOWN)], rows, " ".join(map(words, SHOWN))))
    put_classes(result.per_class, {"map": "mAP"})
