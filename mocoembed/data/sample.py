"""A generated, labelled picture collection, for the demo and for tests.

In: a seed and a picture's index. Out: (64, 64, 3) uint8 RGB and a class number, or JPEG files
``<folder>/<class>/<index>.jpg``.

A class is a shape filled with a pattern: a disc with stripes, a star with rays. Everything else
(position, size, rotation, tilt, the pattern's own pitch, phase and direction, all colours,
background, clutter, lighting, noise) is drawn without looking at the class, every shape covers the
same area and every pattern is half one colour and half the other. So colour, brightness and size
say nothing about the class, and pixels compared one by one say little; what survives cropping,
flipping and recolouring says all of it.

A picture is a function of (seed, index) alone: a counter-based generator is set to that index, so
order and number of the pictures do not matter. Pixels repeat bit for bit with one NumPy on one kind
of processor, JPEG bytes also need the same Pillow.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # pixels
JPEG_QUALITY = 95

# The second word of the generator's key: keeps these draws apart from any other use of the seed.
_STREAM = 0x73616D706C65  # "sample"

_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + np.float32(0.5 - SIDE / 2)
_TAU = 2 * np.pi


# Shapes: (x, y) in the object's frame -> signed distance to the outline (below 0 inside), each
# about as large as the unit disc; `_RADIUS` scales them to its area.


def _disc(x, y):
    return np.hypot(x, y) - 1


def _polygon(x, y, corners):
    """Regular polygon of circumradius 1."""
    angle = np.mod(np.arctan2(y, x), _TAU / corners) - np.pi / corners
    return np.hypot(x, y) * np.cos(angle) - np.cos(np.pi / corners)


def _triangle(x, y):
    return _polygon(x, y, 3)


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 1


def _star(x, y, inner=0.45):
    """Five points at radius 1, notches at `inner`."""
    angle = np.abs(np.mod(np.arctan2(y, x), _TAU / 5) - np.pi / 5)  # 0 at a notch, pi/5 at a point
    radius = np.hypot(x, y)
    height, width = np.cos(np.pi / 5) - inner, np.sin(np.pi / 5)  # the edge, from notch to point
    normal = np.hypot(height, width)
    return ((radius * np.cos(angle) - inner) * width - radius * np.sin(angle) * height) / normal


def _cross(x, y, half=0.36):
    """Two bars of length 2 and width 2 * `half`."""
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - half)


def _crescent(x, y):
    return np.maximum(np.hypot(x + 0.25, y) - 1, 0.8 - np.hypot(x - 0.3, y))


def _ring(x, y):
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _heart(x, y):
    """A square standing on its corner, with a half disc on each upper side."""
    y = y - 0.1
    diamond = np.abs(x) + np.abs(y) - 1
    lobes = np.hypot(np.abs(x) - 0.5, y + 0.5)
    return np.minimum(diamond / np.sqrt(2), lobes - np.sqrt(0.5))


# Patterns: (x, y) in units of the pattern's pitch -> a value above 0 in one colour and below 0 in the
# other, half of the area each, with slope 1 or so at the borders.


def _wave(t):
    """Triangle wave of period 1 and slope 1, between -1/4 and 1/4."""
    return np.abs(np.mod(t, 1) - 0.5) - 0.25


def _stripes(x, y):
    return _wave(x)


def _dots(x, y):
    """Discs in the cells of a grid, every other row shifted by half a cell."""
    x = x + 0.5 * np.mod(np.floor(y), 2)
    return np.hypot(np.mod(x, 1) - 0.5, np.mod(y, 1) - 0.5) - np.sqrt(0.5 / np.pi)


def _checks(x, y):
    x, y = _wave(x / 1.4), _wave(y / 1.4)
    return 1.4 * np.sign(x * y) * np.minimum(np.abs(x), np.abs(y))


def _rays(x, y, rays=9):
    return np.hypot(x, y) * _TAU / rays * _wave(rays / _TAU * np.arctan2(y, x))


def _zigzag(x, y):
    return 0.7 * _wave(x + 2 * _wave(y / 1.6))


def _rings(x, y):
    return _wave(np.hypot(x, y))


def _bricks(x, y, length=1.8, height=0.9, mortar=0.172):
    x = x + 0.5 * length * np.mod(np.floor(y / height), 2)
    x, y = np.mod(x, length), np.mod(y, height)  # to the edges of the brick's cell:
    return np.minimum(np.minimum(x, length - x), np.minimum(y, height - y)) - mortar


def _mottles(x, y):
    """Irregular patches: five plane waves in directions that fit no lattice."""
    total = 0
    for turn in (0.0, 0.21, 0.39, 0.62, 0.81):
        angle = turn * np.pi
        total = total + np.cos(_TAU / 1.4 * ((x + 11.3) * np.cos(angle) + (y + 5.7) * np.sin(angle)))
    return total / 7


_RECIPES = {
    "striped-disc": (_disc, _stripes),
    "dotted-triangle": (_triangle, _dots),
    "checked-square": (_square, _checks),
    "rayed-star": (_star, _rays),
    "zigzag-cross": (_cross, _zigzag),
    "ringed-crescent": (_crescent, _rings),
    "brick-ring": (_ring, _bricks),
    "mottled-heart": (_heart, _mottles),
}

CLASSES: tuple[str, ...] = tuple(_RECIPES)
"""The class names, by class number; also the names of the folders."""

# Areas of the shapes above as drawn; a test recomputes them.
_AREAS = (3.142, 1.299, 4.0, 1.323, 2.362, 1.5, 2.356, 3.571)


@dataclass(frozen=True)
class _Scene:
    """All that varies in a picture, drawn without knowing the class."""

    radius: float
    """Radius in pixels of the disc of the same area as the object."""

    centre: np.ndarray
    """(2,) x and y of the object's centre, in pixels from the picture's."""

    frame: np.ndarray
    """(2, 2) from pixels to the object's frame: rotation and tilt, determinant 1."""

    pattern: np.ndarray
    """(2, 2) from the object's frame, in radii, to the pattern's, in pitches."""

    phase: np.ndarray
    """(2,) offset of the pattern, in pitches."""

    colours: np.ndarray
    """(4, 3) RGB in 0..1: the object's two, the background's two."""

    background: np.ndarray
    """(4, 4) four plane waves: x and y frequency per pixel, phase, amplitude."""

    clutter: np.ndarray
    """(n, 6) lines behind the object: x, y, direction, half length, half width (pixels), grey."""

    light: np.ndarray
    """(3,) brightness, and its change from the middle to the right and to the lower edge."""

    noise: np.ndarray
    """(64, 64, 3) added at the end."""


