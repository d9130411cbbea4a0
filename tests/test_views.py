"""Each view operation against torchvision's for the same parameters; the distributions; the counting."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional as theirs

from mocoembed.config import PretrainConfig
from mocoembed.data import crop as cropping
from mocoembed.data import views
from mocoembed.data.crop import crop
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.views import (
    DRAWS,
    PURPOSE_VIEW,
    Draws,
    ViewParameters,
    ViewSettings,
    apply_views,
    blur,
    colour_parameters,
    crop_box,
    draw,
    generator,
)

PLAIN = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0, "flip_probability": 0.0,
         "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
TWO_LEVELS = 2 / 255


def settings(**overrides):
    return ViewSettings.of(PretrainConfig.of("moco-v2", "images", **overrides))


def many_draws(count, seed=0):
    return np.stack([draw(seed, 3, index, 0) for index in range(count)])


@pytest.fixture(scope="module")
def crops():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 5, 5), 32, mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def test_draws_are_a_function_of_the_counters_alone():
    again = draw(1, 2, 3, 0)
    assert np.array_equal(draw(1, 2, 3, 0), again)
    others = [draw(2, 2, 3, 0), draw(1, 3, 3, 0), draw(1, 2, 4, 0), draw(1, 2, 3, 1)]
    assert all(np.abs(other - again).max() > 0.1 for other in others)
    assert again.shape == (DRAWS,)


def test_one_generator_set_to_each_counter_gives_what_one_for_each_would():
    draws = Draws(7)
    for counter in ((0, 0, 0), (3, 50_000, 1), (3, 50_000, 0), (0, 0, 0)):
        epoch, index, view = counter
        assert np.array_equal(draws(*counter), generator(7, PURPOSE_VIEW, view, index, epoch).random(DRAWS))


def test_draws_are_uniform_and_independent():
    u = many_draws(4000)
    assert np.abs(u.mean(axis=0) - 0.5).max() < 4 * math.sqrt(1 / 12 / 4000)
    assert np.abs(np.corrcoef(u, rowvar=False) - np.eye(DRAWS)).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (40, 400)])
def test_crop_boxes_are_distributed_as_torchvisions(size):
    width, height = size
    ours = np.array([crop_box(u, width, height, (0.2, 1.0)) for u in many_draws(3000)])
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    boxes = [transforms.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)]
    references = np.array([(left, top, left + w, top + h) for top, left, h, w in boxes])
    assert ours.min() >= 0
    assert (ours[:, 2] <= width).all()
    assert (ours[:, 3] <= height).all()
    for ask in (lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) / width / height, lambda b: b[:, 0] / width,
                lambda b: b[:, 1] / height, lambda b: (b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            spread = max(ask(references).std(), 1e-9)
            assert abs(np.quantile(ask(ours), share) - np.quantile(ask(references), share)) < 0.15 * spread + 1e-9


def test_colour_parameters_are_distributed_as_the_recipe_says():
    recipe = settings(solarize_probability=0.3)
    values = ViewParameters(*(each.numpy() for each in colour_parameters(many_draws(6000), recipe)))
    for name, share in [("flip", 0.5), ("jitter", 0.8), ("grey", 0.2), ("solarize", 0.3)]:
        assert getattr(values, name).mean() == pytest.approx(share, abs=0.025), name
    assert (values.sigma > 0).mean() == pytest.approx(0.5, abs=0.025)
    blurred = values.sigma[values.sigma > 0]
    assert (blurred.min(), blurred.max()) == pytest.approx((0.1, 2.0), abs=0.02)
    for place, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]):
        column = values.factors[:, place]
        assert (column.min(), column.max(), column.mean()) == pytest.approx((low, high, (low + high) / 2), abs=0.02)
    orders, counts = np.unique(values.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 6000 / 24 * 0.7


@pytest.mark.parametrize(("operation", "function", "values"), [
    (views.BRIGHTNESS, theirs.adjust_brightness, (0.6, 1.0, 1.4)),
    (views.CONTRAST, theirs.adjust_contrast, (0.6, 1.0, 1.4)),
    (views.SATURATION, theirs.adjust_saturation, (0.0, 0.6, 1.4)),
    (views.HUE, theirs.adjust_hue, (-0.5, -0.1, 0.05, 0.4)),
])
def test_jitter_operations_equal_torchvisions(crops, operation, function, values):
    for value in values:
        values_now = colour_parameters(many_draws(6), settings(**PLAIN))
        factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(6, 1)
        factors[:, operation] = value
        ours = apply_views(crops, values_now._replace(jitter=torch.ones(6, dtype=torch.bool), factors=factors),
                           settings(**PLAIN))
        expected = function(crops.float() / 255, value)
        assert (ours - expected).abs().max() < TWO_LEVELS


def test_jitter_in_random_order_equals_torchvisions(crops):
    plain = settings(**{**PLAIN, "jitter_probability": 1.0})
    values = colour_parameters(many_draws(6), plain)
    ours = apply_views(crops, values, plain)
    functions = (theirs.adjust_brightness, theirs.adjust_contrast, theirs.adjust_saturation, theirs.adjust_hue)
    assert len({tuple(order.tolist()) for order in values.order}) > 3
    for one, cut, order, factors in zip(ours, crops, values.order, values.factors):
        expected = cut.float() / 255
        for operation in order.tolist():
            expected = functions[operation](expected, float(factors[operation]))
        assert (one - expected).abs().max() < TWO_LEVELS


def test_grey_flip_and_solarize_equal_torchvisions(crops):
    image = crops.float() / 255
    for name, expected in [("grey", theirs.rgb_to_grayscale(image, 3)), ("flip", theirs.horizontal_flip(image)),
                           ("solarize", theirs.solarize(crops, 128).float() / 255)]:
        values = colour_parameters(many_draws(6), settings(**PLAIN))
        values = values._replace(**{name: torch.ones(6, dtype=torch.bool)})
        assert (apply_views(crops, values, settings(**PLAIN)) - expected).abs().max() < TWO_LEVELS, name


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvisions(crops, sigma):
    image = crops.float() / 255
    expected = theirs.gaussian_blur(image, [23, 23], [sigma, sigma])
    assert (blur(image, torch.full((6,), sigma), 2.0) - expected).abs().max() < TWO_LEVELS


def test_blur_has_one_sigma_for_each_sample(crops):
    image = crops.float() / 255
    sigmas = torch.tensor([0.1, 2.0, 0.7, 1.5, 0.3, 1.0])
    together = blur(image, sigmas, 2.0)
    for one, part, sigma in zip(together, image, sigmas):
        torch.testing.assert_close(one, blur(part[None], sigma[None], 2.0)[0], atol=1e-6, rtol=0)


def test_grey_comes_first_in_v1_and_last_in_v2(crops):
    always = {**PLAIN, "grey_probability": 1.0, "jitter_probability": 1.0, "jitter": (0.0, 0.0, 0.0, 0.5)}
    values = colour_parameters(many_draws(6), settings(**always))
    first = apply_views(crops, values, settings(**always, grey_first=True))
    torch.testing.assert_close(first, theirs.rgb_to_grayscale(crops.float() / 255, 3), atol=TWO_LEVELS, rtol=0)
    last = apply_views(crops, values, settings(**always))
    torch.testing.assert_close(last[:, 0], last[:, 1])
    assert (first - last).abs().max() > 0.05


def test_views_do_not_depend_on_their_neighbours(crops):
    recipe = settings()
    values = colour_parameters(many_draws(6), recipe)
    together = apply_views(crops, values, recipe)
    for i in range(6):
        alone = apply_views(crops[i:i + 1], type(values)(*(value[i:i + 1] for value in values)), recipe)
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [224, 100])
def test_crop_of_a_photograph_is_a_level_from_pillows_at_most(size):
    noise = np.random.default_rng(0).integers(0, 255, (375, 500, 3), np.uint8)
    ours = crop(Image.fromarray(noise), (13, 11, 402, 350), size).astype(int)
    expected = theirs.resized_crop(Image.fromarray(noise), 11, 13, 339, 389, [size, size],
                                   theirs.InterpolationMode.BILINEAR)
    assert np.abs(ours - np.asarray(expected)).max() <= 1


def test_crop_equals_torchvisions_resized_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    ours = crop(image, (7, 11, 60, 50), 32)
    expected = theirs.resized_crop(image, 11, 7, 39, 53, [32, 32], theirs.InterpolationMode.BILINEAR)
    assert np.array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize("box", [(7, 11, 60, 50), (0, 0, 80, 60), (3, 0, 20, 60), (10, 20, 11, 22)])
def test_crops_in_strips_and_of_arrays_are_the_same(monkeypatch, box):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    whole = crop(Image.fromarray(pixels), box, 32)
    assert np.array_equal(crop(pixels, box, 32), whole)
    monkeypatch.setattr(cropping, "STRIP", 300)
    assert np.array_equal(crop(Image.fromarray(pixels), box, 32), whole)
    assert np.array_equal(crop(pixels, box, 32), whole)
    left, top, right, bottom = box
    theirs_whole = theirs.resized_crop(Image.fromarray(pixels), top, left, bottom - top, right - left, [32, 32],
                                       theirs.InterpolationMode.BILINEAR)
    assert np.abs(whole.astype(int) - np.asarray(theirs_whole).astype(int)).max() <= 2


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (64, 64), (33, 200), (20, 20)])
@pytest.mark.parametrize(("resize", "crop"), [(32, 32), (37, 32)])
def test_evaluation_transform_equals_torchvisions(tmp_path, size, resize, crop):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    transform = EvaluationTransform(resize, crop, (0.5,) * 3, (0.5,) * 3)
    ours = transform.pixels(EncodedImage((tmp_path / "image.png").read_bytes()))
    expected = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])(Image.fromarray(pixels))
    assert np.abs(ours.astype(int) - np.asarray(expected).astype(int)).max() <= 2


def test_a_very_long_image_needs_no_more_memory(tmp_path):
    Image.new("RGB", (60_000, 2), "red").save(tmp_path / "long.png")
    image = EncodedImage((tmp_path / "long.png").read_bytes())
    pixels = EvaluationTransform(256, 224, (0.5,) * 3, (0.5,) * 3).pixels(image)
    assert pixels.shape == (224, 224, 3)
