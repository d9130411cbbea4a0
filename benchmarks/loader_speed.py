"""Images per second and core of the input side, ours against what others use.

    pip install lightly
    python benchmarks/loader_speed.py FOLDER --photographs flowers --small cifar/test [--lightly]

makes in FOLDER photographs of 500 x 375 and of 4000 x 3000 pixels (fitted and, for the latter, enlarged from the given
ones; quality 90; with --grain a sensor's noise of that many levels is added, which makes files larger), and
copies of the small ones. Then, in one process with one thread, the contenders take turns, a batch each:

Two views for pretraining
    ours       `view_batches`: what one of our loading processes does, from file to two uint8 crops
    official   the same from the transforms of the authors' MoCo v2 recipe: ImageFolder, torchvision on Pillow images
    lightly    its MoCoV2Transform in place of that
    decode     ImageFolder's reading and full decoding alone: what no pipeline that decodes in full can beat
    device     `apply_views` on our crops, which in `pretrain` the training's device does (here: this core)
One view for embedding
    ours       `evaluation_batches` and the normalisation
    plain      DataLoader(ImageFolder(Resize 256, CenterCrop 224, ToTensor, Normalize))

Seconds are the process's own processor time, which other work on the machine disturbs less than the clock. The figure
is the median of the rounds (lowest to highest), the ratio that of the rounds' ratios.
"""

import argparse
import os
import pathlib
import platform
import shutil
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mocoembed.config import PretrainConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import scan
from mocoembed.data.loader import Places, evaluation_batches, view_batches
from mocoembed.data.views import ViewSettings, apply_views, normalize
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD

SIZES = {"usual": (500, 375), "large": (4000, 3000)}
QUALITY = 90


def make(folder: pathlib.Path, photographs: pathlib.Path, count: int, size: tuple[int, int], grain: float):
    """`count` photographs of that size in `folder`/class."""
    if folder.exists():
        return
    part = folder.with_name(f".{folder.name}.part")
    (part / "class").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = sorted(photographs.rglob("*.jpg"))
    for number, place in enumerate(np.linspace(0, len(paths) - 1, count).astype(int)):
        image = ImageOps.fit(Image.open(paths[place]).convert("RGB"), size, Image.Resampling.BICUBIC)
        if grain:
            noise = random.normal(0, grain, (size[1], size[0], 3)).astype(np.float32)
            image = Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))
        image.save(part / "class" / f"{number:04d}.jpg", quality=QUALITY)
    part.rename(folder)


def copy_small(folder: pathlib.Path, small: pathlib.Path, count: int):
    """`count` of the small images in `folder`/class."""
    if not folder.exists():
        (folder / "class").mkdir(parents=True)
        paths = sorted(small.rglob("*.jpg"))
        for place in np.linspace(0, len(paths) - 1, count).astype(int):
            shutil.copy(paths[place], folder / "class" / f"{place:06d}.jpg")


class Blur:
    """Pillow's Gaussian blur with a sigma drawn from 0.1 to 2, as MoCo v2 has it."""

    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(radius=np.random.uniform(0.1, 2.0)))


class Twice:
    """Two views of an image, each through the whole chain."""

    def __init__(self, chain):
        self.chain = chain

    def __call__(self, image):
        return self.chain(image), self.chain(image)


def official_chain(config: PretrainConfig) -> Twice:
    """The recipe's transforms, from torchvision, in the order of the authors' code."""
    return Twice(transforms.Compose([
        transforms.RandomResizedCrop(config.image_size, scale=config.crop_scale),
        transforms.RandomApply([transforms.ColorJitter(*config.jitter)], p=config.jitter_probability),
        transforms.RandomGrayscale(p=config.grey_probability),
        transforms.RandomApply([Blur()], p=config.blur_probability),
        transforms.RandomHorizontalFlip(p=config.flip_probability),
        transforms.ToTensor(),
        transforms.Normalize(config.mean, config.std)]))


def lightly_chain(config: PretrainConfig):
    """lightly's transform with the recipe's settings."""
    from lightly.transforms.moco_transform import MoCoV2Transform

    strengths = dict(zip(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), config.jitter))
    return MoCoV2Transform(config.image_size, min_scale=config.crop_scale[0], cj_prob=config.jitter_probability,
                           gaussian_blur=config.blur_probability, **strengths,
                           normalize={"mean": list(config.mean), "std": list(config.std)})


def keep_decoded(image) -> int:
    """Nothing more than the decoding that ImageFolder did."""
    return image.width


class Endless:
    """Batches of a DataLoader in this process, epoch after epoch."""

    def __init__(self, folder: pathlib.Path, transform, batch_size: int):
        torch.manual_seed(0)
        self.loader = DataLoader(ImageFolder(folder, transform), batch_size, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)

    def __call__(self):
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return batch


