"""Filters -> expressions of Milvus, with no way for a value to become a part of the expression.

Labels are exact. A glob becomes patterns of `like` that match all that it does and maybe more, as `*` there stops at no
slash and `[abc]` is unknown; `PathCheck` decides.
"""

import os
import re
from collections.abc import Sequence

from mocoembed.data.exclude import Exclude
from mocoembed.search.filters import Filter
from mocoembed.search.milvus_rows import path_of

ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})
PLAIN = re.compile(r"[^A-Za-z0-9/. -]")  # what stands for itself in a pattern, everywhere; all else becomes %


def quoted(text: str) -> str:
    """A text as a literal of Milvus."""
    return '"' + text.translate(ESCAPES) + '"'


def one_label(label: str) -> str:
    """Rows with a label; '' is none."""
    return f"label == {quoted(label)}" if label else "label is null"


def _with_labels(labels: Sequence[str]) -> str:
    """Rows with one of the labels; '' is none."""
    named = [label for label in labels if label]
    terms = [f"label in {_labels(named)}"] if named else []
    terms += ["label is null"] if "" in labels else []
    return terms[0] if len(terms) == 1 else f"({' or '.join(terms)})"


def _without_labels(labels: Sequence[str]) -> str:
    """Rows with none of them."""
    named = [label for label in labels if label]
    terms = [f"(label is null or label not in {_labels(named)})"] if named else []
    return " and ".join([*terms, *(["label is not null"] if "" in labels else [])])


def _labels(labels: Sequence[str]) -> str:
    return "[" + ", ".join(map(quoted, labels)) + "]"


def _patterns(glob: str) -> list[str]:
    """Patterns of `like`, of which one matches every path that the glob matches."""
    bare = os.path.normpath(glob)
    plain, bracket, _ = bare.partition("[")
    pattern = re.sub("%+", "%", PLAIN.sub("%", plain) + ("%" if bracket else ""))
    begins = [pattern] if "/" in bare else [pattern, f"%/{pattern}"]
    return list(dict.fromkeys(re.sub("%+", "%", f"{one}{end}") for one in begins for end in ("", "/%")))


def expression(chosen: Filter, digests: Sequence[str] = ()) -> str:
    """What selects the rows of a filter, or more of them for its paths; without those that have one of `digests`."""
    terms = []
    if chosen.labels:
        terms.append(_with_labels(chosen.labels))
    if chosen.not_labels:
        terms.append(_without_labels(chosen.not_labels))
    if chosen.paths:
        likes = dict.fromkeys(f'path like "{one}"' for glob in chosen.paths for one in _patterns(glob))
        terms.append("(" + " or ".join(likes) + ")")
    if digests:
        terms.append(f"digest not in {_labels(digests)}")
    return " and ".join(terms)


class PathCheck:
    """Whether one of some globs matches a path."""

    def __init__(self, globs: Sequence[str]):
        self._exclude = Exclude(tuple(globs)) if globs else None

    def __bool__(self):
        return self._exclude is not None

    def __call__(self, text: str) -> bool:
        """For a path as the collection has it."""
        return self._exclude is None or not self._exclude.takes(path_of(text))
