"""Read a picture's bytes and decode them safely.

`read_file` reads a regular file or a part of one; `Picture` checks the bytes before decoding them, and gives upright
8-bit RGB at the smallest scale that the caller can use.

Rules: only the formats of `FORMATS`; at most `MAX_PIXELS` pixels are decoded; a truncated file is an error; EXIF
orientation is applied; 16-bit greyscale is scaled (not clipped); transparency is laid over white; of an animation
the first frame is taken; an ICC profile is ignored, as torchvision's loaders do.
"""

import io
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
MAX_PIXELS = 80_000_000  # four processes with an opaque picture of that size each stay below 2 GiB
MAX_BYTES = 1 << 30
TRANSPARENT_OVER = (255, 255, 255)
STRIP = 1 << 20  # pixels converted at a time


class UnreadablePicture(Exception):
    """A picture that the rules refuse; other reasons come as Pillow's own exceptions."""


def read_file(path, offset: int = 0, size: int | None = None) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file, or `size` of them from `offset` on, and its status; never waits on a FIFO."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadablePicture("not a regular file")
        if (wanted := status.st_size if size is None else size) > MAX_BYTES:
            raise UnreadablePicture(f"{wanted} bytes; at most {MAX_BYTES} are read")
        file.seek(offset)
        return file.read() if size is None else file.read(size), status


class Picture:
    """One encoded picture: its upright size at once, its pixels when asked.

    With `full`, JPEG files too are decoded at full size, whatever is asked. Raises whatever Pillow raises for a damaged
    file (any `Exception`), or `UnreadablePicture`.
    """

    def __init__(self, data: bytes, full: bool = False):
        self._full = full
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size limit is ours
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
            turned = self._image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = self._image.size
        self.width, self.height = (height, width) if turned else (width, height)

    def rgb(self, shrink: float = 1.0) -> Image.Image:
        """The upright picture as 8-bit RGB, at full size or smaller, at least 1/`shrink` of it.

        JPEG files are decoded at 1/2, 1/4 or 1/8 by the decoder itself where `shrink` allows it.
        """
        image = self._image
        if shrink >= 2 and image.format == "JPEG" and not self._full:
            image.draft(None, (max(1, int(image.width / shrink)), max(1, int(image.height / shrink))))
        if image.width * image.height > MAX_PIXELS:
            raise UnreadablePicture(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)


def pixels_of(image: Image.Image, out: np.ndarray):
    """Put the pixels of an RGB picture into `out` (H, W, 3) uint8, a strip of rows at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        out[top:top + rows] = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _in_strips(image, _sixteen_bits)
    if image.mode == "F":
        raise UnreadablePicture("floating-point pixels")
    if image.has_transparency_data:
        return _in_strips(image, _over_background)
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, convert) -> Image.Image:
    """The picture with each strip of its rows converted, for conversions that take many bytes a pixel."""
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        result.paste(convert(image.crop(box)), box)
    return result


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale, as it is or widened to 32 bits, scaled to 8."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadablePicture("32-bit integer pixels")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _over_background(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*TRANSPARENT_OVER, 255))
    return Image.alpha_composite(background, image).convert("RGB")
