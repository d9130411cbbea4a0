"""Scenes for detection and segmentation: one to three of the generated objects on one backdrop, with their truth.

In: a seed and a scene's index. Out: (96, 96, 3) uint8 RGB with, for every object, box, class and visible pixels.

The objects, backdrops and light are those of the generated images (`mocoembed.data.sample`), drawn by the same code at
0.55 to 0.8 of their size: what a view of 32 pixels shows of an image of 64. Objects are placed so that their discs do
not overlap; corners of one may cover a little of another, and what is left of it counts. A scene is a function of
(seed, index) alone; its random numbers are none of those of any generated image.
"""

from dataclasses import dataclass, replace

import numpy as np

from mocoembed.data.sample import CLASSES, backdrop, draw_object, draw_scene, photographed, pixel_grid

SIDE, MOST_OBJECTS, PLACES_TRIED = 96, 3, 30
SCALES = (0.55, 0.8)
LEAST_PIXELS = 40  # an object with less to be seen is not placed

_STREAM = 0x7363656E6573  # "scenes": keeps these draws apart from those of the images


@dataclass(frozen=True)
class SceneTruth:
    """A scene and all that is to be found in it; n objects."""

    image: np.ndarray
    """(96, 96, 3) uint8 RGB."""
    labels: np.ndarray
    """(n,) classes, positions in `CLASSES`."""
    boxes: np.ndarray
    """(n, 4) float32: left, top, right, bottom of what is visible; right and bottom are the first pixels outside."""
    masks: np.ndarray
    """(n, 96, 96) bool: the visible pixels of each object; no pixel belongs to two."""

    def classes(self) -> np.ndarray:
        """(96, 96) int64: 0 is background, 1 is the first class."""
        return (self.masks * (self.labels + 1)[:, None, None]).sum(0).astype(np.int64)


def draw_truth(seed: int, index: int) -> SceneTruth:
    """Scene number `index` of that seed; both are 0 or more."""
    rng = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, index]))
    grid = pixel_grid(SIDE)
    scene = draw_scene(rng)
    image, masks, labels = backdrop(scene, grid), np.zeros((0, SIDE, SIDE), bool), []
    taken: list[np.ndarray] = []  # x, y and radius of the objects placed
    for _ in range(rng.integers(1, MOST_OBJECTS + 1)):
        label, own, scale = int(rng.integers(len(CLASSES))), draw_scene(rng), rng.uniform(*SCALES)
        radius = own.radius * scale
        places = rng.uniform(radius - SIDE / 2, SIDE / 2 - radius, (PLACES_TRIED, 2))
        free = [place for place in places
                if all(np.hypot(*(place - other[:2])) > radius + other[2] for other in taken)]
        if not free:
            continue
        own = replace(own, radius=radius, pitch=own.pitch * scale, centre=free[0].astype(np.float32))
        colours, cover = draw_object(own, label, grid)
        covered = cover[..., 0] > 0.5
        left = masks & ~covered
        if covered.sum() < LEAST_PIXELS or (len(left) and left.sum((1, 2)).min() < LEAST_PIXELS):
            continue
        image += (colours - image) * cover
        masks = np.concatenate([left, covered[None]])
        labels.append(label)
        taken.append(np.array([*free[0], radius]))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.01, 0.025))
    return SceneTruth(photographed(image, scene, noise, grid), np.array(labels, np.int64), _boxes(masks), masks)


def _boxes(masks: np.ndarray) -> np.ndarray:
    """(n, 4) float32 bounds of (n, side, side) masks, none of them empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
