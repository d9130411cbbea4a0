"""Linear evaluation on stored features: labelled embeddings -> how well a linear classifier of them does.

Multinomial logistic regression (`logistic`), its penalty chosen on a held-out fifth of the training images and never on
the test images (`penalty`). TRAIN against TEST, or the folds of one file; with few labels, repeated by seed.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed.config import LinearConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError
from mocoembed.evaluate import baselines, measures
from mocoembed.evaluate.folds import few_of_each, folds_of, same_image
from mocoembed.evaluate.logistic import TOLERANCE
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.penalty import HELD_OUT, PENALTIES, Classifier, Rows, Search, learn
from mocoembed.evaluate.result import Evaluation, Protocol, per_class_json
from mocoembed.evaluate.sides import (
    Side,
    read_side,
    require_classes,
    require_labelled,
    require_same_vectors,
    shared_bytes,
)
from mocoembed.files import require_file
from mocoembed.model.precision import Compute
from mocoembed.workspace import Workspace

FOLDS, SEEDS = 5, 5
FEWEST_FOR_TOP5 = 6  # classes
WHAT = "The linear accuracy"


@dataclass(frozen=True)
class Fitted:
    """One classifier: what it was learned from, and how."""

    fold: int | None
    """The fold that it classifies; `None` without folds."""
    train: int
    test: int
    """Images that it was learned from, and that it classifies."""
    classifier: Classifier

    def as_json(self) -> dict:
        """Plain JSON types."""
        one = self.classifier
        return {"fold": self.fold, "train": self.train, "test": self.test, "chosen": {"penalty": one.fit.penalty},
                "held_out": one.held_out, "at_edge": one.at_edge, "scores": one.tried, "solver": one.fit.as_json()}


@dataclass(frozen=True)
class Run:
    """Everything that one seed gave."""

    seed: int
    fitted: list[Fitted]
    rows: np.ndarray
    """(Q,) int64: the rows of the test side that were classified."""
    truth: np.ndarray
    """(Q,) int64: their classes."""
    shares: np.ndarray
    """(Q, C) float32: the probability of every class."""

    @property
    def predicted(self) -> np.ndarray:
        """(Q,) int64: the most probable class."""
        return self.shares.argmax(axis=1)

    def values(self) -> tuple[dict[str, Measured], np.ndarray]:
        """top1, top5, balanced and ap of the queries, and AP by class (C,)."""
        classes, right = self.shares.shape[1], self.predicted == self.truth
        values = {"top1": measures.share(right)}
        if classes >= FEWEST_FOR_TOP5:
            best = np.argpartition(-self.shares, 4, axis=1)[:, :5]
            values["top5"] = measures.share((best == self.truth[:, None]).any(axis=1))
        values["balanced"] = measures.balanced(measures.confusion(self.truth, self.predicted, classes))
        each, values["ap"] = measures.class_precision(self.shares, self.truth)
        return values, each

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"seed": self.seed, "queries": len(self.rows), "fits": [one.as_json() for one in self.fitted],
                "results": {name: one.as_json() for name, one in self.values()[0].items()}}


@dataclass(frozen=True)
class LinearResult:
    """What `linear_accuracy` measured, and all that the numbers depend on."""

    config: LinearConfig
    train: Side
    test: Side
    """Those that were classified; the training side where there are folds."""
    classes: list[str]
    """(C,) names: those of the training side, then those that only test images have."""
    runs: list[Run]
    """One for each seed."""
    baselines: dict[str, dict[str, Measured]]
    without: list[str]
    """Why there are no baselines."""
    same_bytes: int
    """Images of the test file that the training file has, too."""
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether every fit ended near enough to its optimum."""
        return all(one["converged"] for one in self.fits)

    @property
    def classifiers(self) -> list[Classifier]:
        """All that were learned."""
        return [one.classifier for run in self.runs for one in run.fitted]

    @property
    def fits(self) -> list[dict]:
        """How every fit of every classifier ended."""
        return [one for classifier in self.classifiers for one in classifier.fits]

    @property
    def values(self) -> dict[str, Measured]:
        """top1, top5 (from six classes on), balanced, ap: of one seed's queries, or the mean of the seeds."""
        each = [run.values()[0] for run in self.runs]
        if len(each) == 1:
            return each[0]
        return {name: measures.over_repeats([one[name].value for one in each]) for name in each[0]}

    @property
    def per_class(self) -> dict[str, dict]:
        """Label -> count, top1, precision, ap; of the first seed."""
        run = self.runs[0]
        return dict(sorted(per_class_json(self.classes, self.matrix, run.values()[1]).items()))

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) int64: true class x predicted class, of the first seed."""
        return measures.confusion(self.runs[0].truth, self.runs[0].predicted, len(self.classes))

    @property
    def protocol(self) -> Protocol:
        """All that the numbers depend on but the data and the encoder."""
        config = self.config
        settings = {"preprocessing": "vectors scaled to length 1, centred by the training rows, one overall scale",
                    "model": "multinomial logistic regression, bias not penalised", "penalties": penalties_of(config),
                    "chosen_by": f"{config.metric} on a stratified {HELD_OUT:g} of the training rows; among equals the "
                                 "stronger penalty; then fitted on all", "tolerance": TOLERANCE,
                    "folds": folds_in(config), "labels": config.labels, "seeds": seeds_of(config), "seed": config.seed}
        edges = [one.at_edge for one in self.classifiers]
        first = self.classifiers[0]
        return Protocol("linear", settings, {"penalty": first.fit.penalty}, first.tried,
                        None if edges[0] is None else any(edges))

    def as_json(self) -> dict:
        """The schema of all evaluations, as plain JSON types."""
        run = self.runs[0]
        queries = self.test.only(np.isin(np.arange(len(self.test.names)), run.rows))
        solver = {"name": "LBFGS of torch, strong Wolfe, float64",
                  "iterations": sum(one["iterations"] for one in self.fits),
                  "gradient_norm": max(one["gradient_norm"] for one in self.fits), "converged": self.converged}
        return Evaluation(
            "linear", self.protocol, self.train, queries, None,
            [{name: one.as_json() for name, one in self.values.items()}], self.per_class, (self.classes, self.matrix),
            {"top1": (run.predicted == run.truth)[np.argsort(run.rows, kind="stable")]}, solver,
            [one.as_json() for one in self.runs], baselines.as_json(self.baselines), str(self.train.vectors.device),
            self.seconds).as_json()

    def summary(self) -> str:
        """One line on what was learned from what."""
        config, folds, first = self.config, folds_in(self.config), self.runs[0]
        sides = (f"{len(self.train.names)} images in {folds} folds" if folds else
                 f"{len(first.rows)} images by {first.fitted[0].train} training images")
        few = f" (--labels {config.labels})" if config.labels else ""
        several = f", mean of {len(self.runs)} seeds" if len(self.runs) > 1 else ""
        return f"{sides}{few}{several}; {len(self.classes)} classes, {self.train.features} features"

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        sides = [self.train] if self.test is self.train else [self.train, self.test]
        notes = [f"skipped {side.unlabelled} rows without a label ({side.path})" for side in sides if side.unlabelled]
        if self.same_bytes:
            notes.append(f"{self.same_bytes} of the test images have the same bytes as a training image, so they are "
                         "easier than new images")
        if unknown := sorted(set(self.test.names) - set(self.train.names)):
            notes.append(f"{len(unknown)} classes of the test images are not in the training images and count as "
                         f"wrong: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}")
        edges = sorted({one.fit.penalty for one in self.classifiers if one.at_edge})
        if edges:
            notes.append(f"the penalty {', '.join(f'{one:g}' for one in edges)} stands at the edge of the grid; a "
                         "wider one may do better: --penalty")
        return [*notes, *baselines.notes_of(self.baselines, "top1", self.values["top1"].value), *self.without]


def linear_accuracy(config: LinearConfig,
                    progress: Callable[[int, int], None] = lambda done, total: None) -> LinearResult:
    """How well logistic regression on the features of one file classifies another, or its own folds.

    `progress(done, total)` counts fits. Raises `UsageError` for a missing file, `MismatchError` for files of different
    encoders or features, `CollectionError` for too few labels or classes, `FormatError` for a damaged file.
    """
    begun = time.perf_counter()
    train, test = read_sides(config)
    require_classes(train, train, WHAT)
    classes = [*sorted(set(train.names)), *sorted(set(test.names) - set(train.names))]
    runs = run_all(config, train, test, classes, progress)
    once = dataclasses.replace(config, seeds=1)
    found, without = baselines.baselines(train, test, config.baselines, lambda train, test: {
        "top1": run_all(once, train, test, classes)[0].values()[0]["top1"]})
    first = runs[0]
    majority = baselines.majority_class(train, test.only(np.isin(np.arange(len(test.names)), first.rows)))
    same = 0 if test is train else int(shared_bytes(test, train, False).sum())
    return LinearResult(config, train, test, classes, runs, {"majority class": majority, **found}, without, same,
                        time.perf_counter() - begun)


def read_sides(config: LinearConfig) -> tuple[Side, Side]:
    """Training and test side, on the device; one and the same where there is no test file."""
    path = Workspace(config.workspace).embeddings_file(config.train)
    device = Compute.of(config.device, "fp32").device
    with EmbeddingFile(path) as file:
        if config.test is None:
            train = read_side(file, device, what=WHAT)
            require_labelled(train, 2, WHAT)
            return train, train
        test_path = require_file(config.test, "The embeddings file", "mocoembed embed FOLDER")
        with EmbeddingFile(test_path) as other:
            require_same_vectors(file, other)
            train, test = read_side(file, device, what=WHAT), read_side(other, device, what=WHAT)
    require_labelled(train, 2, WHAT)
    require_labelled(test, 1, WHAT)
    return train, test


def run_all(config: LinearConfig, train: Side, test: Side, classes: list[str],
            progress: Callable[[int, int], None] = lambda done, total: None) -> list[Run]:
    """What every seed gives."""
    seeds, search = seeds_of(config), Search(config.metric, penalties_of(config), config.steps)
    groups = same_image(train.digests)
    rows = Rows(train.vectors, train.names, groups)
    number = {name: place for place, name in enumerate(classes)}
    fits, done = len(search.penalties) + 1 if len(search.penalties) > 1 else 1, 0
    total = seeds * fits * (folds_in(config) or 1)
    runs = []

    def count():
        nonlocal done
        done += 1
        progress(done, total)

    for seed in range(config.seed, config.seed + seeds):
        fitted, places, shares = [], [], []
        for fold, taught, asked in splits(config, train, test, groups, seed):
            classifier = learn(rows, taught, search, seed, count)
            fitted.append(Fitted(fold, len(taught), len(asked), classifier))
            places.append(asked)
            shares.append(shares_of(classifier, test.vectors, asked, number))
        asked = np.concatenate(places)
        truth = np.array([number[test.names[row]] for row in asked])
        runs.append(Run(seed, fitted, asked, truth, np.concatenate(shares)))
    return runs


def splits(config: LinearConfig, train: Side, test: Side, groups: np.ndarray,
           seed: int) -> Iterator[tuple[int | None, np.ndarray, np.ndarray]]:
    """Fold, rows to learn from and rows to classify. Copies of an image are never on both sides of one file's split."""
    everything = np.arange(len(train.names))
    if folds := folds_in(config):
        fold = folds_of(train.names, groups, folds, seed)
        for one in range(folds):
            yield one, everything[fold != one], everything[fold == one]
        return
    chosen = few_of_each(train.names, groups, config.labels, seed) if config.labels else np.ones(len(everything), bool)
    if config.test is not None:
        yield None, everything[chosen], np.arange(len(test.names))
        return
    rest = ~np.isin(groups, groups[chosen])
    if not rest.any():
        raise CollectionError(f"--labels {config.labels}: no image is left to classify. Give fewer, or TEST.")
    yield None, everything[chosen], everything[rest]


def shares_of(classifier: Classifier, vectors: torch.Tensor, rows: np.ndarray, number: dict[str, int]) -> np.ndarray:
    """(n, C) float32: the probability of every class, 0 for those that the classifier does not know."""
    scores = classifier.fit.scores(vectors[torch.from_numpy(rows).to(vectors.device)]).softmax(dim=1).cpu().numpy()
    shares = np.zeros((len(rows), len(number)), np.float32)
    shares[:, [number[name] for name in classifier.classes]] = scores
    return shares


def folds_in(config: LinearConfig) -> int | None:
    """Number of folds; `None` with a test file or with few labels."""
    return None if config.test is not None or config.labels else config.folds or FOLDS


def seeds_of(config: LinearConfig) -> int:
    """Number of repeats."""
    return config.seeds or (SEEDS if config.labels else 1)


def penalties_of(config: LinearConfig) -> tuple[float, ...]:
    """What is chosen from."""
    return config.penalty or PENALTIES
