"""TIFF files: tags -> what a pixel is -> 8-bit RGB, a strip or tile at a time.

Pillow takes the mode of a TIFF file from a table and decodes some layouts wrongly; here the tags decide. What they
leave to Pillow are compressed plain 8-bit grey and RGB, YCbCr, L*a*b*, JPEG and fax pages. Anything else that
is not known to come out right is refused, with the tag that is to blame. Only the tags that pixels need are read, so no
other one can cost an image; of several pages the first counts.
"""

import struct
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
from PIL import Image

from mocoembed.data.deep import Scale, Seen, ValueRange, alpha_scale, over_white, put_blocks
from mocoembed.data.tiff_segments import COMPRESSIONS, FLOATING_POINT, PREDICTED, Packing, packed_rows, unpacked
from mocoembed.errors import UnreadableImage

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, OFFSETS, ORIENTATION = 256, 257, 258, 259, 262, 266, 273, 274
SAMPLES, ROWS, COUNTS, PLANAR, PREDICTOR, PALETTE, TILE_WIDTH, TILE_HEIGHT = 277, 278, 279, 284, 317, 320, 322, 323
TILE_OFFSETS, TILE_COUNTS, EXTRA, FORMAT, SUBSAMPLING = 324, 325, 338, 339, 530
TAGS = {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, OFFSETS, ORIENTATION, SAMPLES, ROWS, COUNTS, PLANAR,
        PREDICTOR, PALETTE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, EXTRA, FORMAT, SUBSAMPLING}
TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE_COLOUR, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
NAMES = {WHITE_IS_ZERO: "grey", BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE_COLOUR: "palette", CMYK: "CMYK"}
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE_COLOUR: 1, CMYK: 4}
JPEG = (6, 7)
BY_PILLOW = (2, 3, 4, *JPEG)  # compressions: fax pages and JPEG
KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # SampleFormat
MOST_PIECES = 1 << 20
ASSOCIATED, UNASSOCIATED = 1, 2  # ExtraSamples: opacity, with premultiplied colours or without


def is_tiff(data: bytes) -> bool:
    """Whether a file begins as TIFF and BigTIFF files do."""
    return data[:2] in (b"II", b"MM") and data[2:4] in (b"\0\x2a", b"\x2a\0", b"\0\x2b", b"\x2b\0")


