"""From anything that holds an encoder to the encoder, and from that to the format that someone needs."""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from mocoembed.checks import from_dict
from mocoembed.config import ExportConfig, PretrainConfig
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import sha256_file
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder, read_tensors, save_encoder
from mocoembed.model.encoder_metadata import described
from mocoembed.model.foreign import Preprocessing, foreign_encoder
from mocoembed.model.library import TIMM, TORCHVISION, is_library_name, library_encoder
from mocoembed.model.pickled import read_pickled
from mocoembed.model.published import PUBLISHED, fetch
from mocoembed.model.weights import WRITERS
from mocoembed.notes import say_nothing
from mocoembed.train.checkpoint import STATE, current_checkpoint, load_checkpoint
from mocoembed.train.run import export_to_workspace, frozen_encoder, origin
from mocoembed.workspace import Workspace


@dataclass(frozen=True)
class ExportResult:
    """What `export_encoder` wrote."""

    path: pathlib.Path
    format: str
    fingerprint: str
    source: pathlib.Path


def export_encoder(config: ExportConfig, note: Callable[[str], None] = say_nothing) -> ExportResult:
    """Write the encoder of a checkpoint, a run folder, an encoder file, published weights or a known name.

    Without `output`, the format `encoder` goes where `pretrain` puts it. `note(text)` is called with what a person
    should know. Raises `UsageError` when there is nothing to export or the format cannot hold it, `FormatError` when
    the source is damaged or of an unknown layout.
    """
    workspace = Workspace(config.workspace)
    source = config.source or str(workspace.newest_run())
    frozen = open_encoder(source, workspace, note, Preprocessing(config.image_size, config.mean, config.std))
    fingerprint = frozen.fingerprint()
    if config.format == "encoder" and config.output is None:
        path = export_to_workspace(frozen, workspace, note)
        return ExportResult(path, config.format, fingerprint, pathlib.Path(source))
    writer, suffix = WRITERS.get(config.format, (save_encoder, ".safetensors"))
    path = pathlib.Path(config.output or workspace.encoder_of(fingerprint).with_suffix(suffix))
    if config.output and path.exists() and not config.fresh:
        raise UsageError(f"--output {path}: exists. Add --fresh to replace it, or give another name.")
    writer(path, frozen)
    return ExportResult(path, config.format, fingerprint, pathlib.Path(source))


def open_encoder(given: str | None, workspace: Workspace, note: Callable[[str], None] = say_nothing,
                 preprocessing: Preprocessing = Preprocessing()) -> FrozenEncoder:  # noqa: B008 (it is frozen)
    """The frozen encoder that `given` names; `None` for the workspace's newest.

    That is an encoder file, a checkpoint, a run folder, a state dict or checkpoint of others (their layouts are in
    `model/foreign.py`), a name in `PUBLISHED`, or one of another library (`model/library.py`); names are downloaded.
    `preprocessing` is for files of others and names in `PUBLISHED` alone.
    """
    if given is None:
        return load_encoder(workspace.encoder(None))
    path, source = pathlib.Path(given), {}
    if not path.exists() and given in PUBLISHED:
        path, source = fetch(given, note), {"name": given, "licence": PUBLISHED[given].licence}
    named = is_library_name(given) and not path.exists()
    if not (named or path.exists()):
        raise UsageError(f"{given!r} does not exist. Make one with: mocoembed pretrain IMAGES\nOr give a file of "
                         f"weights, one of {', '.join(PUBLISHED)}, {TORCHVISION}NAME or {TIMM}NAME.")
    content, ours = ({}, library_encoder(given, note, preprocessing)) if named else _read(path)
    if ours is None:
        source = {**source, "file": path.name, "checkpoint_sha256": sha256_file(path)}
        frozen = foreign_encoder(content, path, preprocessing, source)
        note(f"{path.name}: layout {frozen.provenance['layout']}, {frozen.encoder.spec.arch}, "
             f"images of {frozen.transform.crop} pixels")
        if left_out := frozen.provenance.get("left_out"):
            note(f"{path.name}: skipped, not a known form of projection head: {left_out}")
        return frozen
    if not named and preprocessing != Preprocessing():
        raise UsageError(f"--image-size, --mean and --std are for weights of another library; "
                         f"{given} defines them itself.")
    return ours


def _read(path: pathlib.Path) -> tuple[dict, FrozenEncoder | None]:
    """(content, `None`) of a file of others, ({}, encoder) of a file or run folder of ours."""
    if path.is_dir():
        return {}, encoder_of_checkpoint(current_checkpoint(path))
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return ({}, load_encoder(path)) if described(path) else (read_tensors(path), None)
    content = read_pickled(path)
    return ({}, encoder_of_checkpoint(path)) if set(STATE) <= set(content) else (content, None)


def encoder_of_checkpoint(path: pathlib.Path) -> FrozenEncoder:
    """The frozen query encoder in a checkpoint file."""
    state = load_checkpoint(path)
    if "task" in state:
        raise FormatError(f"{path} is a checkpoint of mocoembed {state['task']}, not of a pretraining. Run that "
                          "command again to finish it.")
    config = from_dict(PretrainConfig, state["config"])
    weights = {name.removeprefix("encoder_q."): tensor for name, tensor in state["model"].items()
               if name.startswith("encoder_q.")}
    source = {"epochs": state["epoch"], "steps": state["step"], "checkpoint_sha256": state["sha256"],
              **origin(state.get("started_from"))}
    return frozen_encoder(weights, config, source)
