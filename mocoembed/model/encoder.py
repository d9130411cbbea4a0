"""The encoder: a torchvision ResNet of any width and stem, and the projection head.

In: normalised pictures (N, 3, S, S). Out: features (N, D) of the backbone, projections (N, C) of the whole.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mocoembed.errors import UsageError
from mocoembed.model.batchnorm import GroupedBatchNorm2d

# name -> (block, layers, further arguments of torchvision's ResNet)
ARCHITECTURES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), {}),
    "resnet34": (BasicBlock, (3, 4, 6, 3), {}),
    "resnet50": (Bottleneck, (3, 4, 6, 3), {}),
    "resnet101": (Bottleneck, (3, 4, 23, 3), {}),
    "resnet152": (Bottleneck, (3, 8, 36, 3), {}),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), {"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), {"groups": 32, "width_per_group": 8}),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), {"width_per_group": 128}),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), {"width_per_group": 128}),
}


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is built from; the fields of `PretrainConfig` with the same names."""

    arch: str
    width: float
    stem: str
    head: str
    dim: int


class Backbone(ResNet):
    """A torchvision ResNet with every channel count times `width`, a choice of stem, and no classifier.

    With width 1 and the stem `7x7s2-pool` its state dict is torchvision's without `fc`. Width 2 and 4 are the
    R50w2x and R50w4x of He et al. 2019, section 4.1. Its output is (N, D); `features` is D.
    """

    def __init__(self, arch: str, width: float = 1.0, stem: str = "7x7s2-pool", bn_groups: int = 1):
        if arch not in ARCHITECTURES:
            raise UsageError(f"--arch {arch}: must be one of {', '.join(ARCHITECTURES)}.")
        block, layers, more = ARCHITECTURES[arch]
        self._width = width
        norm = partial(GroupedBatchNorm2d, groups=bn_groups)
        super().__init__(block, layers, norm_layer=norm, **more)
        channels = scaled(64, width)
        kernel, stride = (7, 2) if stem == "7x7s2-pool" else (3, int(stem[-1]))
        self.conv1 = nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = norm(channels)
        if stem != "7x7s2-pool":
            self.maxpool = nn.Identity()
        self.features = scaled(512, width) * block.expansion
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, *arguments, **more):
        if planes == 64:  # the first stage: torchvision's constructor has just set the stem's 64 channels
            self.inplanes = scaled(64, self._width)
        return super()._make_layer(block, scaled(planes, self._width), *arguments, **more)


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, at least 1; `UsageError` when it is not a whole number."""
    value = channels * width
    if value < 1 or not math.isclose(value, round(value)):
        raise UsageError(f"--width {width:g}: must make 64 channels a whole number, such as 0.25, 0.375, 0.5, 2 or 4.")
    return round(value)


class Encoder(nn.Module):
    """Backbone and projection head: f_q or f_k. `forward` gives projections that are not yet normalised."""

    def __init__(self, spec: EncoderSpec, bn_groups: int = 1):
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec.arch, spec.width, spec.stem, bn_groups)
        self.head = projection_head(spec.head, self.backbone.features, spec.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))  # N x 3 x S x S -> N x D -> N x C


def projection_head(kind: str, features: int, dim: int) -> nn.Module:
    """D -> C: one linear layer (MoCo v1), or linear, ReLU, linear with a hidden layer of D (MoCo v2).

    `none`, for an encoder that came without a head, leaves the features as they are.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Sequential(OrderedDict(fc=nn.Linear(features, dim)))
    return nn.Sequential(OrderedDict(hidden=nn.Linear(features, features), relu=nn.ReLU(inplace=True),
                                     fc=nn.Linear(features, dim)))


def count_parameters(module: nn.Module) -> int:
    """Number of trained numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def torchvision_layout(spec: EncoderSpec) -> bool:
    """Whether `torchvision.models.<arch>` can load this backbone's weights."""
    return spec.width == 1 and spec.stem == "7x7s2-pool" and hasattr(torchvision.models, spec.arch)
