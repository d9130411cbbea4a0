"""Every type of index on clustered vectors, beside raw FAISS with the same parameters, hnswlib, usearch and autofaiss.

    python -m benchmarks.index_scale OUTPUT --rows 1000000 --dimension 256
    python -m benchmarks.index_scale OUTPUT --embeddings embeddings.h5

    python -m benchmarks.index_scale OUTPUT --memory 4GB --dimension 768 --types rabitq --peers autofaiss

What a contender gave is kept in OUTPUT, one JSON file each, and not measured again: remove it to do so. The curves are
drawn into `recall.png` there. So one type after the other may be run; a run that was cut off goes on. With --memory,
what needs more says so and is left out: ours by its plan, autofaiss by its own options; others have none.

The vectors have length 1 and come from a mixture of 2,000 Gaussians in 32 dimensions, mapped linearly, with noise;
1,000 queries come from the same. With --embeddings, they are those of a file, of which 1,000 rows are held out. Each
contender works in a process of its own; all but ours hold the vectors in memory.
`build` is seconds, and of the processor, which others that keep the machine busy change less.
`batch` is milliseconds a query for all 1,000 together, `alone` for one at a time (median of 200). `faiss` is FAISS by
itself with the factory string, training rows and parameters of ours; where ours ranks candidates again by the rows, it
is shown both without that and with FAISS's `IndexRefineFlat`, which holds all rows in memory. A contender that is not
installed is left out, with the reason.
"""

import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np

from mocoembed.checks import parse_size
from mocoembed.config import IndexConfig
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.errors import MocoembedError
from mocoembed.files import write_json
from mocoembed.memory import available_memory
from mocoembed.search.build import build_index
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.faiss_parts import look_wider
from mocoembed.search.index import SearchIndex
from mocoembed.search.index_rows import Effort
from mocoembed.search.kinds import POINTS

QUERIES, K, ALONE = 1000, 10, 200
LEAST_MISSED = 3e-4  # stands for none in the plot
REFINED = "ranked again by IndexRefineFlat"
CENTRES, INNER, SPREAD, NOISE = 2000, 32, 0.45, 0.3
BLOCK = 1 << 14
Search = Callable[[np.ndarray], np.ndarray]  # queries (Q, D) -> rows (Q, K)


