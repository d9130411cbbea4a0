"""Images named in a list file -> `Found`.

- `.txt`: a path a line, as the bytes of its name; so a name with a line break in it needs one of the others.
- `.csv`, `.tsv`: columns for the path and, if wanted, the label, in any order and beside others, named by the first
  line with one of `PATHS` and `LABELS`; or without such a line, the path and perhaps the label. The first line also
  shows what is between the columns (comma, semicolon or tab), and whether blanks around that belong to the values.
- `.jsonl`: an object a line, with a path and, if wanted, a label under one of these names.

A path is absolute or relative to the list file's folder; `..` in it is resolved by name. Every line counts, whatever
the name; nothing is looked up on the disk, so what is missing fails when it is read.
"""

import codecs
import contextlib
import csv
import enum
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

import numpy as np

from mocoembed.data.exclude import Exclude
from mocoembed.data.found import Found, State, folder_label
from mocoembed.data.label import given_label
from mocoembed.data.listing import Listing
from mocoembed.errors import FormatError

LINES_AT_A_TIME = 10_000
LOOKED_FOR = 100  # images whose names have a backslash
# What other programs call the columns; of several in one file the first counts.
PATHS = ("path", "image_path", "img_path", "imgpath", "filepath", "file_path", "filename", "file_name", "file", "image",
         "img")
LABELS = ("label", "class_name", "class", "category", "target")
DELIMITERS = {b".csv": ",;\t", b".tsv": "\t"}


class ByFolder(enum.Enum):
    """The label of a line in a list that has no labels."""

    LABEL = enum.auto()


Line = tuple[bytes, str | ByFolder | None]
"""The path, as it is written, and the label."""


def find_in_list(file: bytes, labels: str, tell: Callable[[int], None], exclude: Exclude | None = None) -> Found:
    """The images of a list file that `exclude` takes; `tell(count)` is called now and then.

    A label in the file counts before the folders' names. Raises `FormatError` naming the line that is none.
    """
    state, folder = State.of(file), os.path.dirname(file)
    prefix = os.path.join(folder, b"")
    read = READERS[os.path.splitext(file)[1].lower()]
    with open(file, "rb") as start_of_file:
        if start_of_file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise FormatError(f"{os.fsdecode(file)!r} is UTF-16 text. Save it as UTF-8.")
    paths: list[bytes] = []
    given: list[str | ByFolder | None] = []
    for path, label in read(file, labels != "none"):
        paths.append(os.path.normpath(path if path.startswith(b"/") else prefix + path))
        given.append(label)
        if len(paths) % LINES_AT_A_TIME == 0:
            tell(len(paths))
    found = Found(common_folder(paths, folder))
    found.witnesses[file] = state
    exclude = exclude or Exclude()
    found.excluded = exclude.counts
    start = len(found.root.rstrip(b"/")) + 1
    for first in range(0, len(paths), LINES_AT_A_TIME):
        lines = zip(paths[first:first + LINES_AT_A_TIME], given[first:first + LINES_AT_A_TIME])
        part = [(path[start:], label) for path, label in lines if exclude.takes(path[start:])]
        found.extend([path for path, _ in part], [
            None if labels == "none" else folder_label(path, found.root, labels) if isinstance(label, ByFolder) else
            label
            for path, label in part])
    return found


def common_folder(paths: list[bytes], folder: bytes) -> bytes:
    """`folder` if all the absolute paths lie below it, else the deepest folder that they do lie below."""
    if not paths:
        return folder
    common = os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))])
    return folder if os.path.commonpath([common, folder]) == folder else common


def require_slashes(listing: Listing):
    """Raise `FormatError` for a list written on Windows: no name with a backslash is there, but with slashes one is."""
    places = np.flatnonzero(listing.paths.blob == ord("\\"))
    rows = np.unique(np.searchsorted(listing.paths.offsets, places, side="right") - 1)[:LOOKED_FOR]
    if not len(rows) or not (listing.states(rows)["size"] < 0).all():
        return
    for path in listing.paths.take(rows):
        slashed, name = path.replace(b"\\", b"/"), os.fsdecode(path)
        if os.path.exists(os.path.join(listing.root, slashed)):
            raise FormatError(f"The list names {name!r}, which does not exist, but {os.fsdecode(slashed)!r} does. "
                              "Replace '\\' by '/' in the list.")
        if re.search(rb"(^|/)[A-Za-z]:\\", path):
            raise FormatError(f"The list names {name!r}, a Windows path, which does not exist here. Write paths "
                              "relative to the list, with '/'.")


