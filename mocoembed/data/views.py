"""A view's parameters, drawn by counting; applying them.

`draw` gives every random number of one view as a function of (seed, epoch, index, view) alone, so that views do
not depend on workers, batch size, processes or an interruption. `crop` (in the workers, per image) makes uint8
crops; `apply_views` (on the device, in batches) does the rest and gives normalised floats.

The distributions are those of torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur,
RandomSolarize and RandomHorizontalFlip, as the MoCo recipes use them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from mocoembed.data.uploads import uploaded_together

ATTEMPTS = 10  # boxes tried before RandomResizedCrop falls back to the middle
RATIO = (3 / 4, 4 / 3)
DRAWS = 2 * ATTEMPTS + 16
PURPOSE_VIEW, PURPOSE_ORDER, PURPOSE_SHUFFLE, PURPOSE_LIMIT, PURPOSE_BANK = range(5)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
Work = list[tuple[Callable, torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class ViewSettings:
    """How crops become views: the fields of `PretrainConfig` with the same names."""

    jitter: tuple[float, float, float, float]
    jitter_probability: float
    grey_probability: float
    grey_first: bool
    blur_probability: float
    blur_sigma: tuple[float, float]
    solarize_probability: float
    flip_probability: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, config) -> "ViewSettings":
        """The view settings within a `PretrainConfig`."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


class ViewParameters(NamedTuple):
    """What to do to each of N crops. Tensors on the CPU."""

    flip: torch.Tensor
    """(N,) bool."""
    jitter: torch.Tensor
    """(N,) bool."""
    factors: torch.Tensor
    """(N, 4) float32: brightness, contrast, saturation (factors) and hue (turns)."""
    order: torch.Tensor
    """(N, 4) int64: the jitter operation that comes first, second, third and fourth."""
    grey: torch.Tensor
    """(N,) bool."""
    sigma: torch.Tensor
    """(N,) float32: standard deviation of the blur in pixels; 0 for none."""
    solarize: torch.Tensor
    """(N,) bool."""


def generator(seed: int, purpose: int, *counter: int) -> np.random.Generator:
    """A counter-based generator (Philox) that is a function of its arguments alone; up to three counters."""
    padded = (0, *counter, *(0,) * (3 - len(counter)))
    return np.random.Generator(np.random.Philox(key=(seed, purpose), counter=padded))


class Draws:
    """`draws(epoch, index, view)`: (DRAWS,) float64 in [0, 1), all the randomness of one view of one image.

    The numbers are those of `generator(seed, PURPOSE_VIEW, view, index, epoch)`; one generator, set to each counter in
    turn, gives them in a fifth of the time.
    """

    def __init__(self, seed: int):
        self._generator = generator(seed, PURPOSE_VIEW)
        self._state = self._generator.bit_generator.state

    def __call__(self, epoch: int, index: int, view: int) -> np.ndarray:
        self._state["state"]["counter"][1:] = view, index, epoch
        self._generator.bit_generator.state = self._state
        return self._generator.random(DRAWS)


def draw(seed: int, epoch: int, index: int, view: int) -> np.ndarray:
    """(DRAWS,) float64 in [0, 1): all the randomness of one view of one image."""
    return Draws(seed)(epoch, index, view)


