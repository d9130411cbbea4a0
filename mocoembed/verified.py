"""Files whose hash has been checked: remembered, and not hashed again while nothing about them has changed.

Hashing an index of gigabytes at every search would cost seconds. So a check that succeeded is noted in the user's cache
folder with the file's device, inode, size, mtime and ctime; while all five are the same, the file is taken as checked.
Any write sets the ctime, which no program can set back. A record that is damaged, of another version or missing only
means that the file is hashed again. `mocoembed info --verify` always hashes.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import BinaryIO

from mocoembed.errors import MocoembedError
from mocoembed.files import sha256_json, write_bytes
from mocoembed.workspace import cache_folder

FORMAT = 1
SETTLED_NS = 3_000_000_000  # a later change may not show in the times, which are coarse on some file systems


def has_digest(file: BinaryIO, digest: str, hashed: Callable[[], str], always: bool = False) -> bool:
    """Whether the open file has this digest: remembered from before, else found by `hashed()`, and remembered then.

    With `always` it is hashed whatever is remembered.
    """
    state = _state(file, digest)
    if not always and _is_remembered(state):
        return True
    begun = time.time_ns()
    if hashed() != digest:
        return False
    settled = max(int(state["mtime_ns"]), int(state["ctime_ns"])) < begun - SETTLED_NS
    if settled and _state(file, digest) == state:
        _remember(state)
    return True


def _state(file: BinaryIO, digest: str) -> dict[str, int | str]:
    status = os.fstat(file.fileno())
    return {"format": FORMAT, "device": status.st_dev, "inode": status.st_ino, "size": status.st_size,
            "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns, "digest": digest}


def _record(state: dict[str, int | str]) -> pathlib.Path:
    return cache_folder() / "verified" / f"{state['device']:x}-{state['inode']:x}.json"


def _is_remembered(state: dict[str, int | str]) -> bool:
    with contextlib.suppress(OSError, ValueError):  # none, or damaged
        return bool(json.loads(_record(state).read_bytes()) == {**state, "sha256": sha256_json(state)})
    return False


def _remember(state: dict[str, int | str]) -> None:
    with contextlib.suppress(OSError, MocoembedError):  # no cache folder: it is hashed again the next time
        write_bytes(_record(state), json.dumps({**state, "sha256": sha256_json(state)}).encode())
