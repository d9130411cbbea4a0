"""What `mocoembed linear` measured, as a table, notes and JSON."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mocoembed.config import LinearConfig
from mocoembed.evaluate import measures
from mocoembed.evaluate.baselines import Baselines
from mocoembed.evaluate.folds import few_labels_notes
from mocoembed.evaluate.linear.logistic import FLOOR, PENALTIES, TOLERANCE
from mocoembed.evaluate.linear.penalty import HELD_OUT, Classifier
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.result import Evaluation, Protocol, per_class_json
from mocoembed.evaluate.seeds import learned_from
from mocoembed.evaluate.sides import Overlap, Side, notes_on_classes, notes_on_unlabelled


@dataclass(frozen=True)
class Repeat:
    """One seed and fold: what was learned, and what it says of the test rows."""

    seed: int
    fold: int
    learned: int
    """Rows that were learned from, the held-out ones included."""
    rows: np.ndarray
    """(m,) int64 rows of the test side."""
    truth: np.ndarray
    """(m,) int64 classes; those that are not learned come last."""
    shares: np.ndarray
    """(m, C) float32: probability of each class that is learned."""
    classifier: Classifier

    @property
    def right(self) -> np.ndarray:
        """(m,) bool."""
        return self.shares.argmax(axis=1) == self.truth

    def as_json(self) -> dict:
        """Plain JSON types."""
        fit = self.classifier.fit.as_json()
        return {"seed": self.seed, "fold": self.fold, "train": self.learned, "test": len(self.rows),
                "top1": 100 * float(self.right.mean()), "held_out": self.classifier.held_out, **fit,
                "tried": self.classifier.tried}


def fits_of(repeats: list[list[Repeat]]) -> list[dict]:
    """How every fit ended, of all seeds and folds."""
    return [fit for folds in repeats for one in folds for fit in one.classifier.fits]


@dataclass(frozen=True)
class LinearResult:
    """What `linear_accuracy` measured, and all that the numbers depend on."""

    config: LinearConfig
    train: Side
    test: Side
    """The training side itself in folds."""
    repeats: list[list[Repeat]]
    """For every seed, its folds."""
    classes: list[str]
    """Those that are learned, then those that only test rows have."""
    values: dict[str, Measured]
    """top1, top5 (six classes or more), balanced, ap."""
    overlap: Overlap
    apart: int
    """Near-duplicates that may be in different folds."""
    baselines: Baselines
    seconds: float

    @property
    def in_folds(self) -> bool:
        """Whether training rows and test rows are of one file."""
        return self.test is self.train

    @property
    def fits(self) -> list[dict]:
        """How every fit ended."""
        return fits_of(self.repeats)

    @property
    def unconverged(self) -> list[dict]:
        """The fits that did not converge."""
        return [fit for fit in self.fits if not fit["converged"]]

    @property
    def protocol(self) -> Protocol:
        """All that the numbers depend on but the data and the encoder."""
        classifiers = [one.classifier for folds in self.repeats for one in folds]
        grid = sorted(set(self.config.penalty or PENALTIES), reverse=True)
        edges = [one.at_edge for one in classifiers if one.at_edge is not None]
        settings = {
            "preprocessing": "vectors scaled to length 1, centred by the training rows, divided by one number",
            "classifier": "multinomial logistic regression, penalty / 2 ||W||^2 beside the mean loss",
            "penalties": grid, "metric": self.config.metric, "held_out": HELD_OUT if len(grid) > 1 else None,
            "choice": "best on a stratified part of the training rows, among equals the stronger; refitted on all",
            "folds": len(self.repeats[0]) if self.in_folds else None, "labels": self.config.labels,
            "seeds": len(self.repeats), "first_seed": self.config.seed, "tolerance": TOLERANCE, "floor": FLOOR,
            "ap": "mean over the classes, by probability, the test rows of all folds together"}
        if self.in_folds:
            settings["near_duplicates"] = "in one fold, unless they are more than half of a class"
        chosen = {"penalty": [one.fit.penalty for one in classifiers]} if len(grid) > 1 else {}
        return Protocol("linear", settings, chosen, classifiers[0].tried, any(edges) if edges else None)

    @property
    def first(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) int64 classes and (Q, C) float32 probabilities of the first seed's test rows, fold after fold."""
        truth, shares = (np.concatenate([getattr(one, name) for one in self.repeats[0]])
                         for name in ("truth", "shares"))
        return truth, shares

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: true class x predicted class, for the first seed."""
        truth, shares = self.first
        return measures.confusion(truth, shares.argmax(axis=1), len(self.classes))

    @cached_property
    def per_class(self) -> dict:
        """Class -> count, top1, precision, ap, for the first seed."""
        truth, shares = self.first
        return per_class_json(self.classes, self.matrix, measures.class_precision(shares, truth)[0])

    def as_json(self) -> dict:
        """The schema of all evaluations; per class and confusion are of the first seed."""
        solver = {"name": "torch LBFGS, strong Wolfe, then Newton where W is small; float64", "fits": len(self.fits),
                  "iterations": sum(one["iterations"] for one in self.fits),
                  "gradient_norm": max(one["gradient_norm"] for one in self.fits),
                  "converged": not self.unconverged, "unconverged": len(self.unconverged)}
        return Evaluation(
            "linear", self.protocol, self.train, self.test, self.overlap,
            [{name: one.as_json() for name, one in self.values.items()}],
            self.per_class, (self.classes, self.matrix), {"top1": self.outcomes()}, solver,
            [one.as_json() for folds in self.repeats for one in folds], self.baselines.as_json(),
            str(self.train.vectors.device), self.seconds).as_json()

    def outcomes(self) -> np.ndarray:
        """(Q,) which test rows are right, bool; of several seeds, the share of them, float."""
        right = np.zeros((len(self.repeats), len(self.test.names)), bool)
        for seed, folds in enumerate(self.repeats):
            for one in folds:
                right[seed, one.rows] = one.right
        return right[0] if len(right) == 1 else right.mean(axis=0)

    def summary(self) -> str:
        """One line on what was learned from what."""
        many = learned_from((one.learned for folds in self.repeats for one in folds), len(self.repeats))
        sides = f"{len(self.repeats[0])} folds of {len(self.test.names)} images" if self.in_folds else \
            f"{len(self.test.names)} images"
        penalties = sorted({one.classifier.fit.penalty for folds in self.repeats for one in folds}, reverse=True)
        return (f"{sides}, learned from {many}; {len(self.classes)} classes, {self.train.features} features, "
                f"penalty {', '.join(f'{one:g}' for one in penalties)}")

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = notes_on_unlabelled({"training file": self.train} if self.in_folds else
                                    {"training file": self.train, "test file": self.test})
        notes += notes_on_classes(set(self.train.names), set(self.test.names), "training file", "test file")
        notes += self._notes_on_copies()
        if self.protocol.at_edge:
            notes.append("a penalty at the edge of those tried was chosen; others may do better (--penalty)")
        return [*notes, *self.baselines.notes("top1", self.values["top1"].value),
                *few_labels_notes(self.train.names, self.config.labels)]

    def _notes_on_copies(self) -> list[str]:
        """What to say about images on both sides."""
        if not self.in_folds and self.train.identity == self.test.identity:
            return ["training and test rows are the same images, so this shows how well they were learned by heart; "
                    f"give {self.train.path} alone for folds"]
        if not self.in_folds:
            return self.overlap.notes("a training image", "test images")
        notes, same = [], self.overlap.identical
        if same:
            notes.append(f"{same} images have the same bytes as another one; copies share a fold")
        if (self.overlap.near or 0) > same:
            notes.append(f"{(self.overlap.near or 0) - same} images are near-duplicates of another one (cosine "
                         f"{self.overlap.threshold:g} or more); near-duplicates share a fold")
        if self.apart:
            notes.append(f"{self.apart} images that are all alike to the encoder are more than half of a class, and "
                         "stay in the folds where they fall")
        return notes
