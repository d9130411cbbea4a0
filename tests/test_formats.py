"""AVIF and HEIC: the right pixels, by content, and nothing but exceptions from damaged files."""

import io
import json
import subprocess
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from mocoembed.config import EmbedConfig
from mocoembed.data import formats
from mocoembed.data.decode import EncodedImage
from mocoembed.data.images import scan
from mocoembed.embed.extract import embed_images
from mocoembed.errors import CollectionError, UnreadableImage

KINDS = ("AVIF", "HEIF")
pillow_heif.register_heif_opener()  # to save; what is tested does not need it


def scene(mode: str = "RGB", width: int = 96, height: int = 64) -> Image.Image:
    """Smooth colours, different in each quarter, which every codec keeps."""
    down, across = np.mgrid[0:height, 0:width].astype(np.float64)
    bands = [255 * across / width, 255 * down / height, 255 - 200 * across / width, 255 * (across > width / 2)]
    pixels = np.stack(bands, axis=2).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels if mode == "RGBA" else pixels[..., :3]))


def encoded(image: Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"quality": 95, **more})
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(EncodedImage(data).rgb()).astype(int)


def difference(one, other) -> float:
    """The mean over all samples of the absolute difference, in levels of 255."""
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_pixels(kind):
    assert difference(decoded(encoded(scene(), kind)), scene()) < 3
    grey = scene().convert("L")
    assert difference(decoded(encoded(grey, kind)), np.asarray(grey)[..., None]) < 3


@pytest.mark.parametrize("kind", KINDS)
def test_transparency_is_laid_over_white(kind):
    image = scene("RGBA")
    white = Image.new("RGBA", image.size, "white")
    assert difference(decoded(encoded(image, kind)), Image.alpha_composite(white, image).convert("RGB")) < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(scene(), kind, exif=exif.tobytes())
    upright = scene()
    upright.getexif()[0x112] = orientation
    upright = ImageOps.exif_transpose(upright)
    ours = EncodedImage(data)
    assert (ours.width, ours.height) == upright.size
    assert difference(ours.rgb(), upright) < 3


def test_more_than_eight_bits():
    deep = np.asarray(scene()).astype(np.uint16) * 257
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", scene().size, deep.tobytes()).save(buffer, quality=95)
    assert EncodedImage(buffer.getvalue())._image.info["bit_depth"] > 8
    assert difference(decoded(buffer.getvalue()), scene()) < 3


def test_the_first_image_of_an_animation():
    data = encoded(scene(), "AVIF", save_all=True, append_images=[scene().rotate(180)])
    assert difference(decoded(data), scene()) < 3


@pytest.mark.parametrize(("kind", "name"), [("AVIF", "a.jpg"), ("HEIF", "b.JPG"), ("HEIF", "c.png"),
                                             ("AVIF", "d.heic")])
def test_the_content_decides(tmp_path, kind, name):
    (tmp_path / name).write_bytes(encoded(scene(), kind))
    listing = scan(tmp_path)
    assert len(listing) == 1
    assert difference(decoded(listing.read(0)[0]), scene()) < 3


@pytest.mark.parametrize("start", [b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_jpeg_xl_is_named_whatever_the_suffix(tmp_path, start):
    (tmp_path / "phone.jpg").write_bytes(start + bytes(64))
    with pytest.raises(UnreadableImage, match=r"^JPEG XL is not read; convert it, for example with djxl$"):
        EncodedImage((tmp_path / "phone.jpg").read_bytes())
    (tmp_path / "phone.jpg").rename(tmp_path / "photo.jxl")
    with pytest.raises(CollectionError, match=r"skipped 1 file: 1 \.jxl \(JPEG XL is not read\)"):
        scan(tmp_path)


def test_brands():
    def of(*brands):
        return (8 + 4 * (len(brands) + 1)).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])

    assert formats.kind_of(of(b"mif1", b"mif1", b"heic")) == "HEIF"
    assert formats.kind_of(of(b"mif1", b"miaf", b"avif")) == "AVIF"
    assert formats.kind_of(of(b"isom", b"mp42")) is None
    assert formats.kind_of(of(b"isom")[:9]) is None
    assert formats.kind_of(b"\xff\x0a" + bytes(20)) == "JPEG XL"
    assert formats.kind_of(b"") is None


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_errors(kind):
    data = encoded(scene(), kind)
    whole = decoded(data)
    for cut in np.unique(np.linspace(0, len(data) - 1, 64).astype(int)):
        try:
            pixels = decoded(data[:cut])
        except Exception:
            continue
        assert np.array_equal(pixels, whole), cut


FUZZ = """
import sys
import numpy as np
from mocoembed.data.decode import EncodedImage
data, first, count = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
for seed in range(first, first + count):
    random, damaged = np.random.default_rng(seed), bytearray(data)
    damaged[random.integers(0, len(data))] ^= int(random.integers(1, 256))
    try:
        EncodedImage(bytes(damaged)).rgb()
    except Exception:
        pass
"""


