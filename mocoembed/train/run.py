"""A run: its folder, its state, how it resumes, and the frozen encoder that comes out of it."""

import math
import os
import pathlib
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch

from mocoembed.checks import from_dict, option_name, to_dict
from mocoembed.config import PretrainConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import Listing
from mocoembed.data.loader import steps_per_epoch
from mocoembed.data.views import PURPOSE_LIMIT, ViewSettings, generator
from mocoembed.errors import CollectionError, TrainingError, UsageError
from mocoembed.files import sha256_json, write_bytes
from mocoembed.model.dictionary import EndToEnd, MemoryBank, Method
from mocoembed.model.encoder import Encoder, EncoderSpec, check_backbone, synchronized, zero_init_residual
from mocoembed.model.encoder_file import FrozenEncoder, keep_encoder, tool_provenance
from mocoembed.model.graph_export import keep_graph
from mocoembed.model.moco import MoCo, wrap_trained
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import ALONE, Ranks
from mocoembed.model.timm_backbone import PREFIX as TIMM
from mocoembed.model.timm_backbone import known_name
from mocoembed.notes import counted, say_nothing
from mocoembed.train.checkpoint import (
    delete_checkpoints,
    load_newest,
    not_finite,
    require_fits,
    require_resumable,
    save_checkpoint,
)
from mocoembed.train.optim import build_optimizer
from mocoembed.version import __version__
from mocoembed.workspace import Workspace

# Settings that do not change what is learned: they are not part of a run's name, and may change on resuming.
EXECUTION = ("given", "workspace", "run", "fresh", "workers", "cache", "device", "compile", "processes", "timeout",
             "check_ranks", "val", "val_every", "checkpoint_every", "groups_at_once")
MASKED_FROM = 0.1  # K as a share of the images from which same-image masking is on by default


@dataclass
class Training:
    """One process's part of a pretraining: what it computes with, and what changes with every step."""

    config: PretrainConfig
    compute: Compute
    ranks: Ranks
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    views: ViewSettings
    """How the views are made."""
    groups_at_once: int = 0
    """BatchNorm groups of this rank's batch that go forward and backward at a time; see `mocoembed.train.memory_plan`.
    """
    step: int = 0
    """Steps done."""
    checkpoint_sha256: str | None = None
    """Of the checkpoint that was written or loaded last."""
    started_from: dict[str, Any] | None = None
    """What the encoders began with (`train/start.py`); `None`: chance."""

    @property
    def groups(self) -> int:
        """BatchNorm groups of this rank's batch."""
        return groups_of(self.config, self.ranks.size)

    def save(self, run: pathlib.Path, listing: Listing, steps_per_epoch: int):
        """Write, on rank 0, all that a resumed run needs, as plain types and tensors.

        Raises `TrainingError` instead when a weight is not finite.
        """
        self.checkpoint_sha256 = self.ranks.from_first(lambda: self._write(run, listing, steps_per_epoch))

    def _write(self, run: pathlib.Path, listing: Listing, steps_per_epoch: int) -> str:
        weights = self.method.state_dict()
        if broken := not_finite(weights):
            raise TrainingError(f"{len(broken)} tensors hold values that are not finite after step {self.step} "
                                f"({broken[0]}). No checkpoint contains them: start over with a lower --lr.")
        epoch, position = divmod(self.step, steps_per_epoch)
        return save_checkpoint(run, {
            "step": self.step, "epoch": epoch, "position": position, "model": weights,
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "config": to_dict(self.config), "listing": listing.digest(), "images": len(listing),
            "processes": self.ranks.size, "groups_at_once": self.groups_at_once, "started_from": self.started_from,
            "versions": {"mocoembed": __version__, "torch": str(torch.__version__)}})["sha256"]

    def frozen(self, steps_per_epoch: int) -> FrozenEncoder:
        """A copy of the query encoder as it is now, with where it comes from."""
        source = {"epochs": self.step // steps_per_epoch, "steps": self.step,
                  "checkpoint_sha256": self.checkpoint_sha256, **origin(self.started_from)}
        return frozen_encoder(self.method.encoder_q.state_dict(), self.config, source)


def groups_of(config: PretrainConfig, processes: int) -> int:
    """BatchNorm groups of one process's batch."""
    return 1 if config.batchnorm == "sync" else config.bn_groups // processes


