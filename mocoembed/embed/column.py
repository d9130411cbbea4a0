"""A dataset of an embeddings file as a sequence that is read only where it is indexed, as NumPy indexes.

In: an integer, a slice (also with a step or backwards), rows in any order and repeated, or a mask (N,) of bool.
Out: what `read` makes of the rows; of a comparison, a mask.
"""

import contextlib
import operator
import os
from collections.abc import Callable, Sequence

import numpy as np

SPAN = 8  # rows in any order are read as one piece while that is at most so many times what is wanted


class Column:
    """One dataset of N rows. `column[rows]` reads those rows, `column()` or `np.asarray(column)` all of them.

    `column == value` and the other comparisons read all rows and give the mask (N,), or (N, D), that NumPy gives.
    `dataset()` gives the open dataset, `read(array)` turns an array of its rows into what a caller wants.
    """

    def __init__(self, dataset: Callable, read: Callable[[np.ndarray], Sequence | np.ndarray] = lambda rows: rows):
        self._dataset, self._read = dataset, read

    def __len__(self):
        return len(self._dataset())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole: (N,) or (N, D)."""
        return self._dataset().shape

    @property
    def ndim(self) -> int:
        """Number of axes, 1 or 2."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the array that `np.asarray` makes of the rows."""
        none = self._read(self._dataset()[:0])
        return none.dtype if isinstance(none, np.ndarray) else np.dtype(f"S{self._dataset().dtype.itemsize}")

    def _compared(self, other, compare: Callable):
        return compare(np.asarray(self), np.asarray(other) if isinstance(other, Column) else other)

    def __eq__(self, other):
        return self._compared(other, operator.eq)

    def __ne__(self, other):
        return self._compared(other, operator.ne)

    def __lt__(self, other):
        return self._compared(other, operator.lt)

    def __le__(self, other):
        return self._compared(other, operator.le)

    def __gt__(self, other):
        return self._compared(other, operator.gt)

    def __ge__(self, other):
        return self._compared(other, operator.ge)

    __hash__ = None  # type: ignore[assignment]  # a column compares row by row, as an array does

    def __call__(self, rows=slice(None)):
        return self[rows]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)

    def __iter__(self):
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows):
        if rows is Ellipsis:
            return self[:]
        if isinstance(rows, bool | np.bool_):
            raise TypeError(f"{rows} is not a row. A mask has one bool per row, such as file.labels() == 0.")
        if isinstance(rows, tuple):
            if not rows or rows[0] is Ellipsis:
                return np.asarray(self[:])[rows]
            first, *rest = rows
            one = isinstance(first, int | np.integer)
            return np.asarray(self[first])[tuple(rest) if one else (slice(None), *rest)]
        dataset = self._dataset()
        if isinstance(rows, slice):
            return self._read(_slice(dataset, rows))
        if not isinstance(rows, list | np.ndarray) or np.ndim(rows) == 0:
            row = range(len(dataset))[operator.index(rows)]  # negative ones count from the end
            return self._read(dataset[row:row + 1])[0]
        return self._read(_rows(dataset, np.arange(len(dataset))[np.asarray(rows, None if len(rows) else np.intp)]))


def _slice(dataset, rows: slice) -> np.ndarray:
    first, end, step = rows.indices(len(dataset))
    if step > 0:
        return dataset[first:max(first, end):step]
    wanted = range(first, end, step)
    return dataset[wanted[-1]:wanted[0] + 1:-step][::-1] if wanted else dataset[0:0]


def _rows(dataset, rows: np.ndarray) -> np.ndarray:
    """Rows in any order, also more than once; HDF5 itself takes rising ones only."""
    if not len(rows):
        return dataset[0:0]
    rising, place = np.unique(rows, return_inverse=True)
    first, end = int(rising[0]), int(rising[-1]) + 1
    if end - first <= SPAN * len(rising):
        return dataset[first:end][rows - first]
    return dataset[rising][place]


def column(name: str, doc: str, read: Callable[[np.ndarray], Sequence | np.ndarray] = lambda rows: rows) -> property:
    """A property of an embeddings file: its dataset of that name as a `Column`."""
    return property(lambda file: Column(lambda: file.dataset(name), read), doc=doc)


def in_place(dataset) -> np.ndarray | None:
    """All rows of a dataset of HDF5 as they lie in its file, mapped.

    `None` where they do not lie in one piece, or the process may map no more memory.
    """
    offset, file = dataset.id.get_offset(), dataset.file
    if offset is None or dataset.chunks is not None or file.driver != "sec2":
        return None
    with os.fdopen(os.dup(file.id.get_vfd_handle()), "rb") as handle, contextlib.suppress(OSError):
        return np.asarray(np.memmap(handle, dataset.dtype, "r", offset, dataset.shape))  # indexed faster
    return None


def float32(rows: np.ndarray) -> np.ndarray:
    """The rows in float32."""
    return rows.astype(np.float32, copy=False)


def texts(rows: np.ndarray) -> list[bytes]:
    """Texts of fixed length as bytes, without what fills them up."""
    return rows.astype(f"S{rows.dtype.itemsize}").tolist()


def digests(rows: np.ndarray) -> list[bytes]:
    """Opaque values as bytes."""
    return [row.tobytes() for row in rows]
