"""What a search finds: hits and the results that they belong to, as objects and as plain JSON types."""

from dataclasses import dataclass
from typing import NamedTuple

HIGHEST = 1.0  # score; rounding would have cosines of 1.0000001


class Hit(NamedTuple):
    """An image of the collection that is near to a query."""

    rank: int
    """From 1, the nearest."""
    score: float
    """Cosine similarity, or minus the squared distance of vectors that do not have length 1."""
    path: str
    """Full path; `os.fsencode` gives its bytes, whatever they are."""
    label: str | None
    row: int | None
    """Row in the embeddings file; `None` for a hit of a Milvus collection."""
    id: int | None = None
    """Stable id of the image in the embeddings file."""
    folded: int | None = None
    """With `unique`, the number of near-duplicates of this hit that were left out for it."""
    folded_rows: tuple[int, ...] = ()
    """Their rows."""

    def as_json(self) -> dict:
        """Plain JSON types; the id is a text, as JSON's numbers may lose its last digits."""
        values = {"rank": self.rank, "score": self.score, "path": self.path, "label": self.label, "row": self.row,
                  "id": None if self.id is None else str(self.id)}
        if self.folded is not None:
            values |= {"folded": self.folded, "folded_rows": list(self.folded_rows)}
        return values


@dataclass(frozen=True)
class QueryResult:
    """A query image's path, as it was given, and its hits, the nearest first."""

    query: str
    hits: list[Hit]
    value_range: tuple[float, ...] = ()
    """(LOW, HIGH) that the deep pixels of all of them were scaled from; empty: all that they can hold."""
    image: str | None = None
    """An image that stands for the query in a drawing, where `query` is several."""

    def as_json(self) -> dict:
        """Query and hits, as plain JSON types."""
        return {"query": self.query, "hits": [hit.as_json() for hit in self.hits]}
