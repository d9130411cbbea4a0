"""Four loading processes on the largest images that are decoded: the whole process group stays below 2 GiB."""

import io
import math
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from mocoembed.data.decode import MOST_MEMORY, EncodedImage, UnreadableImage

pillow_heif.register_heif_opener()  # to save
COPIES = 8
KINDS = {  # mode, format, options, bytes for each pixel that decoding takes at its peak
    "opaque": ("RGB", "PNG", {"compress_level": 1}, 4),
    "turned": ("RGB", "PNG", {"compress_level": 1, "turned": True}, 8),
    "transparent": ("RGBA", "PNG", {"compress_level": 1}, 8),
    "palette": ("P", "PNG", {"compress_level": 1}, 5),
    "16-bit": ("I;16", "PNG", {"compress_level": 1}, 6),
    "cmyk": ("CMYK", "JPEG", {"quality": 30}, 8),
    "progressive": ("RGB", "JPEG", {"quality": 30, "progressive": True, "subsampling": 0}, 10),
    "webp": ("RGB", "WEBP", {"quality": 10, "method": 0}, 19),
    "transparent-webp": ("RGBA", "WEBP", {"quality": 10, "method": 0}, 19),
    "avif": ("RGB", "AVIF", {"quality": 10, "speed": 10}, 11.5),
    "transparent-avif": ("RGBA", "AVIF", {"quality": 10, "speed": 10}, 16.5),
    "heic": ("RGB", "HEIF", {"quality": 10}, 11),
    "turned-heic": ("RGB", "HEIF", {"quality": 10, "chroma": 444, "turned": True}, 14),
    "one-strip": ("RGB", "TIFF", {"compression": "tiff_lzw", "strip_size": 1 << 30}, 7),
}


def save(path, kind: str, side: int):
    """An image of coarse noise of that side and kind."""
    mode, form, options, _ = KINDS[kind]
    options = dict(options)
    tile = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    pixels = np.tile(tile, (-(-side // 64), -(-side // 64), 1))[:side, :side]
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3] if mode != "RGBA" else pixels))
        image = image if image.mode == mode else image.quantize(8) if mode == "P" else image.convert(mode)
    if options.pop("turned", False):
        exif = options["exif"] = Image.Exif()
        exif[0x112] = 6
    image.save(path, form, **options)


def largest_side(kind: str, tmp_path) -> int:
    """The side of the largest square image of the kind that is decoded, within 3 %."""
    save(tmp_path / "small", kind, 640)
    encoded = (tmp_path / "small").stat().st_size / 640**2
    return int(0.97 * math.sqrt(MOST_MEMORY / (KINDS[kind][3] + encoded)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_decoding_takes_is_known_before(tmp_path, monkeypatch, kind):
    """The limit is shrunk to that of little images."""
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", 1 << 20)
    monkeypatch.setattr(sys.modules[__name__], "MOST_MEMORY", 1 << 20)
    side = largest_side(kind, tmp_path)
    save(tmp_path / "fits", kind, side)
    EncodedImage((tmp_path / "fits").read_bytes()).reduce(1.0)
    save(tmp_path / "larger", kind, int(1.1 * side))
    with pytest.raises(UnreadableImage, match=rf"{int(1.1 * side)} x {int(1.1 * side)} pixels \({KINDS[kind][1]}, "
                                                r".* take 1 MiB to decode; at most 1 MiB are spent"):
        EncodedImage((tmp_path / "larger").read_bytes()).reduce(1.0)


def test_the_limit_can_be_raised_by_what_the_refusal_says(monkeypatch):
    """For images from a source that is trusted; a bomb is refused without this advice."""
    monkeypatch.setattr("mocoembed.data.decode.MOST_MEMORY", 1 << 20)
    large = io.BytesIO()
    Image.new("RGB", (1000, 600)).save(large, "WEBP")
    with pytest.raises(UnreadableImage, match=r"at most 1 MiB are spent on an image \(.*\)$") as refused:
        EncodedImage(large.getvalue()).rgb()
    advice = re.search(r"\((MOCOEMBED_IMAGE_MEMORY)=(\d+MiB) allows it\)", str(refused.value))
    monkeypatch.setenv(*advice.groups())
    assert EncodedImage(large.getvalue()).rgb().size == (1000, 600)
    monkeypatch.setattr("mocoembed.data.decode.ADVISED", 1 << 20)
    monkeypatch.setenv("MOCOEMBED_IMAGE_MEMORY", "1MB")
    with pytest.raises(UnreadableImage, match=r"at most 0 MiB are spent on an image$"):
        EncodedImage(large.getvalue()).rgb()


@pytest.mark.parametrize("size", ["12", "much", "0GB"])
def test_a_limit_that_is_no_size_ends_the_command(size):
    run = subprocess.run([sys.executable, "-m", "mocoembed", "embed", "nowhere"], capture_output=True, text=True,
                         env={**os.environ, "MOCOEMBED_IMAGE_MEMORY": size}, timeout=60)
    assert (run.returncode, run.stderr) == (
        2, f"mocoembed: MOCOEMBED_IMAGE_MEMORY={size}: must be a size such as 4GB, 500MB or 2.5GiB.\n")


def proportional_set_size(group: int) -> int:
    """Bytes of all processes of a process group, shared pages counted once."""
    total = 0
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                line = next(line for line in (folder / "smaps_rollup").read_text().splitlines() if "Pss:" in line)
                total += int(line.split()[1]) * 1024
        except (OSError, StopIteration):  # it has ended
            continue
    return total


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", ["embed", "pretrain"])
@pytest.mark.parametrize("kind", KINDS)
def test_four_processes_on_the_largest_images_stay_below_two_gib(tmp_path, fresh_workspace, kind, command):
    folder = tmp_path / "large"
    folder.mkdir()
    save(folder / "0.png", kind, largest_side(kind, tmp_path))
    for copy in range(1, COPIES):
        os.link(folder / "0.png", folder / f"{copy}.png")
    more = {"embed": ["--fresh", "--batch-size", "1"],
            "pretrain": ["--recipe", "small", "--batch-size", "2", "--bn-groups", "1", "--queue-size", "64",
                         "--epochs", "2", "--width", "0.25"]}[command]
    with subprocess.Popen([sys.executable, "-m", "mocoembed", command, str(folder), "--workspace", str(fresh_workspace),
                           "--workers", "4", "--device", "cpu", *more], start_new_session=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, proportional_set_size(process.pid))
            time.sleep(0.02)
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert "take" not in said  # none was refused
    print(f"{kind}, {command}: {peak / 2**20:.0f} MiB")
    assert peak < 2 << 30
