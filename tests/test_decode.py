"""Damaged images: every one is refused or comes out right, and none takes the process with it."""

import io
import os
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image

from mocoembed.config import EmbedConfig
from mocoembed.data import decode as module
from mocoembed.data.decode import EncodedImage
from mocoembed.data.images import scan
from mocoembed.embed.extract import embed_images

FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "GIF": {}, "TIFF": {},
           "TIFF-LZW": {"compression": "tiff_lzw"}, "JPEG-progressive": {"progressive": True}}
PILLOW = os.environ.get("MOCOEMBED_PILLOW_IMAGES")  # Tests/images of Pillow's source distribution


def encoded(form: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((48, 40)).save(buffer, form.partition("-")[0], **FORMATS[form])
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray | None:
    """The pixels, or `None` where an exception was raised."""
    try:
        return np.asarray(EncodedImage(data).rgb())
    except Exception:
        return None


@pytest.mark.parametrize("form", FORMATS)
def test_no_truncated_image_comes_out_wrong(form):
    data = encoded(form)
    whole = decoded(data)
    cuts = np.unique(np.linspace(0, len(data) - 1, 64).astype(int))
    got = [decoded(data[:cut]) for cut in cuts]
    assert all(one is None or np.array_equal(one, whole) for one in got)
    assert all(one is None for one, cut in zip(got, cuts) if cut < 0.9 * len(data))


@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bytes_raise_nothing_but_exceptions(form):
    data, random = encoded(form), np.random.default_rng(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in random.integers(0, len(data), 200):
            damaged = bytearray(data)
            damaged[place] ^= int(random.integers(1, 256))
            pixels = decoded(bytes(damaged))
            assert pixels is None or pixels.dtype == np.uint8


def test_conversions_in_strips_are_the_same(monkeypatch):
    random = np.random.default_rng(2)
    grey = Image.fromarray(random.integers(0, 65536, (9, 7), np.uint16))
    alpha = Image.fromarray(random.integers(0, 256, (9, 7, 4), np.uint8))
    palette = alpha.convert("RGB").quantize(16)
    palette.info["transparency"] = 3
    for image in (grey, alpha, palette):
        whole = np.asarray(module.to_rgb(image.copy()))
        monkeypatch.setattr(module, "STRIP", 14)
        assert np.array_equal(np.asarray(module.to_rgb(image.copy())), whole)
        monkeypatch.undo()


@pytest.mark.skipif(not PILLOW, reason="MOCOEMBED_PILLOW_IMAGES names no folder (see .ci/run)")
def test_pillows_own_images_are_embedded_or_reported(fresh_workspace):
    result = embed_images(EmbedConfig(PILLOW, workspace=str(fresh_workspace), workers=2, device="cpu", fresh=True))
    assert result.listed == len(scan(PILLOW)) > 600
    assert result.embedded + len(result.failed) == result.listed
    assert 10 < len(result.failed) < 80
    assert all(one.error and one.reason for one in result.failed)
    assert not {"WorkerDied", "WorkerHung"} & {one.error for one in result.failed}
    broken = {pathlib.Path(os.fsdecode(one.path)).name for one in result.failed}
    assert {"truncated_image.png", "truncated_jpeg.jpg", "decompression_bomb.gif", "broken_data_stream.png"} <= broken