def flipped(path, first: int, count: int):
    """Decode that many files with one byte flipped, in a process of its own, which must come to its end."""
    subprocess.run([sys.executable, "-c", FUZZ, str(path), str(first), str(count)], check=True, timeout=300)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_raise_nothing_but_exceptions(tmp_path, kind):
    (tmp_path / "image").write_bytes(encoded(scene(), kind))
    flipped(tmp_path / "image", 0, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_many_flipped_bytes_raise_nothing_but_exceptions(tmp_path, kind, mode):
    (tmp_path / "image").write_bytes(encoded(scene(mode), kind))
    flipped(tmp_path / "image", 1000, 400)


def test_without_the_package_every_heic_image_fails_with_the_extra(tmp_path, monkeypatch, fresh_workspace):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.heic", "c.MOV", ".hidden"):
        (folder / name).write_bytes(encoded(scene(), "HEIF"))
    (folder / "good.avif").write_bytes(encoded(scene(), "AVIF"))
    result = embed_images(EmbedConfig(str(folder), workspace=str(fresh_workspace), workers=0, device="cpu",
                                      fresh=True))
    assert [(one.path, one.error, one.reason) for one in result.failed] == [
        (b"a.jpg", "UnreadableImage", "HEIC: pip install 'mocoembed[heif]'")]
    assert result.skipped == {".heic": 1, ".mov": 1, "hidden": 1}
    assert len(scan(folder / "b.heic")) == 1  # what is named is tried
    with pytest.raises(UnreadableImage, match="HEIC: pip install"):
        EncodedImage(scan(folder / "b.heic").read(0)[0])
    (folder / "a.jpg").unlink()
    (folder / "good.avif").unlink()
    with pytest.raises(CollectionError, match=r"skipped 3 files: 1 .heic \(pip install 'mocoembed\[heif\]'\), 1 .mov"):
        scan(folder)


def test_no_decoder_is_loaded_before_its_first_image():
    script = ("import sys, mocoembed.data.loader, PIL.Image; "
              "assert not {'pillow_heif', '_pillow_heif', 'PIL.AvifImagePlugin'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_take_too_much_memory_is_not_decoded(kind, monkeypatch):
    data = encoded(scene(), kind)
    EncodedImage(data).reduce(1)
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", len(data) + 10 * 96 * 64)  # 11 or more are needed
    with pytest.raises(UnreadableImage, match=rf"96 x 64 pixels \({kind}, RGB\) take 0 MiB to decode"):
        EncodedImage(data).rgb()


LYING = """
import resource, sys
from mocoembed.data import decode
decode.MOST_MEMORY = int(sys.argv[2])
before = resource.getrlimit(resource.RLIMIT_DATA)
try:
    decode.EncodedImage(open(sys.argv[1], "rb").read()).rgb()
except Exception as error:
    print(type(error).__name__)
assert resource.getrlimit(resource.RLIMIT_DATA) == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_lies_about_the_size_costs_no_more_memory(tmp_path, kind):
    """The coded frame takes more than the limit; the header says 64 x 64. In a process that has no memory to reuse."""
    width, height, more = (2400, 1600, {"speed": 10}) if kind == "AVIF" else (1200, 800, {})
    data = bytearray(encoded(scene(width=width, height=height), kind, quality=30, **more))
    place = data.index(b"ispe") + 8
    assert int.from_bytes(data[place:place + 4], "big") >= width
    data[place:place + 8] = (64).to_bytes(4, "big") * 2
    (tmp_path / "lying").write_bytes(data)
    run = subprocess.run([sys.executable, "-c", LYING, str(tmp_path / "lying"), str(1 << 20)], capture_output=True,
                         text=True, check=True, timeout=120)
    assert run.stdout.strip() in ("OSError", "ValueError", "RuntimeError", "MemoryError")


def test_embed_says_what_it_skips_and_why(tmp_path, fresh_workspace):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.heic").write_bytes(encoded(scene(), "HEIF"))
    (folder / "b.avif").write_bytes(encoded(scene(), "AVIF"))
    for name in ("c.mov", "d.mov", "e.txt", "f.dng", ".g"):
        (folder / name).touch()
    run = subprocess.run([sys.executable, "-m", "mocoembed", "embed", str(folder), "--workspace", str(fresh_workspace),
                          "--device", "cpu", "--fresh", "--json"], capture_output=True, text=True, check=True)
    assert "skipped 5 files: 2 .mov, 1 .dng (RAW photographs are not read), 1 .txt, 1 hidden" in run.stderr
    told = json.loads(run.stdout)
    assert (told["embedded"], told["failed"]) == (2, 0)
    assert told["skipped"] == {".mov": 2, ".txt": 1, ".dng": 1, "hidden": 1}
