"""kNN through an index file of the bank: query vectors -> the labelled rows of the bank that are nearest.

An approximate index misses some neighbours. Of those that it finds, the unlabelled ones do not vote, nor does the query
itself in leave-one-out; where too few are left, the query is compared with the whole bank.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from mocoembed.checks import is_gpu
from mocoembed.embed.store import EmbeddingFile
from mocoembed.evaluate.sides import Side
from mocoembed.knn import nearest, neighbours
from mocoembed.search.index import SearchIndex
from mocoembed.search.matching import index_by_cosine, told
from mocoembed.search.on_gpu import move

AT_ONCE = 1 << 22  # neighbours that are looked for at a time


class IndexNeighbours:
    """Called as `knn.neighbours` is; only for queries against the bank that the index was built from."""

    def __init__(self, index: SearchIndex, file: EmbeddingFile, bank: Side):
        """`bank`: the rows of `file` that vote."""
        self._source, self._voters = index.rows(file), len(bank.rows)
        self._place = np.full(len(file), -1, np.int64)  # of each row of the file in the bank
        self._place[bank.rows] = np.arange(self._voters)

    def __call__(self, queries: torch.Tensor, bank: torch.Tensor, k: int, leave_one_out: bool = False,
                 progress: Callable[[int, int], None] = lambda done, total: None,
                 ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Similarities (q, k) and places in the bank (q, k) of the next q queries, the nearest first."""
        k = min(k, self._voters - leave_one_out)
        wanted = min(len(self._source), int((k + leave_one_out) * len(self._place) / self._voters) + 1)
        step = max(1, AT_ONCE // max(1, wanted))
        for first in range(0, len(queries), step):
            some = queries[first:first + step]
            own = np.arange(first, first + len(some)) if leave_one_out else None
            yield self._found(some, bank, k, wanted, own)
            progress(first + len(some), len(queries))

    def _found(self, queries: torch.Tensor, bank: torch.Tensor, k: int, wanted: int,
               own: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        scores, rows = self._source.nearest(queries.cpu().numpy(), max(1, wanted))
        places = np.where(rows >= 0, self._place[rows], -1)
        good = places >= 0 if own is None else (places >= 0) & (places != own[:, None])
        order = np.argsort(~good, axis=1, kind="stable")[:, :k]  # the good ones first, as they come
        similarities = torch.from_numpy(np.take_along_axis(scores, order, axis=1)).to(bank.device)
        found = torch.from_numpy(np.take_along_axis(places, order, axis=1)).to(bank.device)
        for line in np.flatnonzero(good.sum(axis=1) < k).tolist():  # each of them alone
            one, its = nearest(queries[line:line + 1], bank, k + (own is not None))
            kept = torch.ones_like(its[0], dtype=torch.bool) if own is None else its[0] != int(own[line])
            similarities[line], found[line] = one[0][kept][:k], its[0][kept][:k]
        return similarities, found


@contextlib.contextmanager
def neighbours_of(given: str | None, bank: Side, device: str = "auto") -> Iterator[tuple[Any, str | None]]:
    """How neighbours are found, called as `neighbours`; and the index file `given` in words, if it may miss some.

    A GPU that is asked for by `device` searches the index, too.
    """
    if given is None:
        yield neighbours, None
        return
    with EmbeddingFile(bank.path) as file:
        index = index_by_cosine(given, file)
        if is_gpu(device):
            move(index, device)
        yield IndexNeighbours(index, file, bank), None if index.exact else told(index)
