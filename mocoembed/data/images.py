"""Find pictures in a folder and decode them safely.

`scan` gives a `Listing`: paths (sorted bytes, relative to the root) and labels. `Picture` opens the bytes of one
file, checks it before decoding, and gives upright 8-bit RGB at the smallest scale that the caller can use.

Rules: only the formats of `FORMATS`; at most `MAX_PIXELS` pixels are decoded; a truncated file is an error; EXIF
orientation is applied; 16-bit greyscale is scaled (not clipped); transparency is laid over white; of an animation
the first frame is taken; an ICC profile is ignored, as torchvision's loaders do.
"""

import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from mocoembed.errors import CollectionError
from mocoembed.files import require_folder

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
TRANSPARENT_OVER = (255, 255, 255)
NO_LABEL = -1


class PathTable:
    """A sequence of paths (bytes) in one array and its offsets, so that a million cost no Python objects."""

    def __init__(self, paths: list[bytes]):
        self.blob = np.frombuffer(b"".join(paths), np.uint8)
        self.offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=self.offsets[1:])

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.blob[self.offsets[row]:self.offsets[row + 1]].tobytes()


@dataclass(frozen=True)
class Listing:
    """The pictures of a collection, in an order that does not depend on the file system."""

    root: bytes
    """Absolute path of the folder."""
    paths: PathTable
    """Paths relative to the root, sorted as bytes."""
    labels: np.ndarray
    """(N,) int32: index into `label_names`, or -1 where the label is unknown."""
    label_names: tuple[str, ...]
    """Sorted names of the labels."""
    left_out: int
    """Files that were passed over: hidden ones and those without a picture's name."""
    closed: tuple[bytes, ...] = ()
    """Folders that could not be opened."""

    def __len__(self):
        return len(self.paths)

    def full_path(self, row: int) -> bytes:
        """Absolute path of picture `row`."""
        return os.path.join(self.root, self.paths[row])

    def digest(self) -> str:
        """SHA-256 of the paths and their order (not of the pictures' bytes)."""
        value = hashlib.sha256(self.paths.offsets.tobytes())
        value.update(self.paths.blob.tobytes())
        return value.hexdigest()

    def subset(self, rows) -> "Listing":
        """The listing of some rows, in the given order."""
        return Listing(self.root, PathTable([self.paths[row] for row in rows]), self.labels[rows],
                       self.label_names, self.left_out, self.closed)


def scan(folder, labels: str = "parent", what: str = "The folder") -> Listing:
    """List the pictures below `folder`.

    `labels` names a picture by its own folder (`parent`), by the first folder below the root (`first`) or not at
    all (`none`). Symbolic links to folders are followed, never in a circle. Raises `UsageError` when the folder
    does not exist and `CollectionError` when it holds no file with a picture's name.
    """
    root = os.path.abspath(os.fsencode(require_folder(folder, what)))
    found, closed, left_out = [], [], 0
    pending = [(b"", frozenset([_identity(os.stat(root))]))]
    while pending:
        relative, ancestors = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(root, relative)))
        except OSError:
            closed.append(relative)
            continue
        for entry in entries:
            path = os.path.join(relative, entry.name)
            if entry.name.startswith(b"."):
                left_out += not entry.is_dir(follow_symlinks=False)
            elif _is_folder(entry):
                identity = _identity(entry.stat())
                if identity not in ancestors:
                    pending.append((path, ancestors | {identity}))
            elif entry.name.lower().endswith(SUFFIXES):
                found.append(path)
            else:
                left_out += 1
    if not found:
        raise CollectionError(f"{what} {os.fspath(folder)!r} holds no pictures ({left_out} other files). Looked for "
                              f"{', '.join(suffix.decode() for suffix in SUFFIXES)} at any depth.")
    found.sort()
    names = [_label(path, root, labels) for path in found]
    label_names = sorted(set(names) - {None})
    number = {name: place for place, name in enumerate(label_names)} | {None: NO_LABEL}
    return Listing(root, PathTable(found), np.array([number[name] for name in names], np.int32),
                   tuple(label_names), left_out, tuple(sorted(closed)))


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is or links to a folder; a link to itself is a file, which will fail to be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _label(path: bytes, root: bytes, labels: str) -> str | None:
    parts = path.split(b"/")
    if labels == "none" or (labels == "first" and len(parts) == 1):
        return None
    folder = parts[0] if labels == "first" else (parts[-2] if len(parts) > 1 else os.path.basename(root))
    return folder.decode("utf-8", "backslashreplace")


class UnreadablePicture(Exception):
    """A picture that the rules refuse; other reasons come as Pillow's own exceptions."""


def read_file(path) -> tuple[bytes, os.stat_result]:
    """The bytes and the status of a regular file; never waits on a FIFO or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadablePicture("not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadablePicture(f"{status.st_size} bytes; at most {MAX_BYTES} are read")
        return file.read(), status


class Picture:
    """One encoded picture: its upright size at once, its pixels when asked.

    Raises whatever Pillow raises for a damaged file (any `Exception`), or `UnreadablePicture`.
    """

    def __init__(self, data: bytes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size limit is ours
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = self._image.size
        self._turned = self._image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        self.width, self.height = (height, width) if self._turned else (width, height)

    def rgb(self, shrink: float = 1.0) -> Image.Image:
        """The upright picture as 8-bit RGB, at full size or smaller, at least 1/`shrink` of it.

        JPEG files are decoded at 1/2, 1/4 or 1/8 by the decoder itself where `shrink` allows it.
        """
        image = self._image
        if shrink >= 2 and image.format == "JPEG":
            image.draft(None, (max(1, int(image.width / shrink)), max(1, int(image.height / shrink))))
        if image.width * image.height > MAX_PIXELS:
            raise UnreadablePicture(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image if "transparency" not in image.info else _over_background(image)
    if image.mode.startswith("I"):  # 16-bit greyscale, as it is or widened to 32
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UnreadablePicture("32-bit integer pixels")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadablePicture("floating-point pixels")
    if image.has_transparency_data:
        return _over_background(image)
    return image.convert("RGB")


def _over_background(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*TRANSPARENT_OVER, 255))
    return Image.alpha_composite(background, image).convert("RGB")
