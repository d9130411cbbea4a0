"""What should be found for each query, from a CSV file of pairs: its lines -> rows of the embeddings files.

The columns are `query` and `match`, in any order, and optionally `junk`: a match that is neither right nor wrong, as in
revisitop, and is left out of the query's ranking. A path is one of the embeddings file's, or a full path.
"""

import csv
import os
import pathlib
from dataclasses import dataclass, field

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError
from mocoembed.files import require_file, sha256_file

COLUMNS = ("query", "match")
YES, NO = ("1", "true", "yes", "junk"), ("", "0", "false", "no")


@dataclass(frozen=True)
class Pairs:
    """Rows of the bank for rows of the queries."""

    relevant: dict[int, list[int]] = field(default_factory=dict)
    """Row of a query -> rows that should be found."""
    junk: dict[int, list[int]] = field(default_factory=dict)
    """Row of a query -> rows that are left out of its ranking."""
    sha256: str = ""
    """Of the file."""

    def asked(self, count: int) -> np.ndarray:
        """(count,) bool: the rows of the queries that have a match to find."""
        asked = np.zeros(count, bool)
        asked[list(self.relevant)] = True
        return asked


def read_pairs(path, queries: EmbeddingFile, bank: EmbeddingFile) -> Pairs:
    """The pairs of a file; `UsageError` when there is none, `FormatError` for a line that cannot be understood."""
    given = require_file(path, "The list of pairs", "a first line query,match and a line for each pair")
    pairs = Pairs(sha256=sha256_file(given))
    rows = {path: row for row, path in enumerate(queries.paths())}, {path: row for row, path in enumerate(bank.paths())}
    with open(given, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise FormatError(f"{given}: the first line must name the columns query,match (and junk, if there is one); "
                              f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there.")
        for line in reader:
            query = _row(line["query"], rows[0], queries, given, reader.line_num)
            match = _row(line["match"], rows[1], bank, given, reader.line_num)
            into = pairs.junk if _is_junk(line.get("junk"), given, reader.line_num) else pairs.relevant
            into.setdefault(query, []).append(match)
    if not pairs.relevant:
        raise FormatError(f"{given} has no pair of a query and its match.")
    for query in sorted(set(pairs.relevant) & set(pairs.junk)):
        if both := set(pairs.relevant[query]) & set(pairs.junk[query]):
            name = os.fsdecode(bank.paths[min(both)])
            raise FormatError(f"{given}: {name!r} is both a match and junk for one query.")
    return pairs


def _is_junk(text: str | None, path: pathlib.Path, line: int) -> bool:
    word = (text or "").strip().lower()
    if word not in (*YES, *NO):
        raise FormatError(f"{path}, line {line}: junk {text!r} must be 0 or 1.")
    return word in YES


def _row(text: str | None, rows: dict[bytes, int], file: EmbeddingFile, path: pathlib.Path, line: int) -> int:
    """The row of the image that a line names."""
    name = os.fsencode(text or "")
    if os.path.isabs(name):
        name = os.path.relpath(name, file.root)
    if name not in rows:
        raise FormatError(f"{path}, line {line}: {text!r} is not an image of {file.path}. Paths are those of the "
                          "embeddings file (relative to its collection), or full paths.")
    return rows[name]

