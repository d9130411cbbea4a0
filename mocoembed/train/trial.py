"""The memory of a step, measured: a few images go through an encoder, forward and backward, as in `training_step`.

On a GPU its allocator says what the peak was. On a CPU every tensor that an operation makes is counted from its birth
to its end, because the process's size says little there: the C library keeps freed memory, by intention.
"""

import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mocoembed.config import PretrainConfig
from mocoembed.model.encoder import Encoder
from mocoembed.model.loss import info_nce
from mocoembed.model.moco import encode
from mocoembed.model.precision import Compute

FEW, MORE = 2, 4  # images of the two trials


class Tally(TorchDispatchMode):
    """Counts, within the block, the bytes of the tensors that are made: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {one.untyped_storage()._cdata for one in _tensors((args, tuple((kwargs or {}).values())))}
        result = func(*args, **(kwargs or {}))
        for one in _tensors(result):
            self._count(one.untyped_storage(), before)
        return result

    def _count(self, storage: torch.UntypedStorage, before: set[int]):
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self._known:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._ended, key, size)

    def _ended(self, key: int, size: int):
        self.now -= size
        self._known.pop(key, None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in an operation's arguments or result, which nest in nothing but lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


@dataclass(frozen=True)
class Measured:
    """The memory in bytes of one forward and backward: `base`, and what each image of the piece adds."""

    base: int
    image: int

    def of(self, images: int) -> int:
        """Bytes for so many images at once."""
        return self.base + images * self.image


def measured(encoder: Encoder, config: PretrainConfig, compute: Compute) -> Measured:
    """By two trials, of `FEW` and of `MORE` images, on a copy: the encoder stays as it is, and nothing random is drawn.

    With the device `meta` nothing is computed and no memory taken; then autocast's smaller numbers are not seen.
    """
    copied = copy.deepcopy(encoder).to(compute.device)
    copied.requires_grad_(True).train()
    few = peak(copied, config, compute, FEW)
    image = max(0, peak(copied, config, compute, MORE) - few) // (MORE - FEW)
    return Measured(max(0, few - FEW * image), image)


def peak(encoder: Encoder, config: PretrainConfig, compute: Compute, images: int) -> int:
    """The most bytes that one forward and backward of so many images takes, gradients included."""
    device = compute.device
    x_q, x_k = (torch.zeros(images, 3, side, side, dtype=compute.dtype, device=device)
                .contiguous(memory_format=torch.channels_last) for side in config.view_sizes)
    with_gradient = config.dictionary == "end-to-end"
    keys = config.batch_size if with_gradient else config.queue_size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _pass(encoder, (x_q, x_k), keys, with_gradient, compute)
        most = torch.cuda.max_memory_allocated(device) - before
    else:
        with Tally() as tally:
            _pass(encoder, (x_q, x_k), keys, with_gradient, compute)
        most = tally.peak
    encoder.zero_grad(set_to_none=True)
    return most


def _pass(encoder: Encoder, views: tuple[torch.Tensor, torch.Tensor], keys: int, with_gradient: bool,
          compute: Compute):
    """Queries, keys and loss of a step; the key encoder's memory is like the query encoder's."""
    x_q, x_k = views
    with compute.autocast():
        q = encode(encoder, x_q)  # N x C
        with torch.set_grad_enabled(with_gradient):
            k = encode(encoder, x_k)
    negatives = q.new_zeros(q.shape[1], keys)  # C x K
    info_nce(q, k, negatives, 1.0, torch.zeros(len(q), keys, dtype=torch.bool, device=q.device)).loss.backward()
