"""Which decoder for JPEG files: milliseconds an image for Pillow, torchvision.io and simplejpeg, one thread.

    pip install simplejpeg
    python benchmarks/decoders.py --small cifar/test --usual flowers

`full` is bytes -> RGB uint8 at full size; `for 256` is the smallest of the decoder's own scales whose shorter side has
256 pixels or more (torchvision.io has none, so it decodes in full), resized by Pillow to a shorter side of 256. The
12-megapixel files are the usual ones enlarged to a longer side of 4,000 pixels (bicubic, quality 90). The decoders take
turns, image by image; the figure is the median over the images, of the fastest of three rounds for each.
"""

import argparse
import io
import pathlib
import sys
import time

import numpy as np
import torch
import torchvision
from PIL import Image
from PIL import __version__ as pillow_version
from torchvision.io import ImageReadMode, decode_jpeg

from mocoembed.data.decode import EncodedImage

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SIDE, LARGE, ROUNDS = 256, 4000, 3


def pillow_full(data):
    """Pillow: all pixels."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision_full(data):
    """torchvision.io: all pixels (channels first)."""
    return decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)


def simplejpeg_full(data):
    """simplejpeg: all pixels."""
    return simplejpeg.decode_jpeg(data)


def _resize(image: Image.Image):
    factor = SIDE / min(image.size)
    return image.resize([round(side * factor) for side in image.size], Image.Resampling.BILINEAR)


def ours_256(data):
    """Our `EncodedImage`: every check, Pillow's draft decoding."""
    image = EncodedImage(data)
    return _resize(image.rgb(min(image.width, image.height) / SIDE))


def torchvision_256(data):
    """torchvision.io, then Pillow's resize."""
    return _resize(Image.fromarray(torchvision_full(data).permute(1, 2, 0).numpy()))


def simplejpeg_256(data):
    """simplejpeg at its smallest scale that covers, then Pillow's resize."""
    return _resize(Image.fromarray(simplejpeg.decode_jpeg(data, min_height=SIDE, min_width=SIDE)))


def chosen(folder: pathlib.Path, count: int) -> list[bytearray]:
    """The contents of `chosen_paths`."""
    return [bytearray(path.read_bytes()) for path in chosen_paths(folder, count)]


def chosen_paths(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """`count` JPEG files of a folder, evenly spaced in the order of their paths."""
    paths = sorted(folder.rglob("*.jpg"))
    return [paths[place] for place in np.linspace(0, len(paths) - 1, count).astype(int)]


def enlarged(data: bytes) -> bytearray:
    """The image with a longer side of `LARGE` pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    factor, buffer = LARGE / max(image.size), io.BytesIO()
    image.resize([round(side * factor) for side in image.size]).save(buffer, "JPEG", quality=90)
    return bytearray(buffer.getvalue())


def milliseconds(decoders, images) -> list[tuple[float, float, float]]:
    """For each decoder the median and the 5th and 95th percentile over the images of its fastest round."""
    seconds = np.full((len(decoders), len(images)), np.inf)
    for _ in range(ROUNDS):
        for column, data in enumerate(images):
            for row, decode in enumerate(decoders):
                begun = time.perf_counter()
                decode(data)
                seconds[row, column] = min(seconds[row, column], time.perf_counter() - begun)
    return [tuple(1000 * np.percentile(row, [50, 5, 95])) for row in seconds]


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=pathlib.Path, required=True, help="Folder of JPEG files of 32 pixels.")
    parser.add_argument("--usual", type=pathlib.Path, required=True, help="Folder of JPEG files of some 500 pixels.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    full = [pillow_full, torchvision_full] + [simplejpeg_full] * (simplejpeg is not None)
    scaled = [ours_256, torchvision_256] + [simplejpeg_256] * (simplejpeg is not None)
    usual = chosen(arguments.usual, 200)
    sets = {"small": (chosen(arguments.small, 1000), full), "usual": (usual, full + scaled),
            "12 megapixels": ([enlarged(data) for data in usual[::10]], full + scaled)}
    print(f"Python {sys.version.split()[0]}, Pillow {pillow_version}, torchvision {torchvision.__version__}")
    for name, (images, decoders) in sets.items():
        for decode, (median, low, high) in zip(decoders, milliseconds(decoders, images)):
            print(f"{name:14} {decode.__name__:17} {median:8.3f} ms ({low:.3f} to {high:.3f}), n {len(images)}")


if __name__ == "__main__":
    main()
