"""Filters through every type of index: recall@10 and time by the share of the images that is selected.

    python -m benchmarks.filter_recall OUTPUT --rows 100000 --dimension 256

Vectors and queries are those of `index_scale.py`. Rows are selected at random, or are those farthest from the query,
each of which must be found among vectors that are all nearer. The truth is exact comparison with the selected rows.
`ms` is the median for a query alone, with the choice between the index and exact comparison that a search makes.
"""

import pathlib
import statistics
import time

import click
import numpy as np

from benchmarks.index_scale import K, prepare
from mocoembed.config import IndexConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.search.build import build_index
from mocoembed.search.exact import ExactRows
from mocoembed.search.index import SearchIndex
from mocoembed.search.ranking import Ranking, Wishes

SHARES = (1, 0.5, 0.25, 0.1, 0.01, 0.001)
FEW = 10  # rows, the smallest selection
QUERIES = 200
OF_THEIR_OWN = 20  # queries with a selection each


def measured(file: EmbeddingFile, rows, queries: np.ndarray, masks: list[np.ndarray | None]) -> tuple[float, float]:
    """Recall@10, and the median milliseconds of a query; `masks`: what is selected, for each of the first queries."""
    found, times = [], []
    for query, selected in zip(queries, masks):
        begun = time.perf_counter()
        hits = Ranking(file, rows, Wishes(K, selected)).hits(query[None])[0]
        times.append(time.perf_counter() - begun)
        right = ExactRows(file, None if selected is None else np.flatnonzero(selected)).nearest(query[None], K)[1][0]
        found.append(len({hit.row for hit in hits} & set(right.tolist())) / len(right))
    return float(np.mean(found)), 1e3 * statistics.median(times)


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--rows", default=100_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("--types", default="flat,rabitq,ivf-sq8,ivf-pq,ivf-flat,hnsw", show_default=True)
def main(output, rows, dimension, types):
    """Build each type and print its line of the table."""
    path = prepare(output, rows, dimension, None)
    queries, random = np.load(output / "queries.npy")[:QUERIES], np.random.default_rng(3)
    with EmbeddingFile(path) as file:
        chosen = {share: random.random(len(file)) < share if share < 1 else None for share in SHARES}
        masks = {f"{share:.4g}": QUERIES * [mask] for share, mask in chosen.items()}
        some = np.zeros(len(file), bool)
        some[random.choice(len(file), FEW, replace=False)] = True
        scores = queries[:OF_THEIR_OWN] @ file.embeddings().T
        masks |= {f"{FEW} rows": QUERIES * [some], "the farthest 0.5": [its < np.median(its) for its in scores]}
        print("| type |", " | ".join(masks), "|")
        print("|---" * (len(masks) + 1) + "|")
        for name in types.split(","):
            index = SearchIndex.open(build_index(
                IndexConfig(str(path), output=str(output / f"{name}.faiss"), type=name, allow_lower_recall=True)).path)
            source, cells = index.rows(file), []
            for selected in masks.values():
                recall, taken = measured(file, source, queries, selected)
                cells.append(f"{recall:.4f}, {taken:.2f} ms")
            print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