def _rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _draw_colours(rng):
    """(4, 3) of 32 random palettes, the first whose colours stand well apart, else the one nearest to it."""
    hue, saturation, value = np.moveaxis(rng.random((32, 4, 3)), -1, 0)
    saturation = 0.1 + saturation * [0.65, 0.65, 0.4, 0.4]
    value = 0.25 + 0.75 * value
    k = np.mod(np.array([5.0, 3.0, 1.0]) + 6 * hue[..., None], 6)  # HSV to RGB
    k = np.clip(np.minimum(k, 4 - k), 0, 1)
    palettes = value[..., None] * (1 - saturation[..., None] * k)  # 32 x 4 x 3
    first, second, back, back_too = np.moveaxis(palettes @ [0.299, 0.587, 0.114], -1, 0)
    pattern = np.minimum(np.abs(first - second), 0.4)
    backdrop = np.maximum(np.abs(back - back_too), 0.15)
    from_backdrop = np.abs(palettes[:, :2, None] - palettes[:, None, 2:]).sum(-1).min((1, 2))
    return palettes[np.argmax(pattern - backdrop + np.minimum(from_backdrop, 0.4))]


def _draw_scene(rng) -> _Scene:
    radius = rng.uniform(18, 23.5)
    tilt = np.diag([t := rng.uniform(0.85, 1.18), 1 / t])
    lines = rng.integers(1, 5)
    return _Scene(
        radius=radius,
        centre=rng.uniform(-8, 8, 2),
        frame=tilt @ _rotation(rng.uniform(0, _TAU)),
        pattern=_rotation(rng.uniform(0, _TAU)) * radius / rng.uniform(8, 10.5),
        phase=rng.uniform(-0.5, 0.5, 2),
        colours=_draw_colours(rng),
        background=rng.uniform([-0.03, -0.03, 0, 0], [0.03, 0.03, _TAU, 0.25], (4, 4)),
        clutter=rng.uniform([-32, -32, 0, 8, 0.5, -0.15], [32, 32, _TAU, 40, 2, 0.15], (lines, 6)),
        light=rng.uniform([0.85, -0.15, -0.15], [1.1, 0.15, 0.15]),
        noise=rng.standard_normal((SIDE, SIDE, 3), np.float32) * rng.uniform(0.01, 0.025),
    )


