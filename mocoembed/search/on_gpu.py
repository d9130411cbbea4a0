"""Searching on a GPU: all vectors of an embeddings file in its memory, compared by torch; or an index, by FAISS.

FAISS's part for GPUs has inverted lists of whole vectors, of 8-bit numbers and of product codes. Of all other types,
and where this FAISS sees no GPU, the vectors themselves are compared with every query, exactly. Scores are those of
the CPU: what torch finds are candidates, which are ranked by the vectors in the file, as `ExactRows` does.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.memory import is_out_of_memory, shown
from mocoembed.notes import say_nothing
from mocoembed.search.blocks import blocks, finite
from mocoembed.search.exact import QUERIES, SPARE, ExactRows, NoIndex, ranked, require_queries
from mocoembed.search.faiss_index import gpus
from mocoembed.search.index import SearchIndex
from mocoembed.search.index_rows import IndexRows

ROOM = 2  # the GPU must have so many times the memory of the vectors free: the rest is for what is computed
MOST = 2048  # candidates, or lists, that FAISS looks for on a GPU
TILE_ROWS, TILE_COLUMNS = 2048, 8192  # compared at a time when all rows are compared with all


class GpuVectors:
    """The vectors of an embeddings file in a GPU's memory, uploaded when they are first looked at."""

    def __init__(self, file: EmbeddingFile, device: str, change: Callable[[np.ndarray], np.ndarray] | None = None):
        """`change`: what is done to the vectors first, which are then compared by their inner product."""
        from mocoembed.model.precision import Compute

        self.file, self.compute = file, Compute.of(device, "fp32")
        self._change, self._inner = change, change is not None or file.normalized
        self._bank: Any = None
        self._uploading = threading.Lock()

    @property
    def bank(self) -> Any:
        """The tensor (N, D) float32; for distances (N, D + 1) float64, whose products with `_queries` rank as they do.

        Raises `MocoembedError` where the GPU's memory is too small.
        """
        with self._uploading:
            if self._bank is None:
                self._bank = self._uploaded()
        return self._bank

    def _uploaded(self) -> Any:
        import torch

        device, dtype = self.compute.device, torch.float32 if self._inner else torch.float64
        shape = len(self.file), self.file.dimension + (not self._inner)
        size = shape[0] * shape[1] * dtype.itemsize
        what = f"Comparing {shape[0]} vectors of dimension {self.file.dimension} on {device}"
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else ROOM * size
        if ROOM * size > free:
            raise MocoembedError(f"{what} needs {shown(ROOM * size)} of its memory, {shown(free)} are free. "
                                 "Leave out --device, or give --device cpu.")
        bank = torch.empty(shape, dtype=dtype, device=device)
        for rows, vectors in blocks(self.file):
            finite(self.file, vectors, np.arange(rows.start, rows.stop))
            bank[rows] = torch.from_numpy(self._as_bank(vectors)).to(device)
        return bank

    def _as_bank(self, vectors: np.ndarray) -> np.ndarray:
        """-|x - q|^2 = 2 (q x - |x|^2 / 2) - |q|^2: the last column is what is multiplied by 1."""
        if self._change is not None:
            return self._change(vectors)
        if self._inner:
            return vectors
        wide = vectors.astype(np.float64)
        return np.concatenate([wide, -(wide**2).sum(axis=1, keepdims=True) / 2], axis=1)

    def _queries(self, vectors: np.ndarray) -> np.ndarray:
        if self._inner:
            return vectors
        return np.concatenate([vectors.astype(np.float64), np.ones((len(vectors), 1))], axis=1)

    def rows(self, selected: np.ndarray | None = None) -> "GpuRows":
        """A source of these rows (n,) int64, which rise; `None`: of all."""
        return GpuRows(self, selected)

    def candidates(self, vectors: np.ndarray, selected: np.ndarray | None, count: int) -> np.ndarray:
        """(Q, count) int64: the rows nearest to `vectors` (Q, D), of `selected` rows (n,), in the order found here."""
        import torch

        from mocoembed.knn import nearest

        bank, device = self.bank, self.compute.device
        try:
            with self.compute.exact(), torch.inference_mode():
                if selected is not None:
                    bank = bank[torch.from_numpy(selected).to(device)]
                queries = torch.from_numpy(self._queries(vectors)).to(device)
                found = nearest(queries, bank, count)[1].cpu().numpy()
        except RuntimeError as error:
            raise _without_memory(error, device) from error
        return found if selected is None else selected[found]

    def pairs(self, least: float, stop: Callable[[int], None]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All pairs of rows a > b (n,) with an inner product above `least`, and that, in pieces; `stop(rows done)`."""
        bank, count = self.bank, len(self.file)
        for first in range(0, count, TILE_ROWS):
            end = min(first + TILE_ROWS, count)
            for start in range(0, end, TILE_COLUMNS):
                with self.compute.exact():
                    products = bank[first:end] @ bank[start:min(start + TILE_COLUMNS, end)].T  # rows x columns
                a, b = (products > least).nonzero(as_tuple=True)
                values = products[a, b].cpu().numpy()
                rows, others = a.cpu().numpy() + first, b.cpu().numpy() + start
                earlier = others < rows
                yield rows[earlier], others[earlier], values[earlier]
            stop(end)


class GpuRows:
    """Rows of an embeddings file, compared one and all with every query on a GPU; called as `ExactRows` is."""

    exact = True

    def __init__(self, vectors: GpuVectors, selected: np.ndarray | None):
        self._vectors, self._selected = vectors, selected
        self._count = len(vectors.file) if selected is None else len(selected)

    def __len__(self):
        return self._count

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What `ExactRows.nearest` gives."""
        file = self._vectors.file
        vectors, k = require_queries(file, vectors), min(k, len(self))
        found = [(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
        for first in range(0, len(vectors), QUERIES):
            some = vectors[first:first + QUERIES]
            rows = self._vectors.candidates(some, self._selected, min(k + SPARE, len(self)))
            found.append(ranked(file, some, rows, k))
        return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])


class GpuIndexRows:
    """An index that FAISS searches on a GPU; what it cannot look for there is compared there exactly."""

    exact = False

    def __init__(self, rows: IndexRows, exactly: GpuVectors):
        self._rows, self._exactly = rows, exactly

    def __len__(self):
        return len(self._rows)

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What `IndexRows.nearest` gives."""
        effort = self._rows.effort.for_hits(k)
        if max(k, effort.candidates, effort.breadth) > MOST:
            return self._exactly.rows().nearest(vectors, k)
        return self._rows.nearest(vectors, k)


def source_on(vectors: GpuVectors, index: SearchIndex | NoIndex, rows: IndexRows | ExactRows | None,
              note: Callable[[str], None] = say_nothing) -> GpuRows | GpuIndexRows:
    """The rows of an index on the GPU of `vectors`; `note` is told where all images are compared in its place."""
    if not isinstance(rows, IndexRows) or isinstance(index, NoIndex) or index.exact:
        return vectors.rows()
    if (why := _why_not(index, vectors.compute.device.index)) is None:
        index.to_gpu(vectors.compute.device.index)
        return GpuIndexRows(rows, vectors)
    note(f"{why}: every query is compared with all {len(vectors.file):,} images on {vectors.compute.device}, exactly")
    return vectors.rows()


def move(index: SearchIndex, device: str):
    """Let FAISS search an index on a GPU; `UsageError` where it cannot."""
    from mocoembed.model.precision import Compute

    chosen = Compute.of(device, "fp32").device
    if why := _why_not(index, chosen.index):
        raise UsageError(f"--index {index.path} with --device {device}: {why}. Leave out --index, and all images are "
                         "compared on the GPU; or give --device cpu.")
    index.to_gpu(chosen.index)


def _why_not(index: SearchIndex, number: int) -> str | None:
    """Why FAISS cannot search an index on the GPU of that number; `None` if it can."""
    if not index.index.has_gpu_part:
        return f"FAISS has no {index.manifest.get('type', 'flat')} index for GPUs"
    return None if number < gpus() else "this FAISS sees no such GPU (faiss-cpu has no part for GPUs)"


def _without_memory(error: RuntimeError, device: Any) -> Exception:
    if not is_out_of_memory(error):
        return error
    return MocoembedError(f"The memory of {device} is too small to compare the vectors there. Leave out --device, or "
                          "give --device cpu.")
