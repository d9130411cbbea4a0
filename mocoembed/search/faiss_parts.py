"""What an index of FAISS is made of: layers, inverted lists, graph, codes; and what these take to build and to keep.

The only module that imports faiss.
"""

import contextlib
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.errors import MocoembedError

ITERATIONS, LEAST_POINTS = 10, 1  # of k-means; FAISS warns below 39 points for a list by itself
POINTS_FOR_CODES = 64  # that k-means sees for each value of a product code
ENCODING = 5  # times as long as comparing it in k-means takes finding a point's code
CANDIDATES_FOR_LINKS = 80  # of a new node of a graph
LEAST_PRODUCT = 1000  # points times numbers from which k-means multiplies matrices; FAISS 1.15: 128,000


class _Faiss:
    """faiss, loaded when it is first used: a collection without an index needs none of it, and saves 25 to 170 MB."""

    def __getattr__(self, name: str) -> Any:
        try:
            import faiss
        except (RuntimeError, OSError) as error:  # its own word for a library that cannot be loaded
            limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
            within = " within the memory that `ulimit -v` allows" if limited else ""
            raise MocoembedError(f"FAISS cannot be loaded{within}: {reason(error)}.") from error
        return getattr(faiss, name)


faiss: Any = _Faiss()


def reason(error: Exception) -> str:
    """What FAISS says, without where in its source."""
    text = re.sub(r"^.*?\.(cpp|h):\d+: ", "", " ".join(str(error).split()))
    return re.sub(r"^Error: '.*' failed:? ?", "", text) or text


