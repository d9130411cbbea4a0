"""What `mocoembed linear --protocol ...` measured, as a table, notes and JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mocoembed.config import ProbeConfig
from mocoembed.data.augmentation import Augmentation
from mocoembed.evaluate.baselines import Baselines
from mocoembed.evaluate.images.frozen_backbone import Digests, FrozenBackbone
from mocoembed.evaluate.images.heads import MOMENTUM
from mocoembed.evaluate.linear.penalty import HELD_OUT
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.result import Evaluation, Protocol
from mocoembed.evaluate.seeds import Shares, learned_from, mean_right, mean_values
from mocoembed.evaluate.sides import Overlap, Side, notes_on_classes
from mocoembed.notes import counted

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

    @property
    def at_edge(self) -> bool | None:
        """Whether it is the lowest or the highest of several; `None` for a single one."""
        return self.place in (0, len(self.tried) - 1) if self.tried else None


@dataclass(frozen=True)
class ProbeRepeat(Shares):
    """What one seed has learned, and what it says of the test images."""

    chosen: Chosen
    lr: float
    """The learning rate that was chosen."""
    losses: list[list[float]]
    """For every epoch, the mean training loss for each rate, of the classifiers that see all images."""

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {**super().as_json(), "lr": self.lr, "held_out": self.chosen.held_out, "tried": self.chosen.tried,
                "loss": [one[self.chosen.place] for one in self.losses]}


@dataclass(frozen=True)
class ProbeResult:
    """What `probe_accuracy` measured, and all that the numbers depend on."""

    config: ProbeConfig
    train: Side
    """The images that any seed has learned from."""
    test: Side
    classes: list[str]
    """(C,) names, sorted."""
    repeats: list[ProbeRepeat]
    """One for each seed."""
    how: Augmentation
    """How the first seed saw its images."""
    backbone: FrozenBackbone
    after: Digests
    """What the backbone was when all was measured."""
    overlap: Overlap
    baselines: Baselines
    seconds: float

    @cached_property
    def values(self) -> dict[str, Measured]:
        """The measures of a single seed, or their means over several."""
        return mean_values(self.repeats)

    @property
    def at_edge(self) -> bool | None:
        """Whether any seed chose the lowest or the highest of several rates."""
        edges = [one.chosen.at_edge for one in self.repeats if one.chosen.at_edge is not None]
        return any(edges) if edges else None

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
            "epochs": self.how.epochs, "batch_size": self.how.batch_size,
            "lr": list(config.rates), "lr_scaled_by_batch": published.scaled,
            "schedule": SCHEDULES[published.schedule], "drop_last": self.how.drop_last, "epoch_measured": "the last",
            "metric": config.metric if several else None, "held_out": HELD_OUT if several else None,
            "choice": "best on a stratified part of the training images by classifiers that never see it, among equals "
                      "the lower; measured is the classifier of that rate that learned from all" if several else None,
            "test": None if config.test else "a stratified fifth of TRAIN, not learned from",
            "labels": config.labels, "seeds": len(self.repeats), "first_seed": config.seed,
            "ap": "mean over the classes, by probability"}

    def solver(self) -> dict:
        """How it was learned, and that the backbone stayed as it was."""
        before, after = self.backbone.before, self.after
        return {"name": "torch SGD, float32", "epochs": self.how.epochs,
                "loss": self.repeats[0].as_json()["loss"],
                "backbone": {"sha256_before": before.weights, "sha256_after": after.weights,
                             "batchnorm_layers": after.layers, "batchnorm_before": before.statistics,
                             "batchnorm_after": after.statistics}}

    @cached_property
    def per_class(self) -> dict:
        """Class -> count, top1, precision, ap, for the first seed."""
        return self.repeats[0].per_class(self.classes)

    def as_json(self) -> dict:
        """The schema of all evaluations; per class and confusion are of the first seed."""
        first = self.repeats[0]
        each: dict[str, list] = {"lr": [one.lr for one in self.repeats],
                                 "held_out": [one.chosen.held_out for one in self.repeats]}
        chosen = {name: values if len(values) > 1 else values[0] for name, values in each.items()}
        protocol = Protocol(f"linear, {self.config.protocol}", self.settings, chosen if first.chosen.tried else {},
                            first.chosen.tried, self.at_edge)
        return Evaluation(
            "linear", protocol, self.train, self.test, self.overlap,
            [{name: one.as_json() for name, one in self.values.items()}],
            self.per_class, (self.classes, first.matrix), {"top1": mean_right(self.repeats)}, self.solver(),
            [one.as_json() for one in self.repeats], self.baselines.as_json(),
            str(self.backbone.compute.device), self.seconds).as_json()

    def summary(self) -> str:
        """One line on what was learned from what."""
        many = learned_from((one.learned for one in self.repeats), len(self.repeats))
        first = self.repeats[0]
        rates = ", ".join(f"{rate:g}" for rate in sorted({one.lr for one in self.repeats}))
        return (f"{len(self.test.names)} images, learned from {many}; {len(self.classes)} "
                f"classes, {self.backbone.dimension} raw features, {counted(self.how.epochs, 'epoch')}, lr {rates}"
                + (f" (chosen on {first.chosen.held_out} held-out images)" if first.chosen.tried else ""))

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = [*self.overlap.notes("a training image", "test images"),
                 *notes_on_classes(set(self.classes), set(self.test.names), "training images", "test images")]
        if self.at_edge:
            rates = sorted({one.lr for one in self.repeats if one.chosen.at_edge})
            notes.append(f"lr {', '.join(f'{one:g}' for one in rates)} at the edge of those tried was chosen; others "
                         "may do better (--lr)")
        return [*notes, *self.baselines.notes("top1", self.values["top1"].value)]
