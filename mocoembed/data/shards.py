"""Images in tar shards as WebDataset writes them -> `Found`: every member's place is read once, its bytes later.

Every member with an image's name is an image of its own. Its label is the text of the `.cls`, or `label` in the
`.json`, of the same name without the last suffix, or without the last two, ... up to the first dot, where WebDataset
ends the name of a sample: for `0815.left.jpg` that is `0815.left.cls`, `0815.left.json`, `0815.cls`, `0815.json`, the
first that gives one. A member that comes again replaces the earlier one, as when a tar file is unpacked.
"""

import bisect
import errno
import functools
import json
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable

import numpy as np

from mocoembed.data.decode import read_file
from mocoembed.data.exclude import Exclude
from mocoembed.data.formats import suffixes_read
from mocoembed.data.found import Found, State
from mocoembed.data.label import given_label
from mocoembed.data.list_file import common_folder
from mocoembed.data.listing import NO_FILE, OUTSIDE, Listing, PathTable, Shards
from mocoembed.data.skipped import HIDDEN, suffix_of
from mocoembed.data.tar_file import tar_members
from mocoembed.errors import FormatError, UsageError

LABELS = (b"cls", b"json")  # suffixes; of two with the same name the first counts
LABEL_BYTES = 1 << 20  # at most, of a .cls or .json
WITHOUT = "`embed --labels none` ignores all labels."


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


def find_in_shards(given: str, labels: str, tell: Callable[[int], None], exclude: Exclude | None = None) -> Found:
    """Every image in the shards that `given` names, with its sample's label unless `labels` is `none`.

    Raises `UsageError` for a shard that does not exist and `FormatError` for one that is damaged or compressed.
    """
    files = sorted({os.path.abspath(os.fsencode(path)) for path in shard_paths(given)})
    missing = [os.fsdecode(file) for file in files if not os.path.isfile(file)]
    if missing:
        raise UsageError(f"The shard {missing[0]!r} does not exist or is not a file ({len(missing)} of {len(files)} "
                         "are missing). Give the range that there is, for example: 'shard-{000..009}.tar'")
    root = common_folder(files, os.path.dirname(files[0]))
    names = [os.path.relpath(file, root) for file in files]
    found, places = Found(root), array("q")
    exclude = exclude or Exclude()
    found.excluded = exclude.counts
    for number, (file, name) in enumerate(zip(files, names)):
        found.witnesses[file] = State.of(file)
        content = _Content(file)
        images = [image for image in content.images() if exclude.takes(name + b"/" + image)]
        found.extend([name + b"/" + image for image in images],
                     [None if labels == "none" else content.label(image) for image in images])
        for image in images:
            places.extend((number, *content.places[image]))
        found.skipped += content.skipped
        found.repeated += content.repeated
        tell(len(found))
    states = np.array([[state.size, state.mtime_ns] for state in found.witnesses.values()], np.int64)
    found.shards = Shards.of_arrays(PathTable(names), states, np.array(places, np.int64).reshape(-1, 3))
    return found


class _Content:
    """The images and labels in one shard."""

    def __init__(self, file: bytes):
        self.file = file
        self.places: dict[bytes, tuple[int, int]] = {}
        """{name: (offset, size)} of images and labels; the size is NO_FILE or OUTSIDE for what cannot be read."""
        self.skipped: Counter[str] = Counter()
        self.repeated = 0
        self._suffixes = suffixes_read()
        self._labels: dict[bytes, bytes] = {}  # {name with its suffix in lower case: name}
        self._read: dict[bytes, str | None] = {}
        for member in tar_members(file):
            self._add(member)

    def _add(self, member: tarfile.TarInfo):
        given = member.name.encode("utf-8", "surrogateescape")
        name = os.path.normpath(given)
        outside = leaves(name)
        is_image = name.lower().endswith(self._suffixes)
        stem, _, suffix = name.rpartition(b".")
        if (not outside and (b"/." in name or name.startswith(b"."))) or not (
                is_image or (suffix.lower() in LABELS and not outside)):
            self.skipped[HIDDEN if b"/." in name else suffix_of(name)] += 1
        elif outside:
            self.places[given] = (0, OUTSIDE)
        elif (place := self._place(member, name)) is not None:
            self.repeated += is_image and name in self.places
            self.places[name] = place
            if not is_image:
                self._labels[stem + b"." + suffix.lower()] = name

    def _place(self, member: tarfile.TarInfo, name: bytes) -> tuple[int, int] | None:
        """Where the bytes are; `None` for a hard link to itself, as tar writes when it is given a file twice."""
        if member.islnk():
            target = os.path.normpath(member.linkname.encode("utf-8", "surrogateescape"))
            return self.places.get(target, (0, NO_FILE)) if target != name else None
        plain = member.isreg() and not member.issparse()
        return member.offset_data, member.size if plain else NO_FILE

    def images(self) -> list[bytes]:
        """The names of all images."""
        return [name for name in self.places if name.lower().endswith(self._suffixes)]

    def label(self, image: bytes) -> str | None:
        """The label of an image, if its sample has one; `FormatError` for one that is none."""
        folder, slash, base = image.rpartition(b"/")
        while b"." in base:
            base = base.rpartition(b".")[0]
            for suffix in LABELS:
                name = self._labels.get(folder + slash + base + b"." + suffix)
                if name is not None and (label := self._label_in(name, suffix)) is not None:
                    return label
        return None

    def _label_in(self, name: bytes, suffix: bytes) -> str | None:
        if name not in self._read:
            offset, size = self.places[name]
            where = f"{os.fsdecode(self.file)!r}, member {os.fsdecode(name)!r}"
            if not 0 <= size <= LABEL_BYTES:
                raise FormatError(f"{where}: not a file of at most {LABEL_BYTES} bytes. {WITHOUT}")
            data = read_file(self.file, offset, size)[0]
            value = data.decode("utf-8", "surrogateescape") if suffix == b"cls" else _label_in_json(data, where)
            self._read[name] = given_label(value, where)
        return self._read[name]


def _label_in_json(data: bytes, where: str) -> object:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON: {error}. {WITHOUT}") from error
    return value.get("label") if isinstance(value, dict) else None


def leaves(name: bytes) -> bool:
    """Whether a member's normalised name is that of a file outside the shard: absolute, or above it."""
    return name.startswith((b"/", b"../")) or name == b".."


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
    member = member if leaves(normal := os.path.normpath(member)) else normal
    listing, name = _indexed(shard, State.of(shard)), os.path.basename(shard) + b"/" + member
    row = bisect.bisect_left(listing.paths, name)
    if row == len(listing) or listing.paths[row] != name:
        raise FileNotFoundError(errno.ENOENT, "no such image in the shard")
    return listing.read(row)[0]


@functools.lru_cache(maxsize=256)
def _indexed(shard: bytes, state: State) -> Listing:
    return find_in_shards(os.fsdecode(shard), "none", lambda count: None).listing(shard)
