"""`mocoembed index`: embeddings.h5 -> embeddings.faiss."""

import json
import time

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import counter
from mocoembed.config import IndexConfig
from mocoembed.notes import duration


@click.command()
@click.argument("embeddings", required=False)
@options_of(IndexConfig, leave_out=("embeddings",))
@json_option
def index(as_json, **values):
    """Make the embeddings file EMBEDDINGS searchable.

    Vectors of length 1 are compared by cosine similarity, others by Euclidean distance. Up to 64 MiB of vectors are
    compared one by one, which is exact. For more, a query is compared with a part of them only (--type rabitq), and
    the best are ranked again by their vectors in the embeddings file. The size of that part is tuned on held-out
    images until --recall is reached; `mocoembed info` shows the whole curve.

    Run it again after `mocoembed embed`: what was added, dropped or changed is updated, if the type of index allows
    it. An existing index is replaced only once the new one is complete.

    \b
      mocoembed index
      mocoembed index photos.h5 --output photos.faiss --recall 0.95
      mocoembed index --type hnsw --memory 8GB
      mocoembed index --type "OPQ32_128,IVF4096,PQ32" --allow-lower-recall
    """
    from mocoembed.search.build import build_index

    begun = time.monotonic()
    with counter("index", "vectors") as progress:
        result = build_index(IndexConfig(**values), progress, lambda text: note(f"index: {text}"))
    facts = result.manifest
    if as_json:
        click.echo(json.dumps({"path": str(result.path), "done": result.done, **facts}, indent=2))
        return
    done = "" if result.done == "built" else f" {result.done}:"
    put(f"{result.path}:{done} {facts['count']} vectors of dimension {facts['dimension']}, {facts['type']} "
        f"({facts['metric']}), recall@10 {facts['recall_at_10']:.3f}, {facts['latency_ms']:.2f} ms a query, in "
        f"{duration(time.monotonic() - begun)}")
