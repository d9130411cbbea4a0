"""PNG files: every depth and colour type, transparency, 16 bits to the last one, and metadata that cost no image."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mocoembed.data.decode import EncodedImage
from mocoembed.data.pieces import Pieces
from mocoembed.data.png import SIGNATURE, PngFile
from mocoembed.errors import UnreadableImage

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel
DEPTHS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16),
          (6, 8), (6, 16)]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
HEIGHT, WIDTH = 11, 13


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Rows (h, w, S), each with the filter byte 0."""
    rows = []
    for row in samples:
        text = "".join(f"{int(value):0{bits}b}" for value in row.reshape(-1))
        text += "0" * (-len(text) % 8)
        rows.append(b"\0" + int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


def png(samples: np.ndarray, bits: int, colour: int, before: bytes = b"", after: bytes = b"", interlaced: bool = False,
        cut: slice = slice(None)) -> bytes:
    """A PNG file with chunks `before` and `after` its pixels."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    pixels = zlib.compress(b"".join(packed(samples[y::down, x::across], bits) for x, y, across, down in passes
                                    if samples[y::down, x::across].size))[cut]
    half = len(pixels) // 2
    return (SIGNATURE + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels[:half]) + chunk(b"IDAT", pixels[half:])
            + after + chunk(b"IEND", b""))


def noise(colour: int, bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, (HEIGHT, WIDTH, SAMPLES[colour]))


def decoded(data: bytes, value_range=()) -> np.ndarray:
    return np.asarray(EncodedImage(data, value_range=value_range).rgb()).astype(float)


PLAIN = png(noise(2, 8), 8, 2)


@pytest.mark.parametrize(("colour", "bits"), DEPTHS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_depth_and_colour_type(colour, bits, interlaced):
    samples, full = noise(colour, bits), (1 << bits) - 1
    table = np.random.default_rng(1).integers(0, 256, (1 << bits if colour == 3 else 1, 3))
    before = chunk(b"PLTE", table.astype(np.uint8).tobytes()) if colour == 3 else b""
    parts = samples / full
    wanted = table[samples[..., 0]] / 255 if colour == 3 else parts[..., :3] if colour in (2, 6) else np.repeat(
        parts[..., :1], 3, axis=2)
    if colour in (4, 6):
        wanted = wanted * parts[..., -1:] + 1 - parts[..., -1:]
    got = decoded(png(samples, bits, colour, before, interlaced=interlaced))
    assert np.abs(got - 255 * wanted).max() <= (2 if colour in (4, 6) else 1)


@pytest.mark.parametrize(("colour", "bits"), [one for one in DEPTHS if one[0] in (0, 2)])
def test_one_grey_or_colour_is_transparent_and_no_other(colour, bits):
    samples = noise(colour, bits)
    samples[2:5, 3:6] = samples[0, 0]
    near = samples[0, 0].copy()
    near[-1] ^= 1  # the nearest other one is not transparent
    samples[6, 6] = near
    content = struct.pack(f">{len(samples[0, 0])}H", *samples[0, 0].tolist())
    got = decoded(png(samples, bits, colour, chunk(b"tRNS", content)))
    transparent = (samples == samples[0, 0]).all(axis=2)
    opaque = np.repeat(samples, 3, axis=2) if colour == 0 else samples
    wanted = np.where(transparent[..., None], 255, 255 * opaque / ((1 << bits) - 1))
    assert transparent.sum() >= 10
    assert np.abs(got - wanted).max() <= 1


def test_a_palette_with_opacities():
    samples = noise(3, 4)
    table = np.random.default_rng(1).integers(0, 256, (16, 3))
    alpha = np.array([0, 100, 255, 7, 0])
    got = decoded(png(samples, 4, 3, chunk(b"PLTE", table.astype(np.uint8).tobytes())
                      + chunk(b"tRNS", alpha.astype(np.uint8).tobytes())))
    opacity = np.concatenate([alpha, np.full(11, 255)])[samples] / 255
    assert np.abs(got - (table[samples[..., 0]] * opacity + 255 * (1 - opacity))).max() <= 1


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_value_range_is_exact_to_the_last_bit(colour, interlaced):
    samples = np.full((HEIGHT, WIDTH, SAMPLES[colour]), 65535)
    colours = 3 if colour in (2, 6) else 1
    samples[..., :colours] = 1000 + np.arange(HEIGHT * WIDTH * colours).reshape(HEIGHT, WIDTH, colours) % 256
    image = EncodedImage(png(samples, 16, colour, interlaced=interlaced), value_range=(1000.0, 1255.0))
    assert np.array_equal(np.asarray(image.rgb()), np.broadcast_to(samples[..., :colours] - 1000, (HEIGHT, WIDTH, 3)))
    assert image.seen is None


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_what_range_deep_pixels_use_is_seen(colour):
    samples = noise(colour, 16)
    samples[..., :3 if colour in (2, 6) else 1] %= 4096
    samples[0, 0], samples[0, 1] = 0, 4095
    image = EncodedImage(png(samples, 16, colour))
    image.rgb()
    assert image.seen == (0, 4095, 65535, 1, 1)


DAMAGE = {
    "text with a wrong sum": chunk(b"tEXt", b"Comment\0hello", 1),
    "a profile with a wrong sum": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile"), 1),
    "text beyond the limits": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20), 1)),
    "text of an unknown kind": chunk(b"zTXt", b"Comment\0\7" + b"x"), "empty text": chunk(b"zTXt", b""),
    "international text cut off": chunk(b"iTXt", b"Comment\0\1"),
    "a profile of an unknown kind": chunk(b"iCCP", b"x\0\7x"), "an empty profile": chunk(b"iCCP", b""),
    "EXIF of garbage": chunk(b"eXIf", b"garbage, not TIFF"),
    "EXIF cut off": chunk(b"eXIf", b"MM\0\x2a\0\0\0\x08\0\x09"),
    "EXIF with a wrong sum": chunk(b"eXIf", b"MM\0\x2a", 1),
    "a raw profile of garbage": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz"),
    "XMP of garbage": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation=\"zz\"/>"),
    "short pHYs": chunk(b"pHYs", b"\0"), "short gAMA": chunk(b"gAMA", b"\0"), "empty sRGB": chunk(b"sRGB", b""),
    "short cHRM": chunk(b"cHRM", b"\0"), "short tRNS": chunk(b"tRNS", b"\0\0"), "empty tRNS": chunk(b"tRNS", b""),
    "tRNS with a wrong sum": chunk(b"tRNS", struct.pack(">3H", *noise(2, 8)[0, 0].tolist()), 1),
    "short acTL": chunk(b"acTL", b"\0"), "an empty fcTL": chunk(b"fcTL", b""),
    "an unknown chunk": chunk(b"prVt", b"x", 1)}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_pixels_do_not_need_costs_no_image(name):
    samples = noise(2, 8)
    for where in ("before", "after"):
        assert np.array_equal(decoded(png(samples, 8, 2, **{where: DAMAGE[name]})), samples), where


def test_opencv_has_the_same_pixels():
    cv2 = pytest.importorskip("cv2")
    files = [png(noise(2, 8), 8, 2, damaged) for damaged in DAMAGE.values()]
    files += [png(noise(colour, bits), bits, colour, interlaced=interlaced) for colour, bits in DEPTHS
              for interlaced in (False, True) if colour in (0, 2)]
    theirs = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in files]
    both = [(decoded(data), image[..., ::-1]) for data, image in zip(files, theirs) if image is not None]
    assert len(both) >= len(files) - 2  # it stumbles over APNG's chunks
    assert all(np.abs(ours - image).max() <= 1 for ours, image in both)


def test_damage_of_what_pixels_need_costs_the_image():
    samples = noise(3, 8)
    table = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8).tobytes()
    whole = png(samples, 8, 3, chunk(b"PLTE", table))
    assert decoded(whole).shape == (HEIGHT, WIDTH, 3)
    for kind in (b"IHDR", b"PLTE", b"IDAT"):
        damaged = bytearray(whole)
        damaged[whole.index(kind) + 6] ^= 1
        with pytest.raises(Exception, match=r"\w"):
            decoded(bytes(damaged))
    for data in (png(samples, 8, 3, chunk(b"PLTE", table), cut=slice(0, 100)), whole[:len(whole) // 2],
                 SIGNATURE, SIGNATURE + chunk(b"tEXt", b"x\0y")):
        with pytest.raises(Exception, match=r"\w"):
            decoded(data)


def orienting(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()[6:]


def test_the_orientation_of_each_kind_of_metadata_counts():
    raw = orienting(6)
    raw_profile = f"Raw profile type exif\0\nexif\n{len(raw) + 6:8}\n{(b'Exif' + bytes(2) + raw).hex()}\n".encode()
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    for bits in (8, 16):
        for before, after, turned in (
                (chunk(b"eXIf", raw), b"", True), (b"", chunk(b"eXIf", raw), True),
                (chunk(b"tEXt", raw_profile), b"", True),
                (chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile[22:])), b"", True),
                (chunk(b"iTXt", xmp), b"", True), (b"", chunk(b"iTXt", xmp), False),
                (chunk(b"eXIf", raw, 1), b"", False), (chunk(b"eXIf", orienting(1)) + chunk(b"iTXt", xmp), b"", False)):
            image = EncodedImage(png(noise(2, bits), bits, 2, before, after))
            size = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
            assert (image.width, image.height) == image.rgb().size == size


def test_pieces_read_as_one_file():
    parts = [b"abc", b"", b"defgh", b"i"]
    whole, file = b"".join(parts), Pieces([memoryview(part) for part in parts])
    ours, theirs = [], []
    for one, kept in ((file, ours), (io.BytesIO(whole), theirs)):
        for place, size in itertools.product(range(11), (0, 1, 3, 4, 20, -1)):
            kept += [one.seek(place), one.read(size), one.tell(), one.read(2), one.seek(-2, io.SEEK_END), one.read()]
    assert ours == theirs


def test_pixels_are_not_copied_and_metadata_is_not_decoded():
    data = png(noise(2, 8), 8, 2, chunk(b"tEXt", b"Comment\0x"), chunk(b"tEXt", b"Comment\0y"))
    file = PngFile(data)
    assert [data[place + 4:place + 8] for place, _ in file._needed] == [b"IHDR", b"IDAT", b"IEND"]
    assert file.open().info == {}


def test_a_deep_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", 60 * HEIGHT)
    image = EncodedImage(png(noise(6, 16), 16, 6), value_range=(0, 9))
    with pytest.raises(UnreadableImage, match="PNG, 16-bit RGBA"):
        image.rgb()
