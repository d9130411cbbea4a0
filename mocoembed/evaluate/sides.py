"""The sides of an evaluation: an embeddings file -> its labelled rows, of length 1, on a device; and what both share.

A side knows the digest of every image, so that images on both sides of a split are found, and kept together in folds.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mocoembed.data.facts import UNKNOWN
from mocoembed.data.images import NO_LABEL
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError, MismatchError
from mocoembed.evaluate.stored import StoredVectors, fits, unit_rows
from mocoembed.files import require_file
from mocoembed.memory import within_memory
from mocoembed.notes import counted
from mocoembed.search.threshold import LEAST_ROWS, Threshold, choose_threshold

BLOCK = 8192  # rows read at a time
WORKING = 1 << 30  # bytes that evaluating vectors takes which stay in their file


@dataclass(frozen=True)
class Side:
    """Rows of one embeddings file that take part: the labelled ones, unless all were asked for."""

    path: pathlib.Path
    identity: str
    """SHA-256 of the file's rows."""
    features: str
    encoder: dict
    """Fingerprint and provenance of the encoder that made the vectors."""
    vectors: torch.Tensor
    """(N, D) float32 of length 1, on the device; for kNN, `StoredVectors` where they do not fit."""
    names: list[str]
    """(N,) names of the labels; empty where unknown, if unlabelled rows were asked for."""
    unlabelled: int
    """Rows left out because their label is unknown."""
    rows: np.ndarray
    """(N,) int64: the row of each in the file."""
    digests: np.ndarray
    """(N,) V32: SHA-256 of each image's bytes; zeros where unknown."""
    ids: np.ndarray
    """(N,) int64: the stable id of each."""
    normalized: bool
    """Whether the vectors have length 1 in the file, too."""

    def as_json(self) -> dict:
        """Path, rows that took part and rows left out."""
        return {"path": str(self.path), "count": len(self.names), "unlabelled": self.unlabelled}

    def described(self) -> dict:
        """`as_json`, the identity of the rows, and the number of images of each class."""
        return {**self.as_json(), "identity": self.identity, "by_class": dict(sorted(Counter(self.names).items()))}

    def encoder_json(self) -> dict:
        """The encoder, and which vectors of it these are."""
        return {**self.encoder, "features": self.features, "dimension": self.vectors.shape[1],
                "normalized": self.normalized}

    def only(self, wanted: np.ndarray) -> "Side":
        """The images where `wanted` (N,) is true; the side itself when it is true everywhere."""
        if wanted.all():
            return self
        return dataclasses.replace(
            self, vectors=self.vectors[torch.from_numpy(wanted).to(self.vectors.device)],
            names=[name for name, one in zip(self.names, wanted) if one], rows=self.rows[wanted],
            digests=self.digests[wanted], ids=self.ids[wanted])

    def keys(self) -> list[str]:
        """A name for every image, the same in the embeddings of other encoders: its digest, or its id, shortened."""
        known = self.digests != np.void(UNKNOWN)
        return [digest.tobytes()[:8].hex() if one else f"{number:016x}"
                for digest, number, one in zip(self.digests, self.ids.tolist(), known)]


@dataclass(frozen=True)
class Overlap:
    """Queries that the bank has, too: copies of the same bytes, and near-duplicates."""

    identical: int
    """Queries with the bytes of an image of the bank (leave-one-out: of another image)."""
    near: int | None
    """Queries whose cosine to an image of the bank is `threshold` or more, identical ones included; `None`: the bank
    has too few images to see how alike they are."""
    threshold: float | None
    bytes_known: bool
    """Whether the files have digests; without them `identical` is 0."""

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"identical": self.identical if self.bytes_known else None, "near": self.near,
                "near_threshold": self.threshold}

    def notes(self, where: str, queries: str = "queries") -> list[str]:
        """What to say about it, with words for an image of the other side and for the queries; nothing for none."""
        notes = []
        if self.identical:
            notes.append(f"{self.identical} of the {queries} have the same bytes as {where}, so they are easier than "
                         "new images")
        if self.near is not None and self.near > self.identical:
            notes.append(f"{self.near - self.identical} of the {queries} are near-duplicates of {where} (cosine "
                         f"{self.threshold:g} or more)")
        return notes


def read_side(file: EmbeddingFile, device: torch.device, labelled_only: bool = True,
              what: str = "The kNN accuracy", streamed: bool = False) -> Side:
    """The rows of a file, scaled to length 1, their SHA-256 checked; `what` needs them, for an error.

    With `streamed`, vectors that fill more than half of the memory stay in the file.
    """
    file.verify()
    labels, label_names = file.labels(), [*file.label_names, ""]  # [-1]: no label
    wanted = labels != NO_LABEL if labelled_only else np.ones(len(labels), bool)
    size = 4 * int(wanted.sum()) * file.dimension
    vectors: Any
    if streamed and not fits(size, device):
        with within_memory(f"{what} of {file.path}", min(size, WORKING)):
            vectors = StoredVectors(file.path, np.flatnonzero(wanted), file.dimension, device)
    else:
        with within_memory(f"{what} of {file.path}", size):
            vectors = read_vectors(file, wanted).to(device)
    names = [label_names[number] for number in labels[wanted]]
    encoder = {"fingerprint": file.fingerprint, "provenance": file.encoder["provenance"]}
    digests = np.array(file.digest(), "V32")
    return Side(file.path, file.identity, file.features, encoder, vectors, names, len(labels) - len(names),
                np.flatnonzero(wanted), digests[wanted], file.ids()[wanted], file.normalized)