def keeps_ids(index: Any) -> bool:
    """Whether it keeps ids: an inverted file, also behind a transformation of the vectors, or a map of them."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return isinstance(inner, faiss.IndexIVF | faiss.IndexIDMap)


def _layers(index: Any) -> list[Any]:
    """An index and those within it, the innermost last."""
    layers = [index]
    while isinstance(layers[-1], faiss.IndexIDMap | faiss.IndexPreTransform):
        layers.append(faiss.downcast_index(layers[-1].index))
    return layers


def codes_of(index: Any) -> Any:
    """Where an index without lists keeps the codes of its vectors, one after the other; `None` for other indexes."""
    inner = _layers(index)[-1]
    if hasattr(inner, "storage"):  # of a graph
        inner = faiss.downcast_index(inner.storage)
    return inner if isinstance(inner, faiss.IndexFlatCodes) else None


def transformations(index: Any) -> list[Any]:
    """What is done to a vector before its code is made, outermost first."""
    return [faiss.downcast_VectorTransform(one.chain.at(place)) for one in _layers(index)
            if isinstance(one, faiss.IndexPreTransform) for place in range(one.chain.size())]


def lists_and_graph(index: Any) -> tuple[Any, Any]:
    """The inverted file and the graph of an index, each `None` where there is none that can be told how to search."""
    *outer, inner = _layers(index)
    kinds = [isinstance(one, faiss.IndexPreTransform) for one in outer]  # the others are maps of ids
    if kinds[:2] == [False, True]:
        return None, None  # neither passes the other's parameters on
    return (inner if isinstance(inner, faiss.IndexIVF) else None), (
        inner if isinstance(inner, faiss.IndexHNSW) and kinds[:1] != [True] else None)


def look_wider(index: Any):
    """Have a graph's links chosen among twice as many candidates as by FAISS's default, if the index has a graph.

    In a graph of a million clustered vectors, searches do not find some of the clusters otherwise.
    """
    inner = _layers(index)[-1]
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efConstruction = CANDIDATES_FOR_LINKS


def quick_codes(index: Any) -> list[Any]:
    """Have an index's product codes trained quickly; what must live as long as the index.

    By FAISS's own numbers of points and rounds this takes minutes. Its warnings are left out, one for each code and
    round, and its renumbering of the codes for Hamming distances, which takes longer than all other training and which
    no search of ours looks at.
    """
    inner = _layers(index)[-1]
    rotations = [one for one in transformations(index) if isinstance(one, faiss.OPQMatrix)]
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False
    codes = [faiss.ProductQuantizer(one.d_out, one.M, 8) for one in rotations]  # as FAISS makes them
    for one in [*codes, *([inner.pq] if hasattr(inner, "pq") else [])]:
        one.cp.niter, one.cp.min_points_per_centroid = ITERATIONS, LEAST_POINTS
        one.cp.max_points_per_centroid = POINTS_FOR_CODES
    for rotation, its in zip(rotations, codes):
        rotation.pq = its
    return codes


@contextlib.contextmanager
def multiplying() -> Iterator[None]:
    """Have FAISS compare the few numbers of a product code by products of matrices, which takes a tenth of the time."""
    before = faiss.cvar.distance_compute_blas_threshold  # of the whole process; it changes no more than the last digits
    faiss.cvar.distance_compute_blas_threshold = LEAST_PRODUCT
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


class OneThread:
    """Has FAISS work on the calling thread alone. The setting is that thread's own.

    A class, as it costs a query alone a third of what a generator does.
    """

    def __enter__(self):
        self._before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)

    def __exit__(self, *exception):
        faiss.omp_set_num_threads(self._before)


def scores_with(queries: np.ndarray, vectors: np.ndarray, places: np.ndarray, inner_product: bool) -> np.ndarray:
    """(Q, n) float32: scores of `queries` (Q, D) with those of `vectors` (N, D) at `places` (Q, n), without a copy.

    All are in C order, in float32 and int64. A place of -1 has a score of minus infinity.
    """
    compared = np.empty(places.shape, np.float32)
    compare = faiss.fvec_inner_products_by_idx if inner_product else faiss.fvec_L2sqr_by_idx
    compare(*map(faiss.swig_ptr, (compared, queries, vectors, places)), vectors.shape[1], *places.shape)
    scores = compared if inner_product else -compared
    scores[places < 0] = -np.inf
    return scores


@dataclass(frozen=True)
class Anatomy:
    """What an index takes, by its parts; nothing of it depends on the number of vectors."""

    vector_bytes: int
    """For each vector: its code and its links."""
    link_bytes: int
    """The latter alone."""
    fixed_bytes: int
    """Of rotations and other matrices."""
    lists: int
    """Inverted lists; 0 where there are none."""
    links: int
    """Of a graph's node to others, on all levels but the ground; 0 where there is no graph."""
    code_rounds: int
    """Comparisons of a point with a centre, for each point that product codes are trained on."""
    code_points: int
    """Points that product codes are trained on at most."""
    is_known: bool
    """Whether `code_rounds` are all there is to training the codes."""

    @classmethod
    def of(cls, index: Any) -> "Anatomy":
        """Of an index of FAISS, which may be empty."""
        inner, changes = _layers(index)[-1], transformations(index)
        lists = inner.nlist if isinstance(inner, faiss.IndexIVF) else 0
        links = inner.hnsw.nb_neighbors(1) if isinstance(inner, faiss.IndexHNSW) else 0
        matrices = sum(4 * one.d_in * one.d_out for one in changes)
        codes = [(one.M * 256, one.niter_pq_0 + (one.niter - 1) * one.niter_pq + ENCODING * one.niter)
                 for one in changes if isinstance(one, faiss.OPQMatrix)]
        if hasattr(inner, "pq"):
            codes.append((inner.pq.M * inner.pq.ksub, ITERATIONS))
        return cls(_vector_bytes(inner), _link_bytes(inner), matrices, lists, links,
                   sum(centres * rounds for centres, rounds in codes),
                   POINTS_FOR_CODES * (inner.pq.ksub if hasattr(inner, "pq") else 256), not hasattr(inner, "aq"))


def _vector_bytes(inner: Any) -> int:
    """Of the code of a vector in the innermost index, and of its links where that is a graph."""
    if isinstance(inner, faiss.IndexIVF | faiss.IndexFlatCodes):
        return inner.code_size
    if hasattr(inner, "hnsw"):
        return faiss.downcast_index(inner.storage).code_size + _link_bytes(inner)
    return 4 * inner.d + _link_bytes(inner)


def _link_bytes(inner: Any) -> int:
    """Of a vector's links to others in a graph, with half as many again on the levels above, an offset and a level."""
    if isinstance(inner, faiss.IndexIVF | faiss.IndexFlatCodes):
        return 0
    return 4 * inner.hnsw.nb_neighbors(0) + 44 if hasattr(inner, "hnsw") else 300  # of types that are not ours