def _txt(file: bytes, with_labels: bool) -> Iterator[Line]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if path := line.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8):
                _require_no_nul(path, _where(file, number))
                yield path, ByFolder.LABEL


def _table(file: bytes, with_labels: bool) -> Iterator[Line]:
    columns = _columns(file)
    with _open(file) as text:
        rows = csv.reader(text, delimiter=columns.delimiter, strict=True, skipinitialspace=columns.blanks)
        is_header = columns.is_header
        try:
            for row in rows:
                if columns.blanks:
                    row = [value.strip() for value in row]
                if not any(row):
                    continue
                if is_header:
                    is_header = False
                    continue
                path, label = (row[at] if at is not None and at < len(row) else None
                               for at in (columns.path, columns.label))
                where = _where(file, rows.line_num)
                yield _path(path, where), (ByFolder.LABEL if columns.label is None or not with_labels
                                           else given_label(label, where))
        except csv.Error as error:
            raise FormatError(f"{_where(file, rows.line_num)}: {error}.") from error


class _Columns(NamedTuple):
    """What the first line of a table shows."""

    path: int
    label: int | None
    is_header: bool
    delimiter: str
    blanks: bool
    """Whether there are blanks around the delimiters."""


def _columns(file: bytes) -> _Columns:
    delimiters = DELIMITERS[os.path.splitext(file)[1].lower()]
    for delimiter in delimiters:
        row, blanks = _first_row(file, delimiter)
        names = [name.strip().lower() for name in row]
        path, label = (next((names.index(name) for name in known if name in names), None) for known in (PATHS, LABELS))
        if path is not None:
            return _Columns(path, label, True, delimiter, blanks)
    row, blanks = _first_row(file, delimiters[0])
    names = [name.strip().lower() for name in row]
    if len(row) > 2 or any(name in LABELS or set(name) & set(delimiters[1:]) for name in names):
        raise FormatError(f"{os.fsdecode(file)!r} begins with {delimiters[0].join(row)!r}, which names no column path. "
                          "Add a first line with the names of the columns, for example: "
                          f"{delimiters[0].join(('path', 'label'))}")
    return _Columns(0, 1 if len(row) == 2 else None, False, delimiters[0], blanks)


def _first_row(file: bytes, delimiter: str) -> tuple[list[str], bool]:
    """The values in the first line that has any, and whether there are blanks around them.

    None for a file that is empty or damaged, which is said later.
    """
    with _open(file) as text, contextlib.suppress(csv.Error):
        lines = [next((line for line in text if line.strip(f"{delimiter}\r\n ")), ""), *itertools.islice(text, 100)]
        exact, row = (next(csv.reader(lines, delimiter=delimiter, skipinitialspace=skip), []) for skip in (False, True))
        return row, exact != [value.strip() for value in row]
    return [], False


def _open(file: bytes) -> TextIO:
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _jsonl(file: bytes, with_labels: bool) -> Iterator[Line]:
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = _where(file, number)
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{where}: not JSON: {error}.") from error
            if not isinstance(entry, dict):
                entry = {}
            path, label = (next((entry[name] for name in known if name in entry), missing)
                           for known, missing in ((PATHS, None), (LABELS, ByFolder.LABEL)))
            yield _path(path, where), (
                ByFolder.LABEL if label is ByFolder.LABEL or not with_labels else given_label(label, where))


def _where(file: bytes, line: int) -> str:
    return f"{os.fsdecode(file)!r}, line {line}"


def _path(text: object, where: str) -> bytes:
    """The bytes of a path as names on the disk have them; `FormatError` unless it is one."""
    if not isinstance(text, str) or not text:
        raise FormatError(f"{where}: the path is missing.")
    try:
        name = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: {text!r} is not a valid path.") from error
    _require_no_nul(name, where)
    return name


def _require_no_nul(name: bytes, where: str):
    if b"\0" in name:
        raise FormatError(f"{where}: the path contains a NUL byte.")


READERS = {b".txt": _txt, b".csv": _table, b".tsv": _table, b".jsonl": _jsonl}
