"""From a checkpoint or an encoder file to the format that someone needs."""

import pathlib
from dataclasses import dataclass

from mocoembed.checks import from_dict
from mocoembed.config import ExportConfig, PretrainConfig
from mocoembed.errors import UsageError
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder, save_encoder
from mocoembed.model.weights import WRITERS
from mocoembed.train.checkpoint import current_checkpoint, load_checkpoint
from mocoembed.train.run import export_to_workspace, frozen_encoder
from mocoembed.workspace import Workspace


@dataclass(frozen=True)
class ExportResult:
    """What `export_encoder` wrote."""

    path: pathlib.Path
    format: str
    fingerprint: str
    source: pathlib.Path


def export_encoder(config: ExportConfig) -> ExportResult:
    """Export the query encoder of a checkpoint, a run folder or an encoder file.

    Without `output`, the format `encoder` goes where `pretrain` puts it. Raises `UsageError` when there is nothing
    to export or the format cannot hold it, `FormatError` when the source is damaged.
    """
    workspace = Workspace(config.workspace)
    source = pathlib.Path(config.checkpoint) if config.checkpoint else workspace.newest_run()
    if not source.exists():
        raise UsageError(f"The checkpoint {str(source)!r} does not exist. Make one with: mocoembed pretrain IMAGES")
    if source.is_dir():
        source = current_checkpoint(source)
    frozen = load_encoder(source) if source.suffix == ".safetensors" else encoder_of_checkpoint(source)
    fingerprint = frozen.fingerprint()
    if config.format == "encoder" and config.output is None:
        return ExportResult(export_to_workspace(frozen, workspace), config.format, fingerprint, source)
    writer, suffix = WRITERS.get(config.format, (save_encoder, ".safetensors"))
    path = pathlib.Path(config.output or workspace.encoder_of(fingerprint).with_suffix(suffix))
    if config.output and path.exists() and not config.fresh:
        raise UsageError(f"--output {path}: exists. Add --fresh to replace it, or give another name.")
    writer(path, frozen)
    return ExportResult(path, config.format, fingerprint, source)


def encoder_of_checkpoint(path: pathlib.Path) -> FrozenEncoder:
    """The frozen query encoder in a checkpoint file."""
    state = load_checkpoint(path)
    config = from_dict(PretrainConfig, state["config"])
    weights = {name.removeprefix("encoder_q."): tensor for name, tensor in state["model"].items()
               if name.startswith("encoder_q.")}
    source = {"epochs": state["epoch"], "steps": state["step"], "checkpoint_sha256": state["sha256"]}
    return frozen_encoder(weights, config, source)
