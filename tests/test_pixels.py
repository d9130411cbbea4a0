"""Features without an encoder, against colorsys, loops and scikit-image; and reading the images of a side."""

import colorsys
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mocoembed.config import EmbedConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError
from mocoembed.evaluate.pixels import (
    SIZE,
    colour_histogram,
    gradients_histogram,
    raw_pixels,
    read_pixels,
)
from mocoembed.evaluate.sides import read_side


@pytest.fixture(scope="module")
def pixels():
    """Noise, a smooth image, all of one colour, black, white."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:4, :4]).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.stack([noise, smooth, np.full_like(noise, 77), np.zeros_like(noise), np.full_like(noise, 255)])


def test_raw_pixels_have_no_mean(pixels):
    vectors = raw_pixels(pixels)
    assert vectors.shape == (5, 3 * SIZE * SIZE)
    assert vectors.mean(axis=1) == pytest.approx(0, abs=1e-4)
    assert vectors[0, 5] - vectors[0, 6] == float(pixels[0].ravel()[5]) - float(pixels[0].ravel()[6])


def test_colour_histogram_is_colorsys(pixels):
    counted = np.zeros((len(pixels), 512))
    for i, image in enumerate(pixels):
        for red, green, blue in image.reshape(-1, 3) / 255:
            hue, saturation, value = (min(7, int(8 * one)) for one in colorsys.rgb_to_hsv(red, green, blue))
            counted[i, 64 * hue + 8 * saturation + value] += 1
    # a pixel on the border of two bins may fall into either, as colorsys rounds in another way
    assert np.abs(colour_histogram(pixels) ** 2 - counted / SIZE ** 2).sum(axis=1).max() < 0.02
    assert (colour_histogram(pixels) ** 2).sum(axis=1) == pytest.approx(1)


def hog_by_loops(image):
    """Dalal and Triggs by the definition: nine orientations, cells of 8 pixels, blocks of 2 x 2 cells, L2-Hys."""
    grey = image.astype(float) @ [0.2125, 0.7154, 0.0721] / 255
    cells = np.zeros((SIZE // 8, SIZE // 8, 9))
    for y in range(SIZE):
        for x in range(SIZE):
            down = grey[y + 1, x] - grey[y - 1, x] if 0 < y < SIZE - 1 else 0.0
            across = grey[y, x + 1] - grey[y, x - 1] if 0 < x < SIZE - 1 else 0.0
            angle = math.degrees(math.atan2(down, across)) % 180
            cells[y // 8, x // 8, min(8, int(angle / 20))] += math.hypot(down, across) / 64
    found = []
    for i in range(SIZE // 8 - 1):
        for j in range(SIZE // 8 - 1):
            block = cells[i:i + 2, j:j + 2].ravel()
            block = np.minimum(block / math.sqrt((block ** 2).sum() + 1e-10), 0.2)
            found.extend(block / math.sqrt((block ** 2).sum() + 1e-10))
    return found


def test_hog_is_that_of_loops(pixels):
    vectors = gradients_histogram(pixels)
    assert vectors.shape == (5, 3 * 3 * 4 * 9)
    for image, vector in zip(pixels[:2], vectors):
        assert vector == pytest.approx(hog_by_loops(image), abs=1e-3)
    assert np.abs(vectors[2:]).max() < 1e-3  # no gradient


def test_hog_is_scikit_images(pixels):
    feature = pytest.importorskip("skimage.feature")
    grey = pixels[0].astype(np.float32) @ np.array([0.2125, 0.7154, 0.0721], np.float32) / 255
    expected = feature.hog(grey, 9, (8, 8), (2, 2))
    assert gradients_histogram(pixels[:1])[0] == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def embedded(tmp_path, fresh_workspace, make_images):
    """A folder of twelve images and its embeddings."""
    folder, path = make_images(tmp_path / "photos", per_class=4), tmp_path / "photos.h5"
    embed_images(EmbedConfig(str(folder), workspace=str(fresh_workspace), output=str(path), workers=0, device="cpu"))
    return folder, path


def side_of(path):
    with EmbeddingFile(path) as file:
        return read_side(file, torch.device("cpu"))


def test_images_are_read_in_the_order_of_the_rows(embedded):
    folder, path = embedded
    pixels = read_pixels(side_of(path))
    assert pixels.shape == (12, SIZE, SIZE, 3)
    with Image.open(folder / "green" / "001.jpg") as image:
        colour = np.asarray(image.convert("RGB").resize((8, 8))).mean(axis=(0, 1))
    assert pixels[5].mean(axis=(0, 1)) == pytest.approx(colour, abs=8)


def test_an_image_that_has_gone_or_changed_is_said(embedded):
    folder, path = embedded
    shutil.copy(folder / "red" / "000.png", folder / "red" / "002.png")
    with pytest.raises(CollectionError, match=r"002.png': it has changed since it was embedded"):
        read_pixels(side_of(path))
    (folder / "red" / "002.png").unlink()
    with pytest.raises(CollectionError, match=r"002.png': it is not there"):
        read_pixels(side_of(path))
