"""BatchNorm in groups: ours against one call for each group, against the authors' reshape and against one group.

    OMP_NUM_THREADS=1 python benchmarks/batchnorm_speed.py [--case cifar] [--rounds 7]

`reshape` is the idea of the authors' SplitBatchNorm: the batch is viewed as N/G samples of G C channels, so that one
call does for all groups. Sample i is then in group i modulo G, which no set of ranks has, and only the plain layout
can be viewed so: it runs in that one, the others channels-last, as we train. `calls` is what `GroupedBatchNorm2d` once
was, one call for each group and a concatenation. `fused` takes the statistics of all groups in one pass and normalises
in another, by plain operations, whose backward pass is autograd's. `one` is plain BatchNorm. A round is a forward and a
backward pass of each in turn. Seconds are the process's own, so that other work on the machine counts as little as it
can.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from mocoembed.memory import freed_memory_kept
from mocoembed.model.batchnorm import GroupedBatchNorm2d, shares_of_update
from mocoembed.model.encoder import Encoder, EncoderSpec

# Encoder, batch, side of a view
CASES = {"cifar": (EncoderSpec("resnet18", 1.0, "3x3s1", "linear", 128), 64, 32),
         "resnet50": (EncoderSpec("resnet50", 1.0, "7x7s2-pool", "mlp", 128), 16, 224)}


class Calls(GroupedBatchNorm2d):
    """One call for each group, and a concatenation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [functional.batch_norm(part, self.running_mean, self.running_var, self.weight, self.bias, True,
                                       momentum, self.eps)
                 for part, momentum in zip(x.chunk(self.groups), shares_of_update(self.momentum, self.groups))]
        return torch.cat(parts)


class Reshape(GroupedBatchNorm2d):
    """Groups as channels, in one call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        mean, var = self.running_mean.repeat(self.groups), self.running_var.repeat(self.groups)
        y = functional.batch_norm(x.view(n // self.groups, c * self.groups, h, w), mean, var,
                                  self.weight.repeat(self.groups), self.bias.repeat(self.groups), True, self.momentum,
                                  self.eps)
        self.running_mean.copy_(mean.view(self.groups, c).mean(dim=0))
        self.running_var.copy_(var.view(self.groups, c).mean(dim=0))
        return y.view(n, c, h, w)


class Fused(GroupedBatchNorm2d):
    """The statistics of all groups in one pass, channels-last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(0, (self.groups, -1))  # G x N/G x C x H x W
        var, mean = torch.var_mean(parts, dim=(1, 3, 4), correction=0, keepdim=True)  # G x 1 x C x 1 x 1
        scale = self.weight.view(-1, 1, 1) * (var + self.eps).rsqrt()
        y = parts * scale + (self.bias.view(-1, 1, 1) - mean * scale)
        count = parts[0].numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(dim=0).flatten(), self.momentum)
            self.running_var.lerp_(var.mean(dim=0).flatten() * count / (count - 1), self.momentum)
        return y.flatten(0, 1)


def built(spec: EncoderSpec, groups: int, kind: type | None) -> nn.Module:
    """The encoder in training, its BatchNorm layers made `kind`."""
    torch.manual_seed(0)
    encoder = Encoder(spec, groups).train()
    for layer in encoder.modules():
        if kind and isinstance(layer, GroupedBatchNorm2d):
            layer.__class__ = kind
    return encoder.to(memory_format=torch.contiguous_format if kind is Reshape else torch.channels_last)


def timed(encoder: nn.Module, x: torch.Tensor, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of a forward and a backward pass."""
    begun = clock()
    encoder(x).square().sum().backward()
    encoder.zero_grad(set_to_none=True)
    return clock() - begun


def main():
    """Print the median seconds of each kind and how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=tuple(CASES), default="cifar")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    spec, batch, side = CASES[arguments.case]
    kinds = {"ours": built(spec, arguments.groups, None), "calls": built(spec, arguments.groups, Calls),
             "reshape": built(spec, arguments.groups, Reshape),
             "fused": built(spec, arguments.groups, Fused), "one": built(spec, 1, None)}
    x = torch.randn(batch, 3, side, side)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with freed_memory_kept():
        for turn in range(arguments.rounds + 1):
            for name, encoder in kinds.items():
                plain = name == "reshape"
                seconds = timed(encoder, x if plain else x.contiguous(memory_format=torch.channels_last))
                if turn:
                    found[name].append(seconds)
    print(f"{arguments.case}, batch {batch}, {side} pixels, {arguments.groups} groups, fp32, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads, n = {arguments.rounds}")
    for name, values in found.items():
        ratios = [one / ours for one, ours in zip(values, found["ours"])]
        print(f"{name:8} {statistics.median(values):7.2f} s ({min(values):.2f} to {max(values):.2f}); ours is "
              f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