class OurViews:
    """Our loading process's work; the last batch is kept for `device`."""

    def __init__(self, folder: pathlib.Path, config: PretrainConfig, batch_size: int):
        listing = scan(folder)
        self.settings = ViewSettings.of(config)
        self.batches = iter(view_batches(listing, config, Places(len(listing), config, 0), workers=0, pin=False))
        self.batch = None

    def load(self):
        """The next batch of two crops."""
        self.batch = next(self.batches)

    def on_device(self):
        """What the training's device does to them."""
        views = zip(self.batch.crops, (self.batch.queries[0], self.batch.keys[0]))
        return [apply_views(crops, parameters, self.settings) for crops, parameters in views]


class OurEvaluation:
    """Our batches for embedding, over and over."""

    def __init__(self, folder: pathlib.Path, batch_size: int):
        self.transform = EvaluationTransform.of(224, IMAGENET_MEAN, IMAGENET_STD)
        self.source = evaluation_batches(scan(folder), self.transform, batch_size, workers=0)
        self.batches = iter(())

    def __call__(self):
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.source)
            batch = next(self.batches)
        return normalize(batch.pixels.float().div_(255), self.transform.mean, self.transform.std)


def timed(contenders: dict, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of processor for each contender in each round, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            begun = time.process_time()
            work()
            seconds = time.process_time() - begun
            if turn:
                rates[name].append(batch_size / seconds)
    return rates


def spread(values: list[float]) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f})"


def report(title: str, rates: dict[str, list[float]], rounds: int, batch_size: int):
    """One block of the table: each contender, and ours against it."""
    print(f"\n{title}; {rounds} rounds of {batch_size} images")
    for name, values in rates.items():
        ratio = spread([ours / theirs for ours, theirs in zip(rates["ours"], values)]).strip()
        milliseconds = 1000 / statistics.median(values)
        print(f"  {name:9} {spread(values):30} images/s  {milliseconds:8.2f} ms   ours is {ratio}")


def pretraining(folder: pathlib.Path, title: str, config: PretrainConfig, rounds: int, lightly: bool):
    """Measure and print two views."""
    ours = OurViews(folder, config, config.batch_size)
    size = config.batch_size
    contenders = {"ours": ours.load, "official": Endless(folder, official_chain(config), size)}
    if lightly:
        contenders["lightly"] = Endless(folder, lightly_chain(config), size)
    contenders |= {"decode": Endless(folder, keep_decoded, size), "device": ours.on_device}
    report(f"two views at {config.image_size} from {title}", timed(contenders, size, rounds), rounds, size)


def evaluation(folder: pathlib.Path, title: str, batch_size: int, rounds: int):
    """Measure and print the evaluation input."""
    chain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
                                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    contenders = {"ours": OurEvaluation(folder, batch_size), "plain": Endless(folder, chain, batch_size)}
    report(f"evaluation input at 224 from {title}", timed(contenders, batch_size, rounds), rounds, batch_size)


def main():
    """Make the images, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="Scratch folder for the images.")
    parser.add_argument("--photographs", type=pathlib.Path, required=True, help="Folder of JPEG photographs.")
    parser.add_argument("--small", type=pathlib.Path, required=True, help="Folder of JPEG files of 32 pixels.")
    parser.add_argument("--lightly", action="store_true", help="Measure lightly's transform, too.")
    parser.add_argument("--grain", type=float, default=0.0, help="Standard deviation of noise added, in levels.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("usual", "large", "small"), help="Measure these alone.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, Pillow {PIL.__version__}, "
          f"torch {torch.__version__}, torchvision {torchvision.__version__}; per core, in seconds of processor")
    for name, batch_size in {"usual": 32, "large": 8, "small": 256}.items():
        if arguments.only not in (None, name):
            continue
        folder = arguments.folder / (f"{name}-{arguments.grain:g}" if name in SIZES else name)
        if name == "small":
            copy_small(folder, arguments.small, 2 * batch_size)
            title, recipes = "32 x 32", (("moco-v2", batch_size // 8), ("cifar10", batch_size))
        else:
            make(folder, arguments.photographs, 4 * batch_size, SIZES[name], arguments.grain)
            title, recipes = "{} x {}".format(*SIZES[name]), (("moco-v2", batch_size),)
        kilobytes = statistics.median(path.stat().st_size for path in (folder / "class").iterdir()) / 1000
        title += f" ({kilobytes:.0f} kB)"
        for recipe, size in recipes:
            config = PretrainConfig.of(recipe, str(folder), batch_size=size, bn_groups=1, epochs=arguments.rounds + 1)
            pretraining(folder, title, config, arguments.rounds, arguments.lightly)
        if name != "small":
            evaluation(folder, title, batch_size, arguments.rounds)


if __name__ == "__main__":
    main()
