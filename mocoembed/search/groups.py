"""Rows of an embeddings file that are near-duplicates -> groups of images, the one to keep first, with their facts."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mocoembed.data.facts import UNKNOWN
from mocoembed.embed.store import EmbeddingFile

ROWS_AT_ONCE = 4096  # whose facts are read together: group by group it takes milliseconds each


@dataclass(frozen=True)
class Member:
    """An image of a group."""

    path: str
    """Full path; `os.fsencode` gives its bytes, whatever they are."""
    row: int
    """Row in the embeddings file."""
    label: str | None
    similarity: float
    """Cosine to the keeper's vector; in a chain it may be below the threshold."""
    width: int
    height: int
    size: int
    """Bytes of the file; 0 where unknown, as width and height."""
    identical: int | None
    """Members of the group with the same number have the same bytes; `None`: no other has these."""

    @property
    def pixels(self) -> str:
        """`640 x 480`; empty where unknown."""
        return f"{self.width} x {self.height}" if self.width else ""


@dataclass(frozen=True)
class Group:
    """Near-duplicates: the suggested keeper (the largest image) first, then the others, the most similar first."""

    members: tuple[Member, ...]

    @property
    def keeper(self) -> Member:
        """The image with the most pixels, then the most bytes, then the first path."""
        return self.members[0]


def groups_of(file: EmbeddingFile, rows: Sequence[np.ndarray], root: str | None) -> Iterator[Group]:
    """The groups of these rows, in their order."""
    first = 0
    while first < len(rows):
        end, count = first + 1, len(rows[first])
        while end < len(rows) and count + len(rows[end]) <= ROWS_AT_ONCE:
            count += len(rows[end])
            end += 1
        facts, start = _Facts(file, np.concatenate(rows[first:end]), root), 0
        for some in rows[first:end]:
            yield facts.group(slice(start, start + len(some)))
            start += len(some)
        first = end


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows (n, D) scaled to length 1; one of zeros stays."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


class _Facts:
    """What is known of some rows."""

    def __init__(self, file: EmbeddingFile, rows: np.ndarray, root: str | None):
        self.rows, self.vectors = rows, unit(file.embeddings[rows])
        self.width, self.height = file.width[rows].tolist(), file.height[rows].tolist()
        self.size = file.size[rows].tolist()
        self.digests, (self.paths, self.labels) = file.digest[rows], file.full_names(rows, root)

    def group(self, places: slice) -> Group:
        """The group of the rows at these places."""
        here = range(places.start, places.stop)
        order = sorted(here, key=lambda i: (-self.width[i] * self.height[i], -self.size[i], self.paths[i]))
        vectors = self.vectors[places].astype(np.float64)
        cosines = (vectors @ vectors[order[0] - places.start]).clip(-1, 1)
        similarity = dict(zip(here, cosines.tolist()))
        repeated = [digest for digest, times in Counter(self.digests[places]).items()
                    if times > 1 and digest != UNKNOWN]
        number = {digest: place for place, digest in enumerate(repeated, 1)}
        order[1:] = sorted(order[1:], key=lambda i: (-round(similarity[i], 6), self.paths[i]))
        return Group(tuple(Member(
            os.fsdecode(self.paths[i]), int(self.rows[i]), self.labels[i], round(similarity[i], 6), self.width[i],
            self.height[i], self.size[i], number.get(self.digests[i])) for i in order))
