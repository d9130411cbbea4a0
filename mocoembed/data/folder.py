"""Images in a folder (searched recursively) -> `Found`, in the order of a listing."""

import bisect
import os
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from mocoembed.data.exclude import Exclude
from mocoembed.data.formats import suffixes_read
from mocoembed.data.found import Found, State, folder_label
from mocoembed.data.skipped import HIDDEN, suffix_of

AT_A_TIME = 10_000  # images


class _Folder(NamedTuple):
    """A folder to be read."""

    path: bytes
    """Relative to the root."""
    ancestors: frozenset[tuple[int, int]]
    """The identities of it and of all that lead to it."""


class _Files(NamedTuple):
    """Images that have been found, of one folder."""

    prefix: bytes
    names: list[bytes]


def find_in_folder(root: bytes, labels: str, tell: Callable[[int], None], exclude: Exclude | None = None) -> Found:
    """Every file below `root` with an image's name; `tell(count)` is called now and then.

    Hidden files and folders are passed over, and those that `exclude` does not take. Symbolic links to folders are
    followed, never in a circle.
    """
    found, exclude = Found(root), exclude or Exclude()
    found.excluded = exclude.counts
    pending: list[_Folder | _Files] = [_Folder(b"", frozenset([_identity(os.stat(root))]))]
    while pending:
        step = pending.pop()
        if isinstance(step, _Folder):
            pending += reversed(_read(step, found, exclude))
        else:
            label = folder_label(step.prefix + b"image", root, labels)
            for first in range(0, len(step.names), AT_A_TIME):
                names = step.names[first:first + AT_A_TIME]
                found.extend([step.prefix + name for name in names], [label] * len(names))
        tell(len(found))
    return found


def _read(folder: _Folder, found: Found, exclude: Exclude) -> list[_Folder | _Files]:
    """What lies in a folder, sorted as the paths will be: as if a folder's name ended with a slash."""
    path, prefix = os.path.join(found.root, folder.path), os.path.join(folder.path, b"")
    suffixes, skipped = suffixes_read(), Counter[str]()
    files: list[bytes] = []
    folders: dict[bytes, _Folder] = {}
    try:
        found.witnesses[path] = State.of(path)
        for entry in os.scandir(path):
            if entry.name.startswith(b"."):
                if not entry.is_dir(follow_symlinks=False):
                    skipped[HIDDEN] += 1
            elif (identity := _identity_of_folder(entry)) is not None:
                if identity not in folder.ancestors and exclude.takes_folder(prefix + entry.name):
                    folders[entry.name + b"/"] = _Folder(prefix + entry.name, folder.ancestors | {identity})
            elif entry.name.lower().endswith(suffixes):
                if exclude.takes(prefix + entry.name):
                    files.append(entry.name)
            else:
                skipped[suffix_of(entry.name)] += 1
    except OSError:
        found.closed.append(folder.path)
        return []
    found.skipped += skipped
    files.sort()
    steps: list[_Folder | _Files] = []
    begun = 0
    for name in sorted(folders):
        end = bisect.bisect_left(files, name)
        steps += [_Files(prefix, files[begun:end]), folders[name]]
        begun = end
    return [*steps, _Files(prefix, files[begun:])]


def _identity_of_folder(entry: os.DirEntry) -> tuple[int, int] | None:
    """Of what is or links to a folder; of all else, also a link to itself (which will fail to be read), None."""
    try:
        return _identity(entry.stat()) if entry.is_dir() else None
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
