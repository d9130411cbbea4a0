"""Ids -> rows of the embeddings file, many at a time.

Ids are spread evenly over their range, as digests are: the first bits of one tell, to within a few places, where it
stands among the sorted ids. A binary search of a million ids looks at twenty places, of which no cache holds the last.
"""

import numpy as np

SHARING = 64  # ids that have their first bits in common, at most; ids that lie less evenly are found by binary search
END = np.iinfo(np.int64).max


class RowsOfIds:
    """The row of each id, from the ids (N,) int64 of all rows."""

    def __init__(self, ids: np.ndarray):
        order = np.argsort(ids)
        rising = ids[order]
        self._order, self._ids = np.append(order, -1), np.append(rising, END)  # what is larger than all is no row's
        self._shift, self._first = 0, np.empty(0, np.int64)
        if len(ids) and rising[0] >= 0:
            self._shift = max(0, int(rising[-1]).bit_length() - len(ids).bit_length())
            counts = np.bincount(rising >> self._shift)
            if counts.max() <= SHARING:
                self._first = np.cumsum(counts) - counts

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Rows, int64 in the shape of `ids` (int64); -1 for an id that no row has."""
        if not len(self._first):
            places = np.searchsorted(self._ids, ids)
        else:
            places = self._first[np.maximum(np.minimum(ids >> self._shift, len(self._first) - 1), 0)]
            while (below := self._ids[places] < ids).any():
                places = places + below
        return np.where(self._ids[places] == ids, self._order[places], -1)
