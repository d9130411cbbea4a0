"""The encoder: a torchvision ResNet of any width and stem, or another classifier, and the projection head.

In: normalised images (N, 3, S, S). Out: features (N, D) of the backbone, projections (N, C) of the whole.
"""

import math
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import StochasticDepth

from mocoembed.errors import UsageError
from mocoembed.model.batchnorm import GroupedBatchNorm2d, grouped
from mocoembed.model.timm_backbone import PREFIX, TimmBackbone, synchronized_timm

# name -> (block, layers, further arguments of torchvision's ResNet); all are torchvision's but resnext50_32x8d, which
# is the ResNeXt-50 of He et al. 2019.
ARCHITECTURES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), {}),
    "resnet34": (BasicBlock, (3, 4, 6, 3), {}),
    "resnet50": (Bottleneck, (3, 4, 6, 3), {}),
    "resnet101": (Bottleneck, (3, 4, 23, 3), {}),
    "resnet152": (Bottleneck, (3, 8, 36, 3), {}),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), {"groups": 32, "width_per_group": 4}),
    "resnext50_32x8d": (Bottleneck, (3, 4, 6, 3), {"groups": 32, "width_per_group": 8}),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), {"groups": 32, "width_per_group": 8}),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), {"groups": 64, "width_per_group": 4}),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), {"width_per_group": 128}),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), {"width_per_group": 128}),
}
# Families of torchvision's other classifiers that cannot be backbones here, with the reason.
UNFIT = {
    "mnasnet": "torchvision's MNASNet refuses weights that are a plain state dict, as encoder files hold",
    "squeezenet": "it ends in a convolution, not in a linear layer that can be taken off",
}
# Without the classifiers on the side that only training has.
ARGUMENTS = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # which are in the published weights of these two

ONEDNN_BLOCK = 16  # channels


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
    R50w2x and R50w4x of He et al. 2019, section 4.1. Its output is (N, D); `features` is D. As in every backbone,
    `classifiers` names what others' weights may have beyond it.
    """

    def __init__(self, arch: str, width: float = 1.0, stem: str = "7x7s2-pool", bn_groups: int = 1):
        block, layers, more = ARCHITECTURES[arch]
        self._width = width
        norm = partial(GroupedBatchNorm2d, groups=bn_groups)
        super().__init__(block, layers, norm_layer=norm, **more)
        channels = scaled(64, width)
        kernel, stride = (7, 2) if stem == "7x7s2-pool" else (3, int(stem[-1]))
        self.conv1 = nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = norm(channels)
        if stem == "7x7s2-pool":
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        else:  # as in the authors' notebook: PyTorch's own beginning for the first convolution, and no pooling
            self.maxpool = nn.Identity()
        self.features, self.classifiers = scaled(512, width) * block.expansion, ("fc",)
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, *arguments, **more):
        if planes == 64:  # the first stage: torchvision's constructor has just set the stem's 64 channels
            self.inplanes = scaled(64, self._width)
        layers = super()._make_layer(block, scaled(planes, self._width), *arguments, **more)
        shortcut = layers[0].downsample
        if shortcut is not None and shortcut[0].stride != (1, 1) and shortcut[0].in_channels < ONEDNN_BLOCK:
            old = shortcut[0]
            shortcut[0] = nn.utils.skip_init(Subsampled, old.in_channels, old.out_channels, 1, old.stride, bias=False)
        return layers


class Subsampled(nn.Conv2d):
    """A convolution of kernel 1 that takes every `stride`-th pixel first, which is the same.

    With a stride and fewer than 16 channels (8 without AVX-512), oneDNN's gradient of such weights writes beyond its
    memory where the channels are last: the process dies, or the numbers are wrong (oneDNN issue 6035, torch 2.14.1).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, across = self.stride
        return functional.conv2d(x[:, :, ::down, ::across], self.weight, self.bias)  # -> N x C' x H/s x W/s


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, at least 1; `UsageError` when it is not a whole number."""
    value = channels * width
    if value < 1 or not math.isclose(value, round(value)):
        raise UsageError(f"--width {width:g}: must make 64 channels a whole number, such as 0.25, 0.375, 0.5, 2 or 4.")
    return round(value)


class OtherBackbone(nn.Module):
    """Any other classifier of torchvision without its last linear layer; `features` is that layer's input size D.

    Its state dict is torchvision's without that layer; the network is wrapped, and its tensors renamed, because many
    of these networks have a part that is itself called `features`. BatchNorm layers are `GroupedBatchNorm2d`; dropout
    and stochastic depth are off, because they would draw from a stream of random numbers that no checkpoint holds.
    """

    def __init__(self, arch: str, bn_groups: int = 1):
        super().__init__()
        self.network = torchvision.models.get_model(arch, weights=None, **ARGUMENTS.get(arch, {}))
        last, linear = [(name, one) for name, one in self.network.named_modules() if isinstance(one, nn.Linear)][-1]
        self.features, self.classifiers = linear.in_features, (last, *AUXILIARY)
        self.network.set_submodule(last, nn.Identity())
        for name, layer in list(self.network.named_modules()):
            if isinstance(layer, nn.BatchNorm2d):
                self.network.set_submodule(name, grouped(layer, bn_groups))
            elif isinstance(layer, nn.Dropout | StochasticDepth):
                layer.p = 0.0
        self.register_state_dict_post_hook(_to_torchvisions_names)
        self.register_load_state_dict_pre_hook(_from_torchvisions_names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)  # N x 3 x S x S -> N x D


def _to_torchvisions_names(module, state: dict, prefix: str, metadata):
    inner = f"{prefix}network."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)


def _from_torchvisions_names(module, state: dict, prefix: str, *rest):
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)


def build_backbone(arch: str, width: float, stem: str,
                   bn_groups: int = 1) -> Backbone | OtherBackbone | TimmBackbone:
    """The backbone of that name, (N, 3, S, S) -> (N, D) with D in `features`; `UsageError` for what there is not."""
    if arch in ARCHITECTURES:
        return Backbone(arch, width, stem, bn_groups)
    if arch.startswith(PREFIX):
        _require_no_width(arch, width, stem)
        return TimmBackbone(arch, bn_groups)
    for family, reason in UNFIT.items():
        if arch.startswith(family):
            raise UsageError(f"--arch {arch}: cannot be a backbone: {reason}.")
    if arch not in (known := known_architectures()):
        raise UsageError(f"--arch {arch}: must be timm:NAME or one of {', '.join(known)}.")
    _require_no_width(arch, width, stem)
    return OtherBackbone(arch, bn_groups)


def _require_no_width(arch: str, width: float, stem: str):
    if (width, stem) != (1, "7x7s2-pool"):
        raise UsageError(f"--arch {arch}: has one width and one stem; --width {width:g} and --stem {stem} are for "
                         "ResNets only. Give --width 1 --stem 7x7s2-pool.")


def known_architectures() -> list[str]:
    """Names for `--arch`: the ResNet family, then torchvision's other classifiers."""
    others = torchvision.models.list_models(module=torchvision.models)
    return [*ARCHITECTURES, *(name for name in others if name not in ARCHITECTURES and not name.startswith((*UNFIT,)))]