class Tags:
    """Those of `TAGS` that the first page has: tag -> numbers."""

    def __init__(self, data: bytes):
        self.order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
        self._values: dict[int, np.ndarray] = {}
        self._data = data
        self.is_big = 0x2B in data[2:4]
        try:
            self._read(*(("Q", "Q", 20) if self.is_big else ("I", "H", 12)))
        except struct.error:
            raise UnreadableImage("truncated: its tags lie beyond the end of the file") from None

    def _read(self, number: str, count: str, size: int):
        """Read the first directory, whose entries take `size` bytes each."""
        bytes_of_number = struct.calcsize(number)
        (at,) = struct.unpack_from(self.order + number, self._data, 8 if number == "Q" else 4)
        (entries,) = struct.unpack_from(self.order + count, self._data, at)
        at += struct.calcsize(count)
        for entry in range(at, at + entries * size, size):
            tag, kind, length = struct.unpack_from(f"{self.order}HH{number}", self._data, entry)
            if tag not in TAGS or kind not in TYPES or tag in self._values:
                continue
            dtype = np.dtype(self.order + TYPES[kind])
            place = entry + 4 + bytes_of_number
            if length * dtype.itemsize > bytes_of_number:
                (place,) = struct.unpack_from(self.order + number, self._data, place)
            length = min(length, max(0, len(self._data) - place) // dtype.itemsize)  # what there is of it
            if length:
                self._values[tag] = np.frombuffer(self._data, dtype, length, place)

    def __contains__(self, tag: int) -> bool:
        return tag in self._values

    def all(self, tag: int, default: tuple[int, ...] = ()) -> np.ndarray:
        """The numbers of a tag, int64 or uint64."""
        values = self._values.get(tag)
        return np.array(default, np.int64) if values is None else values.astype(
            np.uint64 if values.dtype.itemsize == 8 else np.int64)

    def one(self, tag: int, default: int | None = None) -> int:
        """The first number of a tag; `UnreadableImage` when there is neither that nor a default."""
        if tag in self._values:
            return int(self._values[tag][0])
        if default is None:
            raise UnreadableImage(f"the tag {tag} is missing")
        return default

    @cached_property
    def orientation(self) -> int:
        """As in EXIF, from 1 to 8."""
        return self.one(ORIENTATION, 1)


@dataclass(frozen=True)
class Layout:
    """What a pixel is, and where the strips or tiles lie."""

    width: int
    height: int
    photometric: int
    samples: int
    """Of a pixel, those included that are no colours."""
    planar: bool
    """Whether each sample has strips or tiles of its own."""
    alpha: int | None
    """Which sample is the opacity."""
    premultiplied: bool
    packing: Packing
    segment: tuple[int, int]
    """Width and height of a strip or tile."""
    tiled: bool
    places: np.ndarray
    """(strips or tiles, 2): offset and bytes of each."""
    palette: np.ndarray | None
    """(2^bits, 3) uint8."""

    @property
    def colours(self) -> int:
        """Samples that are colours: the first ones."""
        return COLOURS[self.photometric]

    @property
    def used(self) -> list[int]:
        """The samples that make the pixel: colours, and the opacity."""
        return [*range(self.colours), *([] if self.alpha is None else [self.alpha])]


def left_to_pillow(tags: Tags) -> bool:
    """Whether Pillow decodes the file rightly and we do not; `UnreadableImage` for what neither does."""
    compression, photometric, bits = tags.one(COMPRESSION, 1), tags.one(PHOTOMETRIC, -1), tags.one(BITS, 8)
    if compression in BY_PILLOW:
        if compression in JPEG and bits != 8:
            raise UnreadableImage(f"TIFF file with {bits}-bit JPEG (8 are decoded)")
        return True
    if compression not in COMPRESSIONS:
        raise UnreadableImage(f"TIFF compression {compression}, which is not decoded")
    if photometric not in (YCBCR, LAB):
        return _is_plain(tags, photometric)
    if (tags.all(BITS, (1,)) != 8).any() or tags.one(SAMPLES, 1) != 3 or tags.one(PLANAR, 1) != 1:
        raise UnreadableImage("TIFF file with YCbCr or Lab pixels that are not three times 8 bits side by side")
    if photometric == YCBCR and compression == 1 and (tags.all(SUBSAMPLING, (2, 2)) != 1).any():
        raise UnreadableImage("TIFF file with YCbCr pixels that are subsampled and not compressed")
    return True


def _is_plain(tags: Tags, photometric: int) -> bool:
    """Whether pixels are 8-bit grey or RGB and nothing else, and compressed: that takes libtiff less memory than us."""
    is_alone = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) and tags.one(SAMPLES, 1) == COLOURS[photometric]
    is_usual = (tags.one(PLANAR, 1), tags.one(FILL_ORDER, 1), tags.is_big) == (1, 1, False)
    return (tags.one(COMPRESSION, 1) != 1 and is_alone and is_usual and EXTRA not in tags
            and (tags.all(BITS, (1,)) == 8).all() and bool((tags.all(FORMAT, (1,)) == 1).all()))


