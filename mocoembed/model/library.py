"""Encoders of other libraries by name: `torchvision:resnet50`, `timm:resnet50` -> a frozen encoder of ours.

The classifier is taken off; the evaluation transform is the one that the weights were published with. With `=FILE`
after the name the weights are those of a file.
"""

import pathlib
import re
from collections.abc import Callable

import torch
import torchvision

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import sha256_file
from mocoembed.model import timm_backbone
from mocoembed.model.encoder import Encoder, EncoderSpec, known_architectures
from mocoembed.model.encoder_file import FrozenEncoder, tool_provenance
from mocoembed.model.foreign import Preprocessing
from mocoembed.model.library_file import Network, encoder_in
from mocoembed.model.pickled import read_pickled
from mocoembed.model.published import Published, fetch_into

TORCHVISION = "torchvision:"
TIMM = timm_backbone.PREFIX
# Their published weights expect images in -1 to 1, which torchvision makes inside the network from ImageNet's.
INSIDE = {"googlenet", "inception_v3"}
NO_LICENCE = "none stated by torchvision; the terms of ImageNet may apply"


def is_library_name(given: str) -> bool:
    """Whether `given` names an encoder of another library."""
    return given.startswith((TORCHVISION, TIMM))


def library_encoder(given: str, note: Callable[[str], None],
                    preprocessing: Preprocessing = Preprocessing()) -> FrozenEncoder:  # noqa: B008 (it is frozen)
    """The frozen encoder that `torchvision:NAME`, `torchvision:NAME@WEIGHTS` or `timm:NAME` names, or its `=FILE`.

    `note(text)` tells about download and licence; `preprocessing` is for files. Raises `UsageError` for an unknown
    name, a missing package or a missing file, `MocoembedError` when the weights cannot be had, `FormatError` when they
    are damaged or do not fit.
    """
    named, equals, file = given.partition("=")
    library, _, name = named.partition(":")
    if not name.partition("@")[0]:
        raise UsageError(f"{given!r}: the name of the model is missing. Give {library}:NAME, for example "
                         f"{library}:resnet50.")
    if equals:
        return encoder_in(pathlib.Path(file), _network(named), preprocessing, note)
    if preprocessing != Preprocessing():
        raise UsageError(f"--image-size, --mean and --std are for files of weights; {given} defines them itself.")
    return _timm(given, note) if given.startswith(TIMM) else _torchvision(given, note)


def _network(named: str) -> Network:
    """The network that a name stands for, whatever weights it will have."""
    if named.startswith(TIMM):
        arch, transform, source = timm_backbone.described(named)
        return Network(arch, arch, transform, source)
    arch, _, wanted = named.removeprefix(TORCHVISION).partition("@")
    transform = _preset(_weights(named, arch, wanted).transforms(), arch)
    return Network(named, arch, transform, {"torchvision": torchvision.__version__})


def _timm(given: str, note) -> FrozenEncoder:
    weights = timm_backbone.pretrained(given, note)
    return _frozen(weights.source["name"], weights.state, weights.transform, weights.source)


def _torchvision(given: str, note) -> FrozenEncoder:
    arch, _, wanted = given.removeprefix(TORCHVISION).partition("@")
    weights = _weights(given, arch, wanted)
    licence = weights.meta.get("license", NO_LICENCE)
    published = Published(weights.url, _digits(weights.url), licence, "sha256", "torchvision")
    path = fetch_into(pathlib.Path(torch.hub.get_dir()) / "checkpoints", given, published, note)
    source = {"name": f"{TORCHVISION}{arch}", "weights": str(weights), "url": weights.url, "licence": licence,
              "torchvision": torchvision.__version__, "checkpoint_sha256": sha256_file(path)}
    return _frozen(arch, _torchvision_state(read_pickled(path), arch), _preset(weights.transforms(), arch), source)


def _weights(given: str, arch: str, wanted: str) -> torchvision.models.WeightsEnum:
    """torchvision's entry for the weights `wanted`, or for its default ones."""
    if arch not in (known := known_architectures()) or arch not in torchvision.models.list_models():
        raise UsageError(f"{given}: torchvision {torchvision.__version__} has no such classifier that can be an "
                         f"encoder; it has {', '.join(known)}.")
    choices = torchvision.models.get_model_weights(arch)
    if wanted and wanted not in choices.__members__:
        raise UsageError(f"{given}: {arch} has the weights {', '.join(choices.__members__)}.")
    return choices[wanted] if wanted else choices.DEFAULT


def _digits(url: str) -> str:
    """The first digits of the SHA-256, which torchvision puts at the end of the file's name."""
    return re.findall(r"-([0-9a-f]{8,})\.", url.rpartition("/")[2])[0]


def _preset(preset, arch: str) -> EvaluationTransform:
    """The weights' own preset as an evaluation transform."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if arch in INSIDE else (tuple(preset.mean), tuple(preset.std))
    return EvaluationTransform(preset.resize_size[0], preset.crop_size[0], mean, std, preset.interpolation.value)


def _torchvision_state(state: dict, arch: str) -> dict[str, torch.Tensor]:
    """The published state dict with the names that torchvision's networks have by now."""
    if not arch.startswith("densenet"):
        return state
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): tensor
            for name, tensor in state.items()}


def _frozen(arch: str, state: dict[str, torch.Tensor], transform: EvaluationTransform, source: dict) -> FrozenEncoder:
    """The encoder without a head whose backbone holds what it needs of `state`; the rest must be a classifier's."""
    encoder = Encoder(EncoderSpec(arch, 1.0, "7x7s2-pool", "none", 0))
    needed = encoder.backbone.state_dict()
    counted = {name: tensor for name, tensor in needed.items() if name.endswith("num_batches_tracked")}
    _require_fitting(needed, {**counted, **state}, source["name"])
    encoder.backbone.load_state_dict({name: state.get(name, tensor) for name, tensor in needed.items()})
    return FrozenEncoder(_off(encoder), transform, {**source, **tool_provenance()})


def _off(encoder: Encoder) -> Encoder:
    return encoder.eval().requires_grad_(False)


def _require_fitting(needed: dict, state: dict, name: str):
    wrong = [key for key, tensor in needed.items() if key not in state or state[key].shape != tensor.shape]
    if wrong:
        raise FormatError(f"{name}: its weights do not fit its network here: {', '.join(wrong[:3])}"
                          + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
                          + ". They may be for images of another size; name other weights with @.")
