"""kNN accuracy of embeddings files: vectors and labels of one or two files -> percent right.

Classes are joined by name. With one file, each of its images is classified by all the others.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mocoembed.config import KnnConfig
from mocoembed.data.images import NO_LABEL
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, FormatError, MismatchError
from mocoembed.files import require_file
from mocoembed.knn import accuracy, bank_size, classify
from mocoembed.memory import within_memory
from mocoembed.model.precision import Compute
from mocoembed.recipes import KNN_PRESETS
from mocoembed.workspace import Workspace

BLOCK = 8192  # rows read at a time
DEFAULT_K, DEFAULT_TEMPERATURE = (200,), (0.1,)


@dataclass(frozen=True)
class Side:
    """The labelled rows of one embeddings file."""

    path: pathlib.Path
    identity: str
    """SHA-256 of the file's rows."""
    features: str
    encoder: dict
    """Fingerprint and provenance of the encoder that made the vectors."""
    vectors: torch.Tensor
    """(N, D) float32 of length 1, on the device."""
    names: list[str]
    """(N,) names of the labels."""
    unlabelled: int
    """Rows left out because their label is unknown."""

    def as_json(self) -> dict:
        """Path, rows that took part and rows left out."""
        return {"path": str(self.path), "count": len(self.names), "unlabelled": self.unlabelled}


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
    top5: float
    """Percent of queries whose class is among the first five."""


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

    def as_json(self) -> dict:
        """Everything as plain JSON types."""
        return {"preset": self.preset, "features": self.features, "leave_one_out": self.leave_one_out,
                "bank": self.bank.as_json(), "queries": self.queries.as_json(),
                "results": [{"k": one.k, "T": one.temperature, "top1": one.top1, "top5": one.top5}
                            for one in self.scores],
                "per_class": {name: {"count": count, "top1": top1} for name, (count, top1) in self.per_class.items()},
                "encoder": self.encoder}

    def summary(self) -> str:
        """One line on what was compared with what."""
        sides = (f"{len(self.bank.names)} images, each classified by all the others" if self.leave_one_out else
                 f"{len(self.queries.names)} queries against a bank of {len(self.bank.names)}")
        return f"{sides}; {len(self.per_class)} classes, {self.features} features"

    def notes(self) -> list[str]:
        """What a reader of the numbers should know: rows left out, neighbours that the bank does not have."""
        sides = [("bank", self.bank)] if self.leave_one_out else [("bank", self.bank), ("queries", self.queries)]
        notes = [f"skipped {side.unlabelled} rows of the {name} without a label ({side.path})"
                 for name, side in sides if side.unlabelled]
        if not self.leave_one_out and self.bank.identity == self.queries.identity:
            notes.append("bank and queries are the same images, so each image votes on itself; "
                         f"give {self.bank.path} alone for leave-one-out")
        if cut := sorted({one.asked_k for one in self.scores if one.asked_k > one.k}):
            notes.append(f"k {', '.join(map(str, cut))}: only {min(one.k for one in self.scores if one.asked_k in cut)}"
                         " images can vote; all of them do")
        if unknown := sorted(set(self.queries.names) - set(self.bank.names)):
            notes.append(f"{len(unknown)} classes of the queries are not in the bank and count as wrong: "
                         f"{', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}")
        return notes


def knn_accuracy(config: KnnConfig, progress: Callable[[int, int], None] = lambda done, total: None) -> KnnResult:
    """The kNN accuracy of an embeddings file, or of one as queries against another as bank.

    `progress(done, total)` counts queries. Raises `UsageError` for a missing file, `MismatchError` when the files
    come from different encoders or features or the preset asks for others, `CollectionError` when there are too few
    labelled rows, `FormatError` for a damaged file.
    """
    leave_one_out, settings = config.queries is None, settings_of(config)
    bank, queries = read_sides(config)
    require_enough(bank, queries, leave_one_out)
    number = {name: place for place, name in enumerate(sorted(set(bank.names)))}
    bank_labels = torch.tensor([number[name] for name in bank.names], device=bank.vectors.device)
    labels = torch.tensor([number.get(name, NO_LABEL) for name in queries.names], device=bank.vectors.device)
    predicted = classify(queries.vectors, bank.vectors, bank_labels, settings, leave_one_out, progress)
    most = bank_size(len(bank.names), leave_one_out)
    scores = [KnnScore(min(k, most), k, temperature, *accuracy(one, labels))
              for (k, temperature), one in zip(settings, predicted)]
    right = (predicted[0][:, 0] == labels).cpu().numpy()
    return KnnResult(config.preset, bank.features, bank, queries, leave_one_out, scores,
                     per_class_accuracy(queries.names, right), bank.encoder)


