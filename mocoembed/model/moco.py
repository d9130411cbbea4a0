"""Momentum Contrast: two encoders, the momentum update between them, the queue, shuffled BatchNorm.

Symbols as in He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (2019): query q, key
k, queue size K, momentum m, feature length C; B is the number of images in the global batch, N this rank's share.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from mocoembed.model.encoder import Encoder
from mocoembed.model.pieces import OneUpdate, Piece
from mocoembed.model.queue import Queue
from mocoembed.model.ranks import ALONE, Ranks


class Views(NamedTuple):
    """The views of one step, normalised, on the device."""

    queries: list[torch.Tensor]
    """One view (N, 3, S, S) of this rank's images, or, for a symmetric loss, both."""
    keys: list[torch.Tensor]
    """For each of `queries` the other view (N, 3, S, S), of keys' own S, of the images whose keys this rank encodes.

    For a memory bank, which encodes none, any.
    """
    rows: torch.Tensor
    """(N,) int64: this rank's images, by their rows in the collection."""
    order: torch.Tensor | None = None
    """(B,) int64 on the CPU: keys are encoded in the order whole[order]; `None`: unshuffled."""
    step: int = 0
    pieces: tuple[Piece, ...] = ()
    """In which the encoders see the images, one after another; none: all at once."""


class Keys(NamedTuple):
    """What the queries are compared with."""

    positive: torch.Tensor
    """(N, C)."""
    negatives: torch.Tensor
    """(C, K)."""
    excluded: torch.Tensor | None
    """(N, K) bool: negatives that show the query's own image; `None`: there are none, or they stay."""
    new: torch.Tensor | None
    """(B, C): the keys of the whole batch, for the queue."""


class MoCo(nn.Module):
    """encoder_q (trained), encoder_k (its moving average, no gradient) and the queue of K keys."""

    def __init__(self, encoder_q: Encoder, K: int, m: float, mask_same_image: bool = False, ranks: Ranks = ALONE):
        super().__init__()
        self.m, self.mask_same_image, self.ranks = m, mask_same_image, ranks
        self.encoder_q = encoder_q
        self.encoder_k = copy.deepcopy(encoder_q).requires_grad_(False)  # the encoders start equal
        self.queue = Queue(encoder_q.spec.dim, K)
        self.trained: dict[str, nn.Module] = {"encoder_q": encoder_q}  # `wrap_trained` may wrap them

    def query(self, x_q: torch.Tensor) -> torch.Tensor:
        """q (N, C) of unit length from views (N, 3, S, S)."""
        return encode(self.trained["encoder_q"], x_q)

    @torch.no_grad()
    def momentum_update(self):
        """theta_k <- m theta_k + (1 - m) theta_q (equation 2); running statistics are each encoder's own."""
        theta_q: list[torch.Tensor] = list(self.encoder_q.parameters())
        theta_k: list[torch.Tensor] = list(self.encoder_k.parameters())
        torch._foreach_lerp_(theta_k, theta_q, 1 - self.m)

    @torch.no_grad()
    def key(self, x_k: torch.Tensor, views: Views) -> Keys:
        """The keys of unit length of views x_k, which came shuffled between BatchNorm's groups (section 3.3)."""
        k = unshuffled(self.ranks.gather(encode_pieces(self.encoder_k, x_k, views.pieces)), views.order)  # B x C
        excluded = views.rows.view(-1, 1) == self.queue.rows if self.mask_same_image else None
        return Keys(self.ranks.own(k), self.queue.keys, excluded, k)

    @torch.no_grad()
    def remember(self, q: list[torch.Tensor], k: list[Keys], views: Views):
        """Enqueue the step's keys; the oldest ones go."""
        rows = self.ranks.gather(views.rows) if self.mask_same_image else None
        for keys in reversed(k):
            assert keys.new is not None  # as `key` made them
            self.queue.enqueue(keys.new, rows)


def encode(encoder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """(N, C) of unit length, in float32 or float64, whatever the arithmetic of the encoder."""
    z = encoder(x)
    return functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)


def encode_pieces(encoder: nn.Module, x: torch.Tensor, pieces: tuple[Piece, ...]) -> torch.Tensor:
    """As `encode`, piece by piece; for what takes no gradient, whose memory is then one piece's."""
    if not pieces:
        return encode(encoder, x)
    update, k = OneUpdate(encoder), []
    for piece in pieces:
        with update.of(piece):
            k.append(encode(encoder, x[piece.images]))
    return torch.cat(k)


def unshuffled(k: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """k (B, C) in the images' order, from keys that were encoded in the order whole[order]."""
    return k if order is None else k[order.to(k.device, non_blocking=True).argsort()]


def batch_statistics(method: nn.Module) -> list[torch.Tensor]:
    """BatchNorm's running means and variances in all encoders."""
    return [buffer for name, buffer in method.named_buffers() if name.endswith(("running_mean", "running_var"))]


def wrap_trained(trained: dict[str, nn.Module], ranks: Ranks) -> None:
    """Let gradients be averaged over the ranks in what is trained, and in nothing else."""
    trained.update({name: ranks.wrap(encoder) for name, encoder in trained.items()})


@contextlib.contextmanager
def gradients_summed_up(trained: dict[str, nn.Module]) -> Iterator[None]:
    """In the block, forward and backward only add to this rank's gradients; the next backward averages the sum."""
    with contextlib.ExitStack() as held:
        for encoder in trained.values():
            if isinstance(encoder, nn.parallel.DistributedDataParallel):
                held.enter_context(encoder.no_sync())
        yield
