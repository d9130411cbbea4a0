"""timm's models as backbones: `timm:resnet50.a1_in1k` -> a network (N, 3, S, S) -> (N, D), with or without weights.

timm is an optional extra. This is the only module that imports it and huggingface_hub, which it brings along, when a
name begins with `timm:`.
"""

import contextlib
import difflib
import http.client
import math
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.files import sha256_file
from mocoembed.model.batchnorm import GroupedBatchNorm2d, grouped
from mocoembed.workspace import cache_folder

PREFIX = "timm:"
SUFFIXES = (".safetensors", ".pth", ".bin")
SHOWN = 8
RANDOM = ("p", "drop_prob", "drop_rate", "attn_drop_rate", "drop_path_rate")  # attributes of layers: chances
SECONDS = 5.0  # for the hub to answer


def _timm():
    try:
        import timm
    except ImportError as error:
        raise UsageError("Encoders named timm:... need the package timm. "
                         "Install it with: pip install 'mocoembed[timm]'") from error
    return timm


class TimmBackbone(nn.Module):
    """A model of timm without its classifier; `features` is the length D of what it then gives.

    Its state dict is timm's. The architecture's name holds timm's tag, on which its size may depend. Dropout and
    stochastic depth are off, because they would draw from a stream of random numbers that no checkpoint holds; with
    several groups its BatchNorm layers are `GroupedBatchNorm2d`, their activations kept.
    """

    def __init__(self, arch: str, bn_groups: int = 1):
        super().__init__()
        network = _timm().create_model(known_name(arch), pretrained=False, num_classes=0)
        self.features = _length(network, arch)
        theirs = network.pretrained_cfg.get("classifier") or ()
        self.classifiers = (theirs,) if isinstance(theirs, str) else tuple(theirs)
        for name, layer in list(network.named_modules()):
            if isinstance(layer, nn.BatchNorm2d) and bn_groups > 1:
                network.set_submodule(name, ActivatedBatchNorm2d(layer, bn_groups) if hasattr(layer, "act")
                                      else grouped(layer, bn_groups))
            for chance in RANDOM:
                if isinstance(getattr(layer, chance, None), float):
                    setattr(layer, chance, 0.0)
        self.network = network
        self.register_state_dict_post_hook(_to_timms_names)
        self.register_load_state_dict_pre_hook(_from_timms_names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)  # N x 3 x S x S -> N x D


class ActivatedBatchNorm2d(GroupedBatchNorm2d):
    """timm's BatchNormAct2d over groups of the batch: the activation is part of the layer."""

    def __init__(self, layer: nn.BatchNorm2d, groups: int):
        super().__init__(layer.num_features, groups)
        self.eps, self.momentum = layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        self.drop, self.act = layer.get_submodule("drop"), layer.get_submodule("act")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W), any memory format."""
        return self.act(self.drop(super().forward(x)))


def synchronized_timm(network: nn.Module) -> nn.Module:
    """The network with BatchNorm over all processes; torch's own function would drop timm's activations."""
    return _timm().layers.convert_sync_batchnorm(network)


def _length(network: nn.Module, arch: str) -> int:
    """Length of the network's vectors, seen on one image; `UsageError` when it gives something else."""
    size = cast(dict, network.pretrained_cfg)["input_size"]
    training = network.training
    with torch.inference_mode():
        vectors = network.eval()(torch.zeros(1, *size))
    network.train(training)
    if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2:
        raise UsageError(f"{arch} does not give one vector per image, so it cannot be an encoder.")
    return vectors.shape[1]


def _to_timms_names(module, state: dict, prefix: str, metadata):
    inner = f"{prefix}network."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)


def _from_timms_names(module, state: dict, prefix: str, *rest):
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)


def known_name(arch: str) -> str:
    """timm's name in `timm:name.tag`, the tag filled in where it is missing; `UsageError` for what timm lacks."""
    timm, name = _timm(), arch.removeprefix(PREFIX)
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), SHOWN)
        raise UsageError(f"{PREFIX}{name}: timm {timm.__version__} has no model {model!r}"
                         + (f"; near names are {', '.join(near)}." if near else ". timm.list_models() names all."))
    tags = [full.partition(".")[2] for full in timm.list_pretrained(model)]
    if tag and tag not in tags:
        raise UsageError(f"{PREFIX}{name}: timm {timm.__version__} has no weights {tag!r} for {model}; "
                         f"it has {', '.join(tags) or 'none'}.")
    tag = tag or timm.get_pretrained_cfg(model).tag
    return f"{model}.{tag}" if tag else model


