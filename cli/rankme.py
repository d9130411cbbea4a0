"""`mocoembed rankme`: embeddings.h5 -> what can be measured without labels."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put, put_result, table
from mocoembed.cli.progress import counter
from mocoembed.config import RankmeConfig
from mocoembed.evaluate.words import words

MEASURES = ("rankme", "uniformity")


@click.command()
@click.argument("embeddings", required=False)
@options_of(RankmeConfig, leave_out=("embeddings",))
@json_option
def rankme(as_json, **values):
    """Measure the vectors of the embeddings file EMBEDDINGS without labels: RankMe and uniformity.

    RankMe is the effective number of directions that the vectors use. Uniformity is 0 if all vectors are the same, and
    lower the more evenly they are spread, to about -4. Both reveal collapse. They do not say which of two encoders is
    better: for that, use knn or linear. Alignment takes two views of an image, which an embeddings file does not have;
    `mocoembed pretrain --val` reports it.

    \b
      mocoembed rankme
      mocoembed rankme photos.h5 --images 5000 --json
    """
    config = RankmeConfig(**values)
    from mocoembed.evaluate.unlabelled import measure_unlabelled

    with counter("rankme", "images") as progress:
        result = measure_unlabelled(config, progress)
    for line in result.notes():
        note(line)
    if as_json:
        put_result(result.as_json())
        return
    rows = [("the encoder", result.values), *((name, one.values) for name, one in result.baselines.found.items())]
    put(table(["vectors", *map(words, MEASURES)],
              [[name, f"{one['rankme'].value:.1f}", _uniformity(one["uniformity"])] for name, one in rows],
              "RankMe uniformity"))
    put(result.summary())


def _uniformity(found) -> str:
    interval = f" ({found.ci95[0]:.2f} to {found.ci95[1]:.2f})" if found.ci95 else ""
    return f"{found.value:.2f}{interval}"
