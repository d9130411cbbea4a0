"""`mocoembed map`: embeddings.h5 -> embeddings.map, which the page shows."""

import dataclasses
import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import put
from mocoembed.cli.progress import counter
from mocoembed.config import MapConfig
from mocoembed.notes import counted, duration


@click.command()
@click.argument("embeddings", required=False)
@options_of(MapConfig, leave_out=("embeddings",))
@json_option
def map(as_json, **values):
    """Give every image of the embeddings file EMBEDDINGS a place on a map, similar ones near each other.

    `mocoembed serve` shows the map, which is kept beside the embeddings file. Run the command again after `mocoembed
    embed`: images that were there stay in their places, and new ones are put among their nearest neighbours. Once more
    than a fifth were added this way, all are arranged again, and the last line says so; as long as no more than
    half are new, the others stay close to their places. Needs openTSNE (pip install 'mocoembed[map]').

    \b
      mocoembed map
      mocoembed map photos.h5 --fresh
    """
    from mocoembed.search.map import make_map

    with counter("map", "steps") as progress:
        result = make_map(MapConfig(**values), progress)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(result), "path": str(result.path)}, indent=2))
        return
    agreeing = "" if result.agreement is None else f", {100 * result.agreement:.1f} % of neighbours share the label"
    again = ", all arranged again" if result.arranged and result.new < result.count else ""
    put(f"{result.path}: {counted(result.count, 'image')} ({result.new} new{again}) by {result.method}{agreeing}, in "
        f"{duration(result.seconds)}")
