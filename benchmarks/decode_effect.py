"""What decoding JPEG files at a reduced scale does to embeddings: cosine to those of the full decode.

    python -m benchmarks.decode_effect --photographs flowers --encoder moco-v2-800ep [--count 100]

The photographs are enlarged to a longer side of 4,000 pixels (bicubic, quality 90), embedded by `mocoembed embed` with
and without `--full-decode`, and the vectors compared picture by picture. Only weights that were learned tell anything.
"""

import argparse
import pathlib
import tempfile

import numpy as np

from benchmarks.decoders import chosen, enlarged
from mocoembed.config import EmbedConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile


def vectors(folder: pathlib.Path, pictures: pathlib.Path, encoder: str, full_decode: bool) -> np.ndarray:
    """(N, D) float32 of length 1."""
    output = folder / f"full-{full_decode}.h5"
    embed_images(EmbedConfig(str(pictures), str(folder), encoder, str(output), full_decode=full_decode), note=print)
    with EmbeddingFile(output) as file:
        return file.embeddings()


def main():
    """Enlarge, embed twice, print the cosines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=pathlib.Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = pathlib.Path(folder) / "pictures"
        pictures.mkdir()
        for number, data in enumerate(chosen(arguments.photographs, arguments.count)):
            (pictures / f"{number:04d}.jpg").write_bytes(enlarged(data))
        scaled, full = (vectors(pathlib.Path(folder), pictures, arguments.encoder, one) for one in (False, True))
    cosines = (scaled * full).sum(axis=1)
    low, median, high = np.percentile(cosines, [5, 50, 95])
    print(f"{len(cosines)} pictures: cosine to the full decode {median:.5f} in the median ({low:.5f} to {high:.5f}), "
          f"lowest {cosines.min():.5f}")


if __name__ == "__main__":
    main()
