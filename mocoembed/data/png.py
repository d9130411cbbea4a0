"""PNG files: what pixels need -> an image; all else is passed over, so it cannot cost the image.

`PngFile` keeps the critical chunks, and `tRNS` where it is valid; Pillow decodes these. Text, colour profiles, times
and the like are not read, except for the orientation. `DeepPng` decodes 16-bit pixels, which Pillow cuts to 8 bits.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from mocoembed.data.deep import Scale, Seen, ValueRange, over_white, put_blocks
from mocoembed.data.pieces import as_file
from mocoembed.errors import UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types
NAMES = {GREY: "grey", RGB: "RGB", GREY_ALPHA: "grey and alpha", RGB_ALPHA: "RGBA"}
ANCILLARY = 0x20  # bit of a chunk's first letter
KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # of texts that may tell the orientation
TEXTS = (b"iTXt", b"tEXt", b"zTXt")
MOST_METADATA = 1 << 20  # bytes of a chunk that is read for the orientation


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where it begins, where it ends) of every chunk, whose end may lie beyond that of the file."""
    place = len(SIGNATURE)
    while place + 8 <= len(png):
        end = place + 12 + int.from_bytes(png[place:place + 4], "big")
        yield png[place + 4:place + 8], place, end
        place = end


class PngFile:
    """A PNG file's chunks, sorted into those that its pixels need and those that tell its orientation."""

    def __init__(self, data: bytes):
        self._data = data
        header = data[16:29] if data[12:16] == b"IHDR" else b""
        self.bits, self.colour = (header[8], header[9]) if len(header) == 13 else (8, RGB)
        self._colours_of_palette, self._transparent = 0, b""
        self._needed: list[tuple[int, int]] = []  # pieces of the file
        self._split = 0  # the pieces before it come before a tRNS chunk
        self._orienting: list[tuple[bytes, int, int]] = []
        self._sort()

    def _sort(self):
        pixels_begin = False
        for kind, place, end in _chunks(self._data):
            if not kind[0] & ANCILLARY:
                if kind == b"IDAT" and not pixels_begin:
                    pixels_begin, self._split = True, len(self._needed)
                elif kind == b"PLTE":
                    self._colours_of_palette = (end - place - 12) // 3
                self._need(place, end)
                if kind == b"IEND":
                    break
            elif kind == b"tRNS" and not pixels_begin and not self._transparent and self._is_whole(place, end):
                self._transparent = self._valid(self._data[place + 8:end - 4])
            elif kind == b"eXIf" or (kind in TEXTS and not pixels_begin and self._data.startswith(KEYWORDS, place + 8)):
                self._orienting.append((kind, place, end))

    def _need(self, place: int, end: int):
        """Keep a chunk; those that follow each other are one piece, but for the first of the pixels."""
        if self._needed and self._needed[-1][1] == place and len(self._needed) > self._split:
            self._needed[-1] = self._needed[-1][0], end
        else:
            self._needed.append((place, end))

    def _is_whole(self, place: int, end: int) -> bool:
        return self._data[end - 4:end] == struct.pack(">I", zlib.crc32(memoryview(self._data)[place + 4:end - 4]))

    def _valid(self, content: bytes) -> bytes:
        """The contents of a tRNS chunk if they fit the pixels, else nothing: then it says nothing."""
        fits = {GREY: len(content) == 2, RGB: len(content) == 6,
                PALETTE: 0 < len(content) <= self._colours_of_palette}.get(self.colour, False)
        return content if fits else b""

    @property
    def transparent(self) -> tuple[int, ...]:
        """The samples of the one transparent grey or colour; nothing when there is none."""
        if self.colour == PALETTE or not self._transparent:
            return ()
        return tuple(number & (1 << self.bits) - 1 for number in struct.unpack(
            f">{len(self._transparent) // 2}H", self._transparent))

    def orientation(self) -> int:
        """The EXIF orientation: of a valid eXIf chunk, else of a text before the pixels; 1 where neither tells."""
        for wanted in (True, False):
            chunks = [self._data[place:end] for kind, place, end in self._orienting
                      if (kind == b"eXIf") is wanted and end - place < MOST_METADATA and self._is_whole(place, end)]
            if chunks and (found := _orientation_in(b"".join(chunks))) is not None:
                return found
        return 1

    def open(self, header: bytes | None = None) -> ImageFile.ImageFile:
        """The image, not decoded yet; with another `header` (the contents of IHDR) if given."""
        view = memoryview(self._data)
        parts = [view[place:end] for place, end in self._needed]
        if header is not None:
            parts[:1] = [memoryview(_chunk(b"IHDR", header)), parts[0][25:]]
        elif self.bits <= 8 and (content := self._content_for_pillow()):
            parts.insert(self._split, memoryview(_chunk(b"tRNS", content)))
        return Image.open(as_file([memoryview(SIGNATURE), *parts]), formats=["PNG"])

    def _content_for_pillow(self) -> bytes:
        """Of tRNS: a grey as Pillow compares it, which is with pixels scaled to 8 bits."""
        if self.colour == GREY and self.transparent:
            return struct.pack(">H", self.transparent[0] * 255 // ((1 << self.bits) - 1))
        return b"".join(struct.pack(">H", one) for one in self.transparent) or self._transparent

    def with_depth_eight(self) -> bytes:
        """The contents of IHDR that show the four bytes of a 16-bit grey and its opacity as an RGBA pixel."""
        return self._data[16:24] + bytes([8, RGB_ALPHA]) + self._data[26:29]


def _orientation_in(chunks: bytes) -> int | None:
    """What Pillow reads from metadata chunks; `None` where they tell nothing or cannot be read."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    try:
        image = Image.open(io.BytesIO(SIGNATURE + header + chunks + _chunk(b"IDAT", b"")), formats=["PNG"])
        found = Image.Image.getexif(image).get(ORIENTATION)
        return found if isinstance(found, int) else None
    except Exception:  # whatever the reader of metadata raises: no pixel depends on it
        return None


class DeepPng:
    """A 16-bit PNG file, with the calls of a reader that `EncodedImage` makes.

    Grey is decoded as it is. A grey and its opacity are decoded as the bytes of an RGBA pixel. Of colours Pillow gives
    either byte: the higher one, and with a value range or a transparent colour the lower one too.
    """

    format = "PNG"

    def __init__(self, file: PngFile, value_range: ValueRange):
        self._file, self.orientation = file, file.orientation()
        self._image = file.open(file.with_depth_eight() if file.colour == GREY_ALPHA else None)
        self.size = self.width, self.height = self._image.size
        self.mode = f"16-bit {NAMES[file.colour]}"
        self._exact = bool(value_range or file.transparent) or file.colour in (GREY, GREY_ALPHA)
        self._scale = Scale("u", 16, value_range)

    @property
    def seen(self) -> Seen | None:
        """The range of the pixels, once they have been decoded; to the higher byte where that alone was."""
        seen = self._scale.seen
        if seen is None or self._exact:
            return seen
        return seen._replace(low=int(seen.low) & 0xFF00, high=int(seen.high) | 0xFF)

    def bytes_a_pixel(self) -> float:
        """What is held at once for each pixel while decoding, beside the file."""
        return 6 if self._file.colour == GREY else 12 if self._exact and self._file.colour != GREY_ALPHA else 8

    def rgb(self) -> Image.Image:
        """The image as it lies in the file, laid over white."""
        result = Image.new("RGB", self.size)
        self._image.load()
        low = self._lower_bytes() if self._exact and self._file.colour in (RGB, RGB_ALPHA) else None
        put_blocks(result, (0, 0), self.size, lambda top, end: self._colours(low, top, end))
        return result

    def _lower_bytes(self) -> Image.Image:
        image = self._file.open()
        (tile,) = image.tile
        if tile.args not in ("RGB;16B", "RGBA;16B"):
            raise UnreadableImage(f"16-bit PNG file that this version of Pillow decodes as {tile.args}")
        image.tile = [tile._replace(args=tile.args.replace("16B", "16L"))]  # the other byte of each two
        image.load()
        return image

    def _colours(self, low: Image.Image | None, top: int, end: int) -> np.ndarray:
        """(end - top, w, 3) uint8: some rows."""
        box = (0, top, self.size[0], end)
        samples = np.asarray(self._image.crop(box))
        if self._file.colour == GREY:
            samples = samples[..., None]
        elif self._file.colour == GREY_ALPHA:
            samples = samples.view(">u2")  # (h, w, 2)
        else:
            samples = samples.astype(np.uint16) * (257 if low is None else 256)
            samples += 0 if low is None else np.asarray(low.crop(box))
        count = 1 if self._file.colour in (GREY, GREY_ALPHA) else 3
        colours = self._scale(samples[..., :count])
        colours = colours if count == 3 else np.repeat(colours, 3, axis=2)
        if samples.shape[2] > count:
            return over_white(colours, ((samples[..., count].astype(np.uint32) + 128) // 257).astype(np.uint8))
        if self._file.transparent:
            colours[(samples == self._file.transparent).all(axis=2)] = 255
        return colours
