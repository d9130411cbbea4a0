"""A folder shaped like ImageNet, of tiny generated images: for trying the commands of docs/imagenet.md.

    python -m benchmarks.reproduce.imagenet_shaped imagenet-shaped

OUTPUT/train and OUTPUT/val with 1,000 folders each, named like WordNet's, of 2 and 1 JPEG files of 40 x 32 pixels.
"""

import io
import pathlib

import click
import numpy as np
from PIL import Image

CLASSES, PER_CLASS = 1000, {"train": 2, "val": 1}


def write_imagenet_shaped(output: pathlib.Path):
    """Write the files; those of one class have its colour and some noise."""
    random = np.random.default_rng(0)
    colours = random.integers(40, 216, (CLASSES, 3))
    for part, count in PER_CLASS.items():
        for number, colour in enumerate(colours):
            folder = output / part / f"n{10_000_000 + number}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = (colour + random.integers(-40, 40, (32, 40, 3))).astype(np.uint8)
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "JPEG")
                (folder / f"{part}_{i:08d}.JPEG").write_bytes(data.getvalue())


@click.command()
@click.argument("output", type=click.Path(path_type=pathlib.Path))
def main(output):
    """Write the folder OUTPUT."""
    write_imagenet_shaped(output)


if __name__ == "__main__":
    main()
