"""What a run begins from with `--init`: any encoder that `embed --encoder` takes -> the first weights of its encoders.

Architecture, width, stem, mean, standard deviation and value range that were not given are the source's. The backbone
must be the same, the head is taken over when it has the same form and length. A run that has a checkpoint needs no
source any more.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mocoembed.config import PretrainConfig
from mocoembed.config.pretrain import FROM_INIT
from mocoembed.errors import UsageError
from mocoembed.files import read_json
from mocoembed.model.dictionary import EndToEnd
from mocoembed.model.encoder import Encoder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.train.checkpoint import MANIFEST
from mocoembed.train.export import open_encoder
from mocoembed.train.run import Training
from mocoembed.workspace import Workspace


@dataclass(frozen=True)
class Start:
    """What the encoders begin with."""

    settings: dict[str, Any]
    """Fields of `PretrainConfig` that are the source's."""
    weights: dict[str, torch.Tensor] | None = None
    """For the whole encoder or its backbone; `None` when the run has a checkpoint."""
    record: dict[str, Any] | None = None
    """For checkpoint and provenance: the source as given, its fingerprint, and whether its head was taken."""


def find_start(config: PretrainConfig, run: Path, note: Callable[[str], None]) -> Start:
    """What the run begins from; with `--init` the source is opened, unless the run has a checkpoint.

    Raises `UsageError` when the source has another architecture than the one that was given, and what
    `open_encoder` raises.
    """
    if config.init is None:
        return Start({})
    if (run / MANIFEST).exists() and not config.fresh:
        before = read_json(run / "config.json")
        return Start({**_backbone_of(config, before), **_colours_of(config, before)})
    frozen = open_encoder(config.init, Workspace(config.workspace), note)
    spec, transform = frozen.encoder.spec, frozen.transform
    settings = {**_backbone_of(config, asdict(spec)), **_colours_of(config, asdict(transform))}
    _require_same_backbone(replace(config, **settings), frozen)
    whole = (spec.head, spec.dim) == (config.head, config.dim)
    fingerprint = frozen.fingerprint()
    head = "the head too" if whole else f"a new head ({_form(config.head, config.dim)}; the source has " + (
        "none)" if spec.head == "none" else f"{_form(spec.head, spec.dim)})")
    note(f"starting from {config.init} ({spec.arch}, fingerprint {fingerprint[:8]}): the backbone, and {head}")
    weights = {name: tensor for name, tensor in frozen.encoder.state_dict().items()
               if whole or name.startswith("backbone.")}
    record = {"source": config.init, "fingerprint": fingerprint, "head": whole,
              **{name: frozen.provenance[name] for name in ("name", "checkpoint_sha256") if name in frozen.provenance}}
    return Start(settings, weights, record)


def _form(head: str, dim: int) -> str:
    return f"{head}, {dim} numbers"


def _backbone_of(config: PretrainConfig, source: dict[str, Any]) -> dict[str, Any]:
    """Architecture, width and stem of the source, unless they were given."""
    return {name: source[name] for name in ("arch", "width", "stem")} if config.arch == FROM_INIT else {}


def _colours_of(config: PretrainConfig, source: dict[str, Any]) -> dict[str, Any]:
    """Mean, standard deviation and value range of the source, unless they were given."""
    return {name: tuple(source[name]) for name in ("mean", "std", "value_range") if not getattr(config, name)}


def _require_same_backbone(config: PretrainConfig, frozen: FrozenEncoder):
    spec = frozen.encoder.spec
    if (config.arch, config.width, config.stem) != (spec.arch, spec.width, spec.stem):
        raise UsageError(f"--init {config.init}: is {spec.arch}, width {spec.width:g}, stem {spec.stem}; the run's "
                         f"backbone is {config.arch}, width {config.width:g}, stem {config.stem}. Leave out --arch, "
                         f"--width and --stem, or give --arch {spec.arch} --width {spec.width:g} --stem {spec.stem}.")


def begin(training: Training, start: Start):
    """Let all encoders of a new run begin with the start's weights."""
    if start.weights is None:
        return
    training.started_from = start.record
    for encoder in training.method.children():
        if isinstance(encoder, Encoder):
            encoder.load_state_dict({**encoder.state_dict(), **start.weights})
    if isinstance(training.method, EndToEnd):
        training.method.let_heads_be_equal()
