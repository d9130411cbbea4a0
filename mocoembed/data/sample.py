"""A generated, labelled image collection, for the demo and for tests.

In: a seed and an image's index. Out: (64, 64, 3) uint8 RGB and a class number, or a JPEG file
``<folder>/<class>/<index>.jpg``.

A class is a shape filled with a pattern, such as a disc with stripes. Everything else (place, size, rotation,
tilt, the pattern's pitch, phase and direction, all colours, background, clutter, lighting, noise) is drawn
without knowing the class; every shape covers the same area, and every pattern is half one colour and half
the other. So colour, brightness and size say nothing about the class and pixels compared one by one say
little, while what survives cropping, flipping and recolouring says all of it.

An image is a function of (seed, index) alone: a counter-based generator is set to the index, so order and
number do not matter. Pixels repeat to the bit with one NumPy on one kind of processor, files also need the
same Pillow.
"""

import io
import math
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mocoembed import files

SIDE = 64  # pixels
JPEG_QUALITY = 95
PALETTES = 32  # drawn for each image, to choose one whose colours stand apart

_STREAM = 0x73616D706C65  # "sample": second word of the key, keeps these draws apart from others of the seed
_TAU = 2 * math.pi


def pixel_grid(side: int) -> np.ndarray:
    """(2, side, side) float32: x and y of every pixel, from the middle of the image."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) - np.float32((side - 1) / 2)
    return np.stack([columns, rows])


_GRID = pixel_grid(SIDE)

# Shapes: (x, y) in the shape's own units -> signed distance to the outline, below 0 inside.


def _disc(x, y):
    return np.hypot(x, y) - 1


def _triangle(x, y):
    angle = np.mod(np.arctan2(y, x), _TAU / 3) - math.pi / 3
    return np.hypot(x, y) * np.cos(angle) - 0.5


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 1


def _star(x, y, notch=0.45):
    """Five points at radius 1, five notches at radius `notch`."""
    angle = np.abs(np.mod(np.arctan2(y, x), _TAU / 5) - math.pi / 5)  # 0 at a notch, pi / 5 at a point
    radius = np.hypot(x, y)
    along, across = math.cos(math.pi / 5) - notch, math.sin(math.pi / 5)  # the edge, from notch to point
    distance = (radius * np.cos(angle) - notch) * across - radius * np.sin(angle) * along
    return distance / math.hypot(along, across)


def _cross(x, y):
    """Two bars, 2 long and 0.72 wide."""
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - 0.36)


def _crescent(x, y):
    return np.maximum(np.hypot(x + 0.25, y) - 1, 0.8 - np.hypot(x - 0.3, y))


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _heart(x, y):
    """A square standing on its corner, with half discs on the two upper sides."""
    x, y = np.abs(x), y - 0.1
    return np.minimum((x + np.abs(y) - 1) / math.sqrt(2), np.hypot(x - 0.5, y + 0.5) - math.sqrt(0.5))


# Patterns: (x, y) in pitches -> signed distance to the border between the two colours, half the area each.


def _wave(t):
    """Triangle wave of period 1 and slope 1, between -1/4 and 1/4."""
    return np.abs(np.mod(t, 1) - 0.5) - 0.25


def _stripes(x, y):
    return _wave(x)


def _dots(x, y):
    """One disc in each cell of a grid, every other row shifted by half a cell."""
    x = x + 0.5 * np.mod(np.floor(y), 2)
    return np.hypot(np.mod(x, 1) - 0.5, np.mod(y, 1) - 0.5) - math.sqrt(0.5 / math.pi)


def _checks(x, y):
    x, y = _wave(x / 1.4), _wave(y / 1.4)
    return 1.4 * np.sign(x * y) * np.minimum(np.abs(x), np.abs(y))


def _rays(x, y, rays=9):
    return np.hypot(x, y) * _wave(np.arctan2(y, x) * (rays / _TAU)) * (_TAU / rays)


def _zigzag(x, y):
    return 0.7 * _wave(x + 2 * _wave(y / 1.6))


def _rings(x, y):
    return _wave(np.hypot(x, y))


def _bricks(x, y, length=1.8, height=0.9, mortar=0.172):
    x = x + 0.5 * length * np.mod(np.floor(y / height), 2)
    x, y = np.mod(x, length), np.mod(y, height)  # then the distance to the nearest edge of the cell
    return np.minimum(np.minimum(x, length - x), np.minimum(y, height - y)) - mortar


def _mottles(x, y):
    """Irregular patches: five plane waves in directions that fit no lattice."""
    angles = [math.pi * turn for turn in (0, 0.21, 0.39, 0.62, 0.81)]
    x, y = (x + 11.3) * (_TAU / 1.4), (y + 5.7) * (_TAU / 1.4)  # the offset keeps their common crest away
    return sum(np.cos(x * math.cos(angle) + y * math.sin(angle)) for angle in angles) / 7


# Name, shape, its area in its own units, pattern.
_RECIPES = (
    ("striped-disc", _disc, math.pi, _stripes),
    ("dotted-triangle", _triangle, 1.299, _dots),
    ("checked-square", _square, 4.0, _checks),
    ("rayed-star", _star, 1.323, _rays),
    ("zigzag-cross", _cross, 2.362, _zigzag),
    ("ringed-crescent", _crescent, 1.612, _rings),
    ("brick-ring", _ring, 2.356, _bricks),
    ("mottled-heart", _heart, 3.571, _mottles),
)

CLASSES: tuple[str, ...] = tuple(name for name, *_ in _RECIPES)
"""The class names, by class number; the folders of a collection are named after them."""


@dataclass(frozen=True)
class Scene:
    """All that varies within a class, drawn without knowing the class. Arrays are float32, lengths pixels."""

    radius: float  # of the disc of the object's area
    pitch: float  # period of the pattern
    centre: np.ndarray  # (2,) x and y of the object, from the middle of the image
    frame: np.ndarray  # (2, 2) rotation and tilt, determinant 1: from the image's axes to the object's
    turn: np.ndarray  # (2, 2) rotation from the object's axes to the pattern's
    phase: np.ndarray  # (2,) offset of the pattern, in pitches
    colours: np.ndarray  # (4, 3) RGB in 0..1: two of the object, two of the background
    clouds: np.ndarray  # (4, 4) waves that blend the background: x and y frequency, phase, amplitude
    lines: np.ndarray  # (1 to 4, 6) behind the object: x, y, direction, half length, half width, grey added
    light: np.ndarray  # (3,) brightness in the middle, its change towards the right and the lower edge
    noise: np.ndarray  # (64, 64, 3) added at the end


def _rotation(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], np.float32)


def _draw_colours(rng):
    """(4, 3) of some random palettes, the first whose colours stand well apart, else the nearest to it."""
    hue, saturation, value = np.moveaxis(rng.random((PALETTES, 4, 3)), -1, 0)
    saturation, value = 0.1 + saturation * [0.65, 0.65, 0.4, 0.4], 0.25 + 0.75 * value
    k = np.mod(np.array([5, 3, 1]) + 6 * hue[..., None], 6)  # HSV to RGB
    palettes = value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    one, two, back, back_too = (palettes @ [0.299, 0.587, 0.114]).T  # luminances
    contrast = np.abs(palettes[:, :2, None] - palettes[:, None, 2:]).sum(-1).min((1, 2))
    score = np.minimum(np.abs(one - two), 0.4) + np.minimum(contrast, 0.4)
    return palettes[np.argmax(score - np.maximum(np.abs(back - back_too), 0.15))].astype(np.float32)


def draw_scene(rng: np.random.Generator) -> Scene:
    """What an image shows, but for the class of its object."""
    def uniform(low, high, size=None):
        return rng.uniform(low, high, size).astype(np.float32)

    tilt = math.sqrt(rng.uniform(0.75, 1.33))
    return Scene(
        radius=rng.uniform(18, 23.5),
        pitch=rng.uniform(8, 10.5),
        centre=uniform(-9, 9, 2),
        frame=np.array([[tilt], [1 / tilt]], np.float32) * _rotation(rng.uniform(0, _TAU)),
        turn=_rotation(rng.uniform(0, _TAU)),
        phase=uniform(-0.5, 0.5, 2),
        colours=_draw_colours(rng),
        clouds=uniform([-0.03, -0.03, 0, 0], [0.03, 0.03, _TAU, 0.25], (4, 4)),
        lines=uniform([-32, -32, 0, 8, 0.5, -0.15], [32, 32, _TAU, 40, 2, 0.15], (rng.integers(1, 5), 6)),
        light=uniform([0.85, -0.15, -0.15], [1.1, 0.15, 0.15]),
        noise=rng.standard_normal((SIDE, SIDE, 3), np.float32) * rng.uniform(0.01, 0.025),
    )


def _inside(distance):
    """How much of a pixel lies inside an outline, from the signed distance in pixels."""
    return np.clip(0.5 - distance, 0, 1)[..., None]


def backdrop(scene: Scene, grid: np.ndarray) -> np.ndarray:
    """(side, side, 3) a cloudy blend of the background's colours, crossed by lines."""
    columns, rows = grid
    blend = np.full(columns.shape, 0.5, np.float32)
    for across, down, phase, amplitude in scene.clouds:
        blend += amplitude * np.cos((across * columns + down * rows) * _TAU + phase)
    image = scene.colours[3] + (scene.colours[2] - scene.colours[3]) * np.clip(blend, 0, 1)[..., None]
    for x, y, angle, length, width, grey in scene.lines:
        along, across = _apply(_rotation(angle), columns - x, rows - y)
        image += grey * _inside(np.maximum(np.abs(along) - length, np.abs(across) - width))
    return image


