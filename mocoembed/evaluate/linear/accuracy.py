"""Linear classification of stored features: labelled vectors of one or two files -> percent right, by repeats.

Logistic regression on vectors of length 1, centred by the training rows (`logistic`); its penalty is chosen on a part
of the training rows (`penalty`). With one file, folds: each is classified by what was learned from the others.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mocoembed.config import LinearConfig, ProbeConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import UsageError
from mocoembed.evaluate import measures
from mocoembed.evaluate.baselines import Baseline, Fits, baselines, planned_of
from mocoembed.evaluate.folds import few_of_each, folds_of, gathered, near_duplicates, same_image
from mocoembed.evaluate.linear.logistic import PENALTIES
from mocoembed.evaluate.linear.penalty import Rows, Search, learn
from mocoembed.evaluate.linear.result import LinearResult, Repeat, fits_of
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.sides import (
    Side,
    classes_of,
    overlap,
    queries_beside,
    read_side,
    require_classes,
    require_common_class,
    require_labelled,
)
from mocoembed.knn import neighbours
from mocoembed.model.precision import Compute
from mocoembed.workspace import Workspace

FOLDS, SEEDS = 5, 5
NEAREST = 8  # images that are looked at, of each, for near-duplicates
WHAT = "Linear classification"
Progress = Callable[[int, int], None]


def linear_accuracy(config: LinearConfig, progress: Progress = lambda done, total: None) -> LinearResult:
    """How many images a linear classifier of the features gets right.

    `progress(done, total)` counts fits, those of the baselines too. Raises `UsageError` for a missing file,
    `MismatchError` when the files come from different encoders or features, `CollectionError` when there are too few
    labelled rows or classes, `FormatError` for a damaged file or rows that are not finite. A fit that did not converge
    is no error here: see `LinearResult.unconverged`.
    """
    begun = time.perf_counter()
    train, test = read_sides(config)
    require_learnable(train, test, config)
    parts = 1 + len(planned_of(train, test, config.baselines)[0])  # the encoder, and as many fits for each baseline

    def counting(before: int) -> Progress:
        return lambda done, total: progress(before * total + done, parts * total)

    similarities, others_rows = (torch.cat(one).cpu().numpy() for one in zip(
        *neighbours(test.vectors, train.vectors, NEAREST, test is train)))
    both = overlap(test, train, test is train, similarities[:, 0])
    near, apart = None, 0
    if test is train and both.threshold is not None:
        near, apart = near_duplicates(similarities, others_rows, both.threshold, train.names,
                                      same_image(train.digests))
    repeats, classes = measure(train, test, config, counting(0), near)
    values = values_of(repeats, classes)
    before = itertools.count(1)
    others = baselines(train, test, config.baselines, lambda bank, queries: baseline_of(
        *measure(bank, queries, config, counting(next(before)), near)))
    return LinearResult(config, train, test, repeats, classes, values, both, apart,
                        others.with_majority(train, test), time.perf_counter() - begun)


def read_sides(config: LinearConfig) -> tuple[Side, Side]:
    """Training and test rows, on the device; one and the same without TEST."""
    device = Compute.of(config.device, "fp32").device
    for path in (config.train, config.test):
        if path is not None and os.path.isdir(path):
            raise UsageError(f"{path} is a folder, not an embeddings file. Embed it with: mocoembed embed {path}\nOr "
                             "learn from the images as in papers, which takes longer: --protocol moco.")
    with EmbeddingFile(Workspace(config.workspace).embeddings_file(config.train)) as file, \
            queries_beside(file, config.test) as other:
        train = read_side(file, device, what=WHAT)
        return train, train if other is file else read_side(other, device, what=WHAT)


def require_learnable(train: Side, test: Side, config: LinearConfig):
    """Raise `CollectionError` unless there are classes to learn and rows of them to classify."""
    require_labelled(train, 2, "linear classification")
    require_labelled(test, 1, "linear classification")
    require_classes(train, train, "linear classification")
    require_common_class(train, test)


def measure(train: Side, test: Side, config: LinearConfig, progress: Progress = lambda done, total: None,
            near: np.ndarray | None = None) -> tuple[list[list[Repeat]], list[str]]:
    """What every seed and fold gave, and the names of the classes: learned ones, then those of test rows alone.

    near (N,) int64: the first of the near-duplicates of each training row, which share a fold; `None`: there are none.
    """
    classes = classes_of(train, test)
    known = classes[:len(set(train.names))]
    number = {name: place for place, name in enumerate(classes)}
    truth = np.array([number[name] for name in test.names])
    groups = same_image(train.digests)
    rows = Rows(train.vectors, train.names, groups)
    search = Search(config.metric, config.penalty or PENALTIES, config.steps)
    seeds = range(config.seed, config.seed + seeds_of(config))
    folds = 1 if test is not train else config.folds or FOLDS
    done, total = 0, len(seeds) * folds * fits_each(config)

    def one_more():
        nonlocal done
        done += 1
        progress(done, total)

    repeats: list[list[Repeat]] = []
    for seed in seeds:
        repeats.append([])
        for fold, (learned, asked) in enumerate(splits(train, test, groups, folds, seed, near)):
            if config.labels is not None:
                few = few_of_each([train.names[row] for row in learned], groups[learned], config.labels, seed)
                learned = learned[few]
            classifier = learn(rows, learned, search, seed, one_more)
            shares = classifier.fit.scores(test.vectors[torch.from_numpy(asked).to(test.vectors.device)]).softmax(dim=1)
            places = [number[name] for name in classifier.classes]
            repeats[-1].append(Repeat(seed, fold, len(learned), asked, truth[asked], in_columns(shares, places, known),
                                      classifier))
    return repeats, classes


def baseline_of(repeats: list[list[Repeat]], classes: list[str]) -> Baseline:
    """What `measure` found of a baseline's vectors."""
    return Baseline(values_of(repeats, classes), Fits.of(fits_of(repeats)))


