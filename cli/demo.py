"""`mocoembed demo`: the whole pipeline on generated images."""

import sys

import click

from mocoembed.cli.options import options_of
from mocoembed.cli.output import note, put, table
from mocoembed.cli.progress import TrainingProgress
from mocoembed.config import DemoConfig


@click.command()
@options_of(DemoConfig)
def demo(**values):
    """Run the whole pipeline on generated images: pretrain, embed, index, search, knn. Minutes on two CPU cores.

    Prints the commands that it runs, then the kNN accuracy of the pretrained encoder next to raw pixels and the
    untrained encoder, and draws a contact sheet of held-out images and their nearest neighbours.

    \b
      mocoembed demo
      mocoembed demo --epochs 100 --workspace longer-demo
    """
    from mocoembed.demo import TEMPERATURE, Demo, K

    pipeline = Demo(DemoConfig(**values), note)
    with TrainingProgress(sys.stderr) as progress:
        result = pipeline.run(progress.watcher())
    score = result.knn.scores[0]
    put(table(["features", f"kNN accuracy (k {K}, T {TEMPERATURE:g})"], [
        ["chance", f"{100 / result.classes:.1f} %"], ["raw pixels", f"{result.raw_pixels:.1f} %"],
        ["untrained encoder", f"{result.untrained:.1f} %"], ["this encoder", f"{score.top1:.1f} %"]]))
    put(f"{result.knn.summary()}\ncontact sheet: {result.sheet}")
