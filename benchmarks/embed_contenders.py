"""The contenders of `embed_speed.py`: each takes a `Lab` and a folder, and embeds (or loads) the folder's images."""

import copy
import functools
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from torchvision import transforms

from mocoembed.config import EmbedConfig
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.embed.extract import embed_images
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder, load_encoder
from mocoembed.model.folding import fold
from mocoembed.model.precision import Compute
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224


@dataclass(frozen=True)
class Lab:
    """What the contenders need."""

    scratch: pathlib.Path
    batch_size: int
    workers: int
    compute: Compute
    arch: str

    @functools.cached_property
    def frozen(self) -> FrozenEncoder:
        """The encoder, from its file."""
        return load_encoder(self.encoder)

    @property
    def encoder(self) -> pathlib.Path:
        """Its file."""
        return self.scratch / "encoder.safetensors"

    @functools.cached_property
    def network(self) -> torch.nn.Module:
        """The backbone as a user would have it: a torchvision network without its last layer."""
        network = torchvision.models.get_model(self.arch)
        network.fc = torch.nn.Identity()
        network.load_state_dict(self.frozen.encoder.backbone.state_dict())
        return network.to(self.compute.device).eval()

    def ready(self, dtype: torch.dtype) -> torch.Tensor:
        """A batch on the device, channels last."""
        pixels = torch.randint(0, 256, (self.batch_size, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        return pixels.to(self.compute.device, dtype)

    def finish(self):
        """Wait for the device."""
        if self.compute.device.type == "cuda":
            torch.cuda.synchronize()


def _repeat(lab: Lab, folder: pathlib.Path, work: Callable[[], object]):
    """Do the work of one batch as often as the folder has batches."""
    with torch.inference_mode():
        for _ in range(len(os.listdir(folder / "images")) // lab.batch_size):
            work()
    lab.finish()


def model(lab: Lab, folder: pathlib.Path):
    """The bare network."""
    x, network = lab.ready(torch.float32) / 255, copy.deepcopy(lab.network).to(memory_format=torch.channels_last)
    _repeat(lab, folder, lambda: network(x))


def kept(lab: Lab, folder: pathlib.Path):
    """The bare network in a process that keeps freed memory."""
    with lab.compute.keeping_memory():
        model(lab, folder)


def folded(lab: Lab, folder: pathlib.Path):
    """The same with BatchNorm folded."""
    x = lab.ready(torch.float32) / 255
    network = fold(copy.deepcopy(lab.network).requires_grad_(False), x.shape[-1])
    network = network.to(memory_format=torch.channels_last)
    with lab.compute.keeping_memory():
        _repeat(lab, folder, lambda: network(x))


def embedder(lab: Lab, folder: pathlib.Path):
    """Our `Embedder` on ready pixels."""
    x, network = lab.ready(torch.uint8).cpu(), Embedder(lab.frozen, lab.compute, "backbone", True)
    with lab.compute.keeping_memory():
        _repeat(lab, folder, lambda: network(x))


def ours(lab: Lab, folder: pathlib.Path, compiled: bool = False):
    """`embed_images` from the folder to the embeddings file."""
    config = EmbedConfig(str(folder), str(lab.scratch / "workspace"), str(lab.encoder), str(lab.scratch / "ours.h5"),
                         fresh=True, batch_size=lab.batch_size, workers=lab.workers, device=str(lab.compute.device),
                         compile=compiled)
    embed_images(config)
    (lab.scratch / "ours.h5").unlink()


def ours_compiled(lab: Lab, folder: pathlib.Path):
    """`ours` with `--compile`."""
    ours(lab, folder, compiled=True)


def ours_loading(lab: Lab, folder: pathlib.Path):
    """Our batches of pixels, and nothing done with them."""
    for _ in evaluation_batches(scan(str(folder)), lab.frozen.transform, lab.batch_size, lab.workers):
        pass


def _plain_batches(lab: Lab, folder: pathlib.Path):
    transform = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIDE), transforms.ToTensor(),
                                    transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    dataset = torchvision.datasets.ImageFolder(str(folder), transform)
    return torch.utils.data.DataLoader(dataset, batch_size=lab.batch_size, num_workers=lab.workers,
                                       pin_memory=lab.compute.device.type == "cuda")


def plain(lab: Lab, folder: pathlib.Path):
    """A plain loop."""
    rows, network = [], lab.network
    with torch.no_grad():
        for pixels, _ in _plain_batches(lab, folder):
            rows.append(network(pixels.to(lab.compute.device, non_blocking=True)).cpu().numpy())
    np.save(lab.scratch / "plain.npy", np.concatenate(rows))


def plain_loading(lab: Lab, folder: pathlib.Path):
    """The batches of the plain loop, and nothing done with them."""
    for _ in _plain_batches(lab, folder):
        pass


def lightly(lab: Lab, folder: pathlib.Path):
    """lightly's embedding strategy, as its command `lightly-embed` calls it."""
    from lightly.data import LightlyDataset
    from lightly.embedding import SelfSupervisedEmbedding

    transform = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor(),
                                    transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    loader = torch.utils.data.DataLoader(LightlyDataset(str(folder), transform=transform), batch_size=lab.batch_size,
                                         num_workers=lab.workers)
    whole = torch.nn.Module()
    whole.backbone = lab.network
    rows, _, _ = SelfSupervisedEmbedding(whole, None, None, None).embed(loader, device=lab.compute.device)
    np.save(lab.scratch / "lightly.npy", rows)


CONTENDERS = {"model": model, "kept": kept, "folded": folded, "embedder": embedder, "ours": ours,
              "ours-compiled": ours_compiled, "plain": plain, "lightly": lightly, "ours-loading": ours_loading,
              "plain-loading": plain_loading}
