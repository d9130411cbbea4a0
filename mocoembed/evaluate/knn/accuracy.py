"""kNN accuracy of embeddings files: vectors and labels of one or two files -> percent right.

Classes are joined by name. With one file, each of its images is classified by all the others.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed.config import KnnConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, MismatchError
from mocoembed.evaluate import measures
from mocoembed.evaluate.baselines import Baseline, Baselines, baselines
from mocoembed.evaluate.folds import few_labels_notes, few_of_each, same_image
from mocoembed.evaluate.knn.suspects import Suspect, find_suspects
from mocoembed.evaluate.knn.through_index import neighbours_of
from mocoembed.evaluate.knn.tuning import HOW, K_GRID, T_GRID, Tuned, tune
from mocoembed.evaluate.knn.votes import Votes, count_votes
from mocoembed.evaluate.measures import FEWEST_FOR_TOP5, Measured
from mocoembed.evaluate.result import Evaluation, Protocol, per_class_json
from mocoembed.evaluate.sides import (
    Overlap,
    Side,
    classes_of,
    notes_on_classes,
    notes_on_unlabelled,
    overlap,
    queries_beside,
    read_side,
    require_classes,
    require_common_class,
    require_labelled,
)
from mocoembed.knn import bank_size, classify
from mocoembed.model.precision import Compute
from mocoembed.notes import counted
from mocoembed.recipes import KNN_PRESETS
from mocoembed.workspace import Workspace

DEFAULT_K, DEFAULT_TEMPERATURE = (200,), (0.1,)


@dataclass(frozen=True)
class KnnScore:
    """The accuracy for one number of neighbours and one temperature."""

    k: int
    """Neighbours that voted: no more than the bank has."""
    asked_k: int
    """Neighbours asked for."""
    temperature: float
    top1: float
    """Percent of queries whose class got the highest score."""
    top5: float | None
    """Percent of queries whose class is among the first five; `None` for five classes or fewer."""
    values: dict[str, Measured]
    """top1, top5, majority (top-1 of the vote without weights), balanced (mean recall of the classes), ap (mean average
    precision of the classes, by their share of the vote; only where it fits the memory)."""

    def as_json(self) -> dict:
        """Plain JSON types; the keys of earlier versions are bare numbers."""
        return {"k": self.k, "T": self.temperature, "top1": self.top1,
                **({} if self.top5 is None else {"top5": self.top5}),
                "values": {name: one.as_json() for name, one in self.values.items()}}


@dataclass(frozen=True)
class KnnResult:
    """What `knn_accuracy` measured, and all that the numbers depend on."""

    preset: str | None
    features: str
    bank: Side
    queries: Side
    leave_one_out: bool
    scores: list[KnnScore]
    """One for each k and temperature, in the order given."""
    per_class: dict[str, tuple[int, float]]
    """Label -> number of queries and top-1 in percent, for the first k and temperature."""
    encoder: dict
    """Fingerprint and provenance of the encoder that made the vectors."""
    overlap: Overlap
    """Queries that the bank has, too."""
    tuned: Tuned | None
    """How k and T were chosen; `None`: they were given."""
    suspects: list[Suspect]
    """Suspected wrong labels; empty unless they were asked for."""
    baselines: Baselines
    """For the first k and temperature."""
    classes: list[str]
    """Names of the rows and columns of `matrix`: those of the bank, then those that only queries have."""
    matrix: np.ndarray
    """(C, C) int64: true class x predicted class, for the first k and temperature."""
    by_class: dict[str, dict]
    """Label -> count, top1, precision, ap, for the first k and temperature."""
    outcomes: dict[str, np.ndarray]
    """`top1` -> (Q,) bool: which queries are right, for the first k and temperature."""
    device: str
    seconds: float
    index: str | None = None
    """The approximate index by which the neighbours were found, and its recall; `None`: they are the nearest ones."""
    labels: str | None = None
    """What the bank was cut to; then all but the scores is of the first seed."""
    repeats: tuple[dict, ...] = ()
    """With few labels, seed, images of the bank, queries and the values of every setting, for each seed."""
    remarks: tuple[str, ...] = ()
    """That a share of the labels was rounded up."""

    @property
    def protocol(self) -> Protocol:
        """All that the numbers depend on but the data and the encoder."""
        grid: list[tuple[int, float]] = ([(one["k"], one["T"]) for one in self.tuned.scores] if self.tuned else
                                         [(one.asked_k, one.temperature) for one in self.scores])
        settings = {"preprocessing": "vectors scaled to length 1", "similarity": "cosine",
                    "vote": "exp(s/T) summed by class", "leave_one_out": self.leave_one_out,
                    "k": [k for k, _ in grid], "T": [temperature for _, temperature in grid],
                    "chosen_by": HOW if self.tuned else None, "ties": "the lower row, then the lower class"}
        if self.index:
            settings["neighbours"] = self.index
        if self.labels:
            settings |= {"labels": self.labels, "seeds": len(self.repeats)}
        if self.tuned is None:
            return Protocol("knn", settings)
        return Protocol("knn", settings, self.tuned.chosen(), self.tuned.scores, self.tuned.at_edge)

    def as_json(self) -> dict:
        """Everything as plain JSON types: the schema of all evaluations, and the keys of earlier versions."""
        shared = Evaluation(
            "knn", self.protocol, self.bank, self.queries, self.overlap, [one.as_json() for one in self.scores],
            self.by_class, (self.classes, self.matrix), self.outcomes, repeats=list(self.repeats),
            baselines=self.baselines.as_json(), device=self.device, seconds=self.seconds)
        return {"preset": self.preset, "features": self.features, "leave_one_out": self.leave_one_out,
                "bank": self.bank.as_json(), "queries": self.queries.as_json(), **shared.as_json(),
                **({"suspects": [one.as_json() for one in self.suspects]} if self.suspects else {})}

    def summary(self) -> str:
        """One line on what was compared with what."""
        sides = (f"{len(self.bank.names)} images, each classified by all the others" if self.leave_one_out else
                 f"{len(self.queries.names)} queries against a bank of {len(self.bank.names)}"
                 + (f" (--labels {self.labels}, mean of {counted(len(self.repeats), 'seed')})" if self.labels else ""))
        return f"{sides}; {counted(len(self.per_class), 'class')}, {self.features} features"

    def notes(self) -> list[str]:
        """What a reader of the numbers should know: rows left out, neighbours that the bank does not have."""
        notes = notes_on_unlabelled({"bank": self.bank} if self.leave_one_out else
                                    {"bank": self.bank, "queries": self.queries})
        same = not self.leave_one_out and not self.labels and self.bank.identity == self.queries.identity
        if same:
            notes.append("bank and queries are the same images, so each image votes on itself; "
                         f"give {self.bank.path} alone for leave-one-out")
        if cut := sorted({one.asked_k for one in self.scores if one.asked_k > one.k}):
            notes.append(f"k {', '.join(map(str, cut))}: only {min(one.k for one in self.scores if one.asked_k in cut)}"
                         " images can vote; all of them do")
        if self.index:
            notes.append(f"neighbours by the index: {self.index}; the accuracies of all neighbours can differ")
        if self.tuned and self.tuned.at_edge:
            notes.append(f"the choice k {self.tuned.setting[0]}, T {self.tuned.setting[1]:g} stands at the edge of the "
                         "grid; a wider one may do better: -k and --temperature")
        notes += notes_on_classes(set(self.bank.names), set(self.queries.names), "bank", "queries")
        if not same:
            notes += self.overlap.notes("another image here" if self.leave_one_out else "an image of the bank")
        return [*notes, *self.baselines.notes("top1", self.scores[0].top1), *self.remarks]


def knn_accuracy(config: KnnConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> KnnResult:
    """The kNN accuracy of an embeddings file, or of one as queries against another as bank.

    `progress(done, total)` counts queries. Raises `UsageError` for a missing file, `MismatchError` when the files
    come from different encoders or features or the preset asks for others, `CollectionError` when there are too few
    labelled rows, `FormatError` for a damaged file.
    """
    bank, queries = read_sides(config)
    if config.labels is None:
        return measure(config, bank, queries, config.queries is None, progress)
    groups, results = same_image(bank.digests), []
    for seed in range(config.seeds):
        chosen = few_of_each(bank.names, groups, config.labels, seed)
        rest = ~np.isin(groups, groups[chosen])
        if config.queries is None and not rest.any():
            raise CollectionError(f"--labels {config.labels}: no image is left to classify. Give fewer, or QUERIES.")
        results.append(measure(dataclasses.replace(config, baselines=False if seed else config.baselines),
                               bank.only(chosen), bank.only(rest) if config.queries is None else queries, False,
                               progress))
    return dataclasses.replace(averaged(results, config.labels),
                               remarks=tuple(few_labels_notes(bank.names, config.labels)))


def averaged(results: list[KnnResult], labels: str) -> KnnResult:
    """The first of the results, with the mean scores of all: one for each seed."""
    scores = []
    for each in zip(*(one.scores for one in results)):
        values = {name: measures.over_repeats([one.values[name].value for one in each])
                  for name in each[0].values if all(name in one.values for one in each)}
        top5 = None if any(one.top5 is None for one in each) else values["top5"].value
        scores.append(dataclasses.replace(each[0], top1=values["top1"].value, top5=top5, values=values))
    repeats = tuple({"seed": seed, "bank": len(one.bank.names), "queries": len(one.queries.names),
                     "results": [score.as_json() for score in one.scores]} for seed, one in enumerate(results))
    return dataclasses.replace(results[0], scores=scores, labels=labels, repeats=repeats,
                               seconds=sum(one.seconds for one in results))


def measure(config: KnnConfig, bank: Side, queries: Side, leave_one_out: bool,
            progress: Callable[[int, int], None] = lambda done, total: None) -> KnnResult:
    """`knn_accuracy` of two sides that have been read, which are one and the same in leave-one-out."""
    begun, settings = time.perf_counter(), settings_of(config)
    require_labelled(bank, 2 if leave_one_out else 1, "kNN accuracy")
    require_labelled(queries, 1, "kNN accuracy")
    require_classes(bank, queries, "kNN accuracy")
    require_common_class(bank, queries)
    classes, bank_classes = classes_of(bank, queries), len(set(bank.names))
    number = {name: place for place, name in enumerate(classes)}
    device = bank.vectors.device
    bank_labels = torch.tensor([number[name] for name in bank.names], device=device)
    truth = np.array([number[name] for name in queries.names])
    tuned = tune(bank, bank_labels, settings, progress) if config.tune else None
    settings = [tuned.setting] if tuned else settings
    sides = queries.vectors, bank.vectors, (torch.from_numpy(truth).to(device), bank_labels)
    with neighbours_of(config.index, bank, config.device) as (find, index):
        votes = count_votes(*sides, settings, leave_one_out, progress, find)
    most = bank_size(len(bank.names), leave_one_out)
    scores, per_class_ap = [], None
    for place, (k, temperature) in enumerate(settings):
        values, ap = values_of(votes, place, truth, bank_classes, len(classes))
        per_class_ap = ap if place == 0 else per_class_ap
        scores.append(KnnScore(min(k, most), k, temperature, values["top1"].value,
                               values["top5"].value if "top5" in values else None, values))
    first = votes.predicted[0][:, 0].cpu().numpy()
    others = baselines(bank, queries, config.baselines, lambda *both: Baseline(
        top1_of(both[0], both[1], number, settings[0], leave_one_out)))
    matrix = measures.confusion(truth, first, len(classes))
    by_class = dict(sorted(per_class_json(classes, matrix, per_class_ap).items()))
    return KnnResult(config.preset, bank.features, bank, queries, leave_one_out, scores,
                     {name: (one["count"], one["top1"]) for name, one in by_class.items()}, bank.encoder,
                     overlap(queries, bank, leave_one_out, votes.nearest.numpy()), tuned,
                     find_suspects(votes, truth, classes, queries, bank) if config.suspects else [],
                     others.with_majority(bank, queries), classes, matrix, by_class,
                     {"top1": first == truth}, str(device), time.perf_counter() - begun, index)


def values_of(votes: Votes, place: int, truth: np.ndarray, bank_classes: int,
              classes: int) -> tuple[dict[str, Measured], np.ndarray | None]:
    """The measures of one k and temperature, and AP by class (C,) where it was computed.

    truth (Q,) int64 counts the classes of the bank first, then those that only queries have.
    """
    predicted = votes.predicted[place].cpu().numpy()
    right = predicted == truth[:, None]
    values = {"top1": measures.share(right[:, 0])}
    if bank_classes >= FEWEST_FOR_TOP5:
        values["top5"] = measures.share(right.any(axis=1))
    values["majority"] = measures.share(votes.majority[place].cpu().numpy() == truth)
    values["balanced"] = measures.balanced(measures.confusion(truth, predicted[:, 0], classes))
    if place >= len(votes.shares):
        return values, None
    each, values["ap"] = measures.class_precision(votes.shares[place].cpu().numpy(), truth)
    return values, each


def top1_of(bank: Side, queries: Side, number: dict[str, int], setting: tuple[int, float],
            leave_one_out: bool) -> dict[str, Measured]:
    """The top-1 of other vectors for the same labels, whose numbers are given, by one k and temperature."""
    bank_labels, truth = (torch.tensor([number[name] for name in side.names], device=side.vectors.device)
                          for side in (bank, queries))
    predicted, = classify(queries.vectors, bank.vectors, bank_labels, [setting], leave_one_out)
    return {"top1": measures.share((predicted[:, 0] == truth).cpu().numpy())}


def read_sides(config: KnnConfig) -> tuple[Side, Side]:
    """Bank and queries, on the device; one and the same when the queries are not given."""
    device = Compute.of(config.device, "fp32").device
    with EmbeddingFile(Workspace(config.workspace).embeddings_file(config.bank)) as file:
        require_preset(file, config.preset)
        with queries_beside(file, config.queries) as other:
            bank = read_side(file, device, streamed=True)
            return bank, bank if other is file else read_side(other, device, streamed=True)


def settings_of(config: KnnConfig) -> list[tuple[int, float]]:
    """Every (k, T): as given, or the preset's, or the usual grid to choose from, or 200 and 0.1."""
    _, ks, temperatures = KNN_PRESETS[config.preset] if config.preset else (
        None, *((K_GRID, T_GRID) if config.tune else (DEFAULT_K, DEFAULT_TEMPERATURE)))
    return [(k, temperature) for k in config.k or ks for temperature in config.temperature or temperatures]


def require_preset(file: EmbeddingFile, preset: str | None):
    """Raise `MismatchError` unless the file has the features that the preset is defined for."""
    wanted = KNN_PRESETS[preset][0] if preset else file.features
    if file.features != wanted:
        raise MismatchError(f"--preset {preset} is defined on {wanted} features; {file.path} holds {file.features} "
                            f"features. Make one with: mocoembed embed FOLDER --features {wanted} "
                            f"--output {wanted}.h5")
