"""`mocoembed push`: embeddings.h5 -> a Milvus collection."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import counter
from mocoembed.config import PushConfig


@click.command()
@click.argument("embeddings", nargs=-1, metavar="[EMBEDDINGS]...")
@options_of(PushConfig, leave_out=("embeddings",), repeated={"param": "KEY=VALUE", "search_param": "KEY=VALUE"})
@json_option
def push(as_json, **values):
    """Push the embeddings files EMBEDDINGS into a Milvus collection, for more images than one machine holds.

    Only new, changed and removed rows are sent; run the same command again after an interruption. At the end, all
    rows are counted, those that were sent are compared with the file, and the recall is measured. Search the collection
    with: mocoembed search IMAGE --to URI.

    \b
      mocoembed push
      mocoembed push shard-*.h5 --to http://host:19530 --collection photos
      mocoembed push --index-type HNSW --param M=32 --param efConstruction=200 --search-param ef=128
    """
    from mocoembed.search.push import push_embeddings

    config, done = PushConfig(**values), []
    with counter("push", "rows") as progress:
        for one in push_embeddings(config, progress, note):
            done.append(one.as_json())
            if not as_json:
                part, index = one.part, one.index
                put(f"{one.path} is in {config.collection}: {part.count} vectors of dimension {one.dimension} "
                    f"({one.added} added, {one.changed} changed, {one.dropped} dropped), {index['type']} "
                    f"({index['metric']}), recall@10 {part.recall_at_10:.3f}, {part.latency_ms:.2f} ms a query")
    if as_json:
        click.echo(json.dumps(done, indent=2))
