"""The strips and tiles of a TIFF file -> samples, one strip or tile at a time.

Uncompressed ones are read where they lie, Deflate by Python's zlib, LZW, PackBits, LZMA and Zstandard by libtiff,
through Pillow. How samples are packed and predicted: TIFF 6.0 and Adobe Photoshop TIFF Technical Notes 1 and 3.
"""

import io
import struct
import zlib
from typing import Literal, NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from mocoembed.data.deep import row_blocks
from mocoembed.errors import UnreadableImage

NONE, LZW, PACKBITS, LZMA, ZSTD = 1, 5, 32773, 34925, 50000
DEFLATE = (8, 32946)
COMPRESSIONS = (NONE, LZW, PACKBITS, LZMA, ZSTD, *DEFLATE)
PREDICTED = (LZW, LZMA, ZSTD, *DEFLATE)  # those for which the tag Predictor counts
DIFFERENCES, FLOATING_POINT = 2, 3  # predictors
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Packing(NamedTuple):
    """How the samples of a strip or tile are stored."""

    bits: int
    kind: str
    """u (unsigned), i (signed) or f (floating-point)."""
    order: Literal["<", ">"]
    """Of bytes: < or >."""
    compression: int
    predictor: int
    reversed_bits: bool
    """FillOrder 2: the first pixel is in the lowest bit."""

    @property
    def dtype(self) -> np.dtype:
        """Of samples as they are stored, where they fill whole bytes; else as they are unpacked."""
        if self.bits in (8, 16, 32, 64):
            return np.dtype(f"{self.order}{self.kind}{self.bits // 8}")
        return np.dtype(f"{self.kind}2")

    def bytes_of_row(self, count: int) -> int:
        """Bytes that `count` samples side by side take."""
        return -(-count * self.bits // 8)


def packed_rows(data: bytes, place: tuple[int, int], shape: tuple[int, int, int], packing: Packing) -> np.ndarray:
    """(h, bytes of a row) uint8: a strip or tile of `shape` (h, w, samples) that lies at `place` (offset, size).

    Decompressed, predictions undone, samples still packed. Raises `UnreadableImage` when something is missing.
    """
    (offset, size), (height, width, samples) = place, shape
    across = packing.bytes_of_row(width * samples)
    expected = height * across
    if packing.compression == NONE and not packing.reversed_bits:
        if offset + expected > len(data):
            raise UnreadableImage("truncated: a strip lies beyond the end of the file")
        return np.frombuffer(data, np.uint8, expected, offset).reshape(height, across)
    piece = memoryview(data)[offset:offset + size]
    if packing.reversed_bits:
        piece = memoryview(bytes(piece).translate(REVERSED))
    content = _decompressed(piece, packing.compression, height, across)
    if len(content) < expected:
        raise UnreadableImage(f"truncated: a strip holds {len(content)} of {expected} bytes")
    rows = np.frombuffer(content, np.uint8, expected).reshape(height, across)
    if packing.compression not in PREDICTED or packing.predictor == 1:
        return rows
    rows = rows if rows.flags.writeable else rows.copy()
    _undo_prediction(rows, (width, samples), packing)
    return rows


def _decompressed(piece: memoryview, compression: int, height: int, across: int) -> bytes | memoryview | np.ndarray:
    if compression == NONE:
        return piece
    if compression in DEFLATE:
        return zlib.decompressobj().decompress(piece, height * across)
    return _by_libtiff(piece, compression, height, across)


def _by_libtiff(piece: memoryview, compression: int, height: int, across: int) -> np.ndarray:
    """What Pillow's libtiff makes of a strip, shown to it as a TIFF file of its own, of `across` grey bytes a row."""
    tags = {256: across, 257: height, 258: 8, 259: compression, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: height,
            279: len(piece)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"".join([struct.pack("<2sHIH", b"II", 42, 8, len(tags)), entries, bytes(4), piece])
    return np.asarray(TiffImagePlugin.TiffImageFile(io.BytesIO(file))).reshape(-1)


def _undo_prediction(rows: np.ndarray, shape: tuple[int, int], packing: Packing):
    """In place, for `rows` (h, bytes of a row) of `shape` (w, samples)."""
    (height, across), (width, samples), dtype = rows.shape, shape, packing.dtype
    for top, end in row_blocks(width, height):
        block = rows[top:end]
        if packing.predictor == DIFFERENCES:
            native = np.dtype(f"u{dtype.itemsize}")
            values = block.view(native.newbyteorder(packing.order)).reshape(len(block), width, samples)
            values[:] = np.cumsum(values, axis=1, dtype=native)
        else:  # the bytes of a row's samples, the highest of all first, as differences
            bytes_ = np.cumsum(block.reshape(len(block), -1, samples), axis=1, dtype=np.uint8)
            planes = bytes_.reshape(len(block), dtype.itemsize, width * samples)
            values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(dtype.newbyteorder(">"))
            block[:] = values.astype(dtype).view(np.uint8).reshape(len(block), across)


def unpacked(rows: np.ndarray, width: int, samples: int, packing: Packing) -> np.ndarray:
    """(h, w, samples) of `packing.dtype` from packed `rows` (h, bytes of a row) uint8."""
    bits, height = packing.bits, len(rows)
    if bits in (8, 16, 32, 64):
        return rows.view(packing.dtype).reshape(height, width, samples)
    ones = np.unpackbits(rows, axis=1)[:, :width * samples * bits].reshape(height, width, samples, bits)
    wide = np.zeros((height, width, samples, 16), np.uint8)
    wide[..., 16 - bits:] = ones
    values = np.packbits(wide, axis=-1).view(">u2")[..., 0].astype(np.uint16)
    if packing.kind == "i":
        return (values << (16 - bits)).view(np.int16) >> (16 - bits)
    return values
