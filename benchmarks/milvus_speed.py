"""How long pushing into Milvus takes, and searching there: 100,000 clustered vectors on Milvus Lite, or on a server.

    python -m benchmarks.milvus_speed OUTPUT
    python -m benchmarks.milvus_speed OUTPUT --to http://host:19530

OUTPUT is a folder for the embeddings file and, without --to, for the local collection. The first push takes all rows,
the second one a hundredth of them, which have changed, the third one none; `inserting` is what upserts and flushes
took of it. Recall is that of 200 other queries against exact comparison with all rows that a filter selects. Rows have
one of ten labels by turns.
"""

import pathlib
import statistics
import time
from unittest import mock

import click
import numpy as np

from benchmarks.index_scale import K, mixture, write
from mocoembed.config import PushConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.search.exact import ExactRows
from mocoembed.search.filters import Filter
from mocoembed.search.milvus import Milvus
from mocoembed.search.milvus_expressions import expression
from mocoembed.search.push import push_embeddings

QUERIES = 200
LABELS = tuple(f"label {number}" for number in range(10))


def vectors_of(rows: int, dimension: int, seed: int) -> np.ndarray:
    """(rows, D) float32 of length 1."""
    return np.concatenate(list(mixture(dimension, rows, seed)))


def pushed(path: pathlib.Path, to: str, timeout: float) -> str:
    """What a push did, and its seconds."""
    inserting = []

    def timed(method):
        def call(*arguments):
            begun = time.perf_counter()
            method(*arguments)
            inserting.append(time.perf_counter() - begun)

        return call

    begun = time.perf_counter()
    with mock.patch.object(Milvus, "upsert", timed(Milvus.upsert)), mock.patch.object(Milvus, "flush",
                                                                                      timed(Milvus.flush)):
        one, = push_embeddings(PushConfig((str(path),), to=to, timeout=timeout))
    seconds = time.perf_counter() - begun
    done = f"{seconds:.1f} s, inserting {sum(inserting):.1f} s"
    return f"{done}: {one.added} added, {one.changed} changed, {one.dropped} dropped, {one.index['type']}"


@click.command(help=__doc__, context_settings={"max_content_width": 130})
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--to")
@click.option("--rows", default=100_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
def main(output, to, rows, dimension):
    """Push three times, then search one query at a time, with and without a filter."""
    output.mkdir(parents=True, exist_ok=True)
    path, to = output / "vectors.h5", to or str(output / "milvus.db")
    vectors = vectors_of(rows, dimension, 1)
    write(path, iter([vectors]), rows, dimension, LABELS)
    print("push,", pushed(path, to, 60))
    vectors[::100] = vectors_of(len(vectors[::100]), dimension, 3)
    write(path, iter([vectors]), rows, dimension, LABELS)
    print("push of a hundredth,", pushed(path, to, 60))
    print("push of nothing,", pushed(path, to, 60))
    queries = vectors_of(QUERIES, dimension, 2)
    with EmbeddingFile(path) as file, Milvus(to, "images", 60) as collection:
        ids = file.ids()
        collection.load()
        for what, chosen in (("", Filter()), (", label", Filter(labels=LABELS[:1])),
                             (", paths 0000*", Filter(paths=("0000*",)))):
            only, seconds, right = expression(chosen), [], []
            truth = ExactRows(file, np.flatnonzero(chosen.mask(file))).nearest(queries, K)[1]
            for query, rows_of in zip(queries, truth):
                begun = time.perf_counter()
                hits = collection.search(query[None], K, only, "IP", {})[0]
                seconds.append(time.perf_counter() - begun)
                right.append(len({hit["id"] for hit in hits} & set(ids[rows_of].tolist())) / K)
            print(f"search{what}: {1e3 * statistics.median(seconds):.1f} ms a query, recall@10 {np.mean(right):.3f}")


if __name__ == "__main__":
    main()
