"""`mocoembed finetune`: labelled images and an encoder -> a classifier, and how many test images it gets right."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put, put_classes, put_result, table, value_text
from mocoembed.cli.progress import counter
from mocoembed.config import FinetuneConfig

NAMES = {"top1": "top-1", "top5": "top-5", "balanced": "balanced", "ap": "AP"}


@click.command()
@click.argument("train")
@click.argument("test", required=False)
@options_of(FinetuneConfig, leave_out=("train", "test"))
@json_option
def finetune(as_json, **values):
    """Fine-tune an encoder on the labelled images of TRAIN, and measure how many images of TEST it then gets right.

    TRAIN and TEST are folders with a folder for each class, lists or tar shards with labels. Without TEST, a fifth of
    TRAIN is held out. Nothing is chosen by the test images, which are looked at once, at the end. The classifier of the
    first seed goes to the workspace, where `mocoembed classify` finds it. After an interruption, the same command
    continues where it stopped.

    \b
      mocoembed finetune photos --encoder encoder.safetensors
      mocoembed finetune photos/train photos/test --labels 10% --json
      mocoembed finetune photos --labels 5-per-class --from-scratch
      mocoembed finetune photos --encoder torchvision:resnet50 --freeze-stages 3
    """
    from mocoembed.evaluate.finetune import finetune as run_finetune

    with counter("finetune", "images") as progress:
        result = run_finetune(FinetuneConfig(**values), progress, note)
    for line in result.notes():
        note(line)
    note(f"classifier: {result.path}")
    if as_json:
        put_result(result.as_json())
    else:
        show(result)


def show(result):
    """Print the tables."""
    names = [name for name in NAMES if name in result.values]
    rows = [["fine-tuned", *(value_text(result.values[name]) for name in names)]]
    rows += [[name, *(value_text(one.get(each), False) for each in names)] for name, one in result.baselines.items()]
    put(table(["", *(NAMES[name] for name in names)], rows))
    put(result.summary())
    put_classes(result.as_json()["per_class"], {"top1": "top-1", "precision": "precision"})
