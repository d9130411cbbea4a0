"""Images named in a list file -> `Found`.

- `.txt`: a path a line, as the bytes of its name; so a name with a line break in it needs one of the others.
- `.csv`: columns `path` and, if wanted, `label`, in any order and beside others, named by the first line; or without
  such a line, the path and perhaps the label.
- `.jsonl`: an object a line, with `path` and, if wanted, `label` (text or a whole number).

A path is absolute or relative to the list file's folder; `..` in it is resolved by name. Every line counts, whatever
the name; nothing is looked up on the disk, so what is missing fails when it is read.
"""

import codecs
import csv
import json
import os
from collections.abc import Iterator

from mocoembed.data.found import Found, State, folder_label
from mocoembed.errors import FormatError

LINES_AT_A_TIME = 10_000
NO_PATH = {"label", "file", "filename", "image"}  # the first line of a table for another program
BY_FOLDER = object()  # the label of a line in a list that has no labels


def find_in_list(file: bytes, labels: str, tell) -> Found:
    """The images of a list file; `tell(count)` is called now and then.

    A label in the file counts before the folders' names. Raises `FormatError` naming the line that is none.
    """
    state, folder = State.of(file), os.path.dirname(file)
    prefix = os.path.join(folder, b"")
    read = READERS[os.path.splitext(file)[1].lower()]
    with open(file, "rb") as start_of_file:
        if start_of_file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise FormatError(f"{os.fsdecode(file)!r} is UTF-16 text. Save it as UTF-8.")
    paths, given = [], []
    for path, label in read(file):
        paths.append(os.path.normpath(path if path.startswith(b"/") else prefix + path))
        given.append(label)
        if len(paths) % LINES_AT_A_TIME == 0:
            tell(len(paths))
    found = Found(common_folder(paths, folder))
    found.witnesses[file] = state
    start = len(found.root.rstrip(b"/")) + 1
    for first in range(0, len(paths), LINES_AT_A_TIME):
        part = [path[start:] for path in paths[first:first + LINES_AT_A_TIME]]
        found.extend(part, [None if labels == "none" else
                            folder_label(path, found.root, labels) if label is BY_FOLDER else label
                            for path, label in zip(part, given[first:first + LINES_AT_A_TIME])])
    return found


def common_folder(paths: list[bytes], folder: bytes) -> bytes:
    """`folder` if all the absolute paths lie below it, else the deepest folder that they do lie below."""
    if not paths:
        return folder
    common = os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))])
    return folder if os.path.commonpath([common, folder]) == folder else common


def _txt(file: bytes) -> Iterator[tuple[bytes, object]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if path := line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf"):
                _require_no_nul(path, "path", file, number)
                yield path, BY_FOLDER


def _csv(file: bytes) -> Iterator[tuple[bytes, object]]:
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, strict=True)
        columns = None
        try:
            for row in rows:
                if not row:
                    continue
                if columns is None:
                    columns, is_header = _columns(row, file)
                    if is_header:
                        continue
                path, label = ((row[at] if at is not None and at < len(row) else None) for at in columns)
                yield (_bytes(path, "path", file, rows.line_num),
                       BY_FOLDER if columns[1] is None else _label(label, file, rows.line_num))
        except csv.Error as error:
            raise FormatError(f"{os.fsdecode(file)!r}, line {rows.line_num}: {error}.") from error


def _columns(row: list[str], file: bytes) -> tuple[tuple[int, int | None], bool]:
    """Where path and label stand, and whether this first row is a header."""
    names = [name.strip().lower() for name in row]
    if "path" in names:
        return (names.index("path"), names.index("label") if "label" in names else None), True
    if len(row) > 2 or any(name in NO_PATH or ";" in name for name in names):
        raise FormatError(f"{os.fsdecode(file)!r} begins with {','.join(row)!r}, where no column is named path. Begin "
                          "it with a line that names the columns, for example: path,label")
    return (0, 1 if len(row) == 2 else None), False


def _jsonl(file: bytes) -> Iterator[tuple[bytes, object]]:
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise FormatError(f"{os.fsdecode(file)!r}, line {number}: not JSON: {error}.") from error
            path = entry.get("path") if isinstance(entry, dict) else None
            label = entry["label"] if isinstance(entry, dict) and "label" in entry else BY_FOLDER
            if label is not BY_FOLDER and (isinstance(label, bool) or not isinstance(label, str | int | None)):
                raise FormatError(f"{os.fsdecode(file)!r}, line {number}: the label is {json.dumps(label)}; it must be "
                                  "text, a whole number or null.")
            yield (_bytes(path, "path", file, number), label if label is BY_FOLDER else
                   _label(None if label is None else str(label), file, number))


def _bytes(text: object, what: str, file: bytes, line: int) -> bytes:
    """The bytes of a text as names on the disk have them; `FormatError` unless it is one."""
    if not isinstance(text, str) or not text:
        raise FormatError(f"{os.fsdecode(file)!r}, line {line}: no {what}.")
    try:
        name = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FormatError(f"{os.fsdecode(file)!r}, line {line}: {text!r} cannot be a {what}.") from error
    _require_no_nul(name, what, file, line)
    return name


def _require_no_nul(name: bytes, what: str, file: bytes, line: int):
    if b"\0" in name:
        raise FormatError(f"{os.fsdecode(file)!r}, line {line}: a {what} with a NUL byte in it.")


def _label(text: str | None, file: bytes, line: int) -> str | None:
    return _bytes(text, "label", file, line).decode("utf-8", "backslashreplace") if text else None


READERS = {b".txt": _txt, b".csv": _csv, b".jsonl": _jsonl}