def mixture(dimension: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """(n, D) float32 of length 1, in blocks."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    centres = fixed.standard_normal((CENTRES, INNER), np.float32)
    linear = fixed.standard_normal((INNER, dimension), np.float32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        inner = centres[random.integers(0, CENTRES, size)] + SPREAD * random.standard_normal((size, INNER), np.float32)
        vectors = inner @ linear + NOISE * random.standard_normal((size, dimension), np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(path: pathlib.Path, blocks: Iterator[np.ndarray], count: int, dimension: int, labels: tuple[str, ...] = ()):
    """An embeddings file of made-up images, which have the labels by turns."""
    numbers = np.arange(count, dtype=np.int32) % len(labels) if labels else np.full(count, -1, np.int32)
    listing = Listing(b"/images", PathTable([b"%08d.jpg" % row for row in range(count)]), numbers, labels, {}, (),
                      b"/images")
    settings = Settings({"fingerprint": "f" * 64, "provenance": {}}, "backbone", True, dimension, "fp32", "none")
    write_embeddings(path, listing, settings, np.ones(count, bool), np.zeros(count, FACTS), blocks, [])


def prepare(output: pathlib.Path, rows: int, dimension: int, embeddings: str | None) -> pathlib.Path:
    """`vectors.h5` and `queries.npy`, and the rows of the true neighbours in `truth.npy`."""
    path = output / "vectors.h5"
    if (output / "truth.npy").exists():
        return path
    output.mkdir(parents=True, exist_ok=True)
    if embeddings:
        with EmbeddingFile(embeddings) as file:
            vectors = file.embeddings()
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        held = np.zeros(len(vectors), bool)
        held[np.random.default_rng(0).choice(len(vectors), QUERIES, replace=False)] = True
        queries = vectors[held]
        write(path, iter([vectors[~held]]), int((~held).sum()), vectors.shape[1])
    else:
        queries = next(mixture(dimension, QUERIES, 2))
        write(path, mixture(dimension, rows, 1), rows, dimension)
    flat = FaissIndex.empty(queries.shape[1], "Flat")
    with EmbeddingFile(path) as file:
        for first in range(0, len(file), BLOCK):
            flat.add(file.embeddings[first:first + BLOCK], np.arange(first, min(first + BLOCK, len(file))))
    np.save(output / "queries.npy", queries)
    np.save(output / "truth.npy", flat.search(queries, K)[1])
    return path


# --------------------------------------------------------------------------------------------- the contenders


def ours(path: pathlib.Path, name: str, memory: str | None) -> Iterator[tuple[str, Search]]:
    """Our index of a type; its first yield is after building."""
    output = path.with_name(f"{name.replace(',', '-')}.faiss")
    result = build_index(IndexConfig(str(path), output=str(output), type=name, allow_lower_recall=True, fresh=True,
                                     memory=memory))
    yield f"{output.stat().st_size}", lambda queries: queries
    index = SearchIndex.open(output)
    curve = result.manifest.get("curve") or [{}]
    with EmbeddingFile(path) as file:
        rows = index.rows(file)
        for point in curve:
            rows.effort = Effort.of(point)
            parameters = " ".join(f"{key} {point[key]}" for key in ("nprobe", "efSearch", "candidates") if key in point)
            yield parameters, lambda queries: rows.nearest(queries, K)[1]


def raw_faiss(path: pathlib.Path, name: str, memory: str | None) -> Iterator[tuple[str, Search]]:
    """FAISS by itself: the factory string, training rows and parameters of our index.

    Where ours ranks candidates again by the rows, both without that and with FAISS's own `IndexRefineFlat`.
    """
    import faiss

    output = path.with_name(f"{name}.faiss")
    manifest = SearchIndex.open(output).manifest
    with EmbeddingFile(path) as file:
        vectors = file.embeddings()
    index: Any = faiss.index_factory(vectors.shape[1], manifest["factory"].removeprefix("IDMap,"),
                                     faiss.METRIC_INNER_PRODUCT)
    look_wider(index)
    if lists := manifest.get("lists"):
        faiss.extract_index_ivf(index).cp.niter = 10
        index.train(vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), POINTS * lists)).astype(np.int64)])
    index.add(vectors)
    yield "0", lambda queries: queries
    refined: Any = faiss.IndexRefineFlat(index, faiss.swig_ptr(vectors))
    for point in manifest.get("curve") or [{}]:
        breadth = next((key for key in ("nprobe", "efSearch") if key in point), None)
        if breadth:
            faiss.ParameterSpace().set_index_parameter(index, breadth, point[breadth])
        count = point.get("candidates", K)
        yield f"{breadth} {point.get(breadth)} for {count}", lambda some, count=count: index.search(some, count)[1]
        if "candidates" in point:
            refined.k_factor = count / K
            yield (f"{breadth} {point.get(breadth)}, {count} {REFINED}",
                   lambda some: refined.search(some, K)[1])


def hnswlib(path: pathlib.Path, name: str, memory: str | None) -> Iterator[tuple[str, Search]]:
    """hnswlib, M 16, efConstruction 80."""
    import hnswlib as library

    with EmbeddingFile(path) as file:
        vectors = file.embeddings()
    index = library.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=80)
    index.add_items(vectors)
    yield "0", lambda queries: queries
    for breadth in (16, 32, 64, 128, 256):
        index.set_ef(breadth)
        yield f"ef {breadth}", lambda queries: index.knn_query(queries, K)[0]


def usearch(path: pathlib.Path, name: str, memory: str | None) -> Iterator[tuple[str, Search]]:
    """usearch with numbers of 16 bits, connectivity 16, expansion 80 while adding."""
    from usearch.index import Index

    with EmbeddingFile(path) as file:
        vectors = file.embeddings()
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=80)
    index.add(np.arange(len(vectors)), vectors)
    yield "0", lambda queries: queries
    for breadth in (16, 32, 64, 128, 256):
        index.expansion_search = breadth
        yield f"expansion {breadth}", lambda queries: np.atleast_2d(index.search(queries, K).keys)


def autofaiss(path: pathlib.Path, name: str, memory: str | None) -> Iterator[tuple[str, Search]]:
    """autofaiss as it chooses under the cap, or what is available; it takes at most 0.9 of that for the index alone."""
    import faiss
    from autofaiss import build_index as build

    with EmbeddingFile(path) as file:
        vectors = file.embeddings()
    cap = (parse_size(memory) if memory else available_memory()) or 16 << 30
    index, chosen = build(vectors, save_on_disk=False, max_index_memory_usage=f"{int(0.89 * cap) >> 20}MB",
                          current_memory_available=f"{cap >> 20}MB", metric_type="ip", verbose=40)
    if index is None:
        raise MocoembedError("autofaiss has built nothing, and says above why")
    counted = faiss.VectorIOWriter()
    faiss.write_index(index, counted)
    yield f"{counted.data.size()}", lambda queries: queries
    yield f"{chosen['index_key']}, {chosen['index_param']}", lambda queries: index.search(queries, K)[1]


CONTENDERS = {"ours": ours, "faiss": raw_faiss, "hnswlib": hnswlib, "usearch": usearch, "autofaiss": autofaiss}
PEERS = ("hnswlib", "usearch", "autofaiss")  # which do not depend on a type of ours


def work(contender: str, name: str, path: pathlib.Path, memory: str | None, pipe):
    """One contender, in a process of its own: how long building took, peak memory, and its points."""
    queries, truth = np.load(path.with_name("queries.npy")), np.load(path.with_name("truth.npy"))
    begun, worked = time.perf_counter(), time.process_time()
    facts: dict[str, Any] = {"contender": contender, "type": name, "points": [], "load": os.getloadavg()[0]}
    points = CONTENDERS[contender](path, name, memory)
    try:
        size, _ = next(points)
    except (ImportError, MemoryError, MocoembedError) as error:
        pipe.send({**facts, "left_out": " ".join(str(error).split()) or type(error).__name__})
        return
    facts |= {"build_s": time.perf_counter() - begun, "build_cpu_s": time.process_time() - worked, "bytes": int(size),
              "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for parameters, search in points:
        found = search(queries)
        begun = time.perf_counter()
        search(queries)
        batch = 1e3 * (time.perf_counter() - begun) / len(queries)
        times = []
        for query in queries[:ALONE]:
            begun = time.perf_counter()
            search(query[None])
            times.append(time.perf_counter() - begun)
        right = np.mean([np.isin(truth[place], found[place]).mean() for place in range(len(truth))])
        facts["points"].append({"parameters": parameters, "recall": float(right), "batch_ms": batch,
                                "alone_ms": 1e3 * statistics.median(times)})
    pipe.send(facts)


def run(contender: str, name: str, path: pathlib.Path, memory: str | None) -> dict:
    """The facts of a contender, kept in a file; of one that cannot be measured, why."""
    kept = path.with_name(f"result-{contender}-{name.replace(',', '-')}-{memory or 'no-cap'}.json")
    if kept.exists():
        return json.loads(kept.read_text())
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(contender, name, path, memory, there))
    process.start()
    there.close()
    try:
        facts = here.recv()
    except EOFError:
        return {"contender": contender, "type": name, "points": [], "left_out": "its process ended without a result"}
    finally:
        process.join()
    write_json(kept, facts)
    return facts


def plot(results: list[dict], path: pathlib.Path):
    """Recall against the time for a query alone, one line for each contender; what is missed grows to the left."""
    try:
        import matplotlib
    except ImportError as error:
        print(f"{path} is not drawn: {error}")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for result in results:
        for again in (False, True):
            points = sorted((point for point in result["points"] if (REFINED in str(point["parameters"])) is again),
                            key=lambda point: point["recall"])
            if points:
                axes.plot([max(1 - point["recall"], LEAST_MISSED) for point in points],
                          [point["alone_ms"] for point in points],
                          "o-" if result["contender"] == "ours" else "x--",
                          label=f"{result['contender']} {result['type']}".strip() + (f", {REFINED}" if again else ""))
    axes.set(xlabel="recall@10", ylabel="ms for a query alone", yscale="log", xscale="log",
             xlim=(0.4, 0.8 * LEAST_MISSED))
    ticks = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001, LEAST_MISSED]
    axes.set_xticks(ticks, [f"{1 - missed:g}" for missed in ticks[:-1]] + ["1"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("--embeddings")
@click.option("--types", default="flat,rabitq,ivf-sq8,ivf-flat,hnsw", show_default=True)
@click.option("--peers", default="faiss,hnswlib,usearch,autofaiss", show_default=True)
@click.option("--memory", help="Most memory for an index, as of mocoembed index.")
def main(output, rows, dimension, embeddings, types, peers, memory):
    """Run every contender that has not been, print a table, write `results.json` and `recall.png`."""
    path = prepare(output, rows, dimension, embeddings)
    named, apart = set(peers.split(",")) & set(CONTENDERS), [one for one in peers.split(",") if one in PEERS]
    jobs = [(contender, name) for name in filter(None, types.split(",")) for contender in ("ours", "faiss")
            if contender == "ours" or contender in named] + [(one, "") for one in apart]
    results = []
    print("| contender | build, s; of processor | peak MB | MB | parameters | recall@10 | batch, alone: ms |")
    print("|---|---|---|---|---|---|---|")
    for contender, name in jobs:
        result = run(contender, name, path, memory)
        results.append(result)
        if "left_out" in result:
            print(f"| {contender} {name} | | | | left out: {result['left_out']} | | |", flush=True)
        for point in result["points"]:
            build = f"{result['build_s']:.1f}; {result['build_cpu_s']:.1f}"
            print(f"| {contender} {name} | {build} | {result['peak_mb']:.0f} | {result['bytes'] / 1e6:.0f} | "
                  f"{point['parameters']} | {point['recall']:.4f} | "
                  f"{point['batch_ms']:.3f}, {point['alone_ms']:.3f} |", flush=True)
    write_json(output / "results.json", results)
    plot([result for result in results if result["points"]], output / "recall.png")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
