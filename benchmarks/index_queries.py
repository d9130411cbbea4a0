"""Queries through our indexes and through FAISS on the same index, in turns in one process.

    python -m benchmarks.index_scale OUTPUT --dimension 768 --types rabitq,ivf-sq8,hnsw --peers ""   # makes the indexes
    python -m benchmarks.index_queries OUTPUT --types rabitq,ivf-sq8,hnsw

Both look as far as our index was tuned to. Where ours ranks candidates again by the vectors in the embeddings file,
FAISS does so by `IndexRefineFlat`, which holds all of them in memory; the ids in its copy of the index are made row
numbers, as it needs. Milliseconds a query, median (least to most) of nine rounds, and the least processor time.
"""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import faiss
import numpy as np

from benchmarks.index_scale import ALONE, K
from mocoembed.embed.store import EmbeddingFile
from mocoembed.search.index import SearchIndex

ROUNDS = 9
Search = Callable[[np.ndarray], np.ndarray]  # queries (Q, D) -> rows (Q, K)


def refined(path: pathlib.Path, file: EmbeddingFile, vectors: np.ndarray, parameters: dict) -> Search:
    """FAISS's own ranking again of the candidates of an index with inverted lists."""
    index, ids = faiss.read_index(str(path)), file.ids()
    order, lists = np.argsort(ids), faiss.extract_index_ivf(index).invlists
    for one in range(lists.nlist):
        if size := lists.list_size(one):
            its = faiss.rev_swig_ptr(lists.get_ids(one), size)
            its[:] = order[np.searchsorted(ids, its, sorter=order)]
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", parameters["nprobe"])
    both: Any = faiss.IndexRefineFlat(index, faiss.swig_ptr(vectors))
    both.k_factor = parameters["candidates"] / K
    return lambda queries: both.search(queries, K)[1]


def contenders(path: pathlib.Path, file: EmbeddingFile, vectors: np.ndarray) -> dict[str, Search]:
    """Ours and FAISS's, for the index in a file."""
    index = SearchIndex.open(path)
    rows, parameters = index.rows(file), index.manifest["parameters"]
    if "candidates" in parameters:
        theirs = refined(path, file, vectors, parameters)
    else:
        (name, breadth), raw = next(iter(parameters.items())), index.index._index
        faiss.ParameterSpace().set_index_parameter(raw, name, breadth)
        theirs = lambda queries: raw.search(queries, K)[1]  # noqa: E731
    return {"ours": lambda queries: rows.nearest(queries, K)[1], "FAISS": theirs}


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--types", default="rabitq,ivf-sq8,ivf-flat,hnsw", show_default=True)
def main(output, types):
    """Print the table."""
    queries = np.load(output / "queries.npy")
    print("| type | queries | ours, ms; of processor | FAISS, ms; of processor | ratio |\n|---|---|---|---|---|")
    with EmbeddingFile(output / "vectors.h5") as file:
        vectors = file.embeddings()
        for name in types.split(","):
            both = contenders(output / f"{name}.faiss", file, vectors)
            for at_once, count in ((1, ALONE), (len(queries), len(queries))):
                taken: dict[str, list[tuple[float, float]]] = {who: [] for who in both}
                for _ in range(ROUNDS):
                    for who, search in both.items():
                        begun, worked = time.perf_counter(), time.process_time()
                        for first in range(0, count, at_once):
                            search(queries[first:first + at_once])
                        taken[who].append((1e3 * (time.perf_counter() - begun) / count,
                                           1e3 * (time.process_time() - worked) / count))
                cells, medians = [], []
                for some in taken.values():
                    clock, processor = zip(*some)
                    medians.append(statistics.median(clock))
                    cells.append(f"{medians[-1]:.3f} ({min(clock):.3f} to {max(clock):.3f}); {min(processor):.3f}")
                print(f"| {name} | {at_once} at a time |", " | ".join(cells), f"| {medians[0] / medians[1]:.2f} |",
                      flush=True)


if __name__ == "__main__":
    main()
