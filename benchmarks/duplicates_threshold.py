"""Which similarity tells near-duplicates from other images, with a given encoder?

    python -m benchmarks.duplicates_threshold photos SCRATCH --encoder encoder.safetensors

Copies of IMAGES photographs, changed in ways that people change them, are embedded together with all originals. For
each threshold: the share of changed copies at least that similar to their original, and how many of the other originals
are at least that similar to some original, which `mocoembed duplicates` would take for duplicates.
"""

import argparse
import io
import pathlib

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.decoders import chosen
from mocoembed.config import EmbedConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile

THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
CHANGES = {  # name -> (image -> image, JPEG quality)
    "saved at quality 60": (lambda image: image, 60),
    "half the size": (lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), 90),
    "5 % cut off at each side": (lambda image: image.crop(
        (image.width // 20, image.height // 20, image.width * 19 // 20, image.height * 19 // 20)), 90),
    "a fifth brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 90),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
}


def lay(photographs: pathlib.Path, folder: pathlib.Path, count: int, all_of_them: int):
    """Files `original/N.jpg` and, of the first `count`, `CHANGE/N.jpg`."""
    for number, data in enumerate(chosen(photographs, all_of_them)):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        changed = CHANGES if number < count else {}
        for name, (change, quality) in {"original": (lambda image: image, 95), **changed}.items():
            path = folder / name / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            change(image).save(path, quality=quality)


def main():
    """Make the copies, embed them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("scratch", type=pathlib.Path, metavar="SCRATCH")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--images", type=int, default=200, help="Photographs of which changed copies are made.")
    parser.add_argument("--all", type=int, default=800, help="Photographs that are embedded.")
    arguments = parser.parse_args()
    folder = arguments.scratch / "images"
    if not folder.exists():
        lay(arguments.photographs, folder, arguments.images, arguments.all)
    result = embed_images(EmbedConfig(str(folder), str(arguments.scratch), arguments.encoder))
    with EmbeddingFile.open(result.path) as file:
        names = np.array([file.label_names[label] for label in file.labels()])
        vectors = {name: file.embeddings[names == name] for name in file.label_names}
    originals = vectors.pop("original")
    others = originals @ originals.T - 2 * np.eye(len(originals))
    print(f"| cosine at least | {' | '.join(vectors)} | other originals |\n|{' --- |' * (len(vectors) + 2)}")
    for threshold in THRESHOLDS:
        found = [f"{100 * ((copies * originals[:len(copies)]).sum(1) >= threshold).mean():.0f} %"
                 for copies in vectors.values()]
        print(f"| {threshold} | {' | '.join(found)} | {100 * (others.max(1) >= threshold).mean():.1f} % |")


if __name__ == "__main__":
    main()
