"""`mocoembed linear`: embeddings.h5 -> how many images a linear classifier gets right."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put, put_classes, put_result, table, value_text
from mocoembed.cli.progress import counter
from mocoembed.config import LinearConfig
from mocoembed.errors import MocoembedError

NAMES = {"top1": "top-1", "top5": "top-5", "balanced": "balanced", "ap": "AP"}


@click.command()
@click.argument("train", required=False)
@click.argument("test", required=False)
@options_of(LinearConfig, leave_out=("train", "test"))
@json_option
def linear(as_json, **values):
    """Measure the linear accuracy: the share of images that a linear classifier of the features gets right.

    Logistic regression is learned from the labelled images of the embeddings file TRAIN and asked about those of TEST.
    Without TEST, each of five folds of TRAIN is classified by what was learned from the others. The penalty on the
    weights is chosen on a fifth of the training images; test images have no part in it. Values are in percent, with an
    interval of 95 %.

    \b
      mocoembed linear
      mocoembed linear train.h5 test.h5 --metric balanced
      mocoembed linear train.h5 test.h5 --labels 10% --json
    """
    from mocoembed.evaluate.linear import linear_accuracy

    with counter("linear", "fits") as progress:
        result = linear_accuracy(LinearConfig(**values), progress)
    for line in result.notes():
        note(line)
    if as_json:
        put_result(result.as_json())
    else:
        show(result)
    if bad := result.unconverged:
        worst = max(one["gradient_norm"] for one in bad)
        raise MocoembedError(f"{len(bad)} of {len(result.fits)} fits did not converge within --steps "
                             f"{result.config.steps} (gradient norm {worst:.1e}), so do not trust the numbers. "
                             "Give more --steps, or a stronger --penalty.")


def show(result):
    """Print the tables."""
    names = [name for name in NAMES if name in result.values]
    rows = [["linear", *(value_text(result.values[name]) for name in names)]]
    rows += [[name, *(value_text(one.get(each), False) for each in names)] for name, one in result.baselines.items()]
    header = ["", *(NAMES[name] for name in names)]
    put(table(header, rows))
    put(result.summary())
    put_classes(result.as_json()["per_class"], {"top1": "top-1", "precision": "precision"})
