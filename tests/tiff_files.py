"""TIFF files of any layout, built slowly and plainly, for tests."""

import io
import struct

import numpy as np
from PIL import Image

GREY_INVERTED, GREY, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
PILLOW_NAMES = {5: "tiff_lzw", 32773: "packbits", 8: "tiff_adobe_deflate", 34925: "lzma", 50000: "zstd"}
TYPES = {"B": 1, "H": 3, "I": 4, "Q": 16}


def tiff(samples: np.ndarray, bits: int, photometric: int, *, kind: str = "u", order: str = "<", planar: bool = False,
         segment: tuple[int, int] | None = None, tiled: bool = False, compression: int = 1, predictor: int = 1,
         extra: tuple[int, ...] = (), fill_order: int = 1, big: bool = False, more: dict | None = None) -> bytes:
    """A TIFF file with `samples` (h, w, S), in strips or tiles of `segment` (width, height)."""
    height, width, count = samples.shape
    across, down = segment or (width, height)
    tags = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * count), 259: ("H", [compression]),
            262: ("H", [photometric]), 266: ("H", [fill_order]), 277: ("H", [count]),
            284: ("H", [2 if planar else 1]), 339: ("H", ["uif".index(kind) + 1] * count)}
    if predictor != 1:
        tags[317] = ("H", [predictor])
    if extra:
        tags[338] = ("H", list(extra))
    planes = [samples[..., n:n + 1] for n in range(count)] if planar else [samples]
    pieces = []
    for plane in planes:
        for top in range(0, height, down):
            for left in range(0, width, across):
                piece = plane[top:top + down, left:left + across]
                if tiled:
                    piece = np.pad(piece, ((0, down - len(piece)), (0, across - piece.shape[1]), (0, 0)))
                pieces.append(_piece(piece, bits, kind, order, compression, predictor, fill_order))
    at = np.cumsum([16, *map(len, pieces)]).tolist()
    names = (324, 325) if tiled else (273, 279)
    tags[names[0]], tags[names[1]] = ("I", at[:-1]), ("I", list(map(len, pieces)))
    if tiled:
        tags[322], tags[323] = ("I", [across]), ("I", [down])
    else:
        tags[278] = ("I", [down])
    tags.update(more or {})
    return _file(tags, b"".join(pieces), order, big)


def _file(tags: dict, pixels: bytes, order: str, big: bool) -> bytes:
    mark, number, where = b"II" if order == "<" else b"MM", "Q" if big else "I", 16 + len(pixels)
    header = struct.pack(f"{order}2sHHHQ", mark, 43, 8, 0, where) if big else struct.pack(
        f"{order}2sHI8x", mark, 42, where)
    size = struct.calcsize(f"={number}")
    entries, rest = b"", b""
    rest_at = where + (8 if big else 2) + len(tags) * (4 + 2 * size) + size
    for tag, (code, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(content) > size:
            place, rest = struct.pack(f"{order}{number}", rest_at + len(rest)), rest + content
        else:
            place = content.ljust(size, b"\0")
        entries += struct.pack(f"{order}HH{number}", tag, TYPES[code], len(values)) + place
    return header + pixels + struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + bytes(size) + rest


def _piece(piece: np.ndarray, bits: int, kind: str, order: str, compression: int, predictor: int,
           fill_order: int) -> bytes:
    rows = [_packed(row, bits, kind, order, predictor) for row in piece]
    packed = b"".join(rows)
    if compression != 1:
        buffer = io.BytesIO()
        Image.frombytes("L", (len(rows[0]), len(rows)), packed).save(
            buffer, "TIFF", compression=PILLOW_NAMES[compression], strip_size=1 << 30)
        with Image.open(buffer) as image:
            (at,), (size,) = image.tag_v2[273], image.tag_v2[279]
        packed = buffer.getvalue()[at:at + size]
    if fill_order == 2:
        packed = bytes(int(f"{byte:08b}"[::-1], 2) for byte in packed)
    return packed


def _packed(row: np.ndarray, bits: int, kind: str, order: str, predictor: int) -> bytes:
    """A row (w, S) as it is stored."""
    if bits in (8, 16, 32, 64):
        values = row.astype(f"{order}{kind}{bits // 8}")
        if predictor == 2:
            whole = values.astype(f"=u{bits // 8}") if kind == "u" else values.astype(f"={kind}{bits // 8}").view(
                f"=u{bits // 8}")
            before = np.concatenate([np.zeros_like(whole[:1]), whole[:-1]])
            return (whole - before).astype(f"{order}u{bits // 8}").tobytes()
        if predictor == 3:
            planes = row.astype(f">f{bits // 8}").reshape(-1, 1).view(np.uint8).T.reshape(-1)  # highest bytes first
            count = row.shape[1]
            before = np.concatenate([np.zeros(count, np.uint8), planes[:-count]])
            return (planes - before).tobytes()
        return values.tobytes()
    text = "".join(f"{int(value) % (1 << bits):0{bits}b}" for value in row.reshape(-1))
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
