"""The generated collection: repeatable, balanced, and told apart by nothing simpler than its classes."""

import inspect

import numpy as np
import pytest
from PIL import Image

from mocoembed.data import sample
from mocoembed.data.sample import CLASSES, draw_image, write_collection

BANK, QUERIES = 2000, 400
CHANCE = 1 / len(CLASSES)
KNOWN_MEANS = [78.36, 109.72, 70.07, 100.3, 136.14, 147.51, 156.71, 161.05, 157.73, 172.97, 135.99, 141.27]


@pytest.fixture(scope="module")
def images():
    """(2400, 64, 64, 3) uint8 and (2400,) classes, of one seed."""
    drawn = [draw_image(seed=0, index=index) for index in range(BANK + QUERIES)]
    return np.stack([pixels for pixels, _ in drawn]), np.array([label for _, label in drawn])


def knn_accuracy(features, labels, k=20, temperature=0.1):
    """Weighted cosine vote of the last QUERIES rows against the first BANK."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features[BANK:] @ features[:BANK].T  # queries x bank
    nearest = np.argsort(-similarity, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(similarity, nearest, 1) / temperature)
    votes = (weight[..., None] * (labels[nearest][..., None] == np.arange(len(CLASSES)))).sum(1)
    return np.mean(votes.argmax(1) == labels[BANK:])


def ridge_accuracy(features, labels, penalty=1.0):
    """Linear classifier by least squares on standardised features, same split."""
    features = (features - features[:BANK].mean(0)) / (features[:BANK].std(0) + 1e-9)
    features = np.c_[features, np.ones(len(features))]
    bank, target = features[:BANK], np.eye(len(CLASSES))[labels[:BANK]]
    weights = np.linalg.solve(bank.T @ bank + penalty * np.eye(bank.shape[1]), bank.T @ target)
    return np.mean((features[BANK:] @ weights).argmax(1) == labels[BANK:])


def colour_statistics(pixels):
    """(n, 76) means, deviations, brightness quantiles and histograms: all that ignores where a pixel is."""
    flat = pixels.reshape(len(pixels), -1, 3).astype(np.float64)
    grey = flat.mean(2)
    histograms = [
        [np.histogram(values, 16, (0, 256))[0] for values in (*image.T, image.mean(1))]
        for image in flat[:, ::4]
    ]
    quantiles = np.quantile(grey, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).T
    return np.c_[flat.mean(1), flat.std(1), grey.std(1), quantiles, np.reshape(histograms, (len(flat), -1))]


def test_an_image_is_rgb_bytes_and_a_class():
    pixels, label = draw_image(seed=3, index=13)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert CLASSES[label] == "ringed-crescent"


def test_an_image_depends_on_seed_and_index_alone():
    forwards = [draw_image(1, index)[0] for index in range(16)]
    backwards = [draw_image(1, index)[0] for index in reversed(range(16))][::-1]
    assert np.array_equal(forwards, backwards)
    drawn = {draw_image(seed, index)[0].tobytes() for seed in (1, 2) for index in range(16)}
    assert len(drawn) == 32


def test_large_seeds_and_indices_work():
    assert draw_image(2**63 - 1, 10**9)[0].shape == (64, 64, 3)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed, index):
    with pytest.raises(ValueError, match="0 or more"):
        draw_image(seed, index)


def test_images_are_the_known_ones():
    """Block means of images drawn when this was written: a change makes all reported figures void."""
    pixels = np.stack([draw_image(0, index)[0] for index in (0, 1, 2399)])
    means = pixels.reshape(3, 2, 32, 2, 32, 3).mean((2, 4, 5)).ravel()
    assert means == pytest.approx(KNOWN_MEANS, abs=0.05)


def test_files_are_the_same_however_they_are_written(tmp_path):
    whole = write_collection(tmp_path / "whole", count=24, seed=5)
    write_collection(tmp_path / "parts", count=9, seed=5, first=15)
    write_collection(tmp_path / "parts", count=15, seed=5)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "parts") for path in (tmp_path / "parts").rglob("*") if path.is_file()
    )
    assert len(files) == 24
    for name in files:
        assert (whole / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_files_hold_the_images_in_folders_of_their_class(tmp_path):
    done = []
    folder = write_collection(tmp_path, count=8, seed=0, first=8, progress=done.append)
    assert folder == tmp_path
    assert done == list(range(1, 9))
    for index in range(8, 16):
        pixels, label = draw_image(0, index)
        with Image.open(tmp_path / CLASSES[label] / f"{index:05d}.jpg") as image:
            difference = np.asarray(image).astype(float) - pixels
        assert np.abs(difference.reshape(8, 8, 8, 8, 3).mean((1, 3))).max() < 6  # JPEG keeps blocks' means


def test_damaged_files_are_replaced_and_equal_ones_left_alone(tmp_path):
    write_collection(tmp_path, count=2)
    damaged, equal = tmp_path / CLASSES[0] / "00000.jpg", tmp_path / CLASSES[1] / "00001.jpg"
    original = damaged.read_bytes()
    damaged.write_bytes(original[:100])
    inode = equal.stat().st_ino
    write_collection(tmp_path, count=2)
    assert damaged.read_bytes() == original
    assert equal.stat().st_ino == inode


def test_a_count_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="count must be 1 or more, not 0"):
        write_collection(tmp_path / "none", count=0)
    assert not (tmp_path / "none").exists()


def test_classes_are_balanced(images):
    _, labels = images
    assert len(CLASSES) == len(set(CLASSES)) == 8
    assert np.bincount(labels).tolist() == [300] * 8


def test_the_scene_does_not_know_the_class():
    assert list(inspect.signature(sample.draw_scene).parameters) == ["rng"]


@pytest.mark.parametrize(("name", "shape", "area", "pattern"), sample._RECIPES)
def test_shapes_cover_the_stated_area_and_patterns_half_of_theirs(name, shape, area, pattern):
    y, x = np.mgrid[-2:2:800j, -2:2:800j]
    assert (shape(x, y) < 0).mean() * 16 == pytest.approx(area, rel=0.01)
    assert (pattern(8 * x, 8 * y) < 0).mean() == pytest.approx(0.5, abs=0.03)


def test_colour_and_brightness_do_not_tell_the_class(images):
    """Chance is 0.125, with a standard error of 0.017; with areas left unequal the first reaches 0.29."""
    pixels, labels = images
    features = colour_statistics(pixels)
    assert ridge_accuracy(features, labels) < 0.22
    assert knn_accuracy(features - features[:BANK].mean(0), labels) < 0.22


@pytest.mark.parametrize("centred", [False, True])
def test_pixels_are_far_from_telling_the_class(images, centred):
    pixels, labels = images
    features = pixels.reshape(len(pixels), -1).astype(np.float32)
    if centred:
        features = features - features[:BANK].mean(0)
    assert CHANCE < knn_accuracy(features, labels) < 0.35
