"""FAISS, as much of it as we use: vectors and ids -> an index -> scores and ids.

An index is named by FAISS's factory string. Inverted files keep our ids themselves; all others stand behind an
`IDMap`, without the table for looking ids up, which is not needed and takes 40 bytes for each.
"""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mocoembed.errors import FormatError, MocoembedError, UsageError
from mocoembed.memory import is_out_of_memory
from mocoembed.search.faiss_parts import (
    ITERATIONS,
    LEAST_POINTS,
    Anatomy,
    OneThread,
    codes_of,
    faiss,
    keeps_ids,
    lists_and_graph,
    look_wider,
    multiplying,
    quick_codes,
    reason,
    transformations,
)

__all__ = ["METRICS", "FaissIndex", "faiss_version"]

METRICS = {"inner_product": 0, "l2": 1}  # FAISS's own numbers
ROUNDING = 1e-3  # of distances between vectors of length 1, in float32
EXAMPLES = "'IVF1024,SQ8', 'HNSW48,Flat' or 'OPQ32_128,IVF4096,PQ32'"

_loading = threading.Lock()  # FAISS's limit is one for the whole process


def faiss_version() -> str:
    """Of the library."""
    return faiss.__version__


class FaissIndex:
    """One index of FAISS; `empty` and `read` make one."""

    def __init__(self, index: Any):
        self._index = index
        self._ivf, self._graph = lists_and_graph(index)
        self._is_product = index.metric_type == METRICS["inner_product"]
        self._last: tuple[int, Any] = 0, None  # breadth and FAISS's parameters for it, which take 0.01 ms to make

    @classmethod
    def empty(cls, dimension: int, factory: str, metric: str = "inner_product") -> "FaissIndex":
        """A new index of vectors of that dimension; `UsageError` with FAISS's reason for a wrong factory string."""
        try:
            index: Any = faiss.index_factory(dimension, factory, METRICS[metric])
            if isinstance(index, faiss.IndexRefine):
                raise UsageError(f"--type {factory}: candidates are ranked again by the vectors in the embeddings file "
                                 f"anyway. Leave {factory.rpartition(',')[2]} out.")
            if not keeps_ids(index):
                index = faiss.index_factory(dimension, f"IDMap,{factory}", METRICS[metric])
        except RuntimeError as error:
            raise UsageError(f"--type {factory}: not a known type, and FAISS rejects it as a factory string for "
                             f"vectors of dimension {dimension} ({reason(error)}). Examples: {EXAMPLES}.") from error
        look_wider(index)
        return cls(index)

    def __len__(self):
        return self._index.ntotal

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._index.d

    @property
    def metric(self) -> str:
        """`inner_product` or `l2`, or FAISS's number of another one."""
        return next((name for name, number in METRICS.items() if number == self._index.metric_type),
                    str(self._index.metric_type))

    @property
    def breadth_name(self) -> str | None:
        """What FAISS calls the setting for how much of the index is looked at; `None` where there is none."""
        return "nprobe" if self._ivf is not None else "efSearch" if self._graph is not None else None

    @property
    def lists(self) -> int:
        """Inverted lists; 0 where there are none."""
        return self._ivf.nlist if self._ivf is not None else 0

    @property
    def transforms(self) -> bool:
        """Whether vectors are changed before they are compared, as in `PCA64,Flat`: scores are then those of others."""
        return bool(transformations(self._index))

    def anatomy(self) -> Anatomy:
        """What it takes, by its parts."""
        return Anatomy.of(self._index)

    def train(self, sample: np.ndarray, gpu: bool = False):
        """Learn centres and codes from vectors (n, D); on the GPUs with `gpu`: the lists' centres alone."""
        if self._ivf is not None:
            self._ivf.cp.niter, self._ivf.cp.min_points_per_centroid = ITERATIONS, LEAST_POINTS
            if gpu:
                flat = faiss.IndexFlat(self._ivf.d, self._ivf.quantizer.metric_type)
                self._ivf.clustering_index = faiss.index_cpu_to_all_gpus(flat)
        self._codes = quick_codes(self._index)
        with multiplying():
            self._calling(lambda: self._index.train(np.ascontiguousarray(sample, np.float32)))

    def reserve(self, count: int):
        """Take the memory for all codes of an index without lists at once: growing step by step takes twice as much."""
        if (inner := codes_of(self._index)) is not None:
            inner.codes.resize(count * inner.code_size)
            inner.codes.resize(0)

    def add(self, vectors: np.ndarray, ids: np.ndarray):
        """Add vectors (n, D) under their ids (n,) int64."""
        self._calling(lambda: self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids))

    @property
    def can_remove(self) -> bool:
        """Whether vectors can be taken out again."""
        return self._ivf is not None and not isinstance(self._index, faiss.IndexIDMap)

    def remove(self, ids: np.ndarray) -> int:
        """Take out the vectors of these ids; how many there were."""
        return self._index.remove_ids(faiss.IDSelectorBatch(np.ascontiguousarray(ids, np.int64)))

    def ids(self) -> np.ndarray:
        """(N,) int64: the ids of an inverted file, in no order."""
        lists = self._ivf.invlists
        parts = [faiss.rev_swig_ptr(lists.get_ids(one), lists.list_size(one)).copy() for one in range(self.lists)
                 if lists.list_size(one)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def search(self, vectors: np.ndarray, k: int, breadth: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32, a higher one nearer, and ids (Q, k) int64, -1 where none was found."""
        parameters = self._parameters(breadth)
        if len(vectors) > 1:
            scores, ids = self._index.search(vectors, k, params=parameters)
        else:  # one query takes less time than waking up another thread does
            with OneThread():
                scores, ids = self._index.search(vectors, k, params=parameters)
        return (scores if self._is_product else -scores), ids

    def within(self, vectors: np.ndarray, score: float, breadth: int = 0) -> tuple[np.ndarray, ...]:
        """All whose cosine is above `score`: bounds, cosines, ids; of query i ids[bounds[i]:bounds[i + 1]].

        Vectors have length 1. Of the `breadth` nearest lists of an inverted file those are left out that can hold none:
        by the triangle inequality, what is nearer than r lies in no list whose centre is more than 2 r farther than the
        nearest centre.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self._ivf is None:
            return self._index.range_search(vectors, score)
        self._ivf.nprobe = min(breadth, self.lists)
        cosines, lists = self._ivf.quantizer.search(vectors, self._ivf.nprobe)
        away = np.sqrt(np.maximum(0, 2 - 2 * cosines))  # centres have length 1, too
        lists[away > away[:, :1] + 2 * np.sqrt(max(0, 2 - 2 * score)) + ROUNDING] = -1
        return self._ivf.range_search_preassigned(vectors, score, lists, cosines)

    def most_within(self, breadth: int) -> int:
        """How many vectors `within` can find for a query at most."""
        if self._ivf is None:
            return len(self)
        sizes = [self._ivf.invlists.list_size(one) for one in range(self.lists)]
        return sum(sorted(sizes)[-breadth:])

    def _parameters(self, breadth: int):
        """For FAISS, which only reads them; `None` for a breadth of 0. Those of the last search are kept."""
        if not breadth:
            return None
        last, parameters = self._last
        if breadth != last:
            parameters = self._new_parameters(breadth)
            self._last = breadth, parameters
        return parameters

    def _new_parameters(self, breadth: int):
        if self._ivf is None:
            return faiss.SearchParametersHNSW(efSearch=breadth)
        kind = (faiss.IVFRaBitQSearchParameters if isinstance(self._ivf, faiss.IndexIVFRaBitQ)
                else faiss.SearchParametersIVF)
        inner = kind(nprobe=min(breadth, self.lists))
        return faiss.SearchParametersPreTransform(index_params=inner) if isinstance(
            self._index, faiss.IndexPreTransform) else inner

    @property
    def has_gpu_part(self) -> bool:
        """Whether FAISS has this type for GPUs, too."""
        return isinstance(self._ivf, faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ)

    def on_gpu(self, number: int) -> "GpuIndex":
        """A copy in the memory of the GPU of that number."""
        return GpuIndex(self._index, number)

    def write(self, take: Callable[[bytes], int]):
        """Hand the index's bytes to `take`, piece by piece."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(take))

    @classmethod
    def read(cls, file: io.BufferedReader, length: int, path, mapped: bool = False) -> "FaissIndex":
        """The index at the start of an open file; no part of it may be longer than `length`, the whole.

        `mapped`: its bytes stay in the file and are read when they are looked at; it cannot be changed then. Raises
        `FormatError` with FAISS's reason for what it cannot read.
        """
        file.seek(0)
        try:
            small = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE  # which is larger than the file, so than the limit
            with _loading:
                if hasattr(faiss, "set_deserialization_vector_byte_limit"):
                    faiss.set_deserialization_vector_byte_limit(length)
                if mapped and sys.platform == "linux":  # by its descriptor: the name may be another file's by now
                    source, flags = f"/proc/self/fd/{file.fileno()}", small | faiss.IO_FLAG_MMAP_IFC
                else:
                    source, flags = faiss.PyCallbackIOReader(file.read), small
                index = cls(faiss.read_index(source, flags))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            raise FormatError(f"{os.fspath(path)} cannot be read by FAISS {faiss_version()}: "
                              f"{reason(error)}") from error
        if isinstance(index._ivf, faiss.IndexIVFPQ):
            index._ivf.precompute_table()
        return index

    def _calling(self, work: Callable[[], None]):
        try:
            work()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            raise MocoembedError(f"FAISS cannot build this index: {reason(error)}. Choose another --type.") from error


class GpuIndex:
    """A copy of an inverted file in the memory of a GPU, searched there by one thread at a time."""

    def __init__(self, index: Any, number: int):
        """Copies `index` to the GPU of that number. Raises `MocoembedError` with FAISS's reason where it cannot."""
        self._searching, self._resources = threading.Lock(), faiss.StandardGpuResources()  # used as long as the copy
        self._inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
        self._transformed = isinstance(index, faiss.IndexPreTransform)
        self._lists = lists_and_graph(index)[0].nlist
        with _refusing(number):
            self._index = faiss.index_cpu_to_gpu(self._resources, number, index)
        self._number = number

    def search(self, vectors: np.ndarray, k: int, breadth: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """As `FaissIndex.search`."""
        parameters = faiss.SearchParametersIVF(nprobe=min(max(1, breadth), self._lists))
        if self._transformed:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        with self._searching, _refusing(self._number):
            scores, ids = self._index.search(vectors, k, params=parameters)
        return (scores if self._inner_product else -scores), ids


@contextlib.contextmanager
def _refusing(number: int):
    try:
        yield
    except RuntimeError as error:
        raise MocoembedError(f"FAISS cannot search this index on GPU {number}: {reason(error)}. Give --device cpu, or "
                             "leave the index out.") from error


def gpus() -> int:
    """GPUs that FAISS sees; 0 where it has no part for them."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def require_gpu():
    """Raise `UsageError` where FAISS sees no GPU."""
    if gpus() == 0:
        raise UsageError("--gpu: FAISS sees no GPU here. Leave it out, or install faiss-gpu on a machine with one.")
