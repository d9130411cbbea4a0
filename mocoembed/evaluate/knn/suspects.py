"""Suspected wrong labels: images whose neighbours vote most clearly for another label than the image has.

In: the shares of the vote and the nearest neighbours of every query. Out: the suspects, the clearest first, each with
the neighbours that say so. A suspect is no proof: a rare view of a class looks like this, too.
"""

import os
import pathlib
from dataclasses import asdict, dataclass

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.evaluate.knn.votes import Votes
from mocoembed.evaluate.sides import Side

MOST = 50  # that are told
DOUBT = 0.5  # least share of the vote for another label


@dataclass(frozen=True)
class Neighbour:
    """One of the images that voted."""

    path: str
    row: int
    """Row in the bank's embeddings file."""
    label: str
    score: float
    """Cosine similarity."""


@dataclass(frozen=True)
class Suspect:
    """An image whose label its neighbours do not have."""

    path: str
    row: int
    """Row in the queries' embeddings file."""
    label: str
    suggested: str
    """The label that most of the vote is for."""
    share: float
    """Percent of the vote for the suggested label."""
    own_share: float
    """Percent of the vote for the label that it has."""
    neighbours: tuple[Neighbour, ...]
    """The nearest first."""

    def as_json(self) -> dict:
        """Plain JSON types."""
        return asdict(self)


def find_suspects(votes: Votes, truth: np.ndarray, classes: list[str], queries: Side, bank: Side) -> list[Suspect]:
    """The clearest suspects, by the first k and temperature.

    truth (Q,): the number of each query's label among `classes`, those of the bank first. An image that the bank's
    classes cannot name is none.
    """
    best = votes.predicted[0][:, 0].cpu().numpy()
    theirs, own = votes.doubt.numpy().T
    known = np.isin(truth, np.unique([classes.index(name) for name in set(bank.names)]))
    wrong = np.flatnonzero(known & (best != truth) & (theirs >= DOUBT))
    wrong = wrong[np.argsort((own - theirs)[wrong], kind="stable")][:MOST]
    paths = _paths(queries.path, queries.rows[wrong])
    with EmbeddingFile(bank.path) as file:
        return [Suspect(path, int(queries.rows[i]), classes[truth[i]], classes[best[i]], 100 * float(theirs[i]),
                        100 * float(own[i]), _neighbours(file, bank, votes, int(i))) for i, path in zip(wrong, paths)]


def _neighbours(file: EmbeddingFile, bank: Side, votes: Votes, query: int) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(os.fsdecode(file.full_path(int(bank.rows[j]))), int(bank.rows[j]), bank.names[j],
                           round(float(score), 6)) for j, score in zip(votes.rows[query], votes.scores[query]))


def _paths(path: pathlib.Path, rows: np.ndarray) -> list[str]:
    with EmbeddingFile(path) as file:
        return [os.fsdecode(one) for one in file.full_names(rows)[0]]


def suspects_sheet(suspects: list[Suspect], path, value_range: tuple[float, ...] = ()) -> pathlib.Path:
    """Draw the suspects, each over its own label, and their neighbours into the PNG file `path`; the path."""
    from mocoembed.search.hits import Hit, QueryResult
    from mocoembed.search.sheet import Words, contact_sheet

    own = {one.path: one.label for one in suspects}
    rows = [QueryResult(one.path, [Hit(rank, near.score, near.path, near.label, near.row)
                                   for rank, near in enumerate(one.neighbours, 1)], value_range) for one in suspects]
    return contact_sheet(rows, path, Words(
        "Suspected wrong labels", "image", lambda row: own[row.query], "same label as the framed image",
        lambda row, hit: hit.label == own[row.query], "nearest image"))
