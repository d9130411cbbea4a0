"""MoCo of lightly and of solo-learn on CIFAR-10 within some minutes of a CPU, by their own parts, for `half_hour.py`.

    python -m benchmarks.reproduce.half_hour_peers lightly cifar/train cifar/test
    python -m benchmarks.reproduce.half_hour_peers solo-learn cifar/train cifar/test --checkout solo-learn

As they are: lightly's example (ResNet-18 of the 3x3 stem, batch 256, memory bank of 4096, T 0.5, m from 0.996 to 1, SGD
0.06 without momentum, views of MoCo v2 without blur), and solo-learn's MoCo v2+ by its CIFAR-10 settings (ResNet-18,
batch 256, K 32768, T 0.2, m from 0.99 to 0.999, SGD 0.3 without momentum, symmetric loss, warm-up of 10 epochs, trained
by Lightning). With `--ours`: with our network, and with our settings where they have them (T 0.1, K 4096, SGD with
momentum and weight decay, m 0.99, no warm-up, our views in solo-learn). Loading processes: one or two, which a short
trial finds faster; its rate also gives the number of epochs, so that every schedule ends in time. Prints one JSON
object. Stopped, it begins anew. Needs `pip install lightly`, or for solo-learn (commit 9187ea3) `pip install lightning
omegaconf einops torchmetrics timm`.
"""

import copy
import json
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import click
import torch
from torch import nn
from torch.nn import functional

from benchmarks.own_images_lightly import _Paths
from benchmarks.reproduce.half_hour import SHARE
from mocoembed.config import PretrainConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.knn import accuracy, best_classes, nearest
from mocoembed.model.encoder import Encoder
from mocoembed.train.optim import learning_rate, set_learning_rate
from mocoembed.train.run import encoder_spec

TRIAL_STEPS, WORKERS = 12, (1, 2)
CIFAR = pathlib.Path("scripts/pretrain/cifar")
"""Where a checkout of solo-learn has its settings."""


class Lightly:
    """lightly's MoCo, in the loop of its documentation."""

    def __init__(self, folder: str, config: PretrainConfig, ours: bool):
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.folder, self.config, self.ours = folder, config, ours
        self.backbone = Encoder(encoder_spec(config)).backbone
        width = self.backbone.features
        self.encoder_q = nn.Sequential(self.backbone, MoCoProjectionHead(width, width, 128)).train()
        self.encoder_k = copy.deepcopy(self.encoder_q)
        deactivate_requires_grad(self.encoder_k)

    def batches(self, workers: int):
        """Two views of every image, as its CIFAR-10 benchmark makes them."""
        from lightly.transforms import MoCoV2Transform

        listing = scan(self.folder)
        images = _Paths.__new__(_Paths)
        images.paths = [bytes(listing.full_path(row)).decode() for row in range(len(listing))]
        images.transform = MoCoV2Transform(input_size=32, gaussian_blur=0.0)
        return torch.utils.data.DataLoader(images, self.config.batch_size, shuffle=True, drop_last=True,
                                           num_workers=workers, persistent_workers=True)

    def train(self, epochs: int, workers: int, steps: int | None = None) -> float:
        """Learn for so many epochs, or only `steps`: seconds from the first batch on."""
        from lightly.loss import NTXentLoss
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        config, ours = self.config, self.ours
        criterion = NTXentLoss(config.temperature if ours else 0.5, (4096, 128))
        more = {"momentum": config.sgd_momentum, "weight_decay": config.weight_decay} if ours else {}
        optimizer = torch.optim.SGD(self.encoder_q.parameters(), config.lr, **more)
        batches, done, begun = self.batches(workers), 0, time.monotonic()
        for epoch in range(epochs):
            if ours:
                set_learning_rate(optimizer, learning_rate(replace(config, epochs=epochs), epoch, 1))
            momentum = config.momentum if ours else cosine_schedule(epoch, max(2, epochs), 0.996, 1)
            for x_q, x_k in batches:
                update_momentum(self.encoder_q, self.encoder_k, m=momentum)
                loss = criterion(self.encoder_q(x_q), self.encoder_k(x_k))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
                if done == steps:
                    return time.monotonic() - begun
        return time.monotonic() - begun


