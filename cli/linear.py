"""`mocoembed linear`: embeddings.h5, or images with --protocol -> how many images a linear classifier gets right."""

import dataclasses

import click

from mocoembed.checks import option_name
from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put_measures, put_result
from mocoembed.cli.progress import counter
from mocoembed.config import LinearConfig, ProbeConfig
from mocoembed.errors import MocoembedError, UsageError

FIELDS = [{field.name: field.default for field in dataclasses.fields(kind)} for kind in (LinearConfig, ProbeConfig)]
SHARED = [name for name in FIELDS[1] if name in FIELDS[0]]


@click.command()
@click.argument("train", required=False)
@click.argument("test", required=False)
@options_of(LinearConfig, leave_out=("train", "test"))
@options_of(ProbeConfig, leave_out=SHARED)
@json_option
def linear(as_json, **values):
    """Measure the linear accuracy: the share of images that a linear classifier of the features gets right.

    Logistic regression is learned from the labelled images of the embeddings file TRAIN and asked about those of TEST.
    Without TEST, each of five folds of TRAIN is classified by what was learned from the others. The penalty on the
    weights is chosen on a fifth of the training images; test images have no part in it. Values are in percent, with
    95 % confidence intervals.

    With --protocol, TRAIN and TEST are folders of images, and the classifier is trained as in papers, which takes
    longer: SGD on raw features of augmented images, the learning rate chosen in the same way. If it is interrupted, the
    same command goes on.

    \b
      mocoembed linear
      mocoembed linear train.h5 test.h5 --metric balanced
      mocoembed linear train.h5 test.h5 --labels 10% --json
      mocoembed linear photos/train photos/test --protocol moco --encoder encoder.safetensors
    """
    config = config_of(values)
    with counter("linear", "fits" if isinstance(config, LinearConfig) else "images") as progress:
        result = measured(config, progress)
    for line in result.notes():
        note(line)
    if as_json:
        put_result(result.as_json())
    else:
        put_measures("linear", result)
    if isinstance(config, LinearConfig):
        require_converged(result)


def config_of(values: dict) -> LinearConfig | ProbeConfig:
    """The config that the options are for; `UsageError` for an option of the other one."""
    published = values["protocol"] is not None
    own, other = FIELDS[published], FIELDS[not published]
    for name, default in other.items():
        if name not in own and name != "protocol" and values[name] != default:
            raise UsageError(f"{option_name(name)}: " + ("not with --protocol, which has settings of its own."
                             if published else "only with --protocol, on folders of images, for example --protocol "
                             "moco."))
    return (ProbeConfig if published else LinearConfig)(**{name: values[name] for name in own})


def measured(config, progress):
    """What the library measured."""
    if isinstance(config, LinearConfig):
        from mocoembed.evaluate.linear.accuracy import linear_accuracy

        return linear_accuracy(config, progress)
    from mocoembed.evaluate.images.probe import probe_accuracy

    return probe_accuracy(config, progress, note)


def require_converged(result):
    """Raise `MocoembedError` for a fit that did not converge, when all has been printed."""
    if bad := result.unconverged:
        worst = max(one["gradient_norm"] for one in bad)
        raise MocoembedError(f"{len(bad)} of {len(result.fits)} fits did not converge within --steps "
                             f"{result.config.steps} (gradient norm {worst:.1e}), so do not trust the numbers. "
                             "Give more --steps, or a stronger --penalty.")
