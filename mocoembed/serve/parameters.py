"""What a request asks for: query parameters and JSON -> `Wanted` and `Asked`. Anything unknown is refused."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.datastructures import QueryParams

from mocoembed.checks import relative_globs
from mocoembed.errors import UsageError
from mocoembed.search.filters import Filter
from mocoembed.search.queries import scaled
from mocoembed.serve.answers import Refusal
from mocoembed.serve.collection import Collection, Wanted

MOST_HITS, MOST_QUERIES, MOST_FILTERS, MOST_LETTERS = 1_000, 256, 50, 1_000
DEEPEST = 10_000  # hit that can be asked for
MOST_ROWS, MOST_SIDE = 1_000, 1_000_000
REPEATED = ("label", "not_label", "path")
SEARCH = ("k", "offset", *REPEATED, "min_side", "min_score", "unique", "diverse", "exclude_self", "crop")
WORDS = {"true": True, "1": True, "false": False, "0": False}
ROW, ID = "[0-9]{1,16}", "-?[0-9]{1,19}"
ROWS, IDS = f"{ROW}(,{ROW})*", f"{ID}(,{ID})*"
IDS_END = 2**63  # which no id and no negative one reaches
KINDS = ("rows", "ids", "paths", "vectors")


def _parameter(text: str) -> Refusal:
    return Refusal(400, text, "parameter")


def _body(text: str) -> Refusal:
    return Refusal(400, text, "body")


def allow(given: QueryParams, *names: str):
    """Refuse parameters with other names, and those that are given twice but may not be."""
    for name in given:
        if name not in names:
            raise _parameter(f"Unknown parameter {name[:50]!r}. Allowed: {', '.join(names) or 'none'}.")
        values = given.getlist(name)
        if name not in REPEATED and len(values) > 1:
            raise _parameter(f"{name} is given {len(values)} times.")
        if len(values) > MOST_FILTERS or max(map(len, values)) > MOST_LETTERS:
            raise _parameter(f"{name}: at most {MOST_FILTERS} values of {MOST_LETTERS} characters.")


def exclusive(given: QueryParams, some: tuple[str, ...], others: tuple[str, ...]):
    """Refuse one of `some` together with one of `others`, which would say nothing beside it."""
    for one in some:
        for other in others:
            if given.get(one) and other in given:
                raise _parameter(f"Give {one} or {other}, not both.")


def integer(given: QueryParams, name: str, default: int, least: int, most: int) -> int:
    """A whole number within bounds."""
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise _parameter(f"{name} {text!r}: must be a whole number from {least} to {most}.")
    return int(text)


def number(given: QueryParams, name: str, default: float) -> float:
    """A finite number."""
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?", text) or not math.isfinite(float(text)):
        raise _parameter(f"{name} {text!r}: must be a number.")
    return float(text)


def flag(given: QueryParams, name: str) -> bool:
    """true or false."""
    text = given.get(name, "false")
    if text not in WORDS:
        raise _parameter(f"{name} {text!r}: must be true or false.")
    return WORDS[text]


def crop_of(given: QueryParams) -> tuple[int, ...]:
    """X,Y,WIDTH,HEIGHT in pixels, or nothing."""
    if (text := given.get("crop")) is None:
        return ()
    if not re.fullmatch(r"[0-9]{1,7},[0-9]{1,7},[1-9][0-9]{0,6},[1-9][0-9]{0,6}", text):
        raise _parameter(f"crop {text!r}: must be four numbers X,Y,WIDTH,HEIGHT of pixels.")
    return tuple(map(int, text.split(",")))


@dataclass(frozen=True)
class _Globs:
    path: tuple[str, ...]


def filter_of(given: QueryParams) -> Filter:
    """Labels and globs that hits must have."""
    chosen = Filter(*(tuple(given.getlist(name)) for name in REPEATED))
    relative_globs(_Globs(chosen.paths), "path")
    return chosen


def wanted_of(given: QueryParams) -> Wanted:
    """What hits are wished for."""
    return Wanted(integer(given, "k", 10, 1, MOST_HITS), integer(given, "offset", 0, 0, DEEPEST), filter_of(given),
                  integer(given, "min_side", 0, 0, MOST_SIDE), number(given, "min_score", -math.inf),
                  flag(given, "unique"), flag(given, "diverse"), flag(given, "exclude_self"))


def rows_of(given: QueryParams, collection: Collection) -> list[int] | None:
    """The rows that `rows` or `ids` name, 1,2,3; `None` if neither is given. Ids that are not there are left out."""
    exclusive(given, ("rows",), ("ids",))
    numbers = {}
    for name, pattern in (("rows", ROWS), ("ids", IDS)):
        text = given.get(name, "")
        if text and not re.fullmatch(pattern, text):
            raise _parameter(f"{name} {text!r}: must be whole numbers with commas between them.")
        numbers[name] = [int(one) for one in text.split(",")] if text else []
    if numbers["ids"]:
        found = (collection.row_of_id(one) for one in numbers["ids"] if abs(one) < IDS_END)
        return [row for row in found if row is not None]
    return [_row(one, collection) for one in numbers["rows"]] or None


def require_version(given: QueryParams, collection: Collection):
    """Refuse a request that was made for rows of another version of the embeddings file."""
    if given.get("version", collection.version) != collection.version:
        raise Refusal(409, f"The embeddings file has been replaced: its version is {collection.version} now. Ask "
                           "/api/info again.", "replaced")


def json_of(data: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _body("The body is not JSON.") from error
    if not isinstance(value, dict):
        raise _body("The body is not a JSON object.")
    return value


def _no_constant(name: str):
    raise ValueError(name)


@dataclass(frozen=True)
class Asked:
    """Queries by what the collection has, or by vectors."""

    vectors: np.ndarray
    """(Q, D) float32"""
    selves: list[np.ndarray]
    """For each, the rows that it is."""
    rows: list[int] | None = None
    """Row of each, where they are all rows."""
    is_balance: bool = False
    """One query of `like` and `unlike`; the images that it is made of are no hits."""


def asked_of(body: dict[str, Any], collection: Collection) -> Asked:
    """The queries of a JSON body: rows, ids, paths or vectors (and `selves`); or one of `like` and `unlike`."""
    names = set(body)
    if names == {"like"} or names == {"like", "unlike"}:
        return _balance(body, collection)
    if names == {"vectors"} or names == {"vectors", "selves"}:
        vectors = np.stack([_vector(one, collection) for one in _several(body, "vectors")])
        return Asked(vectors, _selves(body.get("selves", [[]] * len(vectors)), len(vectors), collection))
    if len(names) != 1 or not names <= set(KINDS):
        raise _body(f"The body must have one of {', '.join(KINDS)}; or vectors and selves, or like, or like and "
                    "unlike.")
    (kind,) = names
    values = _several(body, kind)
    find = {"rows": _row, "ids": _id, "paths": _path}[kind]
    rows = [find(one, collection) for one in values]
    return Asked(collection.vectors(rows), [np.array([row]) for row in rows], rows)


def _several(body: dict[str, Any], name: str) -> list:
    values = body[name]
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_QUERIES:
        raise _body(f"{name}: must be a list of 1 to {MOST_QUERIES}.")
    return values


def _selves(value: Any, count: int, collection: Collection) -> list[np.ndarray]:
    """For each of `count` vectors, the rows that it is said to be."""
    if not isinstance(value, list) or len(value) != count or not all(isinstance(rows, list) for rows in value):
        raise _body("selves: must be a list of rows for each of the vectors.")
    return [np.array([_row(row, collection) for row in rows], np.int64) for rows in value]


def _balance(body: dict[str, Any], collection: Collection) -> Asked:
    """One query: the mean of what it should be like, minus the mean of what it should be unlike."""
    sides, rows = [], []
    for name in ("like", "unlike"):
        if name not in body:
            continue
        each = []
        for one in _several(body, name):
            if isinstance(one, list):
                each.append(_vector(one, collection))
            else:
                rows.append((_id if isinstance(one, str) else _row)(one, collection))
                each.append(collection.vectors([rows[-1]])[0])
        sides.append(np.stack(each))
    return Asked(collection.balance(sides[0], sides[1] if len(sides) > 1 else None), [np.array(rows, np.int64)],
                 is_balance=True)


def _row(value: Any, collection: Collection) -> int:
    if type(value) is not int:
        raise _body(collection.no_row(_shown(value)))
    if not 0 <= value < len(collection):
        raise Refusal(404, collection.no_row(_shown(value)), "unknown row")
    return value


def _id(value: Any, collection: Collection) -> int:
    if not isinstance(value, str) or not re.fullmatch(ID, value) or abs(int(value)) >= IDS_END:
        raise _body(f"{_shown(value)} is no id: ids are texts of digits.")
    if (row := collection.row_of_id(int(value))) is None:
        raise Refusal(404, f"There is no image with the id {value}.", "unknown row")
    return row


def _path(value: Any, collection: Collection) -> int:
    if not isinstance(value, str):
        raise _body(f"{_shown(value)} is no path.")
    try:
        row = collection.row_of_path(value)
    except UnicodeEncodeError as error:
        raise _body(f"{_shown(value)} is no path.") from error
    if row is None:
        raise Refusal(404, f"There is no image with the path {_shown(value)}.", "unknown row")
    return row


def _vector(value: Any, collection: Collection) -> np.ndarray:
    dimension = collection.file.dimension
    if not isinstance(value, list) or len(value) != dimension or not all(type(one) in (int, float) for one in value):
        raise _body(f"A vector must be a list of {dimension} numbers.")
    try:
        with np.errstate(over="ignore"):
            vector = np.array(value, np.float64).astype(np.float32)
    except OverflowError as error:
        raise _body("A vector holds a number that is too large.") from error
    if not np.isfinite(vector).all():
        raise _body("A vector holds a number that is too large.")
    try:
        return scaled(vector[None])[0] if collection.file.normalized else vector
    except UsageError as error:
        raise _body(str(error)) from error


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