class SoloLearn:
    """solo-learn's MoCo v2+, its own classes and loader in Lightning's trainer, as its `main_pretrain.py` puts them."""

    def __init__(self, folder: str, config: PretrainConfig, ours: bool):
        from omegaconf import OmegaConf

        self.folder, self.config = folder, config
        checkout = pathlib.Path(sys.path[0])
        self.settings = OmegaConf.load(checkout / CIFAR / "mocov2plus.yaml")
        self.views = OmegaConf.load(checkout / CIFAR / "augmentations" / "symmetric_weak.yaml")
        self.settings.data.merge_with({"num_classes": 10, "num_large_crops": 2, "num_small_crops": 0})
        self.settings.optimizer.batch_size = config.batch_size
        if ours:
            self._as_ours()
        self.model = self._model(1)

    @property
    def backbone(self) -> nn.Module:
        """What has been learned."""
        return self.model.backbone

    def _as_ours(self) -> None:
        from solo.methods.base import BaseMethod

        config, settings = self.config, self.settings
        BaseMethod._BACKBONES["ours"] = lambda method: _Backbone(config)
        settings.backbone.name = "ours"
        settings.method_kwargs.merge_with({"temperature": config.temperature, "queue_size": config.queue_size,
                                           "proj_output_dim": config.dim})
        settings.momentum.merge_with({"base_tau": config.momentum, "final_tau": config.momentum})
        settings.optimizer.merge_with({"lr": config.lr, "weight_decay": config.weight_decay,
                                       "kwargs": {"momentum": config.sgd_momentum}})
        settings.scheduler.warmup_epochs = 0
        low, high = config.crop_scale
        brightness, contrast, saturation, hue = config.jitter
        self.views[0].merge_with({
            "rrc": {"crop_min_scale": low, "crop_max_scale": high}, "gaussian_blur": {"prob": config.blur_probability},
            "color_jitter": {"prob": config.jitter_probability, "brightness": brightness, "contrast": contrast,
                             "saturation": saturation, "hue": hue}})

    def _model(self, epochs: int):
        from solo.methods import METHODS

        self.settings.max_epochs = epochs
        return METHODS["mocov2plus"](self.settings).to(memory_format=torch.channels_last)

    def train(self, epochs: int, workers: int, steps: int | None = None) -> float:
        """Learn for so many epochs, or only `steps`: seconds from the first batch on."""
        from lightning.pytorch import Trainer
        from solo.data.pretrain_dataloader import (
            FullTransformPipeline,
            NCropAugmentation,
            build_transform_pipeline,
            dataset_with_index,
            prepare_dataloader,
        )
        from torchvision.datasets import ImageFolder

        views = FullTransformPipeline([NCropAugmentation(build_transform_pipeline("cifar10", one), one.num_crops)
                                       for one in self.views])
        images = dataset_with_index(ImageFolder)(self.folder, views)
        model = self._model(epochs)
        model.load_state_dict(self.model.state_dict())
        trainer = Trainer(accelerator="cpu", devices=1, precision=32, max_epochs=epochs, max_steps=steps or -1,
                          logger=False, enable_checkpointing=False, enable_progress_bar=False,
                          enable_model_summary=False)
        begun = time.monotonic()
        trainer.fit(model, prepare_dataloader(images, self.config.batch_size, workers))
        self.model = model
        return time.monotonic() - begun


class _Backbone(nn.Module):
    """Our network, under the name that solo-learn gives to its number of features."""

    def __init__(self, config: PretrainConfig):
        super().__init__()
        self.network = Encoder(encoder_spec(config)).backbone
        self.num_features = self.network.features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


PEERS = {"lightly": Lightly, "solo-learn": SoloLearn}


def learn(peer: Callable[[], Lightly | SoloLearn], minutes: float) -> tuple[nn.Module, dict]:
    """The backbone after as many epochs as fit; and their number, and the minutes."""
    took = {workers: peer().train(1, workers, TRIAL_STEPS) for workers in WORKERS}
    workers = min(took, key=took.__getitem__)
    learner = peer()
    steps = len(scan(learner.folder)) // learner.config.batch_size
    epochs = max(1, int(SHARE * 60 * minutes * min(TRIAL_STEPS, steps) / took[workers] / steps))
    seconds = learner.train(epochs, workers)
    return learner.backbone, {"epochs": epochs, "minutes": seconds / 60, "workers": workers}


@torch.inference_mode()
def embedded(backbone: nn.Module, folder: str, config: PretrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unit length (N, D) and labels (N,) of a folder's images."""
    listing = scan(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    batches = evaluation_batches(listing, EvaluationTransform.of(32, config.mean, config.std), 256, 1)
    features = [backbone((batch.pixels.float() / 255 - mean) / std) for batch in batches]
    return functional.normalize(torch.cat(features)), torch.from_numpy(listing.labels).long()


@click.command()
@click.argument("peer", type=click.Choice(list(PEERS)))
@click.argument("folder", type=click.Path(exists=True))
@click.argument("test", type=click.Path(exists=True))
@click.option("--minutes", default=30.0)
@click.option("--checkout", type=click.Path(exists=True), help="Of solo-learn's repository.")
@click.option("--network", type=(float, str, int), default=(1.0, "3x3s1", 256), metavar="WIDTH STEM BATCH")
@click.option("--ours", is_flag=True)
def main(peer, folder, test, minutes, checkout, network, ours):
    """Train on FOLDER, measure on TEST."""
    if peer == "solo-learn":
        if checkout is None:
            raise click.UsageError("solo-learn is not a package: give --checkout, a clone of its repository.")
        sys.path.insert(0, str(checkout))
    width, stem, batch_size = network
    config = PretrainConfig.of("cifar10", folder, width=width, stem=stem, batch_size=batch_size, bn_groups=1)
    torch.manual_seed(0)
    backbone, result = learn(lambda: PEERS[peer](folder, config, ours), minutes)
    backbone.eval()
    bank, bank_labels = embedded(backbone, folder, config)
    queries, labels = embedded(backbone, test, config)
    similarities, rows = nearest(queries, bank, 200)
    found = accuracy(best_classes(similarities, bank_labels[rows], int(bank_labels.max()) + 1, 0.1), labels)
    click.echo(json.dumps({**result, "knn_top1": found.top1}))


if __name__ == "__main__":
    main()
