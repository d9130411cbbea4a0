"""MoCo of lightly and of solo-learn on CIFAR-10 within some minutes of a CPU, by their own parts, for `half_hour.py`.

    python -m benchmarks.reproduce.half_hour_peers lightly cifar/train cifar/test
    python -m benchmarks.reproduce.half_hour_peers solo-learn cifar/train cifar/test --checkout solo-learn

As they are: lightly's example (ResNet-18 of the 3x3 stem, batch 256, memory bank of 4096, T 0.5, m from 0.996 to 1, SGD
0.06 without momentum, views of MoCo v2 without blur), and solo-learn's MoCo v2+ by its CIFAR-10 settings (ResNet-18,
batch 256, K 32768, T 0.2, m from 0.99 to 0.999, SGD 0.3 without momentum, symmetric loss, warm-up of 10 epochs, trained
by Lightning). With `--ours FILE`, the config.json of a run of ours: with its network, and with its settings where they
have them (batch, T, K, m, SGD's rate, momentum and weight decay, our views; lightly our schedule, solo-learn its own
without warm-up). Loading processes: one or two, which a short trial finds faster; its rate also gives the number of
epochs and how many images are learned from, so that each schedule fills the time, as ours does. solo-learn's 10 epochs
of warm-up, of 1,000, are the same share of these epochs. Prints one JSON object. Stopped, it begins anew. Needs `pip
install lightly`, or for solo-learn (commit 9187ea3) `pip install lightning omegaconf einops torchmetrics timm`.
"""

import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.lightly_moco import LightlyMoCo, batches_of, momenta
from benchmarks.reproduce.half_hour import SHARE
from mocoembed.checks import from_dict
from mocoembed.config import PretrainConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.knn import accuracy, best_classes, nearest
from mocoembed.model.encoder import Encoder
from mocoembed.train.optim import learning_rate, set_learning_rate
from mocoembed.train.run import encoder_spec

TRIAL_STEPS, FIRST_STEPS, WORKERS = 15, 3, (1, 2)
"""FIRST_STEPS: of the trial, that do not count, as workers and memory begin in them."""
CIFAR = pathlib.Path("scripts/pretrain/cifar")
"""Where a checkout of solo-learn has its settings."""


class Lightly:
    """lightly's MoCo, in the loop of its documentation."""

    def __init__(self, folder: str, config: PretrainConfig, ours: bool):
        self.folder, self.config, self.ours = folder, config, ours
        self.backbone = Encoder(encoder_spec(config)).backbone
        self.method = (LightlyMoCo(self.backbone, config.dim, config.queue_size, config.temperature) if ours
                       else LightlyMoCo(self.backbone))

    def _views(self):
        """As its CIFAR-10 benchmark makes them, or ours."""
        from lightly.transforms import MoCoV2Transform

        config = self.config
        colours = {"mean": list(config.mean), "std": list(config.std)}
        if not self.ours:
            return MoCoV2Transform(input_size=32, gaussian_blur=0.0, normalize=colours)
        brightness, contrast, saturation, hue = config.jitter
        return MoCoV2Transform(
            input_size=config.image_size, cj_prob=config.jitter_probability, cj_bright=brightness,
            cj_contrast=contrast, cj_sat=saturation, cj_hue=hue, min_scale=config.crop_scale[0],
            random_gray_scale=config.grey_probability, gaussian_blur=config.blur_probability, normalize=colours)

    def train(self, epochs: int, rows: np.ndarray, workers: int) -> list[float]:
        """Learn from these rows of the folder for so many epochs: `time.monotonic()` at the end of each step."""
        config, ours = replace(self.config, epochs=epochs), self.ours
        more = {"momentum": config.sgd_momentum, "weight_decay": config.weight_decay} if ours else {}
        optimizer = torch.optim.SGD(self.method.encoder_q.parameters(), config.lr if ours else 0.06, **more)
        listing, ends = scan(self.folder), []
        batches = batches_of([bytes(listing.full_path(row)).decode() for row in rows], self._views(),
                             config.batch_size, workers)

        def begin(epoch: int):
            if ours:
                set_learning_rate(optimizer, learning_rate(config, epoch, 1))

        self.method.train(optimizer, batches, [config.momentum] * epochs if ours else momenta(epochs), begin,
                          lambda: ends.append(time.monotonic()))
        return ends


