"""What an encoder costs: a network and a size of image -> multiplications, without computing any of them."""

import functools
import logging

import torch

from mocoembed.model.encoder import ARCHITECTURES, Encoder, EncoderSpec

WRITING = 26
"""Multiplications that a CPU does in the time in which it writes one number of a layer's output and reads it again. By
two-parameter fits to EfficientNet-Lite0, MobileNetV3, ConvNeXt, RegNet and ViT, forward and backward, on an AMD EPYC:
they take 1.2 to 3.7 times what their multiplications alone take, and within a fifth of what `work` says."""


def multiplications(spec: EncoderSpec, image_size: int) -> int:
    """Multiplications of one forward pass of one image (3, S, S).

    Raises `UsageError` for what there is not, and `RuntimeError` when an image of that size does not go through.
    """
    return _counted(spec, image_size)[0]


def work(spec: EncoderSpec, image_size: int) -> int:
    """`multiplications`, and for networks of other libraries as many as writing their layers' outputs takes.

    Convolutions of one channel each (EfficientNet, MobileNet) multiply little and write much. Our ResNets write so
    little that the rate of their multiplications has it in it.
    """
    count, written = _counted(spec, image_size)
    return count if spec.arch in ARCHITECTURES else count + WRITING * written


@functools.cache  # a second for the larger networks, and asked for more than once
def _counted(spec: EncoderSpec, image_size: int) -> tuple[int, int]:
    """Multiplications of one forward pass of an image, and numbers that its layers write."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it warns where Triton cannot be loaded
    from torch.utils.flop_counter import FlopCounterMode

    written = 0

    def count_output(module, given, output):
        nonlocal written
        written += output.numel() if isinstance(output, torch.Tensor) else 0

    with torch.device("meta"):
        encoder = Encoder(spec).eval()
        for module in encoder.modules():
            if not list(module.children()):
                module.register_forward_hook(count_output)
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            encoder(torch.empty(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2, written  # each counts as a multiplication and an addition
