"""Read an image's bytes and decode them safely.

`read_file` reads a regular file or a part of one; `EncodedImage` checks the bytes before decoding them, and gives
upright 8-bit RGB at the smallest scale that the caller can use.

Rules: only the formats of `FORMATS`; at most `most_memory()` is spent on an image; a truncated file is an error; EXIF
orientation is applied; deep pixels are scaled (not clipped), see `data/deep.py`; transparency is laid over white; of an
animation the first frame is taken; an ICC profile is ignored, as torchvision's loaders do; metadata that cannot be read
costs no image. What is special to a format is in `data/jpeg.py`, `data/png.py`, `data/gif.py` and `data/tiff.py`.
"""

import io
import os
import stat
import warnings

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from mocoembed.checks import size_of_variable
from mocoembed.data.deep import Seen, ValueRange
from mocoembed.data.formats import bounded, bytes_beside, kind_of, open_modern
from mocoembed.data.gif import START as GIF
from mocoembed.data.gif import open_gif
from mocoembed.data.jpeg import START as JPEG
from mocoembed.data.jpeg import is_one_scan, open_jpeg
from mocoembed.data.png import NAMES, SIGNATURE, DeepPng, PngFile
from mocoembed.data.tiff import EXTRA, ORIENTATION, Tags, TiffImage, is_tiff, left_to_pillow
from mocoembed.errors import UnreadableImage
from mocoembed.memory import IMAGE_MEMORY

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_MEMORY = 272 << 20  # four processes with an image that needs as much each, and the program, stay below 2 GiB
ADVISED = 4 << 30  # up to so much, the message about an image names what would allow it; beyond, it may be a bomb
MAX_BYTES = 256 << 20
TRANSPARENT_OVER = (255, 255, 255)
STARTING = 15  # bytes of a file that is no image, which tell what it is: `<!DOCTYPE html>`
STRIP = 1 << 18  # pixels converted at a time
BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1}  # a pixel in memory; others: 4
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # EXIF orientation -> what makes the image upright
BYTES_OF_WEBP = 15  # a pixel, held by Pillow's decoder beside the image (measured: 12.2 to 12.9; the rest is margin)


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


def most_memory() -> int:
    """Bytes that decoding one image may take: $MOCOEMBED_IMAGE_MEMORY, or 272 MiB; `UsageError` for no size."""
    return size_of_variable(IMAGE_MEMORY) or MOST_MEMORY


