"""How long `mocoembed duplicates` takes, and how much memory: clustered vectors, every hundredth a near copy.

    python -m benchmarks.duplicates_speed OUTPUT --rows 1000000 --dimension 256
    python -m benchmarks.duplicates_speed OUTPUT --index rabitq        # through an index, which is built first
    python -m benchmarks.duplicates_speed OUTPUT --device cuda         # all pairs on a GPU

The vectors are those of `index_scale.py`; in each block of them row 100 n + 1 is row 100 n with a little noise, at a
cosine of about 0.9995. `found` is the share of these pairs that are in one group. Seconds are those of the clock and
of the processor, which others that keep the machine busy change less. What is in OUTPUT is used again.
"""

import pathlib
import resource
import time
from collections.abc import Iterator

import click
import numpy as np

from benchmarks.index_scale import BLOCK, mixture, write
from mocoembed.config import DuplicatesConfig, IndexConfig
from mocoembed.search.build import build_index
from mocoembed.search.duplicates import find_duplicates

NOISE, THRESHOLD = 0.03, 0.999


def with_copies(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks, in each of which some rows are near copies of the ones before them."""
    random = np.random.default_rng(5)
    for vectors in blocks:
        places = np.arange(0, len(vectors) - 1, 100)
        near = vectors[places] + NOISE / np.sqrt(vectors.shape[1]) * random.standard_normal(
            (len(places), vectors.shape[1]), np.float32)
        vectors[places + 1] = near / np.linalg.norm(near, axis=1, keepdims=True)
        yield vectors


def seconds_of(work) -> tuple[str, object]:
    """Seconds, in words, and what `work()` gives."""
    begun, worked = time.perf_counter(), time.process_time()
    result = work()
    return f"{time.perf_counter() - begun:.1f} s, {time.process_time() - worked:.1f} of the processor", result


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("--index", "kind", help="Type of index, as of mocoembed index; by default, none is used.")
@click.option("--device", default="cpu", show_default=True)
def main(output, rows, dimension, kind, device):
    """Write the vectors, find their duplicates, print one line for each step."""
    output.mkdir(parents=True, exist_ok=True)
    path, index = output / f"copies-{rows}-{dimension}.h5", None
    if not path.exists():
        write(path, with_copies(mixture(dimension, rows, 1)), rows, dimension)
    if kind:
        index = str(output / f"copies-{rows}-{dimension}-{kind}.faiss")
        took, _ = seconds_of(lambda: build_index(IndexConfig(str(path), type=kind, output=index)))
        print(f"{kind} index: {took}", flush=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    config = DuplicatesConfig(str(path), index=index, threshold=THRESHOLD, device=device)
    took, result = seconds_of(lambda: find_duplicates(config))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    number_of = {member.row: number for number, group in enumerate(result.groups) for member in group.members}
    pairs = [(row, row + 1) for first in range(0, rows, BLOCK)
             for row in range(first, min(first + BLOCK, rows) - 1, 100)]
    found = sum(number_of.get(a, -1) == number_of.get(b, -2) for a, b in pairs) / len(pairs)
    print(f"{rows:,} x {dimension}, {result.compared}: {took}; peak {peak:.0f} MB ({before:.0f} before); "
          f"{len(result.groups):,} groups, found {found:.4f} of {len(pairs):,} pairs")


if __name__ == "__main__":
    main()
