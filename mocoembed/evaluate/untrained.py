"""The encoder's own architecture with random weights: what its shape alone gives, without any training.

In: the images of a side and the description of the encoder. Out: vectors (N, D) float32 on the CPU. The weights are
drawn as before a pretraining, by a fixed seed, and BatchNorm has the statistics that it starts with.
"""

import torch

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.embed.store import EmbeddingFile
from mocoembed.evaluate.pixels import images_of
from mocoembed.evaluate.sides import Side
from mocoembed.model.cost import multiplications
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.encoder_metadata import transform_of
from mocoembed.model.precision import Compute

SEED = 0


def description(side: Side) -> dict | None:
    """The description of the encoder of a side; `None` for vectors of another tool."""
    with EmbeddingFile(side.path) as file:
        found = file.encoder
    return found if {"encoder", "transform"} <= set(found) else None


def cost(found: dict) -> int:
    """Multiplications for one image."""
    return multiplications(EncoderSpec(**found["encoder"]), transform_of(found).crop)


def random_encoder(spec: EncoderSpec, transform: EvaluationTransform, seed: int) -> FrozenEncoder:
    """An encoder of this architecture with the weights of before a pretraining, the same for every seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        encoder = Encoder(spec)
    return FrozenEncoder(encoder.eval().requires_grad_(False), transform, {"untrained": True, "seed": seed})


def untrained(found: dict, side: Side) -> torch.Tensor:
    """(N, D): the images of a side by the untrained encoder.

    Raises `CollectionError` for an image that has gone, cannot be read or has changed.
    """
    frozen = random_encoder(EncoderSpec(**found["encoder"]), transform_of(found), SEED)
    embed = Embedder(frozen, Compute.of(str(side.vectors.device), "fp32"), side.features, True)
    return torch.cat([embed(torch.from_numpy(pixels).permute(0, 3, 1, 2))
                      for pixels in images_of(side, frozen.transform)])