def fits_each(config: LinearConfig) -> int:
    """Fits for every seed and fold: one for each penalty that is tried, and the last one."""
    penalties = len(set(config.penalty or PENALTIES))
    return 1 + penalties * (penalties > 1)


def seeds_of(config: LinearConfig | ProbeConfig) -> int:
    """How many times all is repeated."""
    return config.seeds or (SEEDS if config.labels is not None else 1)


def splits(train: Side, test: Side, groups: np.ndarray, folds: int, seed: int,
           near: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (n,) of `train` to learn from and rows (m,) of `test` to classify; for one file, those of every fold."""
    if test is not train:
        yield np.arange(len(train.names)), np.arange(len(test.names))
        return
    fold = folds_of(train.names, groups, folds, seed)
    fold = fold if near is None else gathered(fold, near, train.names)
    for one in range(folds):
        yield np.flatnonzero(fold != one), np.flatnonzero(fold == one)


def in_columns(shares: torch.Tensor, places: list[int], classes: list[str]) -> np.ndarray:
    """(n, C) float32: probabilities (n, c) of the classes at `places`, 0 for the others."""
    wide = np.zeros((len(shares), len(classes)), np.float32)
    wide[:, places] = shares.cpu().numpy()
    return wide


def values_of(repeats: list[list[Repeat]], classes: list[str]) -> dict[str, Measured]:
    """top1, top5, balanced and ap: over the test rows of one seed, or the mean over several."""
    each = [values_of_seed(folds, len(classes)) for folds in repeats]
    if len(each) == 1:
        return each[0]
    return {name: measures.over_repeats([one[name].value for one in each]) for name in each[0]}


def values_of_seed(folds: list[Repeat], classes: int) -> dict[str, Measured]:
    """The measures over the test rows of all folds together, each with its own fold's classifier."""
    truth, shares = (np.concatenate([getattr(one, name) for one in folds]) for name in ("truth", "shares"))
    return measures.of_classifier(truth, shares, classes)
