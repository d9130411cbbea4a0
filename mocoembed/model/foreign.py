"""Others' weights: the tensors of a file, in any known layout -> a frozen encoder of ours.

The layout is told by the keys; architecture, width and stem by the shapes. Backbones are torchvision's ResNets, at any
width, under torchvision's names or numbered as the children of an nn.Sequential. Everything is checked before anything
is copied.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.models.resnet import Bottleneck

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError
from mocoembed.model.encoder import ARCHITECTURES, Backbone, Encoder, EncoderSpec, projection_head
from mocoembed.model.encoder_file import FrozenEncoder, tool_provenance
from mocoembed.recipes import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Under which prefixes one tool keeps the parts of the encoder that is trained."""

    name: str
    backbone: str
    head: str | None = None


# The first row of which both parts are found is taken, else the first of which the backbone is.
LAYOUTS = (
    Layout("encoder_q alone", "encoder_q."),
    Layout("backbone alone", "backbone."),
    Layout("encoder alone", "encoder."),
    Layout("torchvision", ""),
    Layout("SwAV", "", "projection_head."),
    Layout("MoCo", "encoder_q.", "encoder_q.fc."),
    Layout("MoCo, CIFAR-10 demo", "encoder_q.net.", "encoder_q.net.9."),
    Layout("MoCo v3", "base_encoder.", "base_encoder.fc."),
    Layout("lightly", "query_backbone.", "query_projection_head."),
    Layout("lightly", "backbone.", "projection_head."),
    Layout("solo-learn", "backbone.", "projector."),
    Layout("solo-learn", "encoder.", "projector."),
    Layout("mmselfsup", "encoder_q.0.", "encoder_q.1."),
    Layout("mmpretrain", "backbone.", "neck."),
    Layout("VISSL", "trunk._feature_blocks.", "heads."),
    Layout("VISSL", "_feature_blocks."),
    Layout("DINO, teacher", "teacher.backbone.", "teacher.head."),
    Layout("DINO, teacher", "teacher."),
    Layout("DINO, student", "student.backbone.", "student.head."),
    Layout("DINO, student", "student."),
)
CONTAINERS = ("classy_state_dict", "base_model", "state_dict", "model_state_dict", "model")  # of the state dict
# DistributedDataParallel and AveragedModel, torch.compile, FSDP, its activation checkpointing; around all or a part
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTERS = {"total_ops", "total_params", "n_averaged"}  # left by thop in every module, and by AveragedModel
# Beside the layers of a backbone: classifiers and heads, which are not needed. Nothing else may be left over, since it
# could change the features.
HEADS = ("fc.", "head.", "classifier.", "projector.", "projection_head.", "prototypes.", "predictor.")
SHOWN = 3  # names in a message
DEPTH = 4  # dicts within dicts that are looked into
LIGHTNING = re.compile(r"^(model\.)+")  # the attribute that holds the network
OPTIONAL = "num_batches_tracked"  # BatchNorm's count of batches; the features do not depend on it


def state_dict_in(content: dict[str, Any], path) -> Tensors:
    """The tensors of the state dict in a checkpoint, nested names joined by dots, without what wrappers add.

    Raises `FormatError` when two are the same without the wrappers' names.
    """
    for _ in range(DEPTH):
        content = next((content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), content)
    tensors: Tensors = {}
    for given, tensor in _flat(content, "", DEPTH):
        parts = [part for part in given.split(".") if part not in WRAPPERS]
        if parts and parts[-1] in COUNTERS:
            continue
        name = LIGHTNING.sub("", ".".join(parts))
        if name in tensors:
            raise FormatError(f"{path} holds {name!r} twice, once within a wrapper ({given!r}). Save one of the two "
                              "networks alone.")
        tensors[name] = tensor
    return tensors


def _flat(content: dict, before: str, depth: int):
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{before}{name}", value
        elif isinstance(value, dict) and depth:
            yield from _flat(value, f"{before}{name}.", depth - 1)


