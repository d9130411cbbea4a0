"""What `mocoembed finetune` measured, as a table, notes and JSON."""

import pathlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mocoembed.config import FinetuneConfig
from mocoembed.evaluate.baselines import Baselines
from mocoembed.evaluate.images.finetuning import BATCH_OF_RATES, SGD_MOMENTUM
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.result import Evaluation, Protocol
from mocoembed.evaluate.seeds import Shares, learned_from, mean_right, mean_values
from mocoembed.evaluate.sides import Overlap, Side, notes_on_classes
from mocoembed.model.classifier_file import Classifier
from mocoembed.notes import counted


@dataclass(frozen=True)
class Repeat(Shares):
    """What one seed has learned, and what it says of the test images."""

    steps: int

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {**super().as_json(), "steps": self.steps}


@dataclass(frozen=True)
class FinetuneResult:
    """What `finetune` learned and measured, and all that the numbers depend on."""

    config: FinetuneConfig
    train: Side
    """All images that could be learned from; with --labels, each seed uses some of their labels."""
    test: Side
    repeats: list[Repeat]
    """One for each seed."""
    classes: list[str]
    overlap: Overlap
    baselines: Baselines
    classifier: Classifier
    """Of the first seed."""
    path: pathlib.Path
    """Where it is kept in the workspace."""
    run: pathlib.Path
    device: str
    seconds: float

    @cached_property
    def values(self) -> dict[str, Measured]:
        """The measures of a single seed, or their means over several."""
        return mean_values(self.repeats)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on but the data and the encoder."""
        config, transform = self.config, self.classifier.frozen.transform
        return {
            "source": "facebookresearch/swav, eval_semisup.py; facebookresearch/barlowtwins, evaluate.py",
            "preprocessing": f"training: random resized crop of {transform.crop} (area 0.08 to 1), flip; test: "
                             f"{transform.mode} to {transform.resize} ({transform.interpolation}), centre crop "
                             f"{transform.crop}",
            "from_scratch": config.from_scratch, "labels": config.labels, "freeze_stages": config.freeze_stages,
            "optimizer": f"SGD, momentum {SGD_MOMENTUM}, weight decay {config.weight_decay:g}",
            "schedule": "cosine to 0, every step", "epochs": self.classifier.frozen.provenance["epochs"],
            "batch_size": config.batch_size,
            "lr": config.lr, "backbone_lr": config.lr if config.from_scratch else config.backbone_lr,
            "rates_for_a_batch_of": BATCH_OF_RATES, "precision": config.precision, "seeds": len(self.repeats),
            "first_seed": config.seed, "epoch_measured": "the last", "choice": None,
            "test": None if config.test else "a stratified fifth of TRAIN, not learned from",
            "ap": "mean over the classes, by probability"}

    @cached_property
    def per_class(self) -> dict:
        """Class -> count, top1, precision, ap, for the first seed."""
        return self.repeats[0].per_class(self.classes)

    def as_json(self) -> dict:
        """The schema of all evaluations; per class and confusion are of the first seed."""
        first = self.repeats[0]
        solver = {"name": "torch SGD", "steps": [one.steps for one in self.repeats],
                  "last_loss": self.classifier.frozen.provenance["last_loss"]}
        made = Evaluation(
            "finetune", Protocol("finetune", self.settings), self.train, self.test, self.overlap,
            [{name: one.as_json() for name, one in self.values.items()}], self.per_class,
            (self.classes, first.matrix), {"top1": mean_right(self.repeats)}, solver,
            [one.as_json() for one in self.repeats], self.baselines.as_json(), self.device, self.seconds).as_json()
        return {**made, "classifier": {"path": str(self.path), "fingerprint": self.classifier.fingerprint,
                                       "start": "random weights" if self.config.from_scratch else "encoder"}}

    def summary(self) -> str:
        """One line on what was learned from what."""
        many = learned_from((one.learned for one in self.repeats), len(self.repeats))
        start = "random weights" if self.config.from_scratch else f"encoder {self.train.encoder['fingerprint'][:8]}"
        return (f"{len(self.test.names)} test images, learned from {many}; "
                f"{len(self.classes)} classes, {counted(self.repeats[0].steps, 'step')} from {start}")

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = [*self.overlap.notes("a training image", "test images"),
                 *notes_on_classes(set(self.classes), set(self.test.names), "training images", "test images")]
        return [*notes, *self.baselines.notes("top1", self.values["top1"].value, "fine-tuned classifier")]
