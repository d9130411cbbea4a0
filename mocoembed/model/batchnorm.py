"""BatchNorm over groups of the batch, as if each group were on a GPU of its own."""

import torch
from torch import nn
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
        share = self.momentum / groups
        smaller, rest = divmod(len(x), groups)
        parts = []
        self.num_batches_tracked.add_(1)
        # `split` has one concatenation as its backward pass; `tensor_split` fills a whole batch of zeros for each part.
        for g, part in enumerate(x.split([smaller + (g < rest) for g in range(groups)])):
            # Updates by these momenta, one after another, add up to one update with equal shares of the groups.
            momentum = share / (1 - (groups - 1 - g) * share)
            parts.append(functional.batch_norm(part, self.running_mean, self.running_var, self.weight, self.bias,
                                               training=True, momentum=momentum, eps=self.eps))
        return torch.cat(parts)


def grouped(layer: nn.BatchNorm2d, groups: int) -> GroupedBatchNorm2d:
    """A layer as new as `layer`, with its parameters, that works in groups."""
    new = GroupedBatchNorm2d(layer.num_features, groups)
    new.eps, new.momentum = layer.eps, layer.momentum
    new.weight, new.bias = layer.weight, layer.bias
    return new
