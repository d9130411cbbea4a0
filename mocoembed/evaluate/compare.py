"""Results side by side: JSON files of evaluations -> a table, and the difference of each to the first, query by query.

A difference is taken over the same queries, so that what is hard in them cancels out: its interval is much narrower
than those of the two numbers. The interval is a paired bootstrap over the queries. For right and wrong, McNemar's exact
test looks at the queries where one is right and the other is not (McNemar 1947). A difference between protocols is no
difference between encoders; it is refused unless it is asked for.
"""

import json
import math
import pathlib
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from mocoembed.config import CompareConfig
from mocoembed.errors import FormatError, MismatchError
from mocoembed.evaluate.measures import Measured, means
from mocoembed.evaluate.result_file import require_result, value_of
from mocoembed.files import require_file

LEARNING = ("linear", "finetune")  # tasks with training and test images
KIND, SCHEMA = "mocoembed comparison", 1
RIGHT_OR_WRONG = "top1"  # the outcome that is 0 or 1, or a share of seeds; all others are in percent
SAME = 0.005  # points within which a mean of single queries is the number that was printed


@dataclass(frozen=True)
class McNemar:
    """The queries on which two results disagree."""

    only_first: int
    """Right in the first result alone."""
    only_second: int
    p: float
    """Probability of a split at least so uneven, when neither is better."""


@dataclass(frozen=True)
class Difference:
    """How much more the second of two results has, on the queries that both have."""

    first: str
    second: str
    measure: str
    value: Measured
    """Second minus first, in points."""
    mcnemar: McNemar | None

    def as_json(self) -> dict:
        """Plain JSON types."""
        return {"first": self.first, "second": self.second, "measure": self.measure, **self.value.as_json(),
                "mcnemar": asdict(self.mcnemar) if self.mcnemar else None}


@dataclass(frozen=True)
class Comparison:
    """What `compare_results` found."""

    results: dict[str, dict]
    """Path -> result, in the order given."""
    differences: list[Difference]
    """Of every other result to the first."""
    differs: list[str]
    """Protocol and data that are not the same, in words."""
    remarks: list[str]
    """Where the difference is of other numbers than those of the table, in words."""

    def rows(self) -> list[tuple[str, dict]]:
        """(path, entry of its `results`) for every setting of every result."""
        return [(path, entry) for path, result in self.results.items() for entry in result["results"]]

    def as_json(self) -> dict:
        """Plain JSON types."""
        kept = ("task", "protocol", "data", "encoder", "results", "baselines", "versions", "device", "seconds")
        return {"kind": KIND, "schema": SCHEMA,
                "results": [{"path": path, **{name: result.get(name) for name in kept}}
                            for path, result in self.results.items()],
                "differences": [one.as_json() for one in self.differences], "differs": self.differs,
                "remarks": self.remarks}


def compare_results(config: CompareConfig) -> Comparison:
    """The results of several files, and the differences to the first.

    Raises `UsageError` for a missing file, `FormatError` for one that is no result, `MismatchError` for different
    protocols or images, unless they are to be compared anyway, and for results without a query in common.
    """
    results = {path: read_result(path) for path in config.results}
    (first, base), *others = results.items()
    differs = [line for path, result in others for line in differences_of(first, base, path, result)]
    if differs and not config.anyway:
        raise MismatchError(f"A difference would not be one of encoders: {'; '.join(differs)}. Measure all by one "
                            "protocol on the same images, or give --anyway.")
    differences = [one for path, result in others for one in paired(first, base, path, result)]
    return Comparison(results, differences, differs, [line for path, result in results.items()
                                                      for line in remarks_on(path, result)])


