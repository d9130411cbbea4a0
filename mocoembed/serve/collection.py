"""What is served: an embeddings file with its index and encoder, and the facts that every answer needs.

A `Collection` does not change; when its files are replaced, another one takes its place (`following`).
"""

import bisect
import functools
import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mocoembed.data.facts import UNKNOWN
from mocoembed.data.images import NO_LABEL
from mocoembed.errors import UsageError
from mocoembed.search.exact import NoIndex
from mocoembed.search.filters import Filter
from mocoembed.search.hits import Hit
from mocoembed.search.pair import Pair
from mocoembed.search.queries import Query, Selves, combined
from mocoembed.search.ranking import Wishes
from mocoembed.search.rows_of_ids import RowsOfIds
from mocoembed.serve.answers import Refusal, in_words

LABELS = 100  # that facts and the map list
SMALL = 8 << 20  # bytes of vectors that are compared with a query in less than a millisecond
FEW = 256  # hits


@dataclass(frozen=True)
class Wanted:
    """What hits are wished for."""

    k: int = 10
    offset: int = 0
    filter: Filter | None = None
    min_side: int = 0
    """Least width and height in pixels."""
    min_score: float = -math.inf
    unique: bool = False
    diverse: bool = False
    exclude_self: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether only the scores decide, and the hits are few."""
        return self.offset + self.k <= FEW and not (self.filter or self.min_side or self.unique or self.diverse)


class Collection:
    """An open collection; several threads may use it at once."""

    def __init__(self, pair: Pair, root: str | None = None):
        """`root`: where the images are now, if they have moved."""
        self.pair, self.file, self.moved_to = pair, pair.file, root
        self.ids = self.file.ids()
        self.labels, self.label_names = self.file.labels(), self.file.label_names
        self.width, self.height = self.file.width(), self.file.height()
        self._rows_of = RowsOfIds(self.ids)
        self.root = os.fsencode(os.path.abspath(root)) if root else self.file.root
        self.version = self.file.identity[:16]
        self._duplicates_from: float | None = None
        self._selves: Selves | None = None

    def __len__(self):
        return len(self.ids)

    @property
    def encodes(self) -> bool:
        """Whether images can be searched for that are not in the collection."""
        return self.pair.transform is not None

    @property
    def is_small(self) -> bool:
        """Whether a query takes less time than handing it to another thread does."""
        return self.pair.index.exact and 4 * len(self) * self.file.dimension <= SMALL

    def files(self) -> list[pathlib.Path]:
        """The files that it was read from."""
        index = self.pair.index
        return [self.file.path] if isinstance(index, NoIndex) else [index.path, self.file.path]

    # ------------------------------------------------------------------------------------------------ rows

    def digest(self, row: int) -> str:
        """SHA-256 of a row's image in hexadecimal digits; empty where unknown."""
        (digest,) = self.file.digests_at([row])
        return "" if digest == UNKNOWN else digest.hex()

    def path(self, row: int) -> bytes:
        """Full path of a row's image."""
        return os.path.join(self.root, self.file.paths_at([row])[0])

    def label(self, row: int) -> str | None:
        """Label of a row's image."""
        number = int(self.labels[row])
        return None if number == NO_LABEL else self.label_names[number]

    def facts(self, rows: Sequence[int]) -> list[dict]:
        """Plain JSON types: what is known of the images of some rows."""
        paths = self.file.paths_at(np.asarray(rows, np.int64))
        return [{"row": row, "id": str(self.ids[row]), "path": os.fsdecode(os.path.join(self.root, path)),
                 "label": self.label(row), "width": int(self.width[row]), "height": int(self.height[row])}
                for row, path in zip(rows, paths)]

    def no_row(self, row: str) -> str:
        """What is said of a row that is not there."""
        return f"There is no row {row}; " + (f"rows are 0 to {len(self) - 1}." if len(self) else "no image is here.")

    def row_of_id(self, number: int) -> int | None:
        """The row with that id."""
        row = int(self._rows_of(np.array([number]))[0])
        return row if row >= 0 else None

    def row_of_path(self, path: str) -> int | None:
        """The row of a path, full or relative to the collection's root; rows are sorted by path."""
        name = os.fsencode(path)
        if name.startswith(self.root.rstrip(b"/") + b"/"):
            name = name[len(self.root.rstrip(b"/")) + 1:]
        row = bisect.bisect_left(self.file.paths, name)
        return row if row < len(self) and self.file.paths[row] == name else None

    def same_bytes(self, data: bytes | None, row: int | None = None) -> np.ndarray:
        """(n,) int64: the rows of images with these bytes, or those of `row`, which is one of them."""
        if self._selves is None:
            self._selves = Selves(self.file)
        return self._selves.rows(Query("query", row), data)

    def mask(self, wanted: Wanted) -> np.ndarray | None:
        """(N,) bool: the rows that a filter selects; `None`: all. A `Refusal` (404) where none is."""
        try:
            mask = self.pair.mask(wanted.filter) if wanted.filter else None
        except UsageError as error:
            raise Refusal(404, in_words(error), "nothing selected") from error
        if wanted.min_side:
            large = np.minimum(self.width, self.height) >= wanted.min_side
            mask = large if mask is None else mask & large
            if not mask.any():
                raise Refusal(404, f"min_side {wanted.min_side}: 0 of {len(self)} images match.", "nothing selected")
        return mask

    # ---------------------------------------------------------------------------------------------- search

    def pixels(self, data: bytes, crop: Sequence[int] = ()) -> np.ndarray:
        """(S, S, 3) uint8: an image or its region `crop`, as the encoder sees it; `CollectionError` if it is none."""
        return self.pair.pixels(data, crop)

    def warm_up(self):
        """Search for the first image, and embed one where images are embedded."""
        if (transform := self.pair.transform) is not None:
            self.pair.embed([np.zeros((transform.crop, transform.crop, 3), np.uint8)])
        self.search(self.vectors([0]), Wanted(1))

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """(Q, D) float32: the vectors of some rows."""
        return self.file.vectors_at(np.asarray(rows, np.int64))

    def balance(self, like: np.ndarray, unlike: np.ndarray | None) -> np.ndarray:
        """(1, D): one query of several vectors (Q, D), away from others (U, D)."""
        return combined(like, unlike, True, self.file.normalized)

    def search(self, vectors: np.ndarray, wanted: Wanted, excluded: Sequence[np.ndarray] = ()) -> list[list[dict]]:
        """For each of `vectors` (Q, D), its hits as plain JSON types."""
        wishes = Wishes(wanted.offset + wanted.k, self.mask(wanted), wanted.min_score,
                        self.duplicates_from() if wanted.unique else None, wanted.diverse)
        return [self._as_json(hits[wanted.offset:]) for hits in self.pair.chosen(vectors, wishes, excluded)]

    def _as_json(self, hits: list[Hit]) -> list[dict]:
        found, rows = [hit.as_json() for hit in hits], [hit.row for hit in hits]
        for values, width, height in zip(found, self.width[rows].tolist(), self.height[rows].tolist()):
            values["width"], values["height"] = width, height
        return found

    def duplicates_from(self) -> float:
        """The cosine from which on two images are near-duplicates."""
        if self._duplicates_from is None:
            self._duplicates_from = self.pair.duplicates_from()
        return self._duplicates_from

    # ----------------------------------------------------------------------------------------------- facts

    def label_counts(self, text: str = "") -> list[dict]:
        """Labels with the numbers of their images: `None` for those without one, then the most frequent first.

        With `text`, those that contain it in capitals or not; one that is equal comes first.
        """
        if not (wanted := text.casefold()):
            return self._label_counts
        found = [one for one in self._label_counts if one["label"] is not None and wanted in one["label"].casefold()]
        return sorted(found, key=lambda one: (one["label"] != text, one["label"].casefold() != wanted))

    @functools.cached_property
    def _label_counts(self) -> list[dict]:
        counts = np.bincount(self.labels + 1, minlength=len(self.label_names) + 1).tolist()
        found = [{"label": name, "count": count} for name, count in zip([None, *self.label_names], counts) if count]
        return sorted(found, key=lambda one: (one["label"] is not None, -one["count"]))

    def first_labels(self) -> dict:
        """The first `LABELS` labels, and how many there are: there may be as many as images."""
        return {"labels": self.label_counts()[:LABELS], "labels_total": len(self.label_counts())}

    def info(self) -> dict:
        """Facts about the collection, as plain JSON types; of its labels, the first `LABELS`."""
        index, encoder = self.pair.index, self.file.encoder
        about: dict[str, Any] = {"type": "none", "exact": True, "recall_at_10": 1.0}
        if not isinstance(index, NoIndex):
            names = ("type", "metric", "recall_at_10", "latency_ms", "measured_on")
            about = {"path": str(index.path), **{name: index.manifest.get(name) for name in names}}
            about["exact"] = index.manifest.get("type") == "flat"
        return {"version": self.version, "count": len(self), "dimension": self.file.dimension,
                "embeddings": str(self.file.path), "root": os.fsdecode(self.root), **self.first_labels(),
                "failed": len(self.file.failed()), "features": self.file.features, "normalized": self.file.normalized,
                "searches_images": self.encodes,
                "encoder": {"fingerprint": self.file.fingerprint, "provenance": encoder.get("provenance", {})},
                "index": about}
