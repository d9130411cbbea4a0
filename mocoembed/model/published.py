"""Published weights by name: downloaded once into a cache folder, checked, and resumable.

A transfer that breaks off leaves `<file>.part`, which the next one goes on with; the whole is compared with the
published hash before it gets its name.
"""

import errno
import hashlib
import http.client
import os
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from mocoembed.errors import MocoembedError
from mocoembed.files import CHUNK, locked, replacing, require_space, write_error
from mocoembed.workspace import cache_folder

TIMEOUT = 30.0  # seconds without a byte
SECONDS_BETWEEN_NOTES = 5.0
READ = 1 << 18  # bytes at a time, so that progress is seen on slow lines


@dataclass(frozen=True)
class Published:
    """Where a file of weights is, how its hash begins (eight digits are published), and what one may do with it."""

    url: str
    digits: str
    licence: str
    algorithm: str = "md5"
    author: str = "the authors of MoCo"


_MOCO = "https://dl.fbaipublicfiles.com/moco/moco_checkpoints"
_LICENCE = "CC BY-NC 4.0: not for commercial use"
# Named in the README of facebookresearch/moco.
PUBLISHED = {
    "moco-v1-200ep": Published(f"{_MOCO}/moco_v1_200ep/moco_v1_200ep_pretrain.pth.tar", "b251726a", _LICENCE),
    "moco-v2-200ep": Published(f"{_MOCO}/moco_v2_200ep/moco_v2_200ep_pretrain.pth.tar", "59fd9945", _LICENCE),
    "moco-v2-800ep": Published(f"{_MOCO}/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar", "a04e12f8", _LICENCE),
}


def fetch(name: str, note: Callable[[str], None]) -> pathlib.Path:
    """The file of `PUBLISHED[name]` in the cache, downloaded if it is not there; `note(text)` tells how it goes.

    Raises `MocoembedError` when there is no way to the server, the transfer breaks off (what came is kept) or the
    hash is wrong (nothing is kept), `LockedError` when another process is downloading it.
    """
    return fetch_into(cache_folder(), name, PUBLISHED[name], note)


def fetch_into(folder: pathlib.Path, name: str, published: Published, note: Callable[[str], None]) -> pathlib.Path:
    """The published file in `folder`, under the last part of its address; else as `fetch`."""
    path = folder / published.url.rpartition("/")[2]
    if path.exists():
        if _hash(path, published.algorithm).startswith(published.digits):
            return path
        note(f"{path} is damaged and is downloaded again")
    note(f"{name}: weights by {published.author}, licence {published.licence}")
    with locked(path.with_name(f".{path.name}.lock"), str(path)):
        _download(name, published, path, note)
    return path


def _download(name: str, published: Published, path: pathlib.Path, note: Callable[[str], None]):
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    note(f"{name}: downloading {published.url}" + (f", continuing after {have / 1e6:.0f} MB" if have else ""))
    try:
        _transfer(published.url, part, have,
                  lambda done, total: note(f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise write_error(part, error) from error
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise MocoembedError(f"{name} cannot be downloaded from {published.url}: {reason}.\n"
                             f"Run the same command again to continue, or put the file at {path}.") from error
    found = _hash(part, published.algorithm)
    if not found.startswith(published.digits):
        part.unlink()
        raise MocoembedError(f"{name}: what came from {published.url} has the {published.algorithm.upper()} {found}, "
                             f"not {published.digits}...; it was deleted. Run the same command again.")
    with replacing(path) as temporary:
        os.replace(part, temporary)


def _transfer(url: str, part: pathlib.Path, have: int, progress: Callable[[int, int], None]):
    """Append to `part`, of `have` bytes, what it lacks of the file at `url`; all of it if the server sends no parts."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # `part` has all of it, or is wrong, which the hash tells
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        length = int(response.headers.get("Content-Length", 0))
        require_space(part, length)
        done, total, last = have, have + length, time.monotonic()
        with open(part, "ab" if have else "wb") as file:
            while chunk := response.read(READ):
                file.write(chunk)
                done += len(chunk)
                if time.monotonic() - last >= SECONDS_BETWEEN_NOTES:
                    last = time.monotonic()
                    progress(done, total)
    if done < total:
        raise http.client.HTTPException(f"the connection broke after {done / 1e6:.1f} of {total / 1e6:.1f} MB, "
                                         "which are kept")
    progress(done, done)


def _hash(path: pathlib.Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