def crop_box(draws: np.ndarray, width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """The random crop (left, top, right, bottom) in an image of that size, as RandomResizedCrop draws it."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area_draw, ratio_draw in zip(draws[:ATTEMPTS], draws[ATTEMPTS:2 * ATTEMPTS]):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(draws[2 * ATTEMPTS] * (width - w + 1))
            top = int(draws[2 * ATTEMPTS + 1] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def colour_parameters(draws: np.ndarray, settings: ViewSettings) -> ViewParameters:
    """What `apply_views` needs, from the draws (N, DRAWS) of N views."""
    u = draws[:, 2 * ATTEMPTS + 2:]
    strength = np.array(settings.jitter)
    low = np.maximum(0.0, 1.0 - strength)
    high = 1.0 + strength
    low[HUE], high[HUE] = -strength[HUE], strength[HUE]
    sigma = settings.blur_sigma[0] + (settings.blur_sigma[1] - settings.blur_sigma[0]) * u[:, 12]
    return ViewParameters(
        flip=torch.from_numpy(u[:, 0] < settings.flip_probability),
        jitter=torch.from_numpy(u[:, 1] < settings.jitter_probability),
        factors=torch.from_numpy((low + (high - low) * u[:, 2:6]).astype(np.float32)),
        order=torch.from_numpy(np.argsort(u[:, 6:10], axis=1)),
        grey=torch.from_numpy(u[:, 10] < settings.grey_probability),
        sigma=torch.from_numpy(np.where(u[:, 11] < settings.blur_probability, sigma, 0.0).astype(np.float32)),
        solarize=torch.from_numpy(u[:, 13] < settings.solarize_probability),
    )


def apply_views(crops: torch.Tensor, parameters: ViewParameters, settings: ViewSettings,
                dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normalised views (N, 3, S, S) from crops (N, 3, S, S) uint8, on the crops' device.

    `parameters` are tensors on the CPU, so that choosing samples by them does not wait for the device. Order: grey
    before or after jitter as the recipe says, then blur, solarise, flip, normalise.
    """
    channels_last = crops.is_contiguous(memory_format=torch.channels_last)
    x = crops.contiguous().to(dtype).div_(255)  # the operations are two to four times as fast on planes
    for operation, rows, arguments in _uploaded(_work(parameters, settings), x):
        x[rows] = operation(x[rows], *arguments)
    x = normalize(x, settings.mean, settings.std)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _work(parameters: ViewParameters, settings: ViewSettings) -> Work:
    """What is done in turn: (operation, the rows (R,) of the samples that it is for, its argument (R,) or `None`).

    The colour jitter has four places; at each the samples are bucketed by their operation.
    """
    jitter = [(operation, parameters.jitter & (parameters.order[:, place] == number), parameters.factors[:, number])
              for place in range(4) for number, operation in enumerate((_brightness, _contrast, _saturation, _hue))]
    grey = [(_greyscale, parameters.grey, None)]
    blurring = partial(blur, largest=settings.blur_sigma[1])
    chosen = [*(grey + jitter if settings.grey_first else jitter + grey),
              (blurring, parameters.sigma > 0, parameters.sigma),
              (_solarize, parameters.solarize, None), (_mirror, parameters.flip, None)]
    work = [(operation, samples.nonzero().squeeze(1), argument) for operation, samples, argument in chosen]
    return [(operation, rows, None if argument is None else argument[rows])
            for operation, rows, argument in work if len(rows)]


def _uploaded(work: Work, x: torch.Tensor) -> Iterator[tuple[Callable, torch.Tensor, list[torch.Tensor]]]:
    """The work with its rows on the device of x, its arguments there in the dtype of x."""
    if not work:
        return
    all_rows, all_values = uploaded_together([rows for _, rows, _ in work],
                                             [values for _, _, values in work if values is not None], x.device)
    values = iter(all_values)
    for (operation, _, argument), rows in zip(work, all_rows):
        yield operation, rows, [] if argument is None else [next(values).to(x.dtype)]


def normalize(x: torch.Tensor, mean, std) -> torch.Tensor:
    """(x - mean) / std per channel, in place. x: (N, 3, H, W), 0 to 1."""
    shape = (1, 3, 1, 1)
    return x.sub_(constant(tuple(mean), x).view(shape)).div_(constant(tuple(std), x).view(shape))


def constant(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """The values as a tensor of that device and dtype, made once: a copy to a GPU would wait for it."""
    return _constant(values, like.device, like.dtype)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


def _luma(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W): ITU-R 601 luma, with torchvision's weights."""
    return 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def _blend(x: torch.Tensor, other, factors: torch.Tensor) -> torch.Tensor:
    factors = factors.view(-1, 1, 1, 1)
    return (x * factors + other * (1 - factors)).clamp_(0, 1)


def _greyscale(x):
    return _luma(x).expand_as(x)


def _solarize(x):
    return torch.where(x >= 128 / 255, 1 - x, x)


def _mirror(x):
    return x.flip(-1)


def _brightness(x, factors):
    return (x * factors.view(-1, 1, 1, 1)).clamp_(0, 1)


def _contrast(x, factors):
    return _blend(x, _luma(x).mean(dim=(2, 3), keepdim=True), factors)


def _saturation(x, factors):
    return _blend(x, _luma(x), factors)


def _hue(x, turns):
    """Turn the hue (Smith's hexcone HSV): each channel is value - chroma * trapezoid(hue + offset)."""
    value = x.amax(dim=1)  # (N, H, W)
    chroma = value - x.amin(dim=1)
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    red, green, blue = x.unbind(1)
    hue = torch.where(value == red, (green - blue) / divisor,
                      torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor))
    hue = hue + 6 * turns.view(-1, 1, 1)  # in sixths of a turn
    offsets = constant((5.0, 3.0, 1.0), hue).view(1, 3, 1, 1)
    sixth = (hue.unsqueeze(1) + offsets) % 6  # (N, 3, H, W)
    trapezoid = torch.minimum(sixth, 4 - sixth).clamp_(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * trapezoid


def blur(x: torch.Tensor, sigma: torch.Tensor, largest: float) -> torch.Tensor:
    """Gaussian blur with one sigma (pixels) per sample, edges reflected. x: (N, C, H, W), sigma: (N,).

    The kernel reaches to three times the `largest` sigma that can come, so a sample's blur is its own affair.
    """
    n, c, height, width = x.shape
    radius = min(max(1, math.ceil(3 * largest)), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(c, dim=0)  # (N C) x (2 radius + 1)
    flat = functional.pad(x, [radius] * 4, mode="reflect").reshape(1, n * c, height + 2 * radius, width + 2 * radius)
    flat = functional.conv2d(flat, kernel[:, None, :, None], groups=n * c)
    return functional.conv2d(flat, kernel[:, None, None, :], groups=n * c).view(n, c, height, width)