def find_layout(tensors: Tensors, path) -> Layout:
    """The layout that the keys have; `FormatError` when it is none of the known ones."""
    convolutions = {name for name, tensor in tensors.items() if tensor.ndim == 4}
    fitting = [layout for layout in LAYOUTS
               if {f"{layout.backbone}conv1.weight", f"{layout.backbone}0.weight"} & convolutions]
    whole = [layout for layout in fitting if layout.head and any(name.startswith(layout.head) for name in tensors)]
    if not fitting:
        raise FormatError(f"{path} has no known layout: no key is that of a ResNet's first convolution. "
                          f"Its tensors: {some(tensors)}. If it is a model of timm or torchvision, name the model: "
                          f"timm:NAME={path} or torchvision:NAME={path}.")
    return (whole or fitting)[0]


def torchvision_names(names) -> dict[str, str]:
    """{name: what torchvision calls it}, for a ResNet whose children may be numbered as nn.Sequential does."""
    stages = sorted({int(name.split(".")[0]) for name in names if re.match(r"\d{1,3}\.\d+\.", name)})
    children = {"0": "conv1", "1": "bn1", **{str(number): f"layer{i}" for i, number in enumerate(stages, 1)}}
    renamed = {}
    for name in names:
        child, _, rest = name.partition(".")
        renamed[name] = f"{children.get(child, child)}.{rest}".replace(".shortcut.", ".downsample.")
    return renamed


