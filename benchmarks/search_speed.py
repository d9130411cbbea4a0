"""How long `mocoembed search IMAGE` takes from the prompt, and whether ONNX Runtime gives what torch gives.

    python -m benchmarks.search_speed OUTPUT FOLDER --encoder moco-v2-800ep       # time, 7 runs of each
    python -m benchmarks.search_speed OUTPUT FOLDER --encoder resnet18 --rows 50000
    python -m benchmarks.search_speed OUTPUT FOLDER --encoder timm:tf_efficientnet_lite0=lite0.safetensors --compare

OUTPUT is a workspace, in which FOLDER is embedded and indexed first unless that has been done. `--encoder` is that of
`mocoembed embed`, or an architecture of torchvision with random weights, at `--image-size`. With `--rows`, random
vectors of length 1 fill the embeddings up to so many rows. Each run is a process of its own; `imports` are the times to
import the libraries, each in a process of its own.

`--ready` searches for 2,000 and 10,000 ready vectors, near those of the collection, beside FAISS alone, in turns and
1,024 at a time; the least times count. `--compare` embeds every image of the folder both ways and tells the least
cosine and how often the first ten hits are the same.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time

import click
import numpy as np
import torch

from mocoembed.config import EmbedConfig, IndexConfig, SearchConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable, scan
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.model.encoder import ARCHITECTURES, Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, save_encoder
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD
from mocoembed.search.build import build_index
from mocoembed.search.pair import Pair
from mocoembed.search.query import Searcher
from mocoembed.workspace import Workspace

LIBRARIES = ("numpy", "h5py", "PIL.Image", "faiss", "onnxruntime", "torch", "torchvision")
NEEDED = "numpy, PIL.Image, h5py, onnxruntime"  # by a search, at least
AT_ONCE = 1 << 12  # rows of random numbers
READY = (2_000, 10_000)  # vectors searched for


def seconds(command: list[str]) -> float:
    """How long a process takes; it must succeed. Its modules are compiled once, as those that pip installs are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


