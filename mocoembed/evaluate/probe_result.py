"""What `mocoembed linear --protocol ...` measured, as a table, notes and JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mocoembed.config import ProbeConfig
from mocoembed.evaluate import measures
from mocoembed.evaluate.baselines import as_json, majority_class, notes_of
from mocoembed.evaluate.frozen_backbone import FrozenBackbone
from mocoembed.evaluate.heads import MOMENTUM
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.penalty import HELD_OUT
from mocoembed.evaluate.result import Evaluation, Protocol, per_class_json
from mocoembed.evaluate.sides import Overlap, Side, notes_on_classes

SCHEDULES = {"steps": "x 0.1 after 60 % and 80 % of the epochs", "cosine-epochs": "cosine to 0, once an epoch",
             "cosine-steps": "cosine to 0.001 of it, every step"}


@dataclass(frozen=True)
class Chosen:
    """The learning rate, and what it was chosen by."""

    place: int
    """In `ProbeConfig.rates`."""
    tried: list[dict]
    """For each rate, the smallest first: its score on the held-out images in percent; empty for a single one."""
    held_out: int
    """Images that it was chosen on."""
    vectors: torch.Tensor | None
    """(N, D) raw features of the training images as they are tested; `None` where they do not fit into memory."""


@dataclass(frozen=True)
class ProbeResult:
    """What `probe_accuracy` measured, and all that the numbers depend on."""

    config: ProbeConfig
    train: Side
    test: Side
    classes: list[str]
    """(C,) names, sorted."""
    truth: np.ndarray
    """(Q,) int64 classes of the test images."""
    shares: np.ndarray
    """(Q, C) float32 probabilities."""
    chosen: Chosen
    losses: list[list[float]]
    """For every epoch, the mean training loss for each rate, of the classifiers that see all images."""
    backbone: FrozenBackbone
    overlap: Overlap
    seconds: float

    @cached_property
    def values(self) -> dict[str, Measured]:
        """top1, top5 (six classes or more), balanced, ap."""
        return measures.of_classifier(self.truth, self.shares, len(self.classes))

    @property
    def baselines(self) -> dict[str, dict[str, Measured]]:
        """The most frequent class; others would take as long as the encoder."""
        return {"majority class": majority_class(self.train, self.test)}

    @property
    def lr(self) -> float:
        """The learning rate that was chosen."""
        return self.config.rates[self.chosen.place]

    @property
    def at_edge(self) -> bool | None:
        """Whether it is the lowest or the highest of several."""
        return self.chosen.place in (0, len(self.config.rates) - 1) if self.chosen.tried else None

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on but the data and the encoder."""
        config, published, transform = self.config, self.config.published, self.backbone.transform
        several = len(config.rates) > 1
        return {
            "source": published.source, "features": "raw backbone features, evaluation mode",
            "preprocessing": f"training: random resized crop to {transform.crop} (area 0.08 to 1), flip; test: "
                             f"{transform.mode} to {transform.resize} ({transform.interpolation}), centre crop "
                             f"{transform.crop}",
            "classifier": f"linear, cross-entropy; first weights {published.first_weights}",
            "optimizer": f"SGD, momentum {MOMENTUM}, weight decay 0",
            "epochs": config.epochs or published.epochs, "batch_size": config.batch_size or published.batch_size,
            "lr": list(config.rates), "lr_scaled_by_batch": published.scaled,
            "schedule": SCHEDULES[published.schedule], "drop_last": published.drop_last, "epoch_measured": "the last",
            "metric": config.metric if several else None, "held_out": HELD_OUT if several else None,
            "choice": "best on a stratified part of the training images by classifiers that never see it, among equals "
                      "the lower; measured is the classifier of that rate that learned from all" if several else None,
            "test": None if config.test else "a stratified fifth of TRAIN, not learned from",
            "labels": config.labels, "seed": config.seed,
            "ap": "mean over the classes, by probability"}

    def solver(self) -> dict:
        """How it was learned, and that the backbone stayed as it was."""
        now, before = self.backbone.require_unchanged(), self.backbone.before
        return {"name": "torch SGD, float32", "epochs": len(self.losses),
                "loss": [one[self.chosen.place] for one in self.losses],
                "backbone": {"sha256_before": before.weights, "sha256_after": now.weights,
                             "batchnorm_layers": now.layers, "batchnorm_before": before.statistics,
                             "batchnorm_after": now.statistics, "unchanged": now == before}}

    @property
    def predicted(self) -> np.ndarray:
        """(Q,) int64: the most probable class of each test image."""
        return self.shares.argmax(axis=1)

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: true class x predicted class."""
        return measures.confusion(self.truth, self.predicted, len(self.classes))

    @cached_property
    def per_class(self) -> dict:
        """Class -> count, top1, precision, ap."""
        return per_class_json(self.classes, self.matrix, measures.class_precision(self.shares, self.truth)[0])

    def as_json(self) -> dict:
        """The schema of all evaluations."""
        chosen = {"lr": self.lr, "held_out": self.chosen.held_out} if self.chosen.tried else {}
        protocol = Protocol(f"linear, {self.config.protocol}", self.settings, chosen, self.chosen.tried, self.at_edge)
        return Evaluation(
            "linear", protocol, self.train, self.test, self.overlap,
            [{name: one.as_json() for name, one in self.values.items()}],
            self.per_class, (self.classes, self.matrix), {"top1": self.predicted == self.truth},
            self.solver(), baselines=as_json(self.baselines), device=str(self.backbone.compute.device),
            seconds=self.seconds).as_json()

    def summary(self) -> str:
        """One line on what was learned from what."""
        epochs = self.config.epochs or self.config.published.epochs
        return (f"{len(self.test.names)} images, learned from {len(self.train.names)}; {len(self.classes)} classes, "
                f"{self.train.vectors.shape[1]} raw features, {epochs} epochs, lr {self.lr:g}"
                + (f" (chosen on {self.chosen.held_out} held-out images)" if self.chosen.tried else ""))

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = [*self.overlap.notes(False),
                 *notes_on_classes(set(self.classes), set(self.test.names), "training images", "test images")]
        if self.at_edge:
            notes.append(f"lr {self.lr:g} at the edge of those tried was chosen; others may do better (--lr)")
        return [*notes, *notes_of(self.baselines, "top1", self.values["top1"].value)]
