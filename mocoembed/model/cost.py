"""What an encoder costs: a network and a size of image -> multiplications, without computing any of them."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from mocoembed.model.encoder import Encoder, EncoderSpec


def multiplications(spec: EncoderSpec, image_size: int) -> int:
    """Multiplications of one forward pass of one image (3, S, S).

    Raises `UsageError` for what there is not, and `RuntimeError` when an image of that size does not go through.
    """
    with torch.device("meta"):
        encoder = Encoder(spec).eval()
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            encoder(torch.empty(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2  # each counts as a multiplication and an addition
