"""BatchNorm folded into the convolutions before it: a network in evaluation mode -> the same function, faster.

Pairs are found by running the network once and watching which convolution's output a BatchNorm takes; what comes out
afterwards is compared with what came out before. So networks that torch.fx cannot trace are folded, too.
"""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOLERANCE = 1e-3  # of the largest number that comes out; float32 rounds the folded weights once more


def fold(network: nn.Module, side: int) -> nn.Module:
    """The network with its BatchNorms made part of the convolutions before them; `network` itself stays as it is.

    It is in evaluation mode and takes (N, 3, S, S), with S = `side` tried. A BatchNorm that does not directly follow a
    convolution stays: one that comes before it cannot be folded where the border is padded. An activation inside a
    BatchNorm, as timm has them, takes its place. Where the outputs then differ, because a convolution's output also
    goes elsewhere or a layer changes its weights as it runs, or where the trial fails, `network` is what comes back.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return network
    folded, like = copy.deepcopy(network), next(network.parameters())
    probe = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(like)
    with torch.no_grad():
        try:
            pairs, before = _watched(folded, probe)
            if not pairs:
                return network
            names = {layer: name for name, layer in folded.named_modules()}
            for conv, norm in pairs:
                mean, variance = norm.running_mean, norm.running_var
                if mean is None or variance is None:  # it takes those of the batch
                    continue
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps,
                                                              norm.weight, norm.bias)
                folded.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
            after = folded(probe)
        except (RuntimeError, MemoryError):  # of the memory or the size: the first batch will say so
            return network
    return folded if bool((after - before).abs().max() <= TOLERANCE * before.abs().max()) else network


def _watched(network: nn.Module, probe: torch.Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], torch.Tensor]:
    """The pairs whose convolution gives its output to one BatchNorm, each run once; and what the network gives."""
    runs: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # holds the outputs, so that no other tensor has their `id`
    takers: dict[nn.Conv2d, list[nn.BatchNorm2d]] = {}

    def watch(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor):
        runs[layer] += 1
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = layer, output
        elif isinstance(layer, nn.BatchNorm2d) and id(inputs[0]) in made:
            takers.setdefault(made[id(inputs[0])][0], []).append(layer)

    hooks = [layer.register_forward_hook(watch) for layer in network.modules()
             if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    try:
        result = network(probe)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(conv, norms[0]) for conv, norms in takers.items() if len(norms) == 1]
    return [(conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == 1], result
