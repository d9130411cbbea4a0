"""How long `mocoembed search IMAGE` takes from the prompt, and whether ONNX Runtime gives what torch gives.

    python -m benchmarks.search_speed OUTPUT FOLDER --encoder moco-v2-800ep       # time, 7 runs of each
    python -m benchmarks.search_speed OUTPUT FOLDER --encoder resnet18 --rows 50000
    python -m benchmarks.search_speed OUTPUT FOLDER --encoder timm:tf_efficientnet_lite0=lite0.safetensors --compare

OUTPUT is a workspace, in which FOLDER is embedded and indexed first unless that has been done. `--encoder` is that of
`mocoembed embed`, or an architecture of torchvision with random weights, at `--image-size`. With `--rows`, random
vectors of length 1 fill the embeddings up to so many rows. Each run is a process of its own; `imports` are the times to
import the libraries, each in a process of its own. `--compare` embeds every image of the folder both ways and tells the
least cosine and how often the first ten hits are the same.
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
from mocoembed.search.query import Searcher
from mocoembed.workspace import Workspace

LIBRARIES = ("numpy", "h5py", "PIL.Image", "faiss", "onnxruntime", "torch", "torchvision")
AT_ONCE = 1 << 12  # rows of random numbers


def seconds(command: list[str]) -> float:
    """How long a process takes; it must succeed."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
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
        with Searcher(SearchConfig((names[0],), str(places.root), device="cpu", torch=with_torch)) as searcher:
            vectors.append(np.concatenate([searcher.embed([searcher.read(name)]) for name in names]))
            hits.append([[hit.path for hit in some] for some in searcher.hits(vectors[-1], 10)])
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    print(f"cosine: least {cosines.min():.6f}, median {np.median(cosines):.6f}")
    same = sum(one == other for one, other in zip(*hits))
    as_a_set = sum(set(one) == set(other) for one, other in zip(*hits))
    print(f"first ten hits: the same in order for {same} of {len(names)}, as a set for {as_a_set}")


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("output")
@click.argument("folder")
@click.option("--encoder", required=True)
@click.option("--image-size", default=224, show_default=True)
@click.option("--rows", default=0)
@click.option("--runs", default=7, show_default=True)
@click.option("--compare", "comparing", is_flag=True)
def main(output, folder, encoder, image_size, rows, runs, comparing):
    """Prepare, then time or compare."""
    places = Workspace(output)
    prepare(places, folder, encoder, image_size, rows)
    with EmbeddingFile(places.embeddings) as file:
        print(f"{len(file)} rows of dimension {file.dimension}")
    if comparing:
        compare(places, folder)
        return
    listing = scan(folder)
    command = [sys.executable, "-m", "mocoembed", "search", os.fsdecode(listing.full_path(0)), "--workspace", output]
    seconds(command)  # which hashes the index
    kinds = {"onnxruntime": [], "torch": ["--torch"]}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for kind, more in kinds.items():
            times[kind].append(seconds([*command, *more]))
    for kind, some in times.items():
        print(f"search, {kind}: {told(some)}")
    for library in LIBRARIES:
        print(f"import {library}: {told([seconds([sys.executable, '-c', f'import {library}']) for _ in range(3)])}")


if __name__ == "__main__":
    main()
