"""`mocoembed linear`: embeddings.h5 -> how well a linear classifier of its vectors does."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, one_line, put, table, value_text
from mocoembed.cli.progress import counter
from mocoembed.config import LinearConfig
from mocoembed.errors import MocoembedError

SHOWN_CLASSES = 20
NAMES = {"top1": "top-1", "top5": "top-5", "balanced": "balanced", "ap": "AP"}


@click.command()
@click.argument("train", required=False)
@click.argument("test", required=False)
@options_of(LinearConfig, leave_out=("train", "test"))
@json_option
def linear(as_json, **values):
    """Measure the linear accuracy: logistic regression on the vectors of labelled images.

    A classifier is learned from the labelled images of the embeddings file TRAIN and classifies those of TEST. Without
    TEST, TRAIN is split into folds, each classified by what was learned from the others. The strength of the penalty is
    chosen on a fifth of the training images that is held out, never on the images that are classified; then everything
    is learned from. Values are in percent, with an interval of 95 %. A fit that did not converge ends with status 1.

    \b
      mocoembed linear
      mocoembed linear train.h5 test.h5 --json
      mocoembed linear train.h5 test.h5 --labels 1% --seeds 5
    """
    from mocoembed.evaluate.linear import linear_accuracy
    from mocoembed.evaluate.result import text_of

    with counter("linear", "fits") as progress:
        result = linear_accuracy(LinearConfig(**values), progress)
    for line in result.notes():
        note(line)
    if as_json:
        click.echo(text_of(result.as_json()))
    else:
        _show(result)
    if not result.converged:
        bad = [one for one in result.fits if not one["converged"]]
        raise MocoembedError(f"{len(bad)} of {len(result.fits)} fits did not converge (penalty {bad[0]['penalty']:g} "
                             f"after {bad[0]['iterations']} steps). Do not report these values; give more --steps.")


def _show(result):
    """The tables of a result."""
    names = [name for name in NAMES if name in result.values]
    put(table([NAMES[name] for name in names], [[value_text(result.values[name], name == "top1") for name in names]],
              " ".join(NAMES.values())))
    put(result.summary())
    penalties = sorted({one.fit.penalty for one in result.classifiers}, reverse=True)
    put(f"penalty {', '.join(f'{one:g}' for one in penalties)}, {sum(one['iterations'] for one in result.fits)} steps "
        f"of LBFGS in {len(result.fits)} fits")
    put("\n" + table(["baseline", "top-1"], [[name, value_text(values["top1"])]
                                             for name, values in result.baselines.items()], "top-1"))
    if len(result.per_class) <= SHOWN_CLASSES:
        rows = [[one_line(name), str(one["count"]), f"{one['top1']:.2f}", f"{one['precision']:.2f}"]
                for name, one in result.per_class.items()]
        put("\n" + table(["class", "images", "top-1", "precision"], rows, "images top-1 precision"))