class EncodedImage:
    """One encoded image: its upright size at once, its pixels when asked.

    With `full`, JPEG files too are decoded at full size, whatever is asked. Deep pixels are scaled by `value_range`, or
    by their own full range. Raises whatever Pillow raises for a damaged file (any `Exception`), or `UnreadableImage`.
    """

    def __init__(self, data: bytes, full: bool = False, value_range: ValueRange = ()):
        if not data:
            raise UnreadableImage("the file is empty")
        self._full, self._data = full, data
        self.seen: Seen | None = None
        """Once decoded: the range of deep pixels that no value range was given for."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size limit is ours
            self._image, self._orientation, self._turns_itself = _opened(data, value_range)
        self.width, self.height = self._upright(self._image.size)

    def _upright(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self._orientation in (5, 6, 7, 8) and not self._turns_itself else size

    def reduce(self, shrink: float) -> tuple[int, int]:
        """Have the image decoded at full size or smaller, at least 1/`shrink` of it; gives the size it will have.

        JPEG files are decoded at 1/2, 1/4 or 1/8 by the decoder itself where `shrink` allows it. To be called once.
        Raises `UnreadableImage` when decoding takes too much memory.
        """
        image, pixels = self._image, self.width * self.height
        if shrink >= 2 and isinstance(image, JpegImagePlugin.JpegImageFile) and not self._full:
            image.draft(None, (max(1, int(image.width / shrink)), max(1, int(image.height / shrink))))
        each = self._bytes_a_pixel()
        needed = len(self._data) + int(image.width * image.height * each + pixels * self._bytes_of_scans())
        if needed > (most := most_memory()):
            advice = f" ({IMAGE_MEMORY}={-(-needed >> 20)}MiB allows it)" if needed <= ADVISED else ""
            raise UnreadableImage(
                f"{self.width} x {self.height} pixels ({image.format}, {image.mode}) take {needed >> 20:,} MiB to "
                f"decode; at most {most >> 20} MiB are spent on an image{advice}")
        return self._upright(image.size)

    def rgb(self, shrink: float = 1.0) -> Image.Image:
        """The upright image as 8-bit RGB, at full size or smaller, at least 1/`shrink` of it: see `reduce`."""
        self.reduce(shrink)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(self._image, DeepPng | TiffImage):
                decoded = self._image.rgb()
                self.seen, self._image = self._image.seen, decoded  # which lets go of all else
            else:
                with bounded(self._image, most_memory()):
                    self._image.load()
                if _has_false_opacity(self._image):
                    self._image = self._image.convert("RGB")
            if self._orientation in TURNS and not self._turns_itself:
                self._image = self._image.transpose(TURNS[self._orientation])
            return to_rgb(self._image)

    def _bytes_a_pixel(self) -> float:
        """What is held at once for each pixel that comes out of the decoder, at the peak."""
        image, is_turned = self._image, self._orientation in TURNS
        if isinstance(image, DeepPng | TiffImage):
            return max(image.bytes_a_pixel(), 8 if is_turned else 0)
        kept = BYTES_OF_MODE.get(image.mode, 4)
        copied = max(4 if image.mode != "RGB" else 0, kept if is_turned else 0)
        decoder = BYTES_OF_WEBP if image.format == "WEBP" else bytes_beside(image, self._data)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(259) != 1:  # a strip, or all
            rows = min(image.tag_v2.get(278, image.height), image.height)
            bits = image.tag_v2.get(258, (1,))
            decoder = rows / image.height * sum(bits) / 8
        return kept + max(copied, decoder)

    def _bytes_of_scans(self) -> float:
        """What is held for each pixel of a JPEG file at full size: coefficients, if it comes in several scans."""
        layers = getattr(self._image, "layer", None)
        if not layers or is_one_scan(self._data):
            return 0.0
        finest = max(across for _, across, _, _ in layers) * max(down for _, _, down, _ in layers)
        return 2 * sum(across * down for _, across, down, _ in layers) / finest


def pixels_of(image: Image.Image, out: np.ndarray):
    """Put the pixels of an RGB image into `out` (H, W, 3) uint8, a strip of rows at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        out[top:top + rows] = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))


def _opened(data: bytes, value_range: ValueRange) -> tuple[Image.Image | DeepPng | TiffImage, int, bool]:
    """An image not decoded yet, its EXIF orientation, and whether the decoder turns it upright by itself."""
    if data.startswith(JPEG):
        jpeg = open_jpeg(data)
        return jpeg, _orientation(jpeg), False
    if data.startswith(SIGNATURE):
        png = PngFile(data)
        if png.bits == 16 and png.colour in NAMES:
            deep = DeepPng(png, value_range)
            return deep, deep.orientation, False
        return png.open(), png.orientation(), False
    if is_tiff(data):
        tags = Tags(data)
        if not left_to_pillow(tags):
            tiff = TiffImage(data, tags, value_range)
            return tiff, tiff.orientation, False
        return Image.open(io.BytesIO(data), formats=["TIFF"]), tags.orientation, True
    if (kind := kind_of(data)) is not None:
        modern = open_modern(data, kind)
        return modern, 1 if kind == "HEIF" else _orientation(modern), False
    try:
        image = open_gif(data) if data.startswith(GIF) else Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        start = repr(data[:STARTING])[1:]  # without the b
        raise UnidentifiedImageError(f"cannot identify image file, which starts with {start}") from None
    return image, _orientation(image), False


def _orientation(image: Image.Image) -> int:
    """From the EXIF data, without decoding; 1 when these cannot be read, as no pixel needs them."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever the reader of metadata raises
        return 1


def _has_false_opacity(image: Image.Image) -> bool:
    """Whether what Pillow takes for opacity is none: in a BMP file all zeros, in a TIFF file a sample that is not said
    to be one."""
    if image.mode != "RGBA":
        return False
    if image.format == "BMP":
        return image.getchannel("A").getextrema() == (0, 0)
    return isinstance(image, TiffImagePlugin.TiffImageFile) and not {1, 2} & set(image.tag_v2.get(EXTRA, ()))


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded image as 8-bit RGB, transparency laid over white."""
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


def _over_background(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*TRANSPARENT_OVER, 255))
    return Image.alpha_composite(background, image).convert("RGB")
