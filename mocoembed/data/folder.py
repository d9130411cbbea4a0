"""Pictures in a folder of any depth -> `Found`."""

import os

from mocoembed.data.listing import Found, State, folder_label
from mocoembed.data.picture import SUFFIXES


def find_in_folder(root: bytes, labels: str, tell) -> Found:
    """Every file below `root` with a picture's name; `tell(count)` is called now and then.

    Hidden files and folders are passed over. Symbolic links to folders are followed, never in a circle.
    """
    paths, label_of, closed, left_out, witnesses = [], [], [], 0, {}
    pending = [(b"", frozenset([_identity(os.stat(root))]))]
    while pending:
        relative, ancestors = pending.pop()
        folder = os.path.join(root, relative)
        try:
            witnesses[folder] = State.of(folder)
            entries = list(os.scandir(folder))
        except OSError:
            closed.append(relative)
            continue
        prefix = os.path.join(relative, b"")
        label = folder_label(prefix + b"picture", root, labels)
        for entry in entries:
            if entry.name.startswith(b"."):
                left_out += not entry.is_dir(follow_symlinks=False)
            elif _is_folder(entry):
                identity = _identity(entry.stat())
                if identity not in ancestors:
                    pending.append((prefix + entry.name, ancestors | {identity}))
            elif entry.name.lower().endswith(SUFFIXES):
                paths.append(prefix + entry.name)
                label_of.append(label)
            else:
                left_out += 1
        tell(len(paths))
    return Found(root, paths, label_of, witnesses, left_out, tuple(closed))


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is or links to a folder; a link to itself is a file, which will fail to be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
