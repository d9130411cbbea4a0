"""The map for the page: embeddings.map -> JSON of points by row, kept as bytes while the files stay the same."""


import numpy as np

from mocoembed.data.found import State
from mocoembed.data.images import NO_LABEL
from mocoembed.errors import FormatError
from mocoembed.search.map_file import map_file_of, read_map, read_map_facts
from mocoembed.serve.answers import Refusal, encoded
from mocoembed.serve.collection import LABELS, Collection

STEPS = 65_535  # of the longer side; finer places cannot be told apart on a screen
MAKE_IT = "Run: mocoembed map. It will then appear here."


class Points:
    """The points of a collection's map."""

    def __init__(self):
        self._known: tuple | None = None
        self._answer = b""

    def facts(self, collection: Collection) -> dict | None:
        """What is known of the map without reading it whole: its own version, method, whether it is provisional."""
        try:
            facts = read_map_facts(map_file_of(collection.file.path))
        except (OSError, FormatError):
            return None
        if facts.identity != collection.file.identity:
            return None
        return {"version": facts.digest[:16], "method": facts.method, "provisional": facts.provisional}

    def state(self, collection: Collection) -> tuple[str, State]:
        """What differs when another map is there; a `Refusal` (404) when there is none."""
        try:
            return collection.version, State.of(map_file_of(collection.file.path))
        except FileNotFoundError as error:
            raise Refusal(404, f"There is no map of this collection yet. {MAKE_IT}", "no map") from error

    def answer(self, collection: Collection) -> bytes:
        """JSON: version, map (the map's own version), method, provisional, points [[x, y], ...] by row in whole numbers
        up to `STEPS`, labels (numbers, from 0 for the most frequent on, -1 for none), label_names (the first `LABELS`),
        agreement (0 to 100; `null` without labels). A `Refusal` (404) when there is no map of these rows.
        """
        state = self.state(collection)
        try:
            if state != self._known:
                self._answer = _json(collection, map_file_of(collection.file.path))
                self._known = state
        except FormatError as error:
            raise Refusal(404, str(error), "no map") from error
        return self._answer


def _json(collection: Collection, path) -> bytes:
    version, made = read_map_facts(path).digest[:16], read_map(path)
    if made.identity != collection.file.identity:
        raise Refusal(404, f"The map is of other images than the embeddings file. {MAKE_IT}", "no map")
    low = made.places.min(axis=0)
    side = float((made.places.max(axis=0) - low).max()) or 1.0
    points = np.rint((made.places - low) * (STEPS / side)).astype(np.int64)
    agreement = None
    if np.isfinite(made.agreement).any():
        agreement = np.rint(100 * np.nan_to_num(made.agreement)).astype(np.int64).tolist()
    names = [one["label"] for one in collection.label_counts() if one["label"] is not None]
    place = {name: number for number, name in enumerate(names)}
    number = np.array([*(place.get(name, NO_LABEL) for name in collection.label_names), NO_LABEL])
    return encoded({"version": collection.version, "map": version, "method": made.method,
                    "provisional": made.provisional, "points": points.tolist(),
                    "labels": number[collection.labels].tolist(), "label_names": names[:LABELS],
                    "agreement": agreement})
