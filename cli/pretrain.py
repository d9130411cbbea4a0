"""`mocoembed pretrain`: images -> runs/<run>/ and encoder.safetensors."""

import sys

import click

from mocoembed.cli.options import given, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import TrainingProgress
from mocoembed.config import PretrainConfig
from mocoembed.config.pretrain import AUTO
from mocoembed.notes import counted
from mocoembed.recipes import RECIPES


@click.command()
@click.argument("images", metavar="COLLECTION")
@options_of(PretrainConfig, leave_out=("images", "given"), presets=tuple(RECIPES.values()))
def pretrain(images, recipe, **values):
    """Pretrain an encoder on the images of COLLECTION with Momentum Contrast. Labels are not used.

    A COLLECTION is a folder (searched recursively), a list of paths (.txt, .csv, .tsv, .jsonl) or tar shards
    ('shard-{000..009}.tar').

    A recipe sets all options; the ones you give override it. The default recipe, auto, looks at the images and the
    machine, and prints what it chose, why, and the whole command. Run the same command again to resume; another
    command gets its own run folder. At the end, the encoder is exported to the workspace, where `mocoembed embed`
    finds it.

    \b
      mocoembed pretrain photos
      mocoembed pretrain photos --recipe small --epochs 100 --val labelled-photos
      mocoembed pretrain cifar10/train --recipe cifar10 --width 0.375 --stem 3x3s2 --batch-size 256 --bn-groups 4
    """
    from mocoembed.train.loop import pretrain as run_pretrain
    from mocoembed.train.resolve import with_processes

    config = with_processes(PretrainConfig.of(recipe or AUTO, images, **given(values)))
    with TrainingProgress(sys.stderr) as progress:
        result = run_pretrain(config, progress.watcher())
    if result is None:  # another rank's to tell
        return
    if result.failed:
        note(f"{counted(result.failed, 'image')} could not be read and were replaced (named above)")
    loss = f", loss {result.last.loss:.3f}" if result.last else " (already complete)"
    took = progress.took() if result.last else ""
    waiting = f", {result.waiting:.0%} of the time waiting for images" if result.last else ""
    put(f"{result.encoder}: {counted(result.steps, 'step')}{took}{loss}{waiting}; run {result.run}")