def read_sides(config: KnnConfig) -> tuple[Side, Side]:
    """Bank and queries, on the device; one and the same when the queries are not given."""
    bank_path = Workspace(config.workspace).embeddings_file(config.bank)
    device = Compute.of(config.device, "fp32").device
    with EmbeddingFile(bank_path) as file:
        require_preset(file, config.preset)
        if config.queries is None:
            bank = read_side(file, device)
            return bank, bank
        query_path = require_file(config.queries, "The embeddings file", "mocoembed embed FOLDER")
        with EmbeddingFile(query_path) as other:
            require_same_vectors(file, other)
            return read_side(file, device), read_side(other, device)


def settings_of(config: KnnConfig) -> list[tuple[int, float]]:
    """Every (k, T): as given, or the preset's, or 200 and 0.1."""
    _, ks, temperatures = KNN_PRESETS[config.preset] if config.preset else (None, DEFAULT_K, DEFAULT_TEMPERATURE)
    return [(k, temperature) for k in config.k or ks for temperature in config.temperature or temperatures]


def require_preset(file: EmbeddingFile, preset: str | None):
    """Raise `MismatchError` unless the file has the features that the preset is defined for."""
    wanted = KNN_PRESETS[preset][0] if preset else file.features
    if file.features != wanted:
        raise MismatchError(f"--preset {preset} is defined on {wanted} features; {file.path} holds {file.features} "
                            f"features. Make one with: mocoembed embed FOLDER --features {wanted} "
                            f"--output {wanted}.h5")


def require_same_vectors(bank: EmbeddingFile, queries: EmbeddingFile):
    """Raise `MismatchError` unless both files come from one encoder and have the same features."""
    sides = [("encoders", bank.fingerprint[:12], queries.fingerprint[:12]),
             ("features", bank.features, queries.features)]
    for what, one, other in sides:
        if one != other:
            raise MismatchError(f"Different {what}: {bank.path} has {one}, {queries.path} has {other}. "
                                "Embed both with the same --encoder and --features.")


def require_enough(bank: Side, queries: Side, leave_one_out: bool):
    """Raise `CollectionError` unless somebody can vote and somebody can be classified."""
    for side, least in ((bank, 2 if leave_one_out else 1), (queries, 1)):
        if len(side.names) < least:
            raise CollectionError(f"{side.path} has {len(side.names)} labelled images; kNN accuracy needs {least} "
                                  "or more. Put the images into one folder per class and embed them again.")


def read_side(file: EmbeddingFile, device: torch.device) -> Side:
    """The labelled rows of a file, scaled to length 1, their SHA-256 checked."""
    file.verify()
    labels, label_names = file.labels(), file.label_names
    known = labels != NO_LABEL
    with within_memory(f"The kNN accuracy of {file.path}", 4 * int(known.sum()) * file.dimension):
        vectors = read_vectors(file, known).to(device)
    names = [label_names[number] for number in labels[known]]
    encoder = {"fingerprint": file.fingerprint, "provenance": file.encoder["provenance"]}
    return Side(file.path, file.identity, file.features, encoder, vectors, names, len(labels) - len(names))


def read_vectors(file: EmbeddingFile, wanted: np.ndarray) -> torch.Tensor:
    """(n, D) float32 of length 1: the rows where `wanted` (N,) is true; `FormatError` when one is not finite."""
    vectors, at = torch.empty(int(wanted.sum()), file.dimension), 0
    for first in range(0, len(file), BLOCK):
        block = file.embeddings(slice(first, first + BLOCK))[wanted[first:first + BLOCK]]
        if not np.isfinite(block).all():
            raise FormatError(f"{file.path} holds vectors that are not finite. Embed the folder again with --fresh.")
        vectors[at:at + len(block)] = functional.normalize(torch.from_numpy(block), dim=1)
        at += len(block)
    return vectors


def per_class_accuracy(names: list[str], right: np.ndarray) -> dict[str, tuple[int, float]]:
    """Label -> (number of queries, percent right), sorted by label; `right` is (Q,) bool."""
    counts: dict[str, list[int]] = {}
    for name, one in zip(names, right):
        count = counts.setdefault(name, [0, 0])
        count[0] += 1
        count[1] += int(one)
    return {name: (count, 100 * good / count) for name, (count, good) in sorted(counts.items())}
