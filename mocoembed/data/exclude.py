"""Which of a collection's files and folders are not wanted: `--exclude`, and what file servers and systems leave."""

import fnmatch
import os
import re
from collections.abc import Callable, Mapping, Sequence

# Folders of thumbnails, bins and snapshots, in lower case: Synology, QNAP, Windows, macOS' archives. (Those that begin
# with a dot are hidden folders.)
USUAL = {name.lower(): name for name in (
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "System Volume Information",
    "__MACOSX")}


class Exclude:
    """Globs to leave out by, and how often each did: `*` stands for anything, slashes too; `?`, `[abc]`, `[!abc]`.

    A glob without a slash is compared with the name of every file and folder, one with a slash with their paths
    relative to the collection. A folder is excluded with all in it. Upper and lower case differ.
    """

    def __init__(self, globs: Sequence[str] = (), usual: bool = False):
        self.counts: dict[str, int] = dict.fromkeys(globs, 0)
        """{glob or usual name: files, and folders that count once}"""
        self._usual = usual
        self._rules: list[tuple[str, bool, Callable[[str], re.Match[str] | None]]] = []
        for glob in globs:
            bare = os.path.normpath(glob)
            self._rules.append((glob, "/" in bare, re.compile(fnmatch.translate(bare)).match))
        self._folders: dict[bytes, bool] = {b"": True}

    def takes_folder(self, path: bytes) -> bool:
        """Whether neither the folder (relative to the collection) nor one that leads to it is excluded."""
        taken = self._folders.get(path)
        if taken is None:
            above, _, name = path.rpartition(b"/")
            taken = self.takes_folder(above)
            if taken and self._usual and (usual := USUAL.get(os.fsdecode(name).lower())):
                self.counts[usual] = self.counts.get(usual, 0) + 1
                taken = False
            taken = self._folders[path] = taken and self._passes(path)
        return taken

    def takes(self, path: bytes) -> bool:
        """Whether neither the file (relative to the collection) nor a folder that leads to it is excluded."""
        return self.takes_folder(path.rpartition(b"/")[0]) and self._passes(path)

    def _passes(self, path: bytes) -> bool:
        if self._rules:
            whole = os.fsdecode(path)
            name = whole.rpartition("/")[2]
            for glob, by_path, match in self._rules:
                if match(whole if by_path else name):
                    self.counts[glob] += 1
                    return False
        return True


def excluded_text(counts: Mapping[str, int]) -> str:
    """What was excluded, for people: `excluded: '@eaDir' (41), '*.png' (0); a folder counts once`."""
    return f"excluded: {', '.join(f'{glob!r} ({count})' for glob, count in counts.items())}; a folder counts once"