@dataclass(frozen=True)
class TimmWeights:
    """Pretrained weights of a model of timm, without the classifier, and what timm says about them."""

    state: dict[str, torch.Tensor]
    transform: EvaluationTransform
    source: dict
    """For the provenance: name, timm's version, licence, where the weights come from."""


def pretrained(arch: str, note: Callable[[str], None]) -> TimmWeights:
    """The weights of `timm:name.tag`: of a file in the cache folder, else through timm from where it keeps them.

    Raises `UsageError` for an unknown name, for one without weights and for images that cannot be made, and
    `MocoembedError` when the weights cannot be had or do not fit.
    """
    timm, name = _timm(), known_name(arch)
    config = timm.get_pretrained_cfg(name)
    transform = _transform(timm, config, arch)
    path = local_file(name)
    if path is None and not (config.hf_hub_id or config.url or config.file):
        has = ", ".join(timm.list_pretrained(name.partition(".")[0])) or "none"
        raise UsageError(f"{arch}: timm has no weights for it; {name.partition('.')[0]} has {has}.")
    source = {"name": PREFIX + name, "timm": timm.__version__, "licence": config.license or "none stated by timm",
              "from": path.name if path else config.hf_hub_id or config.url}
    if path:
        source["checkpoint_sha256"] = sha256_file(path)
    note(f"{PREFIX}{name}: weights from {path or source['from']}, licence {source['licence']}")
    return TimmWeights(_loaded(timm, name, path, source["from"]), transform, source)


def _loaded(timm, name: str, path: pathlib.Path | None, origin: str) -> dict[str, torch.Tensor]:
    """The state dict, without the classifier, of the file at `path` or of what timm downloads from `origin`."""
    absent = None if path else _out_of_reach()
    overlay = {"pretrained_cfg_overlay": {"file": os.fspath(path)}} if path else {}
    try:
        with _from_hubs_cache_alone(absent is not None):
            network = timm.create_model(name, pretrained=True, **overlay)
    except Exception as error:  # timm, huggingface_hub and torch raise many kinds
        reason = absent or " ".join(str(error).split())[:300].rstrip(".")
        if path:
            raise MocoembedError(f"{path} does not hold the weights of {name} ({type(error).__name__}: {reason}).\n"
                                 "Give the file that timm publishes, or delete it to download that.") from error
        raise MocoembedError(f"{PREFIX}{name} cannot be downloaded from {origin}: {reason}.\nWithout a network, give a "
                             f"file of its weights: {PREFIX}{name}=FILE, or put it at "
                             f"{folder() / (name + SUFFIXES[0])} (or .pth).") from error
    network.reset_classifier(0)
    return network.state_dict()


def _out_of_reach() -> str | None:
    """Why the hub of Hugging Face does not answer; `None` when it does, with whatever status."""
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return f"no way to {constants.ENDPOINT} ({getattr(error, 'reason', None) or error or type(error).__name__})"
    return None


@contextlib.contextmanager
def _from_hubs_cache_alone(alone: bool) -> Iterator[None]:
    """While the block runs, let huggingface_hub use what it has on this machine; else it retries for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or alone
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def described(arch: str) -> tuple[str, EvaluationTransform, dict]:
    """(`timm:name.tag`, its evaluation transform, timm's version for the provenance) of a model of any weights."""
    timm, name = _timm(), known_name(arch)
    transform = _transform(timm, timm.get_pretrained_cfg(name) or timm.create_model(name).pretrained_cfg, arch)
    return PREFIX + name, transform, {"timm": timm.__version__}


def folder() -> pathlib.Path:
    """Where weights may be put that timm is not to download."""
    return cache_folder() / "timm"


def local_file(name: str) -> pathlib.Path | None:
    """The file of weights that somebody put into the cache folder for this model."""
    return next((path for suffix in SUFFIXES if (path := folder() / (name + suffix)).is_file()), None)


def _transform(timm, config, arch: str) -> EvaluationTransform:
    """timm's own evaluation transform; `UsageError` for what we cannot do in the same way."""
    facts = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    channels, height, width = facts["input_size"]
    mode = {"center": "shorter-side", "squash": "squash"}.get(facts["crop_mode"])
    if channels != 3 or height != width or mode is None:
        raise UsageError(f"{arch} takes images of {channels} x {height} x {width} with the crop mode "
                         f"{facts['crop_mode']!r}; only square colour images, 'center' or 'squash', are made here.")
    resize = math.floor(height / facts["crop_pct"])
    return EvaluationTransform(resize, height, tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"], mode)


def coarse_groups(network: nn.Module) -> list[list[str]]:
    """Names of the parameters of every stage, from the image on, as timm groups them; none where it does not say."""
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        return []
    groups = _timm().models.group_parameters(network, matcher(coarse=True))
    return [groups[number] for number in sorted(groups)]
