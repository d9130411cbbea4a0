"""`mocoembed index`: embeddings.h5 -> embeddings.faiss."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import put
from mocoembed.cli.progress import counter
from mocoembed.config import IndexConfig


@click.command()
@click.argument("embeddings", required=False)
@options_of(IndexConfig, leave_out=("embeddings",))
@json_option
def index(as_json, **values):
    """Make the embeddings file EMBEDDINGS searchable.

    Vectors of length 1 are compared by cosine similarity, others by Euclidean distance. The index is measured on
    a sample of its own vectors: recall@10 is the share of the ten nearest neighbours that it finds. An existing index
    is replaced only once the new one is complete.

    \b
      mocoembed index
      mocoembed index photos.h5 --output photos.faiss
    """
    from mocoembed.search.index import build_index

    with counter("index", "vectors") as progress:
        result = build_index(IndexConfig(**values), progress)
    facts = result.manifest
    if as_json:
        click.echo(json.dumps({"path": str(result.path), **facts}, indent=2))
        return
    put(f"{result.path}: {facts['count']} vectors of dimension {facts['dimension']}, {facts['type']} "
        f"({facts['metric']}), recall@10 {facts['recall_at_10']:.3f}, {facts['latency_ms']:.2f} ms a query")
