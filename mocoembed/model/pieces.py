"""A batch in pieces of a few BatchNorm groups each, with the same mathematics as the whole batch at once.

The loss is a mean over queries and BatchNorm sees each group apart, so neither asks for the whole batch together.
What does are the running statistics, which take one update a step: `OneUpdate`.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from mocoembed.model.batchnorm import GroupedBatchNorm2d


class Piece(NamedTuple):
    """Consecutive BatchNorm groups of a batch."""

    images: slice
    """Their images' places in this rank's batch."""
    groups: int
    share: float
    """Of the batch's groups."""


def cut(images: int, groups: int, at_once: int) -> tuple[Piece, ...]:
    """The pieces of a batch of so many images, `at_once` of its groups in each; none when one piece would be all.

    Groups are those that `GroupedBatchNorm2d` makes: as equal as it goes, none of one image.
    """
    groups = max(1, min(groups, images // 2))
    if at_once >= groups:
        return ()
    smaller, rest = divmod(images, groups)
    starts = [g * smaller + min(g, rest) for g in range(groups + 1)]
    ends = [min(first + at_once, groups) for first in range(0, groups, at_once)]
    return tuple(Piece(slice(starts[first], starts[end]), end - first, (end - first) / groups)
                 for first, end in zip([0, *ends], ends))


class OneUpdate:
    """Running statistics of an encoder that sees a batch piece by piece: one update, all groups with equal shares.

    Every piece updates the statistics from before the batch; their mean by the pieces' shares is what the whole batch
    makes of them, because an update is linear in a batch's statistics.
    """

    def __init__(self, encoder: nn.Module):
        self._layers = [layer for layer in encoder.modules() if isinstance(layer, GroupedBatchNorm2d)]
        layers = [layer for layer in encoder.modules() if isinstance(layer, nn.BatchNorm2d)]
        self._statistics = [one for layer in layers for one in (layer.running_mean, layer.running_var)
                            if one is not None]
        self._counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._before = [one.clone() for one in self._statistics]
        self._counts_before = [one.clone() for one in self._counts]
        self._sum = [torch.zeros_like(one) for one in self._statistics]
        self._seen = 0.0

    @contextlib.contextmanager
    def of(self, piece: Piece) -> Iterator[None]:
        """Within the block the encoder sees the piece, forward and backward, which needs the statistics it has left.

        After the last piece the statistics are those of the batch.
        """
        groups = [layer.groups for layer in self._layers]
        for layer in self._layers:
            layer.groups = piece.groups
        try:
            yield
        finally:
            for layer, count in zip(self._layers, groups):
                layer.groups = count
        if not self._statistics:
            return
        self._seen += piece.share
        torch._foreach_add_(self._sum, self._statistics, alpha=piece.share)
        over = self._seen > 1 - 1e-9  # shares sum up to 1 but for rounding
        torch._foreach_copy_(self._statistics, self._sum if over else self._before)
        if not over:
            torch._foreach_copy_(self._counts, self._counts_before)
