"""JPEG files of several images, and JPEG, WebP, BMP and GIF files with metadata that nobody can read."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mocoembed.data import jpeg as module
from mocoembed.data.decode import EncodedImage
from mocoembed.errors import UnreadableImage


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, form: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def decoded(data: bytes, shrink: float = 1.0) -> np.ndarray:
    return np.asarray(EncodedImage(data).rgb(shrink))


def several(image: Image.Image, **more) -> bytes:
    return encoded(image, "MPO", save_all=True, append_images=[image.resize((32, 24)), image.resize((16, 12))],
                   quality=90, **more)


def test_of_several_images_the_first_is_decoded_as_a_plain_jpeg():
    image, exif = gradient(320, 240), Image.Exif()
    exif[0x0112] = 6
    mpo, plain = several(image, exif=exif), encoded(image, "JPEG", quality=90, exif=exif)
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    for shrink in (1, 2, 4, 8):
        assert EncodedImage(mpo).reduce(shrink) == (240 // shrink, 320 // shrink)
        assert np.array_equal(decoded(mpo, shrink), decoded(plain, shrink))


def test_of_several_images_the_first_takes_the_memory_of_a_plain_jpeg(monkeypatch):
    image, exif = gradient(800, 600), Image.Exif()
    exif[0x0112] = 6
    mpo = several(image, exif=exif)
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", len(mpo) + 200 * 150 * 8)
    with pytest.raises(UnreadableImage, match=r"600 x 800 pixels \(JPEG, RGB\)"):
        decoded(mpo)
    assert decoded(mpo, 4).shape == (200, 150, 3)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


GARBAGE = {
    "a short JFIF": segment(0xE0, b"JFIF"), "EXIF of garbage": segment(0xE1, b"Exif\0\0garbage"),
    "EXIF cut off": segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x09"), "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "XMP of garbage": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<x tiff:Orientation=\"zz\"/>"),
    "XMP cut off": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"), "a short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a profile of garbage": segment(0xE2, b"ICC_PROFILE\0\7\3zzz"), "MPF of garbage": segment(0xE2, b"MPF\0garbage"),
    "MPF cut off": segment(0xE2, b"MPF\0"), "Photoshop cut off": segment(0xED, b"Photoshop 3.0\x008BIM\4"),
    "Photoshop at its end": segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "Photoshop without data": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\2xx"),
    "a short Adobe": segment(0xEE, b"Adobe"), "an empty comment": segment(0xFE, b""),
    "a comment in no encoding": segment(0xFE, b"\xff\xfe\x80")}


@pytest.mark.parametrize("name", GARBAGE)
def test_metadata_of_a_jpeg_cost_no_image(name):
    plain = encoded(gradient(64, 48), "JPEG")
    data = plain[:2] + GARBAGE[name] + plain[2:]
    assert np.array_equal(decoded(data), decoded(plain))
    assert EncodedImage(data).reduce(2) == (32, 24)


def test_an_orientation_counts_beside_garbage():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(gradient(64, 48), "JPEG", exif=exif)
    assert decoded(plain[:2] + GARBAGE["Photoshop cut off"] + plain[2:]).shape == (64, 48, 3)


def test_a_jpeg_without_pixels_is_refused():
    plain = encoded(gradient(64, 48), "JPEG")
    for data in (plain[:3], plain[:20], plain[:200], plain[:2] + GARBAGE["Photoshop cut off"]):
        with pytest.raises((UnreadableImage, OSError), match=r"\w"):
            decoded(data)


def test_inks_keep_their_meaning():
    cmyk = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    damaged = cmyk[:2] + GARBAGE["Photoshop cut off"] + cmyk[2:]
    assert 0xEE in [marker for marker, _, _ in module._segments(damaged)]
    assert np.array_equal(decoded(damaged), decoded(cmyk))


def test_metadata_of_a_webp_cost_no_image():
    image = gradient(64, 48)
    plain = decoded(encoded(image, "WEBP", lossless=True))
    for more in ({"exif": b"garbage"}, {"exif": b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x09"}, {"xmp": b"\xff<garbage"},
                 {"icc_profile": b"garbage"}, {"exif": b"II"}):
        assert np.array_equal(decoded(encoded(image, "WEBP", lossless=True, **more)), plain), more


def test_extensions_of_a_gif_cost_no_image():
    data = encoded(gradient(32, 24).quantize(32), "GIF")
    place = data.index(b"\x2c\0\0\0\0")  # the image
    for added in (b"\x21\xfe\x05\xff\xfe\x80zz\0", b"\x21\xff\x0bXMP DataXMP\x03zzz\0", b"\x21\xff\x0bNETSCAPE2.0\0",
                  b"\x21\xff\0", b"\x21\x01\x02zz\0", b"\x21\xfe\0"):
        assert np.array_equal(decoded(data[:place] + added + data[place:]), decoded(data)), added


def bmp(pixels: np.ndarray, profile: bytes = b"") -> bytes:
    """A 32-bit BMP file with a V5 header and a mask of the opacity; pixels (h, w, 4) RGBA."""
    height, width = pixels.shape[:2]
    content = np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(content), 2835, 2835, 0, 0) + masks
    header = (header + b"BGRs").ljust(124, b"\xff" if profile else b"\0")
    return struct.pack("<2sIHHI", b"BM", 138 + len(content), 0, 0, 138) + header + content + profile


def test_a_bmp_whose_opacities_are_all_zero_is_opaque():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 7, 4), np.uint8)
    pixels[..., 3] = 0
    assert np.array_equal(decoded(bmp(pixels)), pixels[..., :3])
    assert np.array_equal(decoded(bmp(pixels, b"garbage")), pixels[..., :3])
    pixels[0, 0, 3] = 255  # now the others are transparent
    got = decoded(bmp(pixels))
    assert got[0, 0].tolist() == pixels[0, 0, :3].tolist()
    assert (got.reshape(-1, 3)[1:] == 255).all()
