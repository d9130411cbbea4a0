"""Read an image's bytes and decode them safely.

`read_file` reads a regular file or a part of one; `EncodedImage` checks the bytes before decoding them, and gives
upright 8-bit RGB at the smallest scale that the caller can use.

Rules: only the formats of `FORMATS`; at most `MOST_MEMORY` is spent on an image; a truncated file is an error; EXIF
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
MOST_MEMORY = 272 << 20  # four processes with an image that needs as much each, and the program, stay below 2 GiB
MAX_BYTES = 256 << 20
TRANSPARENT_OVER = (255, 255, 255)
STRIP = 1 << 18  # pixels converted at a time
BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # a pixel in memory; others: 4
BYTES_OF_WEBP = 15  # a pixel, held by Pillow's decoder beside the image (measured: 12.2 to 12.9; the rest is margin)


class UnreadableImage(Exception):
    """An image that the rules refuse; other reasons come as Pillow's own exceptions."""


def read_file(path, offset: int = 0, size: int | None = None) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file, or `size` of them from `offset` on, and its status; never waits on a FIFO."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("not a regular file")
        if (wanted := status.st_size if size is None else size) > MAX_BYTES:
            raise UnreadableImage(f"{wanted} bytes; at most {MAX_BYTES} are read")
        file.seek(offset)
        return file.read() if size is None else file.read(size), status


class EncodedImage:
    """One encoded image: its upright size at once, its pixels when asked.

    With `full`, JPEG files too are decoded at full size, whatever is asked. Raises whatever Pillow raises for a damaged
    file (any `Exception`), or `UnreadableImage`.
    """

    def __init__(self, data: bytes, full: bool = False):
        self._full, self._data = full, data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size limit is ours
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
            self._orientation = self._exif().get(0x0112, 1)
        self.width, self.height = self._upright(self._image.size)

    def _exif(self) -> Image.Exif:
        """The EXIF data, found without decoding: for a PNG file without any before its pixels, Pillow decodes it."""
        image = self._image
        if image.format != "PNG":
            return image.getexif()
        if "exif" not in image.info and (late := _chunk(self._data, b"eXIf")) is not None:
            image.info["exif"] = b"Exif\0\0" + late
        return Image.Image.getexif(image)

    def _upright(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self._orientation in (5, 6, 7, 8) else size

    def reduce(self, shrink: float) -> tuple[int, int]:
        """Have the image decoded at full size or smaller, at least 1/`shrink` of it; gives the size it will have.

        JPEG files are decoded at 1/2, 1/4 or 1/8 by the decoder itself where `shrink` allows it. To be called once.
        Raises `UnreadableImage` when decoding takes too much memory.
        """
        image, pixels = self._image, self.width * self.height
        if shrink >= 2 and image.format == "JPEG" and not self._full:
            image.draft(None, (max(1, int(image.width / shrink)), max(1, int(image.height / shrink))))
        each = self._bytes_a_pixel()
        needed = len(self._data) + int(image.width * image.height * each + pixels * self._bytes_of_scans())
        if needed > MOST_MEMORY:
            raise UnreadableImage(
                f"{self.width} x {self.height} pixels ({image.format}, {image.mode}) take {needed >> 20:,} MiB to "
                f"decode; at most {MOST_MEMORY >> 20} MiB are spent on an image")
        return self._upright(image.size)

    def rgb(self, shrink: float = 1.0) -> Image.Image:
        """The upright image as 8-bit RGB, at full size or smaller, at least 1/`shrink` of it: see `reduce`."""
        self.reduce(shrink)
        image = self._image
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            image.getexif()[0x0112] = self._orientation  # as the size was given, whatever text follows a PNG's pixels
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)

    def _bytes_a_pixel(self) -> float:
        """What is held at once for each pixel that comes out of the decoder, at the peak."""
        image = self._image
        kept = BYTES_OF_MODE.get(image.mode, 4)
        copied = max(4 if image.mode != "RGB" else 0, kept if self._orientation in range(2, 9) else 0)
        decoder = BYTES_OF_WEBP if image.format == "WEBP" else 0.0
        if image.format == "TIFF" and image.tag_v2.get(259) != 1:  # a strip at a time, which may be the whole image
            rows = min(image.tag_v2.get(278, image.height), image.height)
            bits = image.tag_v2.get(258, (1,))
            decoder = rows / image.height * sum(bits) / 8
        return kept + max(copied, decoder)

    def _bytes_of_scans(self) -> float:
        """What is held for each pixel of a JPEG file at full size: coefficients, if it comes in several scans."""
        layers = getattr(self._image, "layer", None)
        if not layers or _is_one_scan(self._data):
            return 0.0
        finest = max(across for _, across, _, _ in layers) * max(down for _, _, down, _ in layers)
        return 2 * sum(across * down for _, across, down, _ in layers) / finest


def _chunk(png: bytes, kind: bytes) -> bytes | None:
    """The contents of a PNG file's first chunk of that kind."""
    place = 8
    while place + 8 <= len(png):
        size = int.from_bytes(png[place:place + 4], "big")
        if png[place + 4:place + 8] == kind:
            return png[place + 8:place + 8 + size]
        place += 12 + size
    return None


def _is_one_scan(jpeg: bytes) -> bool:
    """Whether all components come in the first scan of a file that is not progressive; also false when unclear."""
    place, components = 2, None
    while place + 10 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker in (0xC0, 0xC1):  # SOF0, SOF1: baseline and extended sequential
            components = jpeg[place + 9]
        elif marker == 0xDA:  # SOS
            return jpeg[place + 4] == components
        place += 1 if marker == 0xFF else 2 + int.from_bytes(jpeg[place + 2:place + 4], "big")
    return False


def pixels_of(image: Image.Image, out: np.ndarray):
    """Put the pixels of an RGB image into `out` (H, W, 3) uint8, a strip of rows at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        out[top:top + rows] = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _in_strips(image, _sixteen_bits)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels")
    if image.has_transparency_data:
        return _in_strips(image, _over_background)
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, convert) -> Image.Image:
    """The image with each strip of its rows converted, for conversions that take many bytes a pixel."""
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        result.paste(convert(image.crop(box)), box)
    return result


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale, as it is or widened to 32 bits, scaled to 8; a transparent grey is laid over white."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadableImage("32-bit integer pixels")
    rgb = np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if (transparent := image.info.get("transparency")) is not None:
        rgb[grey == transparent] = TRANSPARENT_OVER
    return Image.fromarray(rgb)


def _over_background(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*TRANSPARENT_OVER, 255))
    return Image.alpha_composite(background, image).convert("RGB")
