"""`mocoembed finetune`: labelled images and an encoder -> a classifier, and how many test images it gets right."""

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put_measures, put_result
from mocoembed.cli.progress import counter
from mocoembed.config import FinetuneConfig


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
    config = FinetuneConfig(**values)
    from mocoembed.evaluate.images.finetune import finetune as run_finetune

    with counter("finetune", "images") as progress:
        result = run_finetune(config, progress, note)
    for line in result.notes():
        note(line)
    note(f"classifier: {result.path}" + (", used by `mocoembed classify` only if given as --classifier"
                                         if config.from_scratch else ""))
    if as_json:
        put_result(result.as_json())
    else:
        put_measures("fine-tuned", result)