def origin(started_from: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a provenance that says what the run began with."""
    return {} if started_from is None else {"started_from": started_from}


def require_shares(config: PretrainConfig, processes: int, on_gpu: bool):
    """Raise `UsageError` when the batch or its BatchNorm groups cannot be shared out among the processes or in time."""
    if config.groups_at_once is not None and config.whole_because:
        raise UsageError(f"--groups-at-once {config.groups_at_once}: the batch cannot be divided: "
                         f"{config.whole_because}.")
    if processes == 1:
        return
    if config.batch_size % processes or config.batch_size < 2 * processes:
        raise UsageError(f"--batch-size {config.batch_size}: must be a multiple of the {processes} processes, with two "
                         "or more images for each.")
    if config.batchnorm == "sync":
        if not on_gpu:
            raise UsageError("--batchnorm sync: across processes it needs GPUs. Give --batchnorm shuffled, or "
                             "--processes 1.")
    elif config.bn_groups > processes and config.bn_groups % processes:
        raise UsageError(f"--bn-groups {config.bn_groups}: must be a multiple of the {processes} processes.")


def require_a_batch(config: PretrainConfig, images: int, processes: int):
    """Raise `CollectionError` when the images do not fill one batch, with the options that would do."""
    if steps_per_epoch(images, config.batch_size, config.drop_last):
        return
    least = math.lcm(1 if config.batchnorm == "sync" else config.bn_groups, processes)
    fitting = images // least * least
    if fitting >= 2 * least:
        advice = f"Give --batch-size {fitting}."
    elif images >= 2 * processes:
        advice = f"Give --batch-size {images // processes * processes} --bn-groups {processes}."
    else:
        advice = f"Pretraining takes {2 * processes} or more, and hundreds to learn something."
    raise CollectionError(f"{counted(images, 'image')} do not fill a batch of {config.batch_size}. {advice}"
                          .replace("1 image do", "1 image does"))


def settled(config: PretrainConfig, images: int, processes: int) -> tuple[PretrainConfig, list[str]]:
    """The config with all that depends on the collection and the number of processes, and what to say about it.

    `require_shares` has seen it already.
    """
    notes: list[str] = []
    changes: dict[str, Any] = {}
    if config.arch.startswith(TIMM):
        changes["arch"] = TIMM + known_name(config.arch)
    if config.mask_same_image is None:
        masked = config.dictionary == "queue" and config.queue_size > MASKED_FROM * images
        changes["mask_same_image"] = masked
        if masked:
            notes.append(f"The queue of {config.queue_size} keys is over a tenth of the {images} images: keys of a "
                         "query's own image are not its negatives (--no-mask-same-image to keep them).")
    if processes > 1:
        if config.batchnorm != "sync" and config.bn_groups < processes:
            changes["bn_groups"] = processes
            notes.append(f"BatchNorm sees each process's images apart: {processes} groups, not {config.bn_groups}.")
        if not config.drop_last:
            changes["drop_last"] = True
            notes.append("With several processes the last, incomplete batch of an epoch is dropped.")
    return replace(config, **changes), notes


def run_folder(config: PretrainConfig) -> pathlib.Path:
    """`--run`, or the recipe and a hash of all settings that change what is learned, in the workspace."""
    learned = {name: value for name, value in to_dict(config).items() if name not in EXECUTION}
    for name in ("exclude", "init", "value_range", "key_image_size", "key_crop_scale"):
        if not learned[name]:
            del learned[name]  # so that runs of versions without it keep their names
    learned["images"] = os.path.abspath(config.images)
    return Workspace(config.workspace).runs / (config.run or f"{config.recipe}-{sha256_json(learned)[:8]}")


def limited(listing: Listing, config: PretrainConfig) -> Listing:
    """The listing, or `--limit` images of it drawn at random by the seed, in order."""
    if config.limit is None or config.limit >= len(listing):
        return listing
    rows = generator(config.seed, PURPOSE_LIMIT).permutation(len(listing))[:config.limit]
    return listing.subset(sorted(rows))


def encoder_spec(config: PretrainConfig) -> EncoderSpec:
    """What the run's encoders are built from."""
    return EncoderSpec(config.arch, config.width, config.stem, config.head, config.dim)


def set_up(config: PretrainConfig, compute: Compute, images: int, ranks: Ranks = ALONE) -> Training:
    """New encoders, dictionary and optimizer, drawn by the seed, the same on all ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        method = build_method(config, images, ranks)
        compute.place(method).train()
    if config.compile:
        for encoder in {*method.trained.values(), getattr(method, "encoder_k", method.encoder_q)}:
            encoder.compile()
    wrap_trained(method.trained, ranks)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    scaler = torch.amp.GradScaler(compute.device.type, enabled=config.precision == "fp16")
    return Training(config, compute, ranks, method, build_optimizer(trained, config), scaler,
                    ViewSettings.of(config), groups_of(config, ranks.size))


def build_method(config: PretrainConfig, images: int, ranks: Ranks) -> Method:
    """`MoCo`, `MemoryBank` or `EndToEnd`, on the CPU; `UsageError` for more keys than there are images."""
    encoder_q = Encoder(encoder_spec(config), groups_of(config, ranks.size))
    if config.zero_init_residual:
        zero_init_residual(encoder_q.backbone)
    with warnings.catch_warnings():
        if not ranks.first:
            warnings.simplefilter("ignore")
        check_backbone(encoder_q, *config.view_sizes)
    if config.batchnorm == "sync" and ranks.size > 1:
        encoder_q = synchronized(encoder_q)
    if config.dictionary == "end-to-end":
        return EndToEnd(encoder_q, config.key_encoder, ranks)
    if config.dictionary == "memory-bank":
        most = images - config.batch_size
        if config.queue_size > most:
            raise UsageError(f"--queue-size {config.queue_size}: must be {most} or less with --dictionary memory-bank "
                             f"({images} images, {config.batch_size} of them in the batch).")
        return MemoryBank(encoder_q, images, config.queue_size, config.bank_momentum, config.seed, ranks)
    return MoCo(encoder_q, config.queue_size, config.momentum, bool(config.mask_same_image), ranks)


def resume(training: Training, run: pathlib.Path, listing: Listing, note):
    """Load the run's newest checkpoint, if there is one that belongs to the same settings and images."""
    state = training.ranks.from_first(lambda: _to_resume(training.config, run, listing))
    if state is None:
        return
    require_resumable(state, training.method, training.optimizer)
    training.method.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    training.step, training.checkpoint_sha256 = state["step"], state["sha256"]
    training.started_from = state.get("started_from")
    note(f"resuming {run} after step {training.step} (epoch {state['epoch']})")
    before, now = state["config"], training.config
    if before["images"] != now.images:
        note(f"the images are in {now.images!r} now; they were in {before['images']!r}")
    if before["epochs"] != now.epochs:
        note(f"{now.epochs} epochs now, {before['epochs']} before: the learning rate follows the new schedule from "
             "here on")
    if before["cache"] != now.cache and not now.full_decode:
        note(f"--cache {now.cache} now, {before['cache']} before: large JPEG files may be decoded at another scale, so "
             "not the same bits")
    if state["processes"] != training.ranks.size:
        note(f"{training.ranks.size} processes now, {state['processes']} before: the same mathematics, but not the "
             "same bits")
    groups_before, groups = state.get("groups_at_once"), training.groups_at_once
    if groups_before not in (None, groups) and state["processes"] == training.ranks.size:
        note(f"{counted(groups, 'BatchNorm group')} at once now, {groups_before} before: the same mathematics, but "
             "not the same bits")


def _to_resume(config: PretrainConfig, run: pathlib.Path, listing: Listing) -> dict | None:
    if config.fresh:
        delete_checkpoints(run)
        (run / "metrics.jsonl").unlink(missing_ok=True)
        return None
    state = load_newest(run)
    if state is None:
        return None
    require_same_settings(state, config, run)
    if state["listing"] != listing.digest():
        raise UsageError(f"The images in {config.images!r} are not those that run {run.name!r} started with "
                         f"({state['images']} then, {len(listing)} now). Add --fresh, or give another --run.")
    return state


def require_same_settings(state: dict, config: PretrainConfig, run: pathlib.Path):
    """Raise `UsageError` naming the settings that differ from the checkpoint's; more epochs are allowed."""
    if config.epochs < state["epoch"]:
        raise UsageError(f"--epochs {config.epochs}: run {run.name!r} has done {state['epoch']}. Give more, or another "
                         "--run.")
    may_change = (*EXECUTION, "images", "exclude", "epochs")  # which images they are, the listing's digest shows
    old, new = to_dict(from_dict(PretrainConfig, state["config"])), to_dict(config)  # with defaults for what is new
    differing = [name for name in new if name not in may_change and old.get(name) != new[name]]
    if differing:
        changes = ", ".join(f"{option_name(name)} {old.get(name)} -> {new[name]}" for name in differing)
        raise UsageError(f"Run {run.name!r} was started with other settings: {changes}. "
                         "Give another --run, or --fresh to start this one over.")


def frozen_encoder(weights: dict[str, torch.Tensor], config: PretrainConfig, source: dict) -> FrozenEncoder:
    """A frozen query encoder with its evaluation transform from a state dict; `source` says where it comes from."""
    with torch.device("meta"):
        encoder = Encoder(encoder_spec(config))
    weights = {name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else None, copy=True)
               for name, value in weights.items()}
    require_fits(weights, encoder.state_dict(), "The encoder")
    encoder.load_state_dict(weights, assign=True)
    transform = replace(EvaluationTransform.of(config.image_size, config.mean, config.std),
                        value_range=config.value_range)
    return FrozenEncoder(encoder.eval().requires_grad_(False), transform, {
        **source, "recipe": config.recipe, "seed": config.seed, "pretrained_on": pathlib.Path(config.images).name,
        **tool_provenance()})


def export_to_workspace(frozen: FrozenEncoder, workspace: Workspace, note=say_nothing) -> pathlib.Path:
    """Keep the encoder under its fingerprint, make it the newest, and return the path of the former."""
    path = workspace.encoder_of(frozen.fingerprint())
    keep_encoder(path, frozen)
    keep_graph(workspace.graph_of(frozen.fingerprint()), frozen, note)
    write_bytes(workspace.newest_encoder, path.read_bytes())
    return path
