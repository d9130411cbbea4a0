"""A run: its folder, its state, how it resumes, and the frozen encoder that comes out of it."""

import copy
import os
import pathlib
from dataclasses import dataclass

import torch

from mocoembed.checks import option_name, to_dict
from mocoembed.config import PretrainConfig
from mocoembed.data.images import Listing
from mocoembed.data.views import PURPOSE_LIMIT, EvaluationTransform, generator
from mocoembed.errors import TrainingError, UsageError
from mocoembed.files import sha256_json, write_bytes
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, keep_encoder, tool_provenance
from mocoembed.model.moco import MoCo
from mocoembed.model.precision import Compute
from mocoembed.train.checkpoint import delete_checkpoints, load_newest, save_checkpoint
from mocoembed.train.optim import build_optimizer
from mocoembed.version import __version__
from mocoembed.workspace import Workspace

# Settings that do not change what is learned: they are not part of a run's name, and may change on resuming.
EXECUTION = ("workspace", "run", "fresh", "workers", "device", "val", "val_every", "checkpoint_every")


@dataclass
class Training:
    """The things that change while training."""

    moco: MoCo
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    """Steps done."""
    checkpoint_sha256: str | None = None
    """Of the checkpoint that was written or loaded last."""

    def save(self, run: pathlib.Path, config: PretrainConfig, listing: Listing, epoch: int):
        """Write all that a resumed run needs, as plain types and tensors; `epoch` is the number of whole epochs done.

        Raises `TrainingError` instead when a weight is not finite.
        """
        weights = self.moco.state_dict()
        broken = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise TrainingError(f"{len(broken)} tensors hold numbers that are not finite after step {self.step} "
                                f"({broken[0]}). No checkpoint holds them: start over with a lower --lr.")
        entry = save_checkpoint(run, {
            "step": self.step, "epoch": epoch, "moco": weights, "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "config": to_dict(config), "listing": listing.digest(),
            "pictures": len(listing), "versions": {"mocoembed": __version__, "torch": str(torch.__version__)}})
        self.checkpoint_sha256 = entry["sha256"]

    def source(self, steps_per_epoch: int) -> dict:
        """Where an encoder frozen now comes from."""
        return {"epochs": self.step // steps_per_epoch, "steps": self.step, "checkpoint_sha256": self.checkpoint_sha256}


def run_folder(config: PretrainConfig) -> pathlib.Path:
    """`--run`, or the recipe and a hash of all settings that change what is learned, in the workspace."""
    learned = {name: value for name, value in to_dict(config).items() if name not in EXECUTION}
    learned["images"] = os.path.abspath(config.images)
    return Workspace(config.workspace).runs / (config.run or f"{config.recipe}-{sha256_json(learned)[:8]}")


def limited(listing: Listing, config: PretrainConfig) -> Listing:
    """The listing, or `--limit` pictures of it drawn at random by the seed, in order."""
    if config.limit is None or config.limit >= len(listing):
        return listing
    rows = generator(config.seed, PURPOSE_LIMIT).permutation(len(listing))[:config.limit]
    return listing.subset(sorted(rows))


def encoder_spec(config: PretrainConfig) -> EncoderSpec:
    """What the run's encoders are built from."""
    return EncoderSpec(config.arch, config.width, config.stem, config.head, config.dim)


def set_up(config: PretrainConfig, compute: Compute) -> Training:
    """New encoders, queue and optimizer, from torch's random state."""
    moco = MoCo(encoder_spec(config), config.queue_size, config.momentum, config.temperature, config.bn_groups)
    moco = compute.place(moco).train()
    scaler = torch.amp.GradScaler(compute.device.type, enabled=config.precision == "fp16")
    return Training(moco, build_optimizer(moco.encoder_q, config), scaler)


def resume(training: Training, run: pathlib.Path, config: PretrainConfig, listing: Listing, note):
    """Load the run's newest checkpoint, if there is one that belongs to the same settings and pictures."""
    if config.fresh:
        delete_checkpoints(run)
        (run / "metrics.jsonl").unlink(missing_ok=True)
        return
    state = load_newest(run)
    if state is None:
        return
    require_same_settings(state, config, run)
    if state["listing"] != listing.digest():
        raise UsageError(f"The pictures in {config.images!r} are not those that run {run.name!r} began with "
                         f"({state['pictures']} then, {len(listing)} now). Add --fresh, or give another --run.")
    training.moco.load_state_dict(state["moco"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    training.step, training.checkpoint_sha256 = state["step"], state["sha256"]
    note(f"resuming {run} after step {training.step} (epoch {state['epoch']})")
    if (before := state["config"]["images"]) != config.images:
        note(f"the pictures are in {config.images!r} now; they were in {before!r}")


def require_same_settings(state: dict, config: PretrainConfig, run: pathlib.Path):
    """Raise `UsageError` naming the settings that differ from the checkpoint's; more epochs are allowed."""
    may_change = (*EXECUTION, "images", "epochs")
    old, new = state["config"], to_dict(config)
    differing = [name for name in new if name not in may_change and old.get(name) != new[name]]
    if differing:
        changes = ", ".join(f"{option_name(name)} {old.get(name)} -> {new[name]}" for name in differing)
        raise UsageError(f"Run {run.name!r} was begun with other settings: {changes}. "
                         "Give another --run, or --fresh to start this one over.")


def frozen_encoder(encoder: Encoder, config: PretrainConfig, source: dict) -> FrozenEncoder:
    """A frozen copy of a query encoder with its evaluation transform; `source` says where it comes from."""
    frozen = copy.deepcopy(encoder).cpu().float().eval().requires_grad_(False)
    transform = EvaluationTransform.of(config.image_size, config.mean, config.std)
    return FrozenEncoder(frozen, transform, {**source, "recipe": config.recipe, "seed": config.seed,
                                             "pretrained_on": pathlib.Path(config.images).name, **tool_provenance()})


def export_to_workspace(frozen: FrozenEncoder, workspace: Workspace) -> pathlib.Path:
    """Keep the encoder under its fingerprint, make it the newest, and return the path of the former."""
    path = workspace.encoder_of(frozen.fingerprint())
    keep_encoder(path, frozen)
    write_bytes(workspace.newest_encoder, path.read_bytes())
    return path
