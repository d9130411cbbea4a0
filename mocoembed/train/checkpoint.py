"""Checkpoints of a run: `checkpoint-<step>.pt`, and `checkpoint.json` that names the current one and its SHA-256.

The rename of the manifest is the commit; a file that it does not name is not a checkpoint. The last `KEPT` stay.
"""

import pathlib
import warnings
from typing import Any

import torch

from mocoembed.errors import FormatError
from mocoembed.files import read_json, replacing, require_space, sha256_file, write_json

FORMAT_VERSION = 1
KEPT = 2
MANIFEST = "checkpoint.json"


def save_checkpoint(run: pathlib.Path, state: dict[str, Any]) -> dict[str, Any]:
    """Write `state` (plain types and tensors, with `step` and `epoch`) as the run's current checkpoint.

    Returns its entry in the manifest: `file`, `sha256`, `step`, `epoch`.
    """
    path = run / f"checkpoint-{state['step']}.pt"
    run.mkdir(parents=True, exist_ok=True)
    require_space(path, sum(value.nbytes for value in _tensors(state)))
    with replacing(path) as temporary:
        torch.save({"format": FORMAT_VERSION, **state}, temporary)
        entry = {"file": path.name, "sha256": sha256_file(temporary), "step": state["step"], "epoch": state["epoch"]}
    kept = [entry, *(one for one in _entries(run) if one["file"] != path.name)][:KEPT]
    write_json(run / MANIFEST, {"format": FORMAT_VERSION, "checkpoints": kept})
    names = {one["file"] for one in kept}
    for left in run.glob("checkpoint-*.pt"):
        if left.name not in names:
            left.unlink()
    return entry


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)


def _entries(run: pathlib.Path) -> list[dict]:
    manifest = run / MANIFEST
    if not manifest.exists():
        return []
    content = read_json(manifest)
    if content.get("format", 0) > FORMAT_VERSION:
        raise FormatError(f"{manifest} has format {content['format']}; this version reads up to {FORMAT_VERSION}. "
                          "Install a newer mocoembed.")
    return content["checkpoints"]


def current_checkpoint(run: pathlib.Path) -> pathlib.Path:
    """Path of the run's newest checkpoint; `FormatError` when the folder is not a run with one."""
    entries = _entries(run)
    if not entries:
        raise FormatError(f"{run} holds no checkpoint. Give a run's folder, such as mocoembed-workspace/runs/<run>.")
    return run / entries[0]["file"]


def load_newest(run: pathlib.Path) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint, or `None` when the run has none.

    A damaged one is passed over with a warning; `FormatError` when all are damaged.
    """
    problems = []
    for entry in _entries(run):
        try:
            return load_checkpoint(run / entry["file"], entry["sha256"])
        except FormatError as error:
            problems.append(str(error))
            warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
    if problems:
        raise FormatError(f"No checkpoint in {run} can be read. Start over with --fresh. {problems[0]}")
    return None


def load_checkpoint(path, sha256: str | None = None) -> dict[str, Any]:
    """The state in one checkpoint file, on the CPU; `FormatError` when it is damaged or not one of ours.

    The hash is compared with `sha256`, or with the manifest beside the file, if that names it. The state has two keys
    more than were saved: `sha256`, of the file, and `verified`, whether there was a hash to compare it with.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FormatError(f"{path} is missing.")
    if sha256 is None:
        sha256 = next((one["sha256"] for one in _entries(path.parent) if one["file"] == path.name), None)
    found = sha256_file(path)
    if sha256 not in (None, found):
        raise FormatError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise FormatError(f"{path} is not a checkpoint of mocoembed ({type(error).__name__}).") from error
    if not isinstance(state, dict) or not {"format", "step", "epoch", "config", "model"} <= set(state):
        raise FormatError(f"{path} is not a checkpoint of mocoembed.")
    if state["format"] > FORMAT_VERSION:
        raise FormatError(f"{path} has checkpoint format {state['format']}; this version reads up to "
                          f"{FORMAT_VERSION}. Install a newer mocoembed.")
    return {**state, "sha256": found, "verified": sha256 is not None}


def delete_checkpoints(run: pathlib.Path):
    """Forget all checkpoints of a run: first the manifest, then the files."""
    (run / MANIFEST).unlink(missing_ok=True)
    for path in run.glob("checkpoint-*.pt"):
        path.unlink()