def layout_of(tags: Tags) -> Layout:
    """The layout that the tags describe; `UnreadableImage` when they make no sense or are of no known kind."""
    width, height, samples = tags.one(WIDTH), tags.one(HEIGHT), tags.one(SAMPLES, 1)
    photometric = tags.one(PHOTOMETRIC, RGB if samples >= 3 else BLACK_IS_ZERO)  # as libtiff guesses
    if photometric not in COLOURS:
        raise UnreadableImage(f"TIFF file of PhotometricInterpretation {photometric}, which is not decoded")
    packing = _packing(tags, samples)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31 and COLOURS[photometric] <= samples < 1 << 16):
        raise UnreadableImage(f"TIFF file of {width} x {height} pixels with {samples} samples")
    if photometric == CMYK and packing.kind != "u":
        raise UnreadableImage("TIFF file with CMYK pixels that are not unsigned integers")
    extra = tags.all(EXTRA)
    opacities = [number for number in range(min(len(extra), samples - COLOURS[photometric]))
                 if extra[number] in (ASSOCIATED, UNASSOCIATED)] if photometric != CMYK else []
    alpha = COLOURS[photometric] + opacities[0] if opacities else None
    planar = tags.one(PLANAR, 1) == 2 and samples > 1
    tiled = TILE_WIDTH in tags
    segment = (tags.one(TILE_WIDTH), tags.one(TILE_HEIGHT)) if tiled else (width, min(height, tags.one(ROWS, height)))
    if not (0 < segment[0] < 1 << 24 and 0 < segment[1] < 1 << 31):
        raise UnreadableImage(f"TIFF file in pieces of {segment[0]} x {segment[1]} pixels")
    pieces = -(-width // segment[0]) * -(-height // segment[1]) * (samples if planar else 1)
    return Layout(width, height, photometric, samples, planar, alpha,
                  alpha is not None and extra[opacities[0]] == ASSOCIATED, packing, segment, tiled,
                  _places(tags, tiled, pieces, packing.compression),
                  _palette(tags, packing) if photometric == PALETTE_COLOUR else None)


def _packing(tags: Tags, samples: int) -> Packing:
    bits, formats = tags.all(BITS, (1,))[:samples], tags.all(FORMAT, (1,))[:samples]
    if (bits != bits[0]).any() or (formats != formats[0]).any():
        raise UnreadableImage(f"TIFF file with samples of different kinds (bits {bits.tolist()}, formats "
                              f"{formats.tolist()})")
    width, kind = int(bits[0]), KINDS.get(int(formats[0]), "?")
    if width not in ((16, 32, 64) if kind == "f" else (*range(1, 17), 32, 64)) or kind == "?":
        raise UnreadableImage(f"TIFF file with {width}-bit samples of SampleFormat {formats[0]}, which are not decoded")
    compression, predictor = tags.one(COMPRESSION, 1), tags.one(PREDICTOR, 1)
    if compression in PREDICTED and not (predictor == 1 or (predictor == 2 and width in (8, 16, 32, 64)) or (
            predictor == FLOATING_POINT and kind == "f")):
        raise UnreadableImage(f"TIFF file with predictor {predictor} for {width}-bit samples")
    return Packing(width, kind, tags.order, compression, predictor, tags.one(FILL_ORDER, 1) == 2)


def _places(tags: Tags, tiled: bool, pieces: int, compression: int) -> np.ndarray:
    """(pieces, 2) int64: offset and size of every strip or tile."""
    offsets = tags.all(TILE_OFFSETS if TILE_OFFSETS in tags or (tiled and OFFSETS not in tags) else OFFSETS)
    counts = tags.all(TILE_COUNTS if TILE_COUNTS in tags else COUNTS)
    if not len(counts) and (compression == 1 or len(offsets) == 1):
        counts = np.full(len(offsets), 1 << 31)  # to the end of the file: some writers leave them out
    if pieces > MOST_PIECES:
        raise UnreadableImage(f"TIFF file of {pieces:,} strips or tiles; at most {MOST_PIECES:,} are read")
    if min(len(offsets), len(counts)) < pieces:
        raise UnreadableImage(f"truncated: it has {min(len(offsets), len(counts))} of {pieces} strips or tiles")
    return np.stack([offsets[:pieces], counts[:pieces]], axis=1).astype(np.int64).clip(0)


def _palette(tags: Tags, packing: Packing) -> np.ndarray:
    entries, colours = tags.all(PALETTE), 1 << packing.bits
    if packing.bits > 8 or packing.kind != "u" or len(entries) < 3 * colours:
        raise UnreadableImage(f"TIFF file with a palette of {len(entries) // 3} colours for {packing.bits}-bit pixels")
    table = entries[:3 * colours].reshape(3, colours).T
    return (table >> 8 if table.max() > 255 else table).astype(np.uint8)  # some writers forget to shift


class TiffImage:
    """A TIFF file that is decoded here, with the calls of a reader that `EncodedImage` makes."""

    format = "TIFF"

    def __init__(self, data: bytes, tags: Tags, value_range: ValueRange):
        self._data, self._layout, self.orientation = data, layout_of(tags), tags.orientation
        layout = self._layout
        self.size = self.width, self.height = layout.width, layout.height
        self.mode = f"{layout.packing.bits}-bit {NAMES[layout.photometric]}"
        self._scale = Scale(layout.packing.kind, layout.packing.bits, value_range)
        self._alpha_scale = alpha_scale(layout.packing.kind, layout.packing.bits)

    @property
    def seen(self) -> Seen | None:
        """The range of deep pixels, once they have been decoded."""
        return self._scale.seen

    def bytes_a_pixel(self) -> float:
        """What is held at once for each pixel while decoding, beside the file: the RGB image and a strip or tile.

        A compressed strip is held twice: as zlib or libtiff gives it and as a copy; libtiff is given a copy, too.
        """
        layout = self._layout
        samples = len(layout.used) if layout.planar else layout.samples
        held = layout.segment[1] * layout.packing.bytes_of_row(layout.segment[0] * samples)
        if layout.packing.compression == 1 and not layout.packing.reversed_bits:
            held = 0  # read where it lies
        else:
            held = 2 * held + int(layout.places[:, 1].max().clip(max=len(self._data)))
        return 4 + held / (layout.width * layout.height)

    def rgb(self) -> Image.Image:
        """The image as it lies in the file, laid over white; `UnreadableImage` when it is truncated."""
        layout = self._layout
        result = Image.new("RGB", self.size)
        (across, down), planes = layout.segment, layout.used if layout.planar else [0]
        columns, rows = -(-layout.width // across), -(-layout.height // down)
        for number in range(columns * rows):
            x, y = number % columns * across, number // columns * down
            height = down if layout.tiled else min(down, layout.height - y)
            shape = (height, across, 1 if layout.planar else layout.samples)
            parts = [packed_rows(self._data, tuple(layout.places[plane * columns * rows + number].tolist()), shape,
                                 layout.packing) for plane in planes]
            put_blocks(result, (x, y), (across, min(height, layout.height - y)), partial(self._colours, parts, shape))
        self._scale.require_known()
        return result

    def _colours(self, parts: list[np.ndarray], shape: tuple[int, int, int], top: int, end: int) -> np.ndarray:
        """(end - top, w, 3) uint8: some rows of a strip or tile, from its packed parts."""
        layout = self._layout
        planes = [unpacked(part[top:end], shape[1], shape[2], layout.packing) for part in parts]
        samples = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        colours = self._rgb_of(samples[..., :layout.colours])
        if layout.alpha is None:
            return colours
        opacity = self._alpha_scale(samples[..., -1 if layout.planar else layout.alpha])
        return over_white(colours, opacity, layout.premultiplied)

    def _rgb_of(self, samples: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 from the colours alone."""
        layout = self._layout
        if layout.palette is not None:
            return layout.palette[samples[..., 0]]
        colours = self._scale(samples)
        if layout.photometric == CMYK:
            return np.asarray(Image.fromarray(np.ascontiguousarray(colours), "CMYK").convert("RGB"))
        if layout.photometric == WHITE_IS_ZERO:
            colours = 255 - colours
        return colours if layout.colours == 3 else np.repeat(colours, 3, axis=2)
