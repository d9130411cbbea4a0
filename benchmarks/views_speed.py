"""Is kornia good enough for what is done to the crops on the device? Ours against its operations, in batches.

    pip install kornia
    python benchmarks/views_speed.py [--device cuda] [--threads 1]

Both get the same uint8 crops and give normalised floats. `none` is conversion and normalisation alone; each operation
is applied to every sample on top of that; `moco-v2` and `moco-v2-plus` are the recipes' whole chains with their
probabilities. They take turns, a batch each; milliseconds a view, median of the rounds (lowest to highest).

Before that it prints what kornia draws (how many values of each parameter a batch has) and how far its pixels are from
torchvision's functions for the same parameters.
"""

import argparse
import dataclasses
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import kornia
import kornia.augmentation as K
import numpy as np
import torch
from torchvision.transforms.v2 import functional as torchvision_functional

from mocoembed.config import PretrainConfig
from mocoembed.data.views import ViewSettings, apply_views, colour_parameters, draw

OPERATIONS = {"none": {}, "flip": {"flip_probability": 1.0}, "jitter": {"jitter_probability": 1.0},
              "grey": {"grey_probability": 1.0}, "blur": {"blur_probability": 1.0},
              "solarize": {"solarize_probability": 1.0}}
NOTHING = dict.fromkeys((f"{name}_probability" for name in ("flip", "jitter", "grey", "blur", "solarize")), 0.0)


def kornia_chain(settings: ViewSettings) -> torch.nn.Sequential:
    """The settings in kornia's operations, those that never come left out."""
    side = 2 * -int(-3 * settings.blur_sigma[1] // 1) + 1
    chain = [(K.RandomGrayscale, settings.grey_probability, ())] if settings.grey_first else []
    chain.append((K.ColorJitter, settings.jitter_probability, settings.jitter))
    if not settings.grey_first:
        chain.append((K.RandomGrayscale, settings.grey_probability, ()))
    chain += [(K.RandomGaussianBlur, settings.blur_probability, ((side, side), settings.blur_sigma)),
              (K.RandomSolarize, settings.solarize_probability, ((0.5, 0.5), (0.0, 0.0))),
              (K.RandomHorizontalFlip, settings.flip_probability, ())]
    operations = [operation(*arguments, p=probability) for operation, probability, arguments in chain if probability]
    return torch.nn.Sequential(*operations, K.Normalize(torch.tensor(settings.mean), torch.tensor(settings.std)))


def check():
    """Print what kornia's colour jitter and blur draw for a batch, and their distance from torchvision."""
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(64, 3, 6, 6), 64, mode="bicubic").clamp(0, 1)
    jitter, blur = K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0), K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=1.0)
    jittered, blurred = jitter(x), blur(x)
    drawn = {name: tuple(value.shape) for name, value in {**jitter._params, **blur._params}.items()
             if name.endswith(("factor", "order", "sigma"))}
    print(f"kornia draws for a batch of {len(x)}: " + ", ".join(f"{name} {shape}" for name, shape in drawn.items()))
    functions = [(torchvision_functional.adjust_brightness, "brightness_factor"),
                 (torchvision_functional.adjust_contrast, "contrast_factor"),
                 (torchvision_functional.adjust_saturation, "saturation_factor"),
                 (torchvision_functional.adjust_hue, "hue_factor")]
    expected = x.clone()
    for place in jitter._params["order"].tolist():
        function, name = functions[place]
        expected = torch.stack([function(one, float(by)) for one, by in zip(expected, jitter._params[name])])
    sigmas = blur._params["sigma"].tolist()
    smooth = torch.stack([torchvision_functional.gaussian_blur(one, [13, 13], [by] * 2) for one, by in zip(x, sigmas)])
    print(f"farthest from torchvision, in levels of 255: jitter {255 * (jittered - expected).abs().max():.2f}, "
          f"blur {255 * (blurred - smooth).abs().max():.2f}")


def contenders(settings: ViewSettings, crops: torch.Tensor) -> dict:
    """Ours and kornia's as functions of nothing; kornia gets the memory layout that it is faster with."""
    parameters = colour_parameters(np.stack([draw(0, 0, row, 0) for row in range(len(crops))]), settings)
    chain, planes = kornia_chain(settings).to(crops.device), crops.contiguous()
    channels_last = crops.contiguous(memory_format=torch.channels_last)
    return {"ours": lambda: apply_views(channels_last, parameters, settings),
            "kornia": lambda: chain(planes.to(torch.float32).div_(255))}


def timed(work, device: str) -> float:
    """Seconds: of the clock on a GPU, of the processor on a CPU, which other work disturbs less."""
    if device == "cpu":
        begun = time.process_time()
        work()
        return time.process_time() - begun
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(name: str, settings: ViewSettings, crops: torch.Tensor, rounds: int):
    """Print one line."""
    both = contenders(settings, crops)
    milliseconds: dict[str, list[float]] = {who: [] for who in both}
    for turn in range(rounds + 2):
        for who, work in both.items():
            seconds = timed(work, crops.device.type)
            if turn >= 2:
                milliseconds[who].append(1000 * seconds / len(crops))
    line = "   ".join(f"{who} {statistics.median(values):7.3f} ({min(values):.3f} to {max(values):.3f})"
                      for who, values in milliseconds.items())
    ratio = statistics.median(theirs / ours for ours, theirs in zip(milliseconds["ours"], milliseconds["kornia"]))
    print(f"  {name:13} {line}   kornia takes {ratio:.2f} of ours' time")


def main():
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.device}, {arguments.threads} threads, torch {torch.__version__}, kornia {kornia.__version__}; "
          f"milliseconds a view, {arguments.rounds} rounds")
    check()
    for side, count in ((224, 32), (32, 256)):
        print(f"{count} crops of {side} pixels")
        smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 7, 7), side, mode="bicubic").clamp(0, 1)
        crops = (smooth * 255).to(torch.uint8).to(arguments.device)
        recipe = ViewSettings.of(PretrainConfig.of("moco-v2", "none", image_size=side))
        plus = ViewSettings.of(PretrainConfig.of("moco-v2-plus", "none", image_size=side))
        for name, chosen in OPERATIONS.items():
            measure(name, dataclasses.replace(recipe, **NOTHING | chosen), crops, arguments.rounds)
        measure("moco-v2", recipe, crops, arguments.rounds)
        measure("moco-v2-plus", plus, crops, arguments.rounds)


if __name__ == "__main__":
    main()
