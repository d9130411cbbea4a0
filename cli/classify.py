"""`mocoembed classify`: images -> labels with their probabilities."""

from collections.abc import Iterator

import click

from mocoembed.cli.options import options_of
from mocoembed.cli.output import csv_pieces, json_pieces, note, one_line, put
from mocoembed.cli.progress import counter
from mocoembed.config import ClassifyConfig

COLUMNS = ("image", "rank", "label", "probability")


def _text(results) -> Iterator[str]:
    for one in results:
        labels = "  ".join(f"{one_line(label)} {probability:.3f}" for label, probability in one.labels)
        yield f"{one_line(one.image)}: {labels}\n"


def _json(results) -> Iterator[str]:
    return json_pieces(results, "[]\n")


def _csv(results) -> Iterator[str]:
    return csv_pieces(COLUMNS, ([(one.image, rank, label, f"{probability:.6f}")
                                 for rank, (label, probability) in enumerate(one.labels, 1)] for one in results))


FORMATS = {"text": _text, "json": _json, "csv": _csv}


@click.command()
@click.argument("images", nargs=-1, metavar="IMAGE...")
@options_of(ClassifyConfig, leave_out=("images",))
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="text", show_default=True,
              help="How to print the labels.")
def classify(form, **values):
    """Predict the label of each IMAGE with a classifier that `mocoembed finetune` has trained.

    An IMAGE is a file, a folder (searched recursively), or - for one on standard input. Of several images, one that
    cannot be read is named and left out, and the exit status is 1. Torch is not needed: the classifier runs on ONNX
    Runtime.

    \b
      mocoembed classify photo.jpg
      mocoembed classify photos/ -k 3 --format csv
      mocoembed classify photos/ --classifier flowers.safetensors --format json
    """
    from mocoembed.errors import CollectionError
    from mocoembed.search.classify import classify_images

    failed = []

    def kept(results):
        try:
            yield from results
        except CollectionError as error:  # some images cannot be read: what is printed of the others is whole
            failed.append(error)

    with counter("classify", "images") as progress:
        for text in FORMATS[form](kept(classify_images(ClassifyConfig(**values), progress, note))):
            put(text, newline=False)
    if failed:
        raise failed[0]