def find_architecture(weights: Tensors, path) -> tuple[str, float, str]:
    """(arch, width, stem) of a backbone under torchvision's names; `FormatError` says what does not fit."""
    conv1 = tuple(weights["conv1.weight"].shape)
    if conv1[0] == 0 or conv1[1:] not in ((3, 7, 7), (3, 3, 3)):
        raise FormatError(f"{path}: conv1.weight has the shape {conv1}; it must be (C, 3, 7, 7) or (C, 3, 3, 3).")
    width, stem = conv1[0] / 64, "7x7s2-pool" if conv1[-1] == 7 else "3x3s1"
    blocks = tuple(len({name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")})
                   for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in weights
    fitting = [arch for arch, (block, layers, _) in ARCHITECTURES.items()
               if layers == blocks and (block is Bottleneck) == bottleneck]
    if not fitting:
        raise FormatError(f"{path}: its stages have {blocks} {'bottleneck' if bottleneck else 'basic'} blocks, as none "
                          f"of {', '.join(ARCHITECTURES)} has. Its keys: {some(weights)}.")
    problems = {arch: _differences(weights, arch, width, stem) for arch in fitting}
    arch = min(problems, key=lambda arch: sum(map(len, problems[arch].values())))
    if found := told(problems[arch]):
        raise FormatError(f"{path} does not hold the weights of a {arch} of width {width:g}. {found}.")
    return arch, width, stem


def _differences(weights: Tensors, arch: str, width: float, stem: str) -> dict[str, list[str]]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a grouped convolution of a small width may have no channels at all
        expected = Backbone(arch, width, stem).state_dict()
    return differences(weights, expected)


def differences(weights: Tensors, wanted: Tensors) -> dict[str, list[str]]:
    """{what is wrong with the names or shapes: names} of `weights` for a network whose state dict is `wanted`."""
    expected, shapes = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (wanted, weights))
    return {"Missing": [name for name in expected if name not in shapes and not name.endswith(OPTIONAL)],
            "Left over": [name for name in shapes if name not in expected],
            "Of another shape": [f"{name} {shapes[name]} instead of {shape}" for name, shape in expected.items()
                                 if shapes.get(name, shape) != shape]}


def told(problems: dict[str, list[str]]) -> str:
    """What `differences` found, in one line; empty when there is nothing."""
    return "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)


def our_head(tensors: Tensors, features: int) -> tuple[str, Tensors]:
    """(`linear` or `mlp`, the weights under our names) of a projection head; (`none`, {}) if it has another form."""
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    kind, names = {1: ("linear", ["fc"]), 2: ("mlp", ["hidden", "fc"])}.get(len(layers), ("none", []))
    theirs = {f"{name}.{part}": f"{layer}.{part}".lstrip(".")
              for layer, name in zip(layers, names) for part in ("weight", "bias")}
    ours = {name: tensors[their] for name, their in theirs.items() if their in tensors}
    if not names or not len(ours) == len(theirs) == len(tensors) or not _relu_between(layers):
        return "none", {}
    with torch.device("meta"):
        expected = projection_head(kind, features, ours["fc.weight"].shape[:1].numel()).state_dict()
    if any(ours[name].shape != tensor.shape for name, tensor in expected.items()):
        return "none", {}
    return kind, ours


def _relu_between(layers: list[str]) -> bool:
    """Whether two linear layers have a place for a ReLU between them; VISSL's MoCo ends its first head with one."""
    if len(layers) == 1 or layers == ["0.clf.0", "1.clf.0"]:
        return True
    first, second = layers
    return first.endswith("0") and second == f"{first[:-1]}2"


@dataclass(frozen=True)
class Preprocessing:
    """What a state dict does not say about the images; by default ImageNet's for 7x7 stems, CIFAR-10's for 3x3."""

    image_size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def transform(self, stem: str) -> EvaluationTransform:
        """The evaluation transform for an encoder with that stem."""
        size, mean, std = (224, IMAGENET_MEAN, IMAGENET_STD) if stem == "7x7s2-pool" else (32, CIFAR_MEAN, CIFAR_STD)
        return EvaluationTransform.of(self.image_size or size, self.mean or mean, self.std or std)


def foreign_encoder(content: dict[str, Any], path, preprocessing: Preprocessing, source: dict) -> FrozenEncoder:
    """The frozen encoder in the content of a checkpoint; `source` becomes part of its provenance.

    A projection head of another form than ours is left out, which the provenance says (`left_out`). Raises
    `FormatError` for an unknown layout and for keys, shapes, types or numbers that are wrong.
    """
    tensors = state_dict_in(content, path)
    layout = find_layout(tensors, path)
    theirs = {name.removeprefix(layout.head): tensor for name, tensor in tensors.items()
              if layout.head and name.startswith(layout.head)}
    names = [name.removeprefix(layout.backbone) for name in tensors if name.startswith(layout.backbone)
             and not (layout.head and name.startswith(layout.head))]
    heads = [name for name in names if name.startswith(HEADS)]
    weights = {new: tensors[layout.backbone + name] for name, new in torchvision_names(names).items()
               if name not in heads}
    arch, width, stem = find_architecture(weights, path)
    with torch.device("meta"):
        features = Backbone(arch, width, stem).features
    kind, head = our_head(theirs, features)
    encoder = Encoder(EncoderSpec(arch, width, stem, kind, len(head["fc.bias"]) if head else 0))
    ours = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    ours.update({f"head.{name}": tensor for name, tensor in head.items()})
    require_numbers(ours, path)
    encoder.load_state_dict({**encoder.state_dict(), **ours})
    left_out = [layout.backbone + name for name in heads] + _heads_beside(tensors, layout)
    if not head and layout.head:
        left_out += [layout.head + name for name in theirs]
    provenance = {"layout": layout.name, **source, **tool_provenance()}
    if left_out:
        provenance["left_out"] = some(left_out)
    return FrozenEncoder(encoder.eval().requires_grad_(False), preprocessing.transform(stem), provenance)


def _heads_beside(tensors: Tensors, layout: Layout) -> list[str]:
    """The heads that no layout reads, of the network that the backbone is a part of."""
    network = layout.backbone.rpartition("backbone.")[0] if layout.backbone.endswith("backbone.") else None
    return [] if network is None else [
        name for name in tensors if name.startswith((f"{network}head.", f"{network}prototypes."))
        and not (layout.head and name.startswith(layout.head))]


def require_numbers(tensors: Tensors, path):
    """Raise `FormatError` unless all are dense floats on the CPU, and finite."""
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not name.endswith(OPTIONAL) and not (dense and tensor.is_floating_point()):
            raise FormatError(f"{path}: {name} is a {tensor.layout} tensor of {tensor.dtype}, not of floats.")
        if not (dense and bool(torch.isfinite(tensor.float()).all())):
            raise FormatError(f"{path}: {name} holds values that are not finite.")


def some(names) -> str:
    """The first few of the names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(repr, names[:SHOWN])) or "none") + more
