"""`mocoembed embed`: images -> embeddings.h5."""

import dataclasses
import json
import os
import time

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import counter
from mocoembed.config import EmbedConfig
from mocoembed.notes import duration

SHOWN_FAILURES = 10


@click.command()
@click.argument("collections", nargs=-1, metavar="COLLECTION...")
@options_of(EmbedConfig, leave_out=("collections",))
@json_option
def embed(as_json, **values):
    """Embed every image of each COLLECTION into one HDF5 file.

    A COLLECTION is a folder (searched recursively), a list of paths (.txt, or .csv, .tsv and .jsonl with path and
    label), tar shards ('shard-{000..009}.tar') or an image; see docs/collections.md. Every file with an image extension
    is either embedded or reported as failed, with the reason.

    Run it again to update the file: only new and changed images are embedded, and those that no longer exist are
    dropped. After an interruption, it continues where it stopped.

    \b
      mocoembed embed photos
      mocoembed embed photos more-photos 'shards/train-{000..009}.tar' --output all.h5
      mocoembed embed photos --features projection --output projections.h5
      mocoembed embed photos --encoder moco-v2-800ep
      mocoembed embed photos --exclude thumbs --exclude '*.png'
      mocoembed embed list.txt --root /where/the/images/are/now
      mocoembed embed photos --encoder torchvision:resnet50
    """
    from mocoembed.embed.claim import output_lock

    config, begun = EmbedConfig(**values), time.monotonic()
    with output_lock(config), counter("embed", "images") as progress:  # locked before torch is loaded
        from mocoembed.data.skipped import skipped_text
        from mocoembed.embed.extract import embed_images
        from mocoembed.search.matching import outdated_index

        result = embed_images(config, progress, note)
    if result is None:  # another rank's to tell
        return
    for one in result.failed[:SHOWN_FAILURES]:
        note(f"failed: {os.fsdecode(one.path)!r}: {one.said}")
    if len(result.failed) > SHOWN_FAILURES:
        note(f"... and {len(result.failed) - SHOWN_FAILURES} more; `mocoembed info {result.path} --json` lists all")
    for folder in result.closed:
        note(f"could not be opened, skipped with everything in it: {os.fsdecode(folder)!r}")
    if result.skipped:
        note(skipped_text(result.skipped))
    if outdated := outdated_index(result.path):
        note(outdated)
    if as_json:
        click.echo(json.dumps({"path": str(result.path), "listed": result.listed, "embedded": result.embedded,
                               "failed": len(result.failed), **dataclasses.asdict(result.counts),
                               "skipped": result.skipped, "excluded": result.excluded,
                               "closed": list(map(os.fsdecode, result.closed)), "resumed_from": result.resumed_from}))
    else:
        took = duration(time.monotonic() - begun)
        speed = f", {result.images_per_second:.0f} images/s, in {took}" if result.images_per_second else ""
        put(f"{result.path}: {result.embedded} embedded{_parts(result.counts)}, {len(result.failed)} failed{speed}")


def _parts(counts) -> str:
    """What is not simply new, in brackets: ` (3 new, 797 unchanged; 2 dropped)`."""
    parts = ", ".join(f"{number} {what}" for number, what in (
        (counts.new, "new"), (counts.changed, "changed"), (counts.recognised, "moved or copied"),
        (counts.unchanged, "unchanged")) if number)
    more = [f"{number} {what}" for number, what in (
        (counts.dropped, "dropped"), (counts.repeated, "with the same bytes as another")) if number]
    if not more and parts == f"{counts.new} new":
        return ""
    return f" ({'; '.join([parts, *more])})"
