"""BatchNorm over groups of the batch, as if each group were on a GPU of its own."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over G contiguous, equally large groups of the batch in training; plain BatchNorm otherwise.

    Stands in for per-GPU BatchNorm on one device (He et al. 2019, section 3.3; contiguous groups, as ranks have
    them). The running statistics take one update by the mean of the groups' statistics, which is what G processes
    have after averaging theirs. Same parameters and buffers as `nn.BatchNorm2d`.
    """

    def __init__(self, features: int, groups: int = 1):
        super().__init__(features)
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W), any memory format; a last, smaller batch is split as evenly as it goes."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        groups = max(1, min(self.groups, len(x) // 2))
        smaller, rest = divmod(len(x), groups)
        sizes = [smaller + (g < rest) for g in range(groups)]
        assert self.momentum is not None  # the constructor sets it, and the counter
        assert self.num_batches_tracked is not None
        momenta = shares_of_update(self.momentum, groups)
        self.num_batches_tracked.add_(1)
        if torch.compiler.is_compiling():  # the compiler makes one pass of it by itself
            parts = [functional.batch_norm(part, self.running_mean, self.running_var, self.weight, self.bias,
                                           training=True, momentum=momentum, eps=self.eps)
                     for part, momentum in zip(x.split(sizes), momenta)]
            return torch.cat(parts)
        return _Grouped.apply(x, self.weight, self.bias, (self.running_mean, self.running_var),
                              list(zip(sizes, momenta)), self.eps)


def shares_of_update(momentum: float, count: int) -> list[float]:
    """Momenta of `count` updates, one after another, that add up to one update with equal shares of what each brings.

    They hold for all `count` in a row; pieces of them may come in several forward passes.
    """
    share = momentum / count
    return [share / (1 - (count - 1 - i) * share) for i in range(count)]


class _Grouped(torch.autograd.Function):
    """Each group's BatchNorm, written straight to its place: nothing is concatenated, forward or backward.

    The kernels are those of `functional.batch_norm`; statistics have the dtype of the weight (float32 under autocast).
    """

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
                running: tuple[torch.Tensor, torch.Tensor], groups: list[tuple[int, float]],
                eps: float) -> torch.Tensor:
        sizes, momenta = zip(*groups)
        y = torch.empty_like(x)
        means, inverse_stds = weight.new_empty(2, len(sizes), len(weight)).unbind()  # G x C each
        for part, out, momentum, mean, inverse_std in zip(x.split(sizes), y.split(sizes), momenta, means, inverse_stds):
            torch.native_batch_norm(part, weight, bias, *running, True, momentum, eps, out=(out, mean, inverse_std))
        context.save_for_backward(x, weight, means, inverse_stds)
        context.sizes, context.eps = sizes, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, means, inverse_stds = context.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = weight.new_zeros(2, len(weight)).unbind()
        parts = list(zip(x.split(context.sizes), gradient.split(context.sizes), grad_x.split(context.sizes), means,
                         inverse_stds))
        for part, grad_out, place, mean, inverse_std in reversed(parts):  # the order in which autograd would add them
            found = torch.ops.aten.native_batch_norm_backward(grad_out, part, weight, None, None, mean, inverse_std,
                                                              True, context.eps, (True, True, True))
            place.copy_(found[0])  # while it is in the cache
            grad_weight += found[1]
            grad_bias += found[2]
        return grad_x, grad_weight, grad_bias, None, None, None


def grouped(layer: nn.BatchNorm2d, groups: int) -> GroupedBatchNorm2d:
    """A layer as new as `layer`, with its parameters, that works in groups."""
    new = GroupedBatchNorm2d(layer.num_features, groups)
    new.eps, new.momentum = layer.eps, layer.momentum
    new.weight, new.bias = layer.weight, layer.bias
    return new