def read_result(path) -> dict:
    """A result from its JSON file; `MismatchError` for one that says nothing of single queries, as of `rankme`."""
    given = require_file(path, "The result", "mocoembed knn --json > result.json")
    try:
        value = json.loads(given.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, too
        raise FormatError(f"{path} is not JSON ({error}). "
                          "Make a result with: mocoembed knn --json > result.json") from error
    result = require_result(value, path)
    try:
        outcomes, rows = result["outcomes"], {len(values) for values in result["outcomes"].values()}
        complete = {"task", "protocol", "data", "encoder"} < set(result) and isinstance(result["results"], list) \
            and {"name", "digest", "settings"} <= set(result["protocol"]) \
            and {"bank", "queries"} <= set(result["data"]) \
            and (not outcomes or (len(rows) == 1 and "queries" in outcomes))
    except (AttributeError, KeyError, TypeError):
        complete = False
    if not complete:
        raise FormatError(f"{path} is not a whole result of an evaluation. Make it again.")
    if not outcomes:
        raise MismatchError(f"{path} is a result of {result['task']}, which has no value for single images to compare "
                            "by. Put several of them side by side with: mocoembed report RESULT...")
    return result


def differences_of(first: str, base: dict, path: str, result: dict) -> list[str]:
    """What differs in task, protocol and images, in words; empty when two results may be compared."""
    found = []
    if base["task"] != result["task"] or base["protocol"]["name"] != result["protocol"]["name"]:
        found.append(f"{first} is {base['protocol']['name']}, {path} is {result['protocol']['name']}")
    elif base["protocol"]["digest"] != result["protocol"]["digest"]:
        mine, theirs = base["protocol"]["settings"], result["protocol"]["settings"]
        found += [f"{name} is {_short(mine.get(name))} in {first}, {_short(theirs.get(name))} in {path}"
                  for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    learning = base["task"] in LEARNING and result["task"] in LEARNING
    for side, what in (("bank", "training images" if learning else "bank"),
                       ("queries", "test images" if learning else "queries")):
        mine, theirs = (one["data"][side].get("by_class") for one in (base, result))
        if mine != theirs:
            found.append(f"the {what} of {first} and {path} are not the same images of each class")
    if not found and _keyed(base).keys() != _keyed(result).keys():
        found.append(f"the {'test images' if learning else 'queries'} of {first} and {path} are not the same images")
    return found


def remarks_on(path: str, result: dict) -> list[str]:
    """A line for a result whose printed number is a mean over seeds, while its single queries are of the first."""
    printed = value_of(result["results"][0], RIGHT_OR_WRONG) if result["results"] else None
    right = result["outcomes"].get(RIGHT_OR_WRONG)
    if not printed or not right or printed["value"] is None:
        return []
    mean = 100 * float(np.mean(right))
    if abs(mean - printed["value"]) < SAME:
        return []
    return [f"{path}: the table has the mean over its seeds ({printed['value']:.2f}), the difference is that of its "
            f"first seed ({mean:.2f})"]


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _keyed(result: dict) -> dict[tuple[str, int], int]:
    """(key of a query, how many before it have the same) -> its place; copies of an image have one key."""
    seen: defaultdict[str, int] = defaultdict(int)
    places = {}
    for place, key in enumerate(result["outcomes"]["queries"]):
        places[key, seen[key]] = place
        seen[key] += 1
    return places


def paired(first: str, base: dict, path: str, result: dict) -> list[Difference]:
    """The differences of the measures that both have for every query, on the queries that both have."""
    mine, theirs = _keyed(base), _keyed(result)
    common = [key for key in mine if key in theirs]
    if not common:
        raise MismatchError(f"{first} and {path} have no query in common. Measure both on the same images.")
    rows = [mine[key] for key in common], [theirs[key] for key in common]
    names = [name for name in base["outcomes"] if name != "queries" and name in result["outcomes"]]
    columns = {name: tuple(np.array(one["outcomes"][name], float)[place]
                           for one, place in zip((base, result), rows)) for name in names}
    if not columns:
        raise MismatchError(f"{first} and {path} share no measure of single queries, so they have no difference.")
    found = means({name: (b - a) / (1 if name == RIGHT_OR_WRONG else 100) for name, (a, b) in columns.items()})
    return [Difference(first, path, name, found[name],
                       mcnemar(*(column > 0 for column in columns[name])) if _are_answers(name, columns) else None)
            for name in names]


def _are_answers(name: str, columns: dict) -> bool:
    """Whether each query is right or wrong in both; over several seeds, it is right in a share of them."""
    return name == RIGHT_OR_WRONG and all(np.isin(column, (0, 1)).all() for column in columns[name])


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test of two answers (Q,) bool to the same queries."""
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    total, fewer = sum(alone), min(alone)
    logs = [math.lgamma(total + 1) - math.lgamma(i + 1) - math.lgamma(total - i + 1) - total * math.log(2)
            for i in range(fewer + 1)]
    return McNemar(*alone, min(1.0, 2 * math.fsum(map(math.exp, logs))))


def name_of(path: str) -> str:
    """The name of a result in a table."""
    return pathlib.Path(path).stem


def measures_in(comparison: Comparison) -> list[str]:
    """The measures that any entry has, in the order of the first that has them."""
    found: dict[str, None] = {}
    for _, entry in comparison.rows():
        found.update(dict.fromkeys(name for name in entry.get("values", entry) if value_of(entry, name)))
    return list(found)


def setting_of(entry: dict) -> str:
    """What distinguishes an entry of `results` from the others: `k 20, T 0.1`."""
    return ", ".join(f"{name} {value:g}" for name, value in entry.items()
                     if name not in entry.get("values", {}) and isinstance(value, int | float))
