"""Checking the values of a config, and carrying a config through JSON."""

import dataclasses
import math
import os
import re

from mocoembed.errors import FormatError, UsageError

SIZES = "a size such as 4GB, 500MB or 2.5GiB"
PER_CLASS = "-per-class"  # of --labels 5-per-class


def option_name(field_name: str) -> str:
    """The command-line spelling of a config field: `batch_size` -> `--batch-size`, `k` -> `-k`."""
    return ("-" if len(field_name) == 1 else "--") + field_name.replace("_", "-")


def require(config, name: str, ok: bool, allowed: str):
    """Raise `UsageError` naming the option of field `name`, its value and what is `allowed`, unless `ok`."""
    if not ok:
        value = getattr(config, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        raise UsageError(f"{option_name(name)} {shown}: must be {allowed}.")


def one_of(config, name: str, choices):
    """Raise `UsageError` unless field `name` is one of `choices`."""
    require(config, name, getattr(config, name) in choices, "one of " + ", ".join(choices))


def at_least(config, least, *names: str):
    """Raise `UsageError` unless every named field is `None` or a number >= `least`."""
    for name in names:
        value = getattr(config, name)
        require(config, name, value is None or value >= least, f"{least} or more")


def at_most(config, most, *names: str):
    """Raise `UsageError` unless every named field is a number <= `most`."""
    for name in names:
        require(config, name, getattr(config, name) <= most, f"{most} or less")


def in_unit_interval(config, *names: str):
    """Raise `UsageError` unless every named field is a number from 0 to 1."""
    for name in names:
        require(config, name, 0 <= getattr(config, name) <= 1, "from 0 to 1")


def relative_globs(config, name: str):
    """Raise `UsageError` unless field `name` holds globs that a path relative to a collection can match."""
    for glob in getattr(config, name):
        if not glob or glob.startswith("/") or ".." in glob.split("/"):
            raise UsageError(f"{option_name(name)} {glob!r}: must be a name or a path relative to the collection, for "
                             "example: thumbs, '*.png' or 'old/raw*'.")


def size_in_bytes(config, name: str) -> int | None:
    """The bytes that field `name` asks for, such as `4GB` or `500MiB`; `UsageError` for what is no size."""
    value = getattr(config, name)
    if value is None:
        return None
    size = parse_size(value)
    require(config, name, size is not None, SIZES)
    return size


def size_of_variable(name: str) -> int | None:
    """The bytes that environment variable `name` asks for, `None` where it is not set; `UsageError` for no size."""
    if not (value := os.environ.get(name)):
        return None
    if (size := parse_size(value)) is None:
        raise UsageError(f"{name}={value}: must be {SIZES}.")
    return size


def parse_size(text: str) -> int | None:
    """The bytes that `text` names, such as `4GB` or `500MiB`; `None` if it is no size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        return None
    return int(float(found[1]) * (1024 if found[3] else 1000) ** (1 + "KMGT".index(found[2].upper())))


def rising_pair(config, name: str):
    """Raise `UsageError` unless field `name` is empty or holds two finite numbers, the lower one first."""
    value = getattr(config, name)
    ok = not value or (len(value) == 2 and -math.inf < value[0] < value[1] < math.inf)
    require(config, name, ok, "two finite numbers, the lower one first")


def standard_input_once(*images: str):
    """Raise `UsageError` when standard input, which is read to its end, is named more than once."""
    if images.count("-") > 1:
        raise UsageError("Standard input (-) holds one image and can be given once.")


def device_name(config, name: str = "device"):
    """Raise `UsageError` unless field `name` has the form of a device; whether there is one takes torch to know."""
    value = getattr(config, name)
    require(config, name, value in ("auto", "cpu") or re.fullmatch(r"cuda(:\d+)?", value) is not None,
            "auto, cpu, cuda or cuda:N")


def parse_labels(labels: str) -> tuple[float | None, int]:
    """(share, 0) of `10%`, or (None, n) of `n-per-class`; `UsageError` for another text."""
    try:
        if labels.endswith("%") and 0 < (percent := float(labels[:-1])) <= 100:
            return percent / 100, 0
        if labels.endswith(PER_CLASS) and (number := int(labels.removesuffix(PER_CLASS))) >= 1:
            return None, number
    except ValueError:
        pass
    raise UsageError(f"--labels {labels}: must be a share such as 1% or 10%, or a number of images for each class such "
                     f"as 5{PER_CLASS}.")


def few_labels(config, name: str = "labels"):
    """Raise `UsageError` unless field `name` is `None` or says how many labels are used: see `parse_labels`."""
    if getattr(config, name) is not None:
        parse_labels(getattr(config, name))


def is_gpu(device: str) -> bool:
    """Whether an option `--device` asks for a GPU; `auto` is the CPU, as loading torch takes longer than a search."""
    return device not in ("auto", "cpu")


def to_dict(config) -> dict:
    """The config as plain JSON types (tuples become lists)."""
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(config).items()}


def from_dict(kind, values: dict):
    """A config of class `kind` from `to_dict`'s result; `FormatError` for unknown fields."""
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - names):
        raise FormatError(f"Unknown settings in the file: {', '.join(unknown)}. "
                          "It was written by a newer version of mocoembed.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
