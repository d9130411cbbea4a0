"""Results of evaluations as they are read: JSON -> what is in it. It needs no torch; `result` writes them."""

from mocoembed.errors import FormatError

KIND, SCHEMA = "mocoembed evaluation", 1


def value_of(entry: dict, name: str) -> dict | None:
    """The measure `name` of an entry of `results`: value, ci95, method, n; `None` where it has none.

    In results of `knn`, the keys of earlier versions hold bare numbers, and `values` the same with their intervals.
    """
    values = entry.get("values", entry)
    return values.get(name) if isinstance(values.get(name), dict) else None


def require_result(value, path) -> dict:
    """The value, a result of an evaluation; `FormatError` for anything else or for a newer schema."""
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise FormatError(f"{path} is not a result of an evaluation. Make one with: mocoembed knn --json > result.json")
    if (schema := value.get("schema")) != SCHEMA:
        raise FormatError(f"{path} has schema {schema} of evaluations; this version reads {SCHEMA}. "
                          "Install a newer mocoembed.")
    return value
