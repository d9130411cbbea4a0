"""A file of weights of a network of timm or torchvision that somebody trained: `timm:NAME=FILE` -> a frozen encoder.

The name gives the network and how its images are made, the file the weights. Of how many classes the classifier was
does not matter; everything else is checked before anything is copied.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import sha256_file
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, read_tensors, tool_provenance
from mocoembed.model.encoder_metadata import described
from mocoembed.model.foreign import Preprocessing, Tensors, differences, require_numbers, state_dict_in, told
from mocoembed.model.pickled import read_pickled


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of another library, without weights."""

    name: str
    """As it is given: `timm:name.tag` or `torchvision:name`."""
    arch: str
    """As `EncoderSpec.arch`."""
    transform: EvaluationTransform
    """The one that the library's own weights were published with."""
    source: dict
    """For the provenance: the library and its version."""


def encoder_in(path: pathlib.Path, network: Network, preprocessing: Preprocessing,
               note: Callable[[str], None]) -> FrozenEncoder:
    """The frozen encoder, without a head, that the file of that network's weights holds.

    Raises `UsageError` when there is no such file, `FormatError` when it is damaged or holds other weights.
    """
    given = f"{network.name}={path}"
    if not path.is_file():
        raise UsageError(f"{given}: the file {str(path)!r} does not exist.")
    tensors = state_dict_in(_content(path), path)
    encoder = Encoder(EncoderSpec(network.arch, 1.0, "7x7s2-pool", "none", 0))
    classifiers = tuple(f"{name}." for name in encoder.backbone.classifiers)
    needed: Tensors = encoder.backbone.state_dict()
    ours = {name: tensor for name, tensor in tensors.items() if not name.startswith(classifiers) or name in needed}
    if wrong := told(differences(ours, needed)):
        raise FormatError(f"{path} does not hold the weights of {network.name}. {wrong}.\n"
                          "Give the name of the network that it was trained as.")
    require_numbers({name: tensor for name, tensor in ours.items() if needed[name].is_floating_point()}, path)
    encoder.backbone.load_state_dict({name: ours.get(name, tensor) for name, tensor in needed.items()})
    transform = _changed(network.transform, preprocessing)
    note(f"{path.name}: weights of {network.name}, images of {transform.crop} pixels")
    provenance = {"name": network.name, "file": path.name, "checkpoint_sha256": sha256_file(path), **network.source,
                  **tool_provenance()}
    return FrozenEncoder(encoder.eval().requires_grad_(False), transform, provenance)


def _content(path: pathlib.Path) -> dict:
    """What a file of torch.save or a safetensors file holds."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] != b"{":  # safetensors: eight bytes of length, then JSON
        return read_pickled(path)
    if described(path):
        raise UsageError(f"{path} is an encoder file, which says its network itself. Give {path} alone.")
    return read_tensors(path)


def _changed(transform: EvaluationTransform, given: Preprocessing) -> EvaluationTransform:
    """The transform with what was given on the command line in its place."""
    size = given.image_size or transform.crop
    colours: dict[str, Any] = {name: value for name, value in (("mean", given.mean), ("std", given.std)) if value}
    return dataclasses.replace(transform, resize=round(transform.resize * size / transform.crop), crop=size, **colours)
