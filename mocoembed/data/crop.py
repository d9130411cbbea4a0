"""Cutting and resizing images in the loading processes: `Image` or (H, W, 3) uint8 -> (height, width, 3) uint8."""

import numpy as np
from PIL import Image

SMALL, LARGE = 64 * 64, 1 << 23  # pixels
STRIP = 1 << 22  # pixels of a large crop that are cut out at a time


def crop(image: Image.Image | np.ndarray, box, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the box of an image, `Image` or (H, W, 3) uint8, resized bilinearly with antialiasing."""
    left, top, right, bottom = box
    if by_torch((right - left) * (bottom - top), size * size):
        part = image[top:bottom, left:right] if isinstance(image, np.ndarray) else np.asarray(image.crop(box))
        return resize(part, size, size)
    return _crop_in_strips(image, box, size)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8, from (H, W, 3) uint8, resized bilinearly with antialiasing, by torch.

    That is what Pillow gives, at most one level off, in a third of the time.
    """
    import torch  # not at the top: what searches does without it
    from torch.nn import functional

    x = torch.from_numpy(np.array(pixels)).unsqueeze(0).permute(0, 3, 1, 2)  # NHWC in memory
    x = functional.interpolate(x, (height, width), mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1).squeeze(0).numpy()


def by_torch(before: int, after: int) -> bool:
    """Whether `resize` pays for that many pixels: it copies them, and takes 30 microseconds more for small ones."""
    return SMALL < max(before, after) <= LARGE


def _crop_in_strips(image: Image.Image | np.ndarray, box, size: int) -> np.ndarray:
    """As `crop`, by Pillow, in strips, so that there is no second copy of a large image.

    Along the rows first, then down the columns; Pillow itself chooses the order since version 13, and the views are not
    to depend on its version.
    """
    left, top, right, bottom = box
    rows = max(1, STRIP // (right - left))
    strips = []
    for first in range(top, bottom, rows):
        end = min(first + rows, bottom)
        if isinstance(image, np.ndarray):
            strip = Image.fromarray(image[first:end, left:right])
        else:
            strip = image.crop((left, first, right, end))
        strips.append(strip.resize((size, end - first), Image.Resampling.BILINEAR))
    narrow = strips[0]
    if len(strips) > 1:
        narrow = Image.new("RGB", (size, bottom - top))
        for place, strip in enumerate(strips):
            narrow.paste(strip, (0, place * rows))
    return np.asarray(narrow.resize((size, size), Image.Resampling.BILINEAR))
