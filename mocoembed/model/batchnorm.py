"""BatchNorm over groups of the batch, as if each group were on a GPU of its own, and BatchNorm folded away."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
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

    def plain(self) -> nn.BatchNorm2d:
        """The layer that this is in evaluation, with the same tensors."""
        layer = nn.BatchNorm2d(self.num_features, self.eps, self.momentum, device="meta")
        layer.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return layer.train(self.training)


def fold(network: nn.Module, note: Callable[[str], None]) -> nn.Module:
    """A network in evaluation mode with every BatchNorm that follows a convolution made part of that convolution.

    May change `network`, so give a copy. Other BatchNorms stay: one that comes before its convolution cannot be folded
    where the border is padded. So does everything in a network without BatchNorm and in one that torch.fx cannot trace
    or that uses a layer twice, which is said by `note(text)`.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, GroupedBatchNorm2d):
            network.set_submodule(name, layer.plain())
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return network
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # whatever the network's own code raises when its input has no values
        note(f"the network cannot be traced, so its BatchNorm is not folded ({str(error).partition(chr(10))[0]})")
        return network
    uses = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    if any(count > 1 and isinstance(traced.get_submodule(name), nn.Conv2d | nn.BatchNorm2d)
           for name, count in uses.items()):
        note("the network uses a convolution or a BatchNorm twice, so its BatchNorm is not folded")
        return network
    return fuse(traced, inplace=True, no_trace=True)
