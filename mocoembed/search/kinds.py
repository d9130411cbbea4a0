"""The types of index: name, count and dimension -> factory string, memory, size and time, before anything is built.

| type | what is compared | for |
|---|---|---|
| flat | every vector, exactly | up to 64 MiB |
| rabitq | lists of 1-bit codes of rotated vectors (RaBitQ: Gao and Long, SIGMOD 2024), re-ranked | all above |
| ivf-sq8 | lists of 8-bit numbers, re-ranked | features that one bit is too coarse for |
| ivf-pq | lists of product-quantised codes (Jégou et al., PAMI 2011), re-ranked | comparison |
| ivf-flat | lists of whole vectors | the exact order within what is looked at |
| hnsw | a graph over whole vectors (Malkov and Yashunin, PAMI 2018) | least latency, most memory |

Re-ranking compares the query with the vectors in the embeddings file, so it costs the index no memory.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.cores import cores
from mocoembed.errors import MocoembedError
from mocoembed.memory import MIB, shown
from mocoembed.notes import duration
from mocoembed.search.faiss_index import FaissIndex
from mocoembed.search.faiss_parts import ITERATIONS, Anatomy

FLAT_BYTES = 64 * MIB  # of vectors, up to which `auto` is flat: about 5 ms a query
POINTS = 40  # that k-means sees for each list
LEAST_IN_LIST, MOST_LISTS = 4, 1 << 16
LINKS = 16  # of a graph's node to others
ID_BYTES = 24  # for each id in the index, and while ids are looked up
WORKING_BYTES = 160 << 20  # what building takes beside vectors and ids: blocks, truth, scores
THREAD_BYTES = 24 << 20  # for each thread; where there are none for its stack, OpenMP ends the process
GRAPH_SECONDS = 2.4e-4  # of one core for a vector of 256 numbers in a graph of a million with so many links
CODE_SECONDS = 1e-9  # of one core to compare a point with a centre of a product code
LOOK_SECONDS, LOOKS = 2e-8, 1100  # of one core to look at a code; how often tuning looks at each, if a query does
LOOKS_IN_LISTS = 400  # the same for lists, most of which are looked at while codes are rough
EXACT = 1500  # products of a vector with others that take as long as finding exact neighbours of 500 rows
READ_RATE = 5e8  # bytes a second, hashed and copied


@dataclass(frozen=True)
class Kind:
    """A type of index."""

    name: str
    factory: Callable[[int, int], str]
    """Dimension and number of lists -> FAISS's factory string."""
    reranks: bool = True


