"""One seed of a published linear protocol: labelled images and a frozen backbone -> classifiers, to the last step.

Every training image is seen augmented in every epoch, once through the backbone, by all classifiers: for each learning
rate one that learns from all images, and one that never sees the held-out fifth. The rate is the one whose second
classifier does best on that fifth after the last epoch.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import numpy as np
import torch

from mocoembed.checks import to_dict
from mocoembed.config import ProbeConfig
from mocoembed.data.augmentation import Augmentation, augmented
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.loader import ViewBatch, steps_per_epoch
from mocoembed.errors import CollectionError, TrainingError
from mocoembed.evaluate.folds import held_out
from mocoembed.evaluate.images.frozen_backbone import FrozenBackbone
from mocoembed.evaluate.images.heads import Heads, set_rates
from mocoembed.evaluate.images.labelled import LabelledImages, few_mask, require_readable, training_batches
from mocoembed.evaluate.images.probe_result import Chosen
from mocoembed.evaluate.linear.penalty import HELD_OUT, score_of
from mocoembed.files import StopRequest, sha256_json
from mocoembed.notes import counted
from mocoembed.train.checkpoint import delete_checkpoints, load_newest, require_resumable, save_checkpoint
from mocoembed.workspace import Workspace

SECONDS_BETWEEN_CHECKPOINTS = 60.0
# Settings that do not change what is learned, or that the images, the encoder and the seed stand for.
EXECUTION = ("workspace", "workers", "fresh", "device", "train", "test", "encoder", "exclude", "metric", "seeds",
             "baselines")


def run_folder(config: ProbeConfig, images: LabelledImages, encoder: str, seed: int) -> pathlib.Path:
    """Where the state is kept: its name depends on all that changes what is learned. encoder: its fingerprint."""
    learned = {name: value for name, value in to_dict(config).items() if name not in EXECUTION}
    learned.update(train=images.identity, encoder=encoder, lr=list(config.rates), seed=seed)
    return Workspace(config.workspace).probes / f"{config.protocol}-{sha256_json(learned)[:12]}"


def augmentation(config: ProbeConfig, transform: EvaluationTransform, seed: int) -> Augmentation:
    """How the training images are seen."""
    published = config.published
    return Augmentation.of(transform, seed=seed, batch_size=config.batch_size or published.batch_size,
                           epochs=config.epochs or published.epochs, drop_last=published.drop_last)


class Probe:
    """The classifiers of one seed, which learn from the step of their checkpoint to the last one."""

    def __init__(self, config: ProbeConfig, backbone: FrozenBackbone, train: LabelledImages, encoder: str, seed: int):
        """`train` are the images whose labels may be used; `encoder` is the fingerprint of the backbone's."""
        self.config, self.backbone, self.seed = config, backbone, seed
        self.used = few_mask(train, config.labels, seed)
        """(N,) those whose labels are used."""
        self.images, self.known = train.only(self.used), sorted(set(train.names))
        self.folder = run_folder(config, self.images, encoder, seed)
        self.how = augmentation(config, backbone.transform, seed)
        if len(self.images) < self.how.batch_size and self.how.drop_last:
            self.how = dataclasses.replace(self.how, drop_last=False)
        self.steps_per_epoch = steps_per_epoch(len(self.images), self.how.batch_size, self.how.drop_last)
        self.images_per_epoch = min(len(self.images), self.steps_per_epoch * self.how.batch_size)
        self.apart = held_out_part(self.images, config, seed)
        """(n,) of the images that are used, those that the rate is chosen on."""
        self.heads = Heads(backbone.dimension, len(self.known), config.published, config.rates, seed)
        self.heads.to(backbone.compute.device)
        self.optimizer = self.heads.optimizer()
        self.step, self.unreadable = 0, set[int]()
        self.losses: list[list[float]] = []
        """For every epoch that is over, the mean loss for each rate."""
        self.sums = torch.zeros(len(config.rates), dtype=torch.float64)

    @property
    def held_out_rows(self) -> np.ndarray:
        """Of all training images, the rows (h,) that the rate is chosen on."""
        return np.flatnonzero(self.used)[self.apart]

    def resume(self, note: Callable[[str], None]) -> int:
        """Go on from the newest checkpoint, if there is one; how many images have been learned from."""
        if self.config.fresh:
            delete_checkpoints(self.folder)
        state = load_newest(self.folder)
        if state is None:
            return 0
        require_resumable(state, self.heads, self.optimizer)
        self.heads.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self.sums = state["step"], state["losses"], state["sums"]
        self.unreadable = set(state["unreadable"])
        last = self.steps_per_epoch * self.how.epochs
        note(f"going on after step {self.step} of {last} ({self.folder})" if self.step < last else
             f"learned before, in {counted(last, 'step')} ({self.folder}); --fresh learns again")
        return self.images_per_epoch * self.step // self.steps_per_epoch

    def save(self):
        """Write all that going on needs."""
        save_checkpoint(self.folder, {
            "step": self.step, "epoch": self.step // self.steps_per_epoch, "config": to_dict(self.config),
            "model": self.heads.state_dict(), "optimizer": self.optimizer.state_dict(), "losses": self.losses,
            "sums": self.sums, "unreadable": sorted(self.unreadable)})

    def learn(self, note: Callable[[str], None], done: Callable[[int], None]):
        """All steps to the last one; `done(n)` counts images."""
        last, saved = self.steps_per_epoch * self.how.epochs, time.monotonic()
        on_gpu = self.backbone.compute.device.type == "cuda"
        with StopRequest() as stop:
            for batch in training_batches(self.images, self.how, self.step, self.config.workers, on_gpu):
                require_readable(batch, self.images, self.unreadable, note)
                self.learn_from(batch)
                done(len(batch.rows))
                stopped = stop.signal_number is not None
                if stopped or self.step == last or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self.backbone.require_unchanged()
                    self.save()
                    saved = time.monotonic()
                stop.raise_if_set(f"Stopped after step {self.step} of {last}; saved in {self.folder}. Run the same "
                                  "command again to continue.")
        self.optimizer.state.clear()  # a copy of all weights

    def learn_from(self, batch: ViewBatch):
        """One step of all classifiers."""
        device, rows = self.backbone.compute.device, batch.rows.tolist()
        x = self.backbone.features(augmented(batch, self.how, device, self.backbone.compute.dtype))
        y = self.images.classes(rows, self.known).to(device)
        total, losses = self.heads.losses(x, y, torch.from_numpy(self.apart[rows]).to(device))
        if not bool(torch.isfinite(total)):
            raise self.not_finite(x, float(total))
        set_rates(self.optimizer, self.config.published, self.step, self.steps_per_epoch, self.how)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.step += 1
        self.sums += losses.double().cpu()
        if self.step % self.steps_per_epoch == 0:
            self.losses.append((self.sums / self.steps_per_epoch).tolist())
            self.sums = torch.zeros_like(self.sums)

    def not_finite(self, x: torch.Tensor, loss: float) -> TrainingError:
        """Why the loss is not finite: features (N, D) that are not, or rates that are too high."""
        if bad := int((~torch.isfinite(x).all(dim=1)).sum()):
            return TrainingError(f"The encoder gives {bad} of {len(x)} images features that are not finite (step "
                                 f"{self.step + 1}), so nothing can be learned from it. Give another --encoder.")
        return TrainingError(f"The loss is {loss} at step {self.step + 1} (--lr "
                             f"{','.join(f'{one:g}' for one in self.config.rates)}). Give lower rates.")

    @torch.no_grad()
    def choose(self, vectors: torch.Tensor, readable: np.ndarray) -> Chosen:
        """The best rate on the held-out images, among equals the lower one.

        vectors: (h, D) raw features of `held_out_rows`; readable: (h,) bool.
        """
        rates = self.config.rates
        if len(rates) == 1:
            return Chosen(0, [], 0)
        rows = np.flatnonzero(self.apart)[readable]
        if not len(rows):
            raise CollectionError("None of the images held out to choose the learning rate on can be read. Repair them,"
                                  f" or give one --lr, for example {self.config.published.published_lr:g}.")
        truth = self.images.classes(rows.tolist(), self.known).numpy()
        x = vectors[torch.from_numpy(readable)].to(self.backbone.compute.device)
        scores = [score_of(self.config.metric, head(x), truth) for head in self.heads.choosing]
        tried = [{"lr": rate, "score": score} for rate, score in zip(rates, scores)]
        return Chosen(int(np.argmax(scores)), tried, len(rows))

    @torch.no_grad()
    def shares(self, chosen: Chosen, vectors: torch.Tensor) -> np.ndarray:
        """(Q, C) float32: probabilities by the classifier of the chosen rate, from raw features (Q, D)."""
        scores = self.heads.everything[chosen.place](vectors.to(self.backbone.compute.device))
        return scores.softmax(dim=1).cpu().numpy()


def held_out_part(train: LabelledImages, config: ProbeConfig, seed: int) -> np.ndarray:
    """(N,) bool: the training images on which the learning rate is chosen; none for a single rate."""
    if len(config.rates) == 1:
        return np.zeros(len(train), bool)
    try:
        return held_out(train.names, train.groups, HELD_OUT, seed)
    except CollectionError as error:
        raise CollectionError("Every class has a single labelled image, so none can be held out to choose the learning "
                              f"rate on. Give more images, or one --lr, for example {config.published.published_lr:g}."
                              ) from error