def told(times: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"


def prepare(places: Workspace, folder: str, encoder: str, image_size: int, rows: int):
    """Embed and index the folder, with random vectors behind it."""
    if places.index.exists():
        return
    if encoder in ARCHITECTURES:
        torch.manual_seed(0)
        made = Encoder(EncoderSpec(encoder, 1.0, "7x7s2-pool", "none", 0)).eval().requires_grad_(False)
        transform = EvaluationTransform.of(image_size, IMAGENET_MEAN, IMAGENET_STD)
        places.root.mkdir(parents=True, exist_ok=True)
        encoder = str(places.root / "random.safetensors")
        save_encoder(encoder, FrozenEncoder(made, transform, {}))
    embed_images(EmbedConfig((folder,), str(places.root), encoder))
    if rows:
        fill(places.embeddings, rows)
    build_index(IndexConfig(workspace=str(places.root)))


def fill(path: pathlib.Path, rows: int):
    """Append random vectors of length 1 to the embeddings, under names that sort behind the others."""
    random = np.random.default_rng(0)
    with EmbeddingFile(path) as file:
        real, more = len(file), rows - len(file)
        paths = [*file.paths(), *(b"~/%07d.jpg" % number for number in range(more))]
        listing = Listing(os.fsencode(file.root), PathTable(paths), np.full(rows, -1, np.int32), (), {}, (),
                          os.fsencode(file.root))
        settings = Settings(file.encoder, file.features, file.normalized, file.dimension, file.precision, "none")

        def blocks():
            yield file.embeddings()
            for first in range(0, more, AT_ONCE):
                vectors = random.standard_normal((min(AT_ONCE, more - first), file.dimension), np.float32)
                yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        facts = np.zeros(rows, FACTS)
        facts[:real] = file.facts()
        write_embeddings(path.with_suffix(".filled"), listing, settings, np.ones(rows, bool), facts, blocks(), [])
    os.replace(path.with_suffix(".filled"), path)


def compare(places: Workspace, folder: str):
    """Embed every image both ways; print the least cosine, and how many have the same first ten hits but for ties."""
    listing = scan(folder)
    names = [os.fsdecode(listing.full_path(row)) for row in range(len(listing))]
    vectors, hits = [], []
    for with_torch in (False, True):
        with Pair(SearchConfig((names[0],), str(places.root), device="cpu", torch=with_torch)) as pair:
            vectors.append(np.concatenate([pair.embed([pair.read(name)]) for name in names]))
            hits.append([[hit.path for hit in some] for some in pair.hits(vectors[-1], 10)])
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    print(f"cosine: least {cosines.min():.6f}, median {np.median(cosines):.6f}")
    same = sum(one == other for one, other in zip(*hits))
    as_a_set = sum(set(one) == set(other) for one, other in zip(*hits))
    print(f"first ten hits: the same in order for {same} of {len(names)}, as a set for {as_a_set}")


def search_ready(places: Workspace, count: int, runs: int):
    """Time the search for ready vectors, ours and FAISS's."""
    random = np.random.default_rng(0)
    with Searcher.open(places.root, "cpu", encoder=False) as searcher:
        vectors = searcher.file.embeddings[np.sort(random.integers(0, len(searcher.file), count))]
        vectors += 0.02 * random.standard_normal(vectors.shape, np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        faiss = searcher.pair().index.index._index
        times: dict[str, list[float]] = {"FAISS": [], "ours": []}
        for _ in range(runs):
            for kind, search in (("FAISS", faiss.search), ("ours", searcher.search)):
                begun = time.perf_counter()
                for first in range(0, count, 1024):
                    search(vectors[first:first + 1024], 10)
                times[kind].append(time.perf_counter() - begun)
    least, theirs = min(times["ours"]), min(times["FAISS"])
    print(f"{count} ready vectors, k 10: {least:.3f} s, FAISS alone {theirs:.3f} s: {least / theirs:.2f} times")


def from_the_prompt(output: str, folder: str, runs: int):
    """Time the command, and the imports."""
    listing = scan(folder)
    search = [sys.executable, "-m", "mocoembed", "search", os.fsdecode(listing.full_path(0)), "--workspace", output]
    kinds = {"importing NumPy, Pillow, h5py and ONNX Runtime": [sys.executable, "-c", f"import {NEEDED}"],
             "search, onnxruntime": search, "search, torch": [*search, "--torch"],
             **{" ".join(words): [*search[:3], *words] for words in (("--help",), ("knn", "--help"))},
             "info": [*search[:3], "info", os.fspath(Workspace(output).embeddings)]}
    for command in kinds.values():
        seconds(command)  # which compiles the modules and hashes the index
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for kind, command in kinds.items():
            times[kind].append(seconds(command))
    for kind, some in times.items():
        print(f"{kind}: {told(some)}")
    for library in LIBRARIES:
        print(f"import {library}: {told([seconds([sys.executable, '-c', f'import {library}']) for _ in range(3)])}")


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("output")
@click.argument("folder")
@click.option("--encoder", required=True)
@click.option("--image-size", default=224, show_default=True)
@click.option("--rows", default=0)
@click.option("--runs", default=7, show_default=True)
@click.option("--ready", "instead", flag_value="ready")
@click.option("--compare", "instead", flag_value="compare")
def main(output, folder, encoder, image_size, rows, runs, instead):
    """Prepare, then time or compare."""
    places = Workspace(output)
    prepare(places, folder, encoder, image_size, rows)
    with EmbeddingFile(places.embeddings) as file:
        print(f"{len(file)} rows of dimension {file.dimension}")
    if instead == "compare":
        compare(places, folder)
    elif instead == "ready":
        for count in READY:
            search_ready(places, count, runs)
    else:
        from_the_prompt(output, folder, runs)


if __name__ == "__main__":
    main()
