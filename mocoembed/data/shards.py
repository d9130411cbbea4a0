"""Images in tar shards as WebDataset writes them -> `Found`: every member's place is read once, its bytes later.

The members of one sample share a name up to the first dot: `0815.jpg`, `0815.cls`, `0815.json`. A sample's label is
the text of its `.cls`, or `label` in its `.json`. Every member with an image's name is an image of its own.
"""

import bisect
import errno
import functools
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator

import numpy as np
import torch

from mocoembed.data.decode import SUFFIXES, read_file
from mocoembed.data.found import Found, State
from mocoembed.data.list_file import common_folder
from mocoembed.data.listing import Listing, PathTable, Shards
from mocoembed.errors import FormatError, UsageError

LABEL_BYTES = 1 << 20  # at most, of a .cls or .json


def shard_paths(given: str) -> list[str]:
    """The paths that braces stand for, as in a shell: `s-{000..009}.tar`, `{a,b}/s.tar`; a file so named is itself."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", given)
    if match is None or os.path.exists(given):
        return [given]
    first, last, words = match.groups()
    if words is None:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        numbers = range(int(first), int(last) + 1) if int(first) <= int(last) else range(int(first), int(last) - 1, -1)
        parts = [f"{number:0{width}d}" for number in numbers]
    else:
        parts = words.split(",")
    return [path for part in parts for path in shard_paths(given[:match.start()] + part + given[match.end():])]


def find_in_shards(given: str, labels: str, tell) -> Found:
    """Every image in the shards that `given` names, with its sample's label unless `labels` is `none`.

    Raises `UsageError` for a shard that does not exist and `FormatError` for one that is damaged or compressed.
    """
    files = sorted({os.path.abspath(os.fsencode(path)) for path in shard_paths(given)})
    missing = [os.fsdecode(file) for file in files if not os.path.isfile(file)]
    if missing:
        raise UsageError(f"The shard {missing[0]!r} does not exist or is no file ({len(missing)} of {len(files)} are "
                         "missing). Give the range that there is, for example: 'shard-{000..009}.tar'")
    root = common_folder(files, os.path.dirname(files[0]))
    names = [os.path.relpath(file, root) for file in files]
    found, places = Found(root), array("q")
    for number, (file, name) in enumerate(zip(files, names)):
        found.witnesses[file] = State.of(file)
        images, label_of, left_out = _images_in(file, labels != "none")
        found.extend([name + b"/" + member for member, *_ in images], [label_of.get(key) for _, key, *_ in images])
        for _, _, offset, size in images:
            places.extend((number, offset, size))
        found.left_out += left_out
        tell(len(found))
    states = torch.tensor([[state.size, state.mtime_ns] for state in found.witnesses.values()], dtype=torch.int64)
    found.shards = Shards(PathTable(names), states, torch.from_numpy(np.array(places, np.int64)).view(-1, 3))
    return found


def _images_in(file: bytes, with_labels: bool) -> tuple[list[tuple[bytes, str, int, int]], dict[str, str], int]:
    """Of one shard: (name, sample's key, offset, size) of every image, {key: label}, and how many were passed over.

    The size is -1 for what is not a regular file (a link), which will fail to be read.
    """
    images, label_of, left_out = [], {}, 0
    for member in _members(file):
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, name = f"{folder}/{stem}", member.name.encode("utf-8", "surrogateescape")
        if not base.startswith(".") and name.lower().endswith(SUFFIXES):
            images.append((name, key, member.offset_data, member.size if _is_plain(member) else -1))
        elif base.startswith(".") or extension not in ("cls", "json"):
            left_out += 1
        elif with_labels and (extension == "cls" or key not in label_of):
            label = _label(file, member, extension)
            if label is not None:
                label_of[key] = label
    return images, label_of, left_out


def _members(file: bytes) -> Iterator[tarfile.TarInfo]:
    """All but the folders of a tar file, in order, none of them kept; `FormatError` for what is not a whole one."""
    name, count = os.fsdecode(file), 0
    try:
        with tarfile.open(name, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else every member is remembered
                count += 1
                if not member.isdir():
                    yield member
            end = read_file(file, tar.offset, tarfile.BLOCKSIZE)[0]
    except tarfile.TarError as error:
        raise FormatError(f"{name!r} is not a whole, uncompressed tar file: {error}. Copy it again, unpack it (gunzip) "
                          "or leave it out.") from error
    if end != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise FormatError(f"{name!r} is damaged or cut off after {count} members: no end mark. Copy it again, or leave "
                          "it out.")


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _label(file: bytes, member: tarfile.TarInfo, extension: str) -> str | None:
    """The label that a .cls or .json member gives, if it does."""
    where = f"{os.fsdecode(file)!r}, member {member.name!r}"
    if not _is_plain(member) or member.size > LABEL_BYTES:
        raise FormatError(f"{where}: not a file of at most {LABEL_BYTES} bytes. --labels none does without.")
    data, _ = read_file(file, member.offset_data, member.size)
    if extension == "cls":
        return data.decode("utf-8", "backslashreplace").strip() or None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}. --labels none does without.") from error
    label = value.get("label") if isinstance(value, dict) else None
    return None if label is None else str(label)


def split_at_shard(path: bytes) -> tuple[bytes, bytes] | None:
    """A path into a shard -> (shard, member's name); `None` for any other path."""
    at = path.find(b".tar/")
    while at >= 0:
        if os.path.isfile(path[:at + 4]):
            return path[:at + 4], path[at + 5:]
        at = path.find(b".tar/", at + 1)
    return None


def read_path(path) -> bytes:
    """The bytes of an image by its full path, also within a shard, as `Listing.full_path` gives it."""
    path = os.fsencode(path)
    inside = split_at_shard(path)
    if inside is None:
        return read_file(path)[0]
    shard, member = inside
    listing, name = _indexed(shard, State.of(shard)), os.path.basename(shard) + b"/" + member
    row = bisect.bisect_left(listing.paths, name)
    if row == len(listing) or listing.paths[row] != name:
        raise FileNotFoundError(errno.ENOENT, "no such image in the shard")
    return listing.read(row)[0]


@functools.lru_cache(maxsize=256)
def _indexed(shard: bytes, state: State) -> Listing:
    return find_in_shards(os.fsdecode(shard), "none", lambda count: None).listing(shard)
