"""The queue: the newest K keys, in a ring that is written in place."""

import torch
from torch import nn
from torch.nn import functional


class Queue(nn.Module):
    """The dictionary of K negatives of length C (He et al. 2019, section 3.2).

    `keys` is C x K with columns of length 1; it starts as random directions, as in the authors' code. Any K goes
    with any batch size. `counter`, saved with the keys, is the number of keys that ever came; modulo K it is the
    pointer to the oldest key. `rows` (K,) int64 tells whose keys they are: rows of the collection, -1 where that is not
    known.
    """

    keys: torch.Tensor
    rows: torch.Tensor
    counter: torch.Tensor

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.register_buffer("keys", functional.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("rows", torch.full((size,), -1))
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
        self.enqueued = 0  # the counter's value, at hand without waiting for the device

    @property
    def size(self) -> int:
        """K."""
        return self.keys.shape[1]

    @property
    def filled(self) -> int:
        """Number of columns that hold real keys."""
        return min(self.enqueued, self.size)

    @torch.no_grad()
    def enqueue(self, k: torch.Tensor, rows: torch.Tensor | None):
        """Write keys (N, C) of images `rows` (N,) over the oldest ones; of more than K keys the last K stay.

        With `rows` `None`, whose keys they are is not noted.
        """
        skipped = max(0, len(k) - self.size)
        columns = k[skipped:].T.to(self.keys.dtype)  # C x N
        start = (self.enqueued + skipped) % self.size  # the pointer: the oldest key's column
        before_the_end = min(columns.shape[1], self.size - start)
        for ring, new in ((self.keys, columns), *([] if rows is None else [(self.rows, rows[skipped:])])):
            ring[..., start:start + before_the_end] = new[..., :before_the_end]
            ring[..., :columns.shape[1] - before_the_end] = new[..., before_the_end:]
        self.enqueued += len(k)
        self.counter.fill_(self.enqueued)

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self.enqueued = int(self.counter)