class SoloLearn:
    """solo-learn's MoCo v2+, its own classes and loader in Lightning's trainer, as its `main_pretrain.py` puts them."""

    def __init__(self, folder: str, config: PretrainConfig, ours: bool):
        from omegaconf import OmegaConf

        self.folder, self.config, self.ours = folder, config, ours
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
        low, high = config.crop_scale
        brightness, contrast, saturation, hue = config.jitter
        self.views[0].merge_with({
            "rrc": {"crop_min_scale": low, "crop_max_scale": high}, "gaussian_blur": {"prob": config.blur_probability},
            "color_jitter": {"prob": config.jitter_probability, "brightness": brightness, "contrast": contrast,
                             "saturation": saturation, "hue": hue}})

    def _model(self, epochs: int):
        from solo.methods import METHODS

        self.settings.max_epochs = epochs
        self.settings.scheduler.warmup_epochs = 0.0 if self.ours else 10 / 1000 * epochs
        return METHODS["mocov2plus"](self.settings).to(memory_format=torch.channels_last)

    def train(self, epochs: int, rows: np.ndarray, workers: int) -> list[float]:
        """Learn from these rows of the folder for so many epochs: `time.monotonic()` at the end of each step."""
        from lightning.pytorch import Callback, Trainer
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
        images = torch.utils.data.Subset(dataset_with_index(ImageFolder)(self.folder, views), rows.tolist())
        model, ends = self._model(epochs), []
        model.load_state_dict(self.model.state_dict())

        class Clock(Callback):
            def on_train_batch_end(self, *arguments):
                ends.append(time.monotonic())

        trainer = Trainer(accelerator="cpu", devices=1, precision=32, max_epochs=epochs, logger=False,
                          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                          callbacks=[Clock()])
        trainer.fit(model, prepare_dataloader(images, self.config.batch_size, workers))
        self.model = model
        return ends


class _Backbone(nn.Module):
    """Our network, under the name that solo-learn gives to its number of features."""

    def __init__(self, config: PretrainConfig):
        super().__init__()
        self.network = Encoder(encoder_spec(config)).backbone
        self.num_features = self.network.features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


PEERS = {"lightly": Lightly, "solo-learn": SoloLearn}


def seconds_a_step(ends: list[float], first: int = FIRST_STEPS) -> float:
    """The mean, without the first steps, if there are more."""
    first = min(first, len(ends) - 2)
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first)


def learn(peer: Callable[[], Lightly | SoloLearn], minutes: float) -> tuple[nn.Module, dict]:
    """The backbone after as many epochs of as many images as fill the minutes; and these numbers."""
    learner = peer()
    batch, listing = learner.config.batch_size, scan(learner.folder)
    order = np.random.default_rng(0).permutation(len(listing))
    took = {workers: seconds_a_step(peer().train(1, order[:TRIAL_STEPS * batch], workers)) for workers in WORKERS}
    workers = min(took, key=took.__getitem__)
    seen = SHARE * 60 * minutes / took[workers] * batch
    epochs = max(1, math.ceil(seen / len(order)))
    limit = min(len(order), max(2 * batch, int(seen / epochs)))
    ends = learner.train(epochs, order[:limit], workers)
    return learner.backbone, {"epochs": epochs, "limit": limit, "workers": workers,
                              "minutes": len(ends) * seconds_a_step(ends, 0) / 60}


def config_of(file: str) -> PretrainConfig:
    """The settings in the config.json of a run, which has more."""
    values = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    return from_dict(PretrainConfig, {field.name: values[field.name] for field in fields(PretrainConfig)})


@torch.inference_mode()
def embedded(backbone: nn.Module, folder: str, config: PretrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unit length (N, D) and labels (N,) of a folder's images."""
    listing = scan(folder)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    batches = evaluation_batches(listing, EvaluationTransform.of(config.image_size, config.mean, config.std), 256, 1)
    features = [backbone((batch.pixels.float() / 255 - mean) / std) for batch in batches]
    return functional.normalize(torch.cat(features)), torch.from_numpy(listing.labels).long()


@click.command()
@click.argument("peer", type=click.Choice(list(PEERS)))
@click.argument("folder", type=click.Path(exists=True))
@click.argument("test", type=click.Path(exists=True))
@click.option("--minutes", default=30.0)
@click.option("--checkout", type=click.Path(exists=True), help="Of solo-learn's repository.")
@click.option("--ours", type=click.Path(exists=True, dir_okay=False), help="config.json of a run of ours.")
def main(peer, folder, test, minutes, checkout, ours):
    """Train on FOLDER, measure on TEST."""
    if peer == "solo-learn":
        if checkout is None:
            raise click.UsageError("solo-learn is not a package: give --checkout, a clone of its repository.")
        sys.path.insert(0, str(checkout))
    config = replace(PretrainConfig.of("cifar10", folder, batch_size=256) if ours is None else config_of(ours),
                     bn_groups=1)
    torch.manual_seed(0)
    backbone, result = learn(lambda: PEERS[peer](folder, config, ours is not None), minutes)
    backbone.eval()
    bank, bank_labels = embedded(backbone, folder, config)
    queries, labels = embedded(backbone, test, config)
    similarities, rows = nearest(queries, bank, 200)
    found = accuracy(best_classes(similarities, bank_labels[rows], int(bank_labels.max()) + 1, 0.1), labels)
    click.echo(json.dumps({**result, "knn_top1": found.top1}))


if __name__ == "__main__":
    main()