def _apply(matrix, x, y):
    """`matrix` (2, 2) times (x, y), without BLAS, whose rounding may depend on the number of threads."""
    (a, b), (c, d) = matrix
    return a * x + b * y, c * x + d * y


def draw_object(scene: Scene, label: int, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object of that class: its colours (side, side, 3), and how much of each pixel it covers (side, side, 1)."""
    _, shape, area, pattern = _RECIPES[label]
    x, y = _apply(scene.frame, grid[0] - scene.centre[0], grid[1] - scene.centre[1])
    unit = scene.radius * math.sqrt(math.pi / area)  # pixels per unit of the shape
    cover = _inside(shape(x / unit, y / unit) * unit)
    x, y = _apply(scene.turn / np.float32(scene.pitch), x, y)
    ink = _inside(pattern(x + scene.phase[0], y + scene.phase[1]) * scene.pitch)
    return scene.colours[0] + (scene.colours[1] - scene.colours[0]) * ink, cover


def photographed(image: np.ndarray, scene: Scene, noise: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(side, side, 3) uint8: the float32 image in the scene's light, with noise (side, side, 3) added."""
    brightness, right, down = scene.light
    light = brightness + (right * grid[0] + down * grid[1]) / (len(image) / 2)
    return (np.clip(image * light[..., None] + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw_image(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Image number `index` of the collection of that seed; both are 0 or more.

    Returns (64, 64, 3) uint8 RGB and the class, a position in `CLASSES`: index modulo 8. Raises `ValueError`
    for a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, not {seed} and {index}")
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, index]))
    label = index % len(CLASSES)
    scene = draw_scene(rng)
    image = backdrop(scene, _GRID)
    colours, cover = draw_object(scene, label, _GRID)
    image += (colours - image) * cover
    return photographed(image, scene, scene.noise, _GRID), label


def write_collection(
    folder: str | os.PathLike,
    count: int = 2400,
    seed: int = 0,
    first: int = 0,
    progress: Callable[[int], object] | None = None,
) -> pathlib.Path:
    """Write images `first` to `first + count - 1` as ``<folder>/<class>/<index:05d>.jpg``; return the folder.

    Collections of one seed share no image if their ranges do not overlap: one to train on, one to test
    with. Missing folders are made. A file that is there already is left alone if it is the same and replaced
    if not; other files stay. `progress` is called with the number of images done. Raises `ValueError` for a
    count below 1 or a negative seed or first index, and `MocoembedError` when a file cannot be written.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")
    folder = pathlib.Path(folder)
    for done, index in enumerate(range(first, first + count), start=1):
        pixels, label = draw_image(seed, index)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
        _put(folder / CLASSES[label] / f"{index:05d}.jpg", encoded.getvalue())
        if progress is not None:
            progress(done)
    return folder


def _put(path: pathlib.Path, data: bytes):
    """Make `path` hold `data`, whole or not at all.

    Without the fsync of `files.write_bytes`, which takes 14 s for 2,400 images where this takes 1: what a
    power cut takes from a generated collection, the same call brings back.
    """
    unfinished = path.with_suffix(".part")
    try:
        if path.exists() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise files.write_error(path, error) from error
