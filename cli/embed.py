"""`mocoembed embed`: pictures -> embeddings.h5."""

import json
import os

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import counter
from mocoembed.config import EmbedConfig

SHOWN_FAILURES = 10


@click.command()
@click.argument("folder", metavar="COLLECTION")
@options_of(EmbedConfig, leave_out=("folder",))
@json_option
def embed(as_json, **values):
    """Embed every picture of COLLECTION into one HDF5 file.

    A COLLECTION is a folder of any depth, a list of paths (.txt, or .csv and .jsonl with path and label), tar shards
    ('shard-{000..009}.tar') or one picture; docs/collections.md tells more. A file with a picture's name is either
    embedded or reported as failed, with the reason. An interrupted run goes on when the same command is given again.

    \b
      mocoembed embed photos
      mocoembed embed 'shards/train-{000..009}.tar' --output shards.h5
      mocoembed embed photos --features projection --output projections.h5
      mocoembed embed photos --encoder moco-v2-800ep
      mocoembed embed photos --encoder torchvision:resnet50
    """
    from mocoembed.embed.extract import embed_images

    with counter("embed", "pictures") as progress:
        result = embed_images(EmbedConfig(**values), progress, note)
    for one in result.failed[:SHOWN_FAILURES]:
        note(f"failed: {os.fsdecode(one.path)!r}: {one.error}: {one.reason}")
    if len(result.failed) > SHOWN_FAILURES:
        note(f"... and {len(result.failed) - SHOWN_FAILURES} more; `mocoembed info {result.path} --json` lists all")
    for folder in result.closed:
        note(f"could not be opened, left out with all in it: {os.fsdecode(folder)!r}")
    if result.left_out:
        note(f"left out: {result.left_out} files that are hidden or have no picture's name")
    if as_json:
        click.echo(json.dumps({"path": str(result.path), "listed": result.listed, "embedded": result.embedded,
                               "failed": len(result.failed), "resumed_from": result.resumed_from}))
    else:
        put(f"{result.path}: {result.embedded} embedded, {len(result.failed)} failed, "
                   f"{result.images_per_second:.0f} pictures/s")
