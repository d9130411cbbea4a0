"""What decoding JPEG files at a reduced scale does to embeddings: cosine to those of the full decode.

    python -m benchmarks.decode_effect --photographs flowers --encoder encoder.safetensors --image-size 224

The photographs are enlarged to a longer side of 4,000 pixels (bicubic, quality 90) and embedded (backbone, length 1)
from the smallest of the decoder's scales that covers the resize, from one at least twice as large (`reserve`), and from
the full decode; the vectors are compared image by image, for the given weights and for untrained ones of the same
architecture (running statistics of BatchNorm at their start). Beside them the milliseconds of processor for each way,
and the leave-one-out kNN accuracy (k 20, T 0.1; a photograph's class is its folder) where all images are decoded in one
way, and where the queries alone are decoded in full.
"""

import argparse
import dataclasses
import pathlib
import time

import numpy as np
import torch

from benchmarks.decoders import chosen_paths, enlarged
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.knn import nearest, weighted_vote
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.train.export import open_encoder
from mocoembed.workspace import Workspace

BATCH = 8
K, TEMPERATURE = 20, 0.1


class Reserve(EncodedImage):
    """An image decoded at twice the scale that is asked."""

    def rgb(self, shrink: float = 1.0):
        """As `EncodedImage.rgb`, at least 2/`shrink` of full size."""
        return super().rgb(shrink / 2)


def decoded(data: list[bytes], open_image, transform: EvaluationTransform) -> tuple[torch.Tensor, float]:
    """(N, 3, S, S) uint8, and milliseconds of processor an image."""
    begun = time.process_time()
    pixels = np.stack([transform.pixels(open_image(one)) for one in data])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), 1000 * (time.process_time() - begun) / len(data)


def accuracy(queries: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent that are classified right, each by all others."""
    similarities, rows = nearest(queries, bank, K, leave_one_out=True)
    scores = weighted_vote(similarities, labels[rows], int(labels.max()) + 1, TEMPERATURE)
    return 100 * (scores.argmax(dim=1) == labels).double().mean().item()


def compare(name: str, frozen: FrozenEncoder, pixels: dict[str, torch.Tensor], labels: torch.Tensor):
    """Print the cosines of every way of decoding to the last, and its accuracy."""
    embedder = Embedder(frozen, Compute.of("auto", "fp32"), "backbone", True)
    vectors = {way: torch.cat([embedder(part) for part in ready.split(BATCH)]) for way, ready in pixels.items()}
    full = vectors.pop("full")
    for way, own in vectors.items():
        cosines = (own * full).sum(dim=1).numpy()
        low, median = np.percentile(cosines, [5, 50])
        print(f"{name:10} {way:8} median {median:.5f}, 5 % {low:.5f}, lowest {cosines.min():.5f}, n {len(cosines)}")
        print(f"{name:10} {way:8} kNN {accuracy(own, own, labels):.2f} %, with queries decoded in full "
              f"{accuracy(full, own, labels):.2f} %")
    print(f"{name:10} full     kNN {accuracy(full, full, labels):.2f} %")
    others = (full @ full.T)[~torch.eye(len(full), dtype=torch.bool)]
    print(f"{name:10} of two different images: median {others.median():.5f}")


def main():
    """Enlarge, decode in three ways, embed, print the cosines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=pathlib.Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--image-size", type=int, help="Side of the images given to the encoder, if not its own.")
    arguments = parser.parse_args()
    frozen = open_encoder(arguments.encoder, Workspace("mocoembed-workspace"), print)
    if arguments.image_size:
        transform = EvaluationTransform.of(arguments.image_size, frozen.transform.mean, frozen.transform.std)
        frozen = dataclasses.replace(frozen, transform=transform)
    paths = chosen_paths(arguments.photographs, arguments.count)
    data = [bytes(enlarged(path.read_bytes())) for path in paths]
    folders = sorted({path.parent for path in paths})
    labels = torch.tensor([folders.index(path.parent) for path in paths])
    ways = {"scaled": EncodedImage, "reserve": Reserve, "full": lambda one: EncodedImage(one, full=True)}
    pixels = {}
    for way, open_image in ways.items():
        pixels[way], milliseconds = decoded(data, open_image, frozen.transform)
        print(f"{way:8} {milliseconds:.1f} ms an image")
    compare("trained", frozen, pixels, labels)
    torch.manual_seed(0)
    compare("untrained", dataclasses.replace(frozen, encoder=Encoder(frozen.encoder.spec).eval()), pixels, labels)


if __name__ == "__main__":
    main()
