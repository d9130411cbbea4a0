"""Checkpoints of a run: `checkpoint-<step>.pt`, and `checkpoint.json` that names the current one and its SHA-256.

The rename of the manifest is the commit; a file that it does not name is not a checkpoint. The last `KEPT` stay.
Who saves or deletes holds the run's lock.
"""

import pathlib
import warnings
import zipfile
from typing import Any

import torch
from torch import nn

from mocoembed.errors import FormatError
from mocoembed.files import read_json, replacing, require_space, sha256_file, write_json

FORMAT_VERSION = 1
KEPT = 2
MANIFEST = "checkpoint.json"
ENTRY = {"file": str, "sha256": str, "step": int, "epoch": int}
STATE = {"format": int, "step": int, "epoch": int, "config": dict, "model": dict}  # what no checkpoint lacks
ADVICE = "Use the version of mocoembed that wrote it, or start over with --fresh."


def save_checkpoint(run: pathlib.Path, state: dict[str, Any]) -> dict[str, Any]:
    """Write `state` (plain types and tensors, with `step` and `epoch`) as the run's current checkpoint.

    Returns its entry in the manifest: `file`, `sha256`, `step`, `epoch`.
    """
    path = run / f"checkpoint-{state['step']}.pt"
    run.mkdir(parents=True, exist_ok=True)
    entries = _entries(run)
    _remove_all_but(run, {one["file"] for one in entries})  # first: their room may be needed
    require_space(path, sum(value.nbytes for value in _tensors(state)))
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:  # given a path, torch hides why a write failed and puts the name inside
            torch.save({"format": FORMAT_VERSION, **state}, file)
        entry = {"file": path.name, "sha256": sha256_file(temporary), "step": state["step"], "epoch": state["epoch"]}
    # The manifest's later steps are damaged: the run went on from a checkpoint before them.
    kept = [entry, *(one for one in entries if one["step"] < entry["step"])][:KEPT]
    write_json(run / MANIFEST, {"format": FORMAT_VERSION, "checkpoints": kept})
    _remove_all_but(run, {one["file"] for one in kept})
    return entry


def _remove_all_but(run: pathlib.Path, names: set[str]):
    """Delete the checkpoint files not in `names`, and what killed writers left of others."""
    for left in (*run.glob("checkpoint-*.pt"), *run.glob(".checkpoint*.tmp")):
        if left.name not in names:
            left.unlink(missing_ok=True)


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
    version, entries = content.get("format"), content.get("checkpoints")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatError(f"{manifest} has format {version}; this version reads up to {FORMAT_VERSION}. "
                          "Install a newer mocoembed.")
    if version != FORMAT_VERSION or not isinstance(entries, list) or not all(_is_entry(one) for one in entries):
        raise FormatError(f"{manifest} is damaged. Restore it, or start over with --fresh.")
    return entries


def _is_entry(value) -> bool:
    """Whether `value` is an entry of a manifest, of a file in the run's own folder."""
    return _has(value, ENTRY) and value["file"] == f"checkpoint-{value['step']}.pt"


def _has(value, kinds: dict[str, type]) -> bool:
    """Whether `value` is a dict with these keys, their values of these kinds."""
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


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
        raise FormatError(f"{path} is damaged: its SHA-256 does not match {MANIFEST}.")
    try:
        with zipfile.ZipFile(path) as archive:
            if sha256 is None and (broken := archive.testzip()):  # torch itself does not look at the CRC-32
                raise zipfile.BadZipFile(broken)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise FormatError(f"{path} is damaged, or not a checkpoint of mocoembed ({type(error).__name__}).") from error
    if not _has(state, STATE):
        raise FormatError(f"{path} is not a checkpoint of mocoembed.")
    if state["format"] > FORMAT_VERSION:
        raise FormatError(f"{path} has checkpoint format {state['format']}; this version reads up to "
                          f"{FORMAT_VERSION}. Install a newer mocoembed.")
    return {**state, "sha256": found, "verified": sha256 is not None}


def require_resumable(state: dict[str, Any], method: nn.Module, optimizer: torch.optim.Optimizer):
    """Raise `FormatError` unless `state` can be loaded whole into these two; call it before anything is copied."""
    saved, wanted = dict(state["model"]), method.state_dict()
    groups = state["optimizer"]["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
        raise FormatError(f"The checkpoint of step {state['step']} belongs to an optimizer with other parameters. "
                          f"{ADVICE}")
    for i, parameter in enumerate(one for group in optimizer.param_groups for one in group["params"]):
        for name, buffer in state["optimizer"]["state"].get(i, {}).items():
            if isinstance(buffer, torch.Tensor) and buffer.dim():  # those without shape are counters
                saved[f"optimizer.{i}.{name}"], wanted[f"optimizer.{i}.{name}"] = buffer, parameter
    require_fits(saved, wanted, f"The checkpoint of step {state['step']}")


def require_fits(saved: dict[str, Any], wanted: dict[str, torch.Tensor], what: str):
    """Raise `FormatError` unless both have tensors of the same names, shapes and types, and `saved` is all finite."""
    problems = [f"{name} is missing" for name in wanted if name not in saved]
    problems += [f"{name} is not in this network" for name in saved if name not in wanted]
    problems += [f"{name} {problem}" for name in wanted
                 if name in saved and (problem := _difference(saved[name], wanted[name]))]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise FormatError(f"{what} does not fit this network: {problems[0]}{more}. {ADVICE}")


def _difference(saved, wanted: torch.Tensor) -> str | None:
    """What keeps `saved` from being copied into `wanted`."""
    if not isinstance(saved, torch.Tensor):
        return "is not a tensor"
    if (saved.shape, saved.dtype) != (wanted.shape, wanted.dtype):
        return f"is {tuple(saved.shape)} {saved.dtype}, not {tuple(wanted.shape)} {wanted.dtype}"
    return "holds values that are not finite" if not_finite({"": saved}) else None


def not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The names of the tensors that hold values that are not finite."""
    return [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]


def delete_checkpoints(run: pathlib.Path):
    """Forget all checkpoints of a run: first the manifest, then the files."""
    (run / MANIFEST).unlink(missing_ok=True)
    _remove_all_but(run, set())
