"""What every evaluation gives as JSON: one versioned schema (docs/format.md), so that results last and compare.

In: the parts that a command measured. Out: one dictionary of plain JSON types, or its text. A result says by which
protocol (with a digest, equal only for equal settings), on which data, with which encoder, how sure each number is, and
what became of every query, so that two results can be compared query by query.
"""

import json
import math
import platform
from dataclasses import dataclass, field

import numpy as np
import torch

from mocoembed.evaluate.measures import precisions, recalls
from mocoembed.evaluate.result_file import KIND, SCHEMA
from mocoembed.evaluate.sides import Overlap, Side
from mocoembed.files import sha256_json
from mocoembed.version import __version__

MOST_CLASSES = 200  # whose confusion matrix is written
MARK = "\0list"  # stands for a long list while the rest is written with one value a line


@dataclass(frozen=True)
class Protocol:
    """How a number was measured: everything but the data and the encoder."""

    name: str
    settings: dict
    """Preprocessing, metric definitions, fixed settings; how one is chosen, and from which grid."""
    chosen: dict = field(default_factory=dict)
    """Settings that were chosen from the grid, and on what."""
    scores: list = field(default_factory=list)
    """One entry for each setting of the grid, with its score on the part that was chosen on."""
    at_edge: bool | None = None
    """Whether the choice stands at the grid's edge, so that a wider grid may do better; `None`: nothing was chosen."""

    @property
    def digest(self) -> str:
        """SHA-256 of name and settings: equal for results that may be compared."""
        return sha256_json({"name": self.name, "settings": self.settings})

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"name": self.name, "digest": self.digest, "settings": self.settings, "chosen": self.chosen,
                "scores": self.scores, "at_edge": self.at_edge}


@dataclass(frozen=True)
class Evaluation:
    """The parts of a result that all evaluations share."""

    task: str
    """`knn`, `linear`, `retrieval`, `rankme` ..."""
    protocol: Protocol
    bank: Side
    """Bank or training rows."""
    queries: Side
    """Queries or test rows; the bank itself in leave-one-out and in folds."""
    overlap: Overlap | None
    results: list[dict]
    """One entry for each setting; a value is `Measured.as_json()`."""
    per_class: dict = field(default_factory=dict)
    matrix: tuple[list[str], np.ndarray] | None = None
    """Names of the classes and `measures.confusion`."""
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    """Measure -> (Q,) what it is for each query, for the first entry of `results`: 0 or 1 for right and wrong."""
    solver: dict | None = None
    """Iterations, gradient norm, converged."""
    repeats: list[dict] = field(default_factory=list)
    """One entry for each seed and fold."""
    baselines: list[dict] = field(default_factory=list)
    """The same protocol on what needs no encoder: name, value, ci95, method, n."""
    device: str = "cpu"
    seconds: float = 0.0
    unit: str | None = "percent"
    """Of all values; `None`: each has its own."""

    def as_json(self) -> dict:
        """Plain JSON types; numbers that are not finite are null."""
        data = {"bank": self.bank.described(), "queries": self.queries.described(),
                "classes": len(set(self.bank.names) | set(self.queries.names)),
                "overlap": self.overlap.as_json() if self.overlap else None}
        return plain({"kind": KIND, "schema": SCHEMA, "task": self.task, "unit": self.unit,
                      "protocol": self.protocol.as_json(), "data": data, "encoder": self.bank.encoder_json(),
                      "solver": self.solver, "results": self.results, "per_class": self.per_class,
                      "confusion": confusion_json(*self.matrix) if self.matrix else None, "repeats": self.repeats,
                      "baselines": self.baselines, "outcomes": outcomes_json(self.queries, self.outcomes),
                      "versions": versions(), "device": device_name(self.device), "seconds": round(self.seconds, 3)})


def confusion_json(names: list[str], matrix: np.ndarray) -> dict | None:
    """Names and counts, a row for each true class; `None` for more classes than anybody reads."""
    return {"classes": names, "counts": matrix.tolist()} if len(names) <= MOST_CLASSES else None


def per_class_json(names: list[str], matrix: np.ndarray, ap: np.ndarray | None = None) -> dict:
    """Name -> count, top1 (the recall) and precision in percent, and AP; only classes with queries."""
    recall, precision, counts = recalls(matrix), precisions(matrix), matrix.sum(axis=1)
    return {name: {"count": int(counts[i]), "top1": float(recall[i]), "precision": float(precision[i]),
                   **({} if ap is None else {"ap": float(ap[i]) if i < len(ap) else math.nan})}
            for i, name in enumerate(names) if counts[i]}


def outcomes_json(queries: Side, outcomes: dict[str, np.ndarray]) -> dict:
    """What became of every query: its key (`Side.keys`) and, for each measure, a number."""
    if not outcomes:
        return {}
    return {"queries": queries.keys(), **{name: values.astype(int).tolist() if values.dtype == bool
                                          else np.round(values, 6).tolist() for name, values in outcomes.items()}}


def versions() -> dict:
    """Of mocoembed and of what computes."""
    return {"mocoembed": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "torch": torch.__version__}


def device_name(device: str) -> str:
    """`cpu`, or `cuda:0 (NVIDIA ...)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def plain(value):
    """The value with numbers that are not finite as `None`, which JSON can say."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def text_of(result: dict) -> str:
    """The JSON text of a result: indented, but a list of plain values in one line."""
    lists: list[str] = []

    def marked(value):
        if isinstance(value, dict):
            return {key: marked(one) for key, one in value.items()}
        if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
            return [marked(one) for one in value]
        if isinstance(value, list):
            lists.append(json.dumps(value))
            return f"{MARK}{len(lists) - 1}"
        return value

    pieces = json.dumps(marked(result), indent=2).split(json.dumps(MARK)[:-1])
    text = [pieces[0]]
    for piece in pieces[1:]:
        number, rest = piece.split('"', 1)
        text.append(lists[int(number)] + rest)
    return "".join(text)
