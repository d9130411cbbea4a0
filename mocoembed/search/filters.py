"""Which images of the collection may be hits: labels and paths -> rows of the embeddings file.

Globs are compared as `--exclude` compares them: one without a slash with the name of every file and folder on the way,
one with a slash with the path relative to the collection's root; `*` stands for anything, slashes too.
"""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mocoembed.data.exclude import Exclude
from mocoembed.data.images import NO_LABEL
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import UsageError

BLOCK = 65_536  # paths at a time
COMPARED = 5_000  # images at most whose names are compared with one that selects nothing
SHOWN = 3  # of the nearest names


@dataclass(frozen=True)
class Filter:
    """What a hit must be: an image with one of `labels`, none of `not_labels`, and a path that one of `paths` matches.

    An empty tuple asks for nothing. The label '' stands for images without one, which no other label selects.
    """

    labels: tuple[str, ...] = ()
    not_labels: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Globs."""

    def __post_init__(self):
        for name in ("labels", "not_labels", "paths"):  # one of them may be given as it is
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))

    def __bool__(self):
        return bool(self.labels or self.not_labels or self.paths)

    def mask(self, file: EmbeddingFile) -> np.ndarray:
        """(N,) bool: the selected rows of `file`.

        Raises `UsageError` for a label that no image has, for a glob that matches none, and where nothing is selected.
        """
        names, labels = file.label_names, file.labels()
        numbers = {name: number for number, name in enumerate(names)}
        if (labels == NO_LABEL).any():
            numbers.setdefault("", NO_LABEL)
        for option, given in (("--label", self.labels), ("--not-label", self.not_labels)):
            for label in given:
                if label not in numbers:
                    raise nothing_matches(f"{option} {label!r}", len(file), "labels", label, names)
        selected = np.ones(len(file), bool)
        if self.labels:
            selected &= np.isin(labels, [numbers[label] for label in self.labels])
        if self.not_labels:
            selected &= ~np.isin(labels, [numbers[label] for label in self.not_labels])
        if self.paths:
            selected &= _matching(file, self.paths)
        if not selected.any():
            raise nothing_matches_all(len(file))
        return selected


def _matching(file: EmbeddingFile, globs: tuple[str, ...]) -> np.ndarray:
    """(N,) bool: the rows whose path one of the globs matches; `UsageError` for a glob that matches none."""
    matching = np.zeros(len(file), bool)
    for glob in globs:
        exclude, found = Exclude((glob,)), np.zeros(len(file), bool)
        for first in range(0, len(file), BLOCK):
            paths = file.paths[first:first + BLOCK]
            found[first:first + len(paths)] = [not exclude.takes(path) for path in paths]
        if not found.any():
            rows = np.unique(np.linspace(0, len(file) - 1, min(len(file), COMPARED)).astype(np.int64))
            raise no_path_matches(glob, len(file), map(os.fsdecode, file.paths[rows]))
        matching |= found
    return matching


def no_path_matches(glob: str, count: int, paths: Iterable[str]) -> UsageError:
    """The error for a glob that none of `count` images matches, with names of some of their `paths` like it.

    Those are names of folders and files; for a glob with a slash, paths of both.
    """
    names: dict[str, None] = {}
    for path in paths:
        parts = path.split("/")
        names |= dict.fromkeys(["/".join(parts[:end + 1]) for end in range(len(parts))] if "/" in glob else parts)
    return nothing_matches(f"--path {glob!r}", count, "names", glob, names)


def nothing_matches_all(count: int) -> UsageError:
    """The error for filters that select images each, but none together."""
    return UsageError(f"The filters together: 0 of {count} images match. Leave one of them out.")


def nothing_matches(what: str, count: int, kind: str, wanted: str, names: Iterable[str]) -> UsageError:
    """The error for what selects no image, with the names that are most like it."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.strip("*?/").lower(), lower, SHOWN, 0.5)
    hint = f" The nearest {kind}: {', '.join(repr(lower[name]) for name in near)}." if near else ""
    if not near:
        shown = list(lower.values())[:SHOWN]
        some = f"{len(lower)} labels," if kind == "labels" else kind  # of names not all are looked at
        hint = f"{some} such as {', '.join(map(repr, shown))}" if shown else f"no {kind}"
        hint = f" The collection has {hint}."
    return UsageError(f"{what}: 0 of {count} images match.{hint}")