def _products(dimension: int) -> int:
    """Codes of a product quantiser: the largest divisor of D up to D / 4."""
    return max(one for one in range(1, max(1, dimension // 4) + 1) if dimension % one == 0)


KINDS = {kind.name: kind for kind in (
    Kind("flat", lambda d, lists: "IDMap,Flat", reranks=False),
    Kind("rabitq", lambda d, lists: f"RR{d},IVF{lists},RaBitQ"),
    Kind("ivf-sq8", lambda d, lists: f"IVF{lists},SQ8"),
    Kind("ivf-pq", lambda d, lists: f"IVF{lists},PQ{_products(d)}"),
    Kind("ivf-flat", lambda d, lists: f"IVF{lists},Flat", reranks=False),
    Kind("hnsw", lambda d, lists: f"IDMap,HNSW{LINKS},Flat", reranks=False))}


ALIASES = {"Flat": "flat", "IDMap,Flat": "flat"}  # which compare every vector, too


def kind_of(name: str) -> Kind:
    """The type of that name; a FAISS factory string is a type of its own."""
    return KINDS.get(ALIASES.get(name, name)) or Kind(name, lambda d, lists: name, reranks=not name.endswith("Flat"))


def lists_for(count: int) -> int:
    """Inverted lists: a power of two near three times the square root of the number of vectors."""
    wanted = 2 ** round(math.log2(3 * math.sqrt(max(count, 1))))
    return min(MOST_LISTS, wanted, 1 << max(0, (count // LEAST_IN_LIST).bit_length() - 1))


@dataclass(frozen=True)
class Plan:
    """What an index of a type will take."""

    kind: Kind
    count: int
    dimension: int

    @property
    def factory(self) -> str:
        """FAISS's factory string."""
        return self.kind.factory(self.dimension, lists_for(self.count))

    @functools.cached_property
    def parts(self) -> Anatomy:
        """What FAISS makes of that; `UsageError` with its reason for what it refuses."""
        return FaissIndex.empty(self.dimension, self.factory).anatomy()

    @property
    def size(self) -> int:
        """Bytes of the file, and of memory while it is searched."""
        return (self.count * (self.parts.vector_bytes + 16) + 4 * self.parts.lists * self.dimension
                + self.parts.fixed_bytes + (1 << 16))

    @property
    def sample(self) -> int:
        """Vectors that centres and codes are learned from; 0 where there is nothing to learn."""
        return 0 if self.kind.name == "flat" else min(self.count, POINTS * max(self.parts.lists, 256))

    @property
    def peak(self) -> int:
        """Bytes of memory while it is built."""
        # Lists and links are copied when they grow; memory for vectors outside of lists is reserved.
        growing = self.parts.vector_bytes // 2 if self.parts.lists else 2 * self.parts.link_bytes
        return int(self.count * (self.parts.vector_bytes + growing + ID_BYTES) + 10 * self.dimension * self.sample
                   + 12 * self.parts.lists * self.dimension) + WORKING_BYTES + THREAD_BYTES * cores()

    @property
    def seconds(self) -> float:
        """About how long it takes on this machine."""
        parts = self.parts
        links = self.count * GRAPH_SECONDS * (self.dimension / 256) ** 0.7 * math.sqrt(parts.links / LINKS)
        codes = min(self.sample, parts.code_points) * parts.code_rounds * CODE_SECONDS
        centres = self.sample * parts.lists * ITERATIONS + self.count * parts.lists
        rotating = self.count * parts.fixed_bytes // (4 * self.dimension)
        exact = EXACT // 5 if self.kind.name == "flat" else EXACT
        looks = self.count * self._looks() * LOOK_SECONDS
        products = centres + rotating + exact * self.count
        return ((links + codes + looks) / cores() + 2 * self.dimension * products / _rate()
                + 4 * self.count * self.dimension * 4 / READ_RATE)

    def _looks(self) -> int:
        if self.kind.name == "flat" or self.parts.links:
            return 0
        return LOOKS_IN_LISTS if self.parts.lists else LOOKS

    def __str__(self):
        lists = f", {self.parts.lists:,} lists" if self.parts.lists else ""
        least = "" if self.parts.is_known else "more than "
        return (f"{self.kind.name}{lists}: about {shown(self.peak)} of memory while building, "
                f"{shown(self.size)} on disk and while searching, {least}{duration(self.seconds)}")


def _rate() -> float:
    """Multiplications and additions a second in float32, by one small product of matrices."""
    one = np.ones((512, 512), np.float32)
    times = []
    for _ in range(5):  # the first one starts the threads
        begun = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - begun)
    return 2 * 512**3 / max(min(times), 1e-6)


def require_cap(plan: Plan, cap: int | None, is_free: bool = False):
    """Raise `MocoembedError` when a plan takes more memory than `cap`, naming the types that would do.

    `is_free`: the cap is what the machine has, and none that was given.

    `UsageError` for a factory string that FAISS refuses.
    """
    needed = plan.peak  # or FAISS says why not
    if cap is None or needed <= cap:
        return
    others = [Plan(kind, plan.count, plan.dimension) for kind in KINDS.values()]
    fitting = [other.kind.name for other in others if other.peak <= cap]
    hint = f"use --type {' or '.join(fitting)}" if fitting else (
        f"the smallest type needs {shown(min(other.peak for other in others))}")
    limit = f"{shown(cap)} are free" if is_free else f"the cap is {shown(cap)}"
    raise MocoembedError(f"An index of type {plan.kind.name} of {plan.count} vectors of dimension {plan.dimension} "
                         f"needs {shown(needed)} of memory, {limit}: {hint}.")