class Encoder(nn.Module):
    """Backbone and projection head: f_q or f_k. `forward` gives projections that are not yet normalised."""

    def __init__(self, spec: EncoderSpec, bn_groups: int = 1):
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.arch, spec.width, spec.stem, bn_groups)
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


def zero_init_residual(backbone: nn.Module):
    """Let residual blocks begin as the identity: their last BatchNorm's weight becomes 0 (Goyal et al. 2017, 5.1)."""
    last = [block.bn3 if isinstance(block, Bottleneck) else block.bn2 for block in backbone.modules()
            if isinstance(block, BasicBlock | Bottleneck)]
    if not last:
        raise UsageError("--zero-init-residual: is for ResNets only. "
                         f"Give --arch {', '.join(ARCHITECTURES)}.")
    for norm in last:
        nn.init.zeros_(norm.weight)


def synchronized(encoder: Encoder) -> Any:
    """The encoder with BatchNorm over all processes, made with one group."""
    if encoder.spec.arch.startswith(PREFIX):
        return synchronized_timm(encoder)
    return nn.SyncBatchNorm.convert_sync_batchnorm(encoder)


def check_backbone(encoder: Encoder, image_size: int, key_image_size: int | None = None):
    """Try one image of each wanted size before training; `UsageError` when it does not go through.

    Warns when the backbone has no BatchNorm.
    """
    arch, backbone, training = encoder.spec.arch, encoder.backbone, encoder.training
    for size in dict.fromkeys((image_size, key_image_size or image_size)):
        image = next(backbone.parameters()).new_zeros(1, 3, size, size)
        try:
            with torch.inference_mode():
                backbone.eval()(image)
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            option = "--image-size" if size == image_size else "--key-image-size"
            raise UsageError(f"{option} {size}: does not go with --arch {arch} ({reason}). "
                             "Vision transformers take 224 only; others have a smallest size.") from error
        finally:
            backbone.train(training)
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in backbone.modules()):
        warnings.warn(f"--arch {arch} has no BatchNorm: --bn-groups and shuffling the keys do nothing.", stacklevel=2)


def count_parameters(module: nn.Module) -> int:
    """Number of trained numbers in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def torchvision_layout(spec: EncoderSpec) -> bool:
    """Whether torchvision can load this backbone's weights (resnext50_32x8d: into its class `ResNet`)."""
    return spec.width == 1 and spec.stem == "7x7s2-pool" and not spec.arch.startswith(PREFIX)
