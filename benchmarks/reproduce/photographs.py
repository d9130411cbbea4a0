"""Generated images as JPEG files with the size and the noise of photographs."""

import pathlib

import numpy as np
from PIL import Image

from mocoembed.data.sample import draw_image


def write_photographs(folder: pathlib.Path, count: int):
    """`count` JPEG files of 500 x 400 pixels, of about the size in bytes of photographs; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if not path.exists():
            pixels = np.asarray(Image.fromarray(draw_image(1, i)[0]).resize((500, 400), Image.Resampling.BICUBIC))
            noise = np.random.default_rng(i).normal(0, 8, pixels.shape)
            Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
