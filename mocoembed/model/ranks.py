"""The processes of one pretraining, and what they tell each other.

A global batch of B images is cut into contiguous slices: rank r of W has images r B/W to (r + 1) B/W - 1. With one
process (the default) nothing is sent and every function below is its plain meaning.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mocoembed.data.uploads import uploaded
from mocoembed.errors import MocoembedError

AT_WORK, DONE = 0, 1
SECONDS_BETWEEN_SIGNS = 1.0
# The same under the name that newer versions of PyTorch give it, which warn of the other.
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` processes; a process group of that size must have been joined."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place among the processes of this machine."""
    local_size: int = 1
    """Number of processes on this machine."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's slice of x (B, ...)."""
        n = len(x) // self.size
        return x[self.rank * n:(self.rank + 1) * n]

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...): the slices x (B/W, ...) of all ranks; no gradient."""
        if self.size == 1:
            return x
        whole = x.new_empty(self.size * len(x), *x.shape[1:])
        getattr(dist, GATHER)(whole, x.detach().contiguous())
        return whole

    def gather_with_gradient(self, x: torch.Tensor) -> torch.Tensor:
        """As `gather`; backward, a slice gets the sum of what all ranks have for it."""
        return x if self.size == 1 else _Gather.apply(x, self)

    def exchange(self, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """(B/W, ...): this rank's slice of whole[order], where x (B/W, ...) is its slice of the whole.

        `order` (B,) is on the CPU and the same on all ranks. Every row is sent once, straight to where it is wanted.
        """
        if self.size == 1:
            return x[order.to(x.device, non_blocking=True)]
        n = len(x)
        sent = [wanted[wanted // n == self.rank] - self.rank * n for wanted in order.chunk(self.size)]
        sources = self.own(order) // n  # the rank that has the row
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x[uploaded(torch.cat(sent), x.device)],
                               sources.bincount(minlength=self.size).tolist(), [len(rows) for rows in sent])
        rows = torch.empty_like(received)
        rows[uploaded(sources.argsort(stable=True), x.device)] = received  # they come sorted by source
        return rows

    @torch.no_grad()
    def average(self, tensors: list[torch.Tensor]):
        """Replace each tensor by its mean over the ranks, in one reduction."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors)])

    def objects(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; for now and then, not for every step."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, function: Callable[[], Any]) -> Any:
        """What `function()` gives on rank 0, on all ranks; also the `MocoembedError` that it raises there.

        It may take longer than the group's timeout, and must not talk to the other ranks.
        """
        if self.size == 1:
            return function()
        message: list[Any] = [AT_WORK, None, None]
        if self.first:
            with _signs_of_life():
                try:
                    message = [DONE, function(), None]
                except MocoembedError as error:
                    message = [DONE, None, error]
            _broadcast(message)
        while message[0] == AT_WORK:
            _broadcast(message)
        _, result, failure = message
        if failure is not None:
            raise self.agreed(failure)
        return result

    def agreed(self, error: MocoembedError) -> MocoembedError:
        """The error, which all ranks are about to raise and rank 0 alone has to print."""
        error.quiet = not self.first
        return error

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over the ranks while they come in."""
        if self.size == 1:
            return module
        # Each rank keeps its own BatchNorm statistics; `average` is called for them. Newer torch has a newer name.
        parallel = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in inspect.signature(parallel).parameters
        own_buffers: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return parallel(module, gradient_as_bucket_view=True, **own_buffers)


ALONE = Ranks()


def _broadcast(message: list[Any]):
    """Send a message of rank 0's, or fill it with the one that comes."""
    dist.broadcast_object_list(message, device=torch.device("cpu"))


@contextlib.contextmanager
def _signs_of_life() -> Iterator[None]:
    """On rank 0, while the block runs: tell the others, who would give up after a time, that it is at work."""
    over = threading.Event()

    def tell():
        with contextlib.suppress(RuntimeError):  # another has ended: the next broadcast says so
            while not over.wait(SECONDS_BETWEEN_SIGNS):
                _broadcast([AT_WORK, None, None])

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join()  # not after an error: a rank that hangs would delay the end of the job


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, x, ranks):
        context.ranks = ranks
        return ranks.gather(x)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return context.ranks.own(gradient), None