def _backdrop(scene: _Scene) -> np.ndarray:
    """(64, 64, 3) a cloudy blend of the background's two colours, crossed by lines."""
    blend = np.float32(0.5)
    for fx, fy, phase, amplitude in scene.background.astype(np.float32):
        blend = blend + amplitude * np.cos(np.float32(_TAU) * (fx * _COLUMNS + fy * _ROWS) + phase)
    blend = np.clip(blend, 0, 1)[..., None]
    colours = scene.colours[2:].astype(np.float32)
    picture = colours[0] * blend + colours[1] * (1 - blend)
    for x, y, angle, length, width, grey in scene.clutter.astype(np.float32):
        dx, dy = _COLUMNS - x, _ROWS - y
        along = np.abs(dx * np.cos(angle) + dy * np.sin(angle)) - length
        across = np.abs(dy * np.cos(angle) - dx * np.sin(angle)) - width
        picture += grey * _inside(np.maximum(along, across))[..., None]
    return picture


def _inside(distance):
    """Part of a pixel that lies inside an outline, from the signed distance in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _render(scene: _Scene, label: int) -> np.ndarray:
    """(64, 64, 3) float RGB of the scene with an object of that class."""
    shape, pattern = _RECIPES[CLASSES[label]]
    x, y = _transform(scene.frame / scene.radius, _COLUMNS - scene.centre[0], _ROWS - scene.centre[1])
    unit = np.float32(np.sqrt(_AREAS[label] / np.pi))  # the shape's size at radius 1
    outline = shape(x * unit, y * unit) * (scene.radius / unit)  # pixels
    u, v = _transform(scene.pattern, x, y)
    pitch = scene.radius / np.sqrt(np.linalg.det(scene.pattern))  # pixels
    ink = _inside(pattern(u + scene.phase[0], v + scene.phase[1]) * pitch)[..., None]
    fill = scene.colours[0] * ink + scene.colours[1] * (1 - ink)
    cover = _inside(outline)[..., None]
    picture = _backdrop(scene) * (1 - cover) + fill * cover
    brightness, right, down = scene.light
    light = brightness + (right * _COLUMNS + down * _ROWS) / (SIDE / 2)
    return picture * light[..., None] + scene.noise


def _transform(matrix, x, y):
    (a, b), (c, d) = matrix.astype(np.float32)
    return a * x + b * y, c * x + d * y


def draw_picture(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Picture number `index` of the collection of that seed, both 0 or more.

    Returns (64, 64, 3) uint8 RGB and its class, a position in `CLASSES`: index modulo 8. Raises
    `ValueError` for a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, not {seed} and {index}")
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, index]))
    label = index % len(CLASSES)
    picture = _render(_draw_scene(rng), label)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), label


def write_collection(
    folder: str | os.PathLike,
    count: int = 2400,
    seed: int = 0,
    first: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Write pictures `first` to `first + count - 1` as ``<folder>/<class>/<index:05d>.jpg``.

    Collections of one seed whose ranges do not overlap share no picture: one to train on, one to
    test with. The folder is made where it is missing; what else lies there stays; a picture of the
    same name is replaced, whole (its bytes are the same unless the seed or Pillow is another).
    `progress` is called with the number of pictures written so far. Returns the folder. Raises
    `ValueError` for a count below 1 and for a negative seed or first index.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")
    folder = Path(folder)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for done, index in enumerate(range(first, first + count), start=1):
        pixels, label = draw_picture(seed, index)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
        path = folder / CLASSES[label] / f"{index:05d}.jpg"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(encoded.getbuffer())
        os.replace(unfinished, path)
        if progress is not None:
            progress(done)
    return folder