def read_vectors(file: EmbeddingFile, wanted: np.ndarray) -> torch.Tensor:
    """(n, D) float32 of length 1: the rows where `wanted` (N,) is true; `FormatError` when one is not finite."""
    vectors, at = torch.empty(int(wanted.sum()), file.dimension), 0
    for first in range(0, len(file), BLOCK):
        block = unit_rows(file, first + np.flatnonzero(wanted[first:first + BLOCK]))
        vectors[at:at + len(block)] = block
        at += len(block)
    return vectors


@contextmanager
def queries_beside(bank: EmbeddingFile, path: str | None) -> Iterator[EmbeddingFile]:
    """The file of the queries, whose vectors are of the bank's kind; the bank itself without a path.

    Raises `UsageError` for a missing file, `FormatError` for a damaged one, and what `require_same_vectors` raises.
    """
    if path is None:
        yield bank
        return
    with EmbeddingFile(require_file(path, "The embeddings file", "mocoembed embed FOLDER")) as queries:
        require_same_vectors(bank, queries)
        yield queries


def classes_of(bank: Side, queries: Side) -> list[str]:
    """Names of the classes: those of the bank in their order, then those that only queries have."""
    known = set(bank.names)
    return [*sorted(known), *sorted(set(queries.names) - known)]


def require_same_vectors(bank: EmbeddingFile, queries: EmbeddingFile):
    """Raise `MismatchError` unless both files come from one encoder and have the same features.

    The dimension is compared for vectors of other tools, whose encoder is known by a name alone.
    """
    sides = [("encoders", bank.fingerprint[:12], queries.fingerprint[:12]),
             ("features", bank.features, queries.features), ("dimensions", bank.dimension, queries.dimension)]
    for what, one, other in sides:
        if one != other:
            raise MismatchError(f"Different {what}: {bank.path} has {one}, {queries.path} has {other}. "
                                "Embed both with the same --encoder and --features.")


def require_labelled(side: Side, least: int, what: str):
    """Raise `CollectionError` unless at least `least` images of a side are labelled."""
    if len(side.names) < least:
        raise CollectionError(f"{side.path} has {len(side.names)} labelled images; {what} needs {least} or more. Put "
                              "the images into one folder per class and embed them again.")


def require_classes(bank: Side, queries: Side, what: str):
    """Raise `CollectionError` when all images of both sides have one label: there is nothing to tell apart."""
    if len({*bank.names, *queries.names}) == 1:
        raise CollectionError(f"{bank.path} has one class, {bank.names[0]!r}; {what} needs two or more. Put the images "
                              "into one folder per class and embed them again.")


def require_common_class(bank: Side, queries: Side):
    """Raise `CollectionError` when no class of the queries is in the bank: all of them would be wrong."""
    if not set(bank.names) & set(queries.names):
        raise CollectionError(f"No class of {queries.path} is in {bank.path}: {min(queries.names)!r} there, "
                              f"{min(bank.names)!r} here. Labels are compared by name.")


def notes_on_unlabelled(sides: dict[str, Side]) -> list[str]:
    """A line for each side of which rows were left out; the keys are what the sides are called."""
    return [f"skipped {counted(side.unlabelled, 'row')} of the {name} without a label ({side.path})"
            for name, side in sides.items() if side.unlabelled]


def notes_on_classes(learned: set[str], asked: set[str], train: str, test: str) -> list[str]:
    """A line on the classes that only one side has; `train` and `test` are what the sides are called."""
    found = []
    for only, what in ((asked - learned, f"{test} (counted as wrong)"), (learned - asked, f"{train} (never right)")):
        if only:
            found.append(f"{counted(len(only), 'class')} {'are' if len(only) > 1 else 'is'} only in the {what}: "
                         f"{', '.join(sorted(only)[:5])}{' ...' if len(only) > 5 else ''}")
    return found


def shared_bytes(queries: Side, bank: Side, leave_one_out: bool) -> np.ndarray:
    """(Q,) bool: whether an image of the bank (leave-one-out: another image) has the bytes of the query."""
    known = queries.digests != np.void(UNKNOWN)
    if not leave_one_out:
        return known & np.isin(queries.digests.view("S32"), bank.digests.view("S32"))
    _, number, counts = np.unique(queries.digests, return_inverse=True, return_counts=True)
    return known & (counts[number] > 1)


def overlap(queries: Side, bank: Side, leave_one_out: bool, nearest: np.ndarray) -> Overlap:
    """How many queries the bank has, too.

    nearest (Q,): cosine of each query to the most similar image of the bank, or of the others in leave-one-out. From
    which cosine on images are near-duplicates is found from the bank itself, as `mocoembed duplicates` does.
    """
    same = shared_bytes(queries, bank, leave_one_out)
    known = bool((queries.digests != np.void(UNKNOWN)).any() and (bank.digests != np.void(UNKNOWN)).any())
    if len(bank.names) < LEAST_ROWS:
        return Overlap(int(same.sum()), None, None, known)
    cosine = near_threshold(bank).cosine
    return Overlap(int(same.sum()), int((same | (nearest >= cosine)).sum()), cosine, known)


def near_threshold(side: Side) -> Threshold:
    """The cosine from which on two images of the side are near-duplicates."""
    return choose_threshold(len(side.names), lambda rows: side.vectors[torch.from_numpy(rows)].cpu().numpy(),
                            side.digests)
