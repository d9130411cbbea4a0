"""lightly's MoCo on CIFAR-10 within some minutes of a CPU, by lightly's own parts: what `half_hour.py` compares with.

As it is: the example of its documentation, with the ResNet-18 of the 3x3 stem (batch 256, memory bank of 4096, T 0.5,
m from 0.996 to 1, SGD 0.06 without momentum). With `--ours`: its parts with our network and our settings where it has
them (T 0.1, m 0.99, SGD with momentum and weight decay, cosine). Prints one JSON object. Stopped, it begins anew.
"""

import copy
import json
import pathlib
import time
from dataclasses import replace

import click
import torch
from torch import nn

from benchmarks.own_images_lightly import _Paths
from mocoembed.config import PretrainConfig
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.knn import accuracy, best_classes, nearest
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder
from mocoembed.model.precision import Compute
from mocoembed.train.optim import learning_rate, set_learning_rate
from mocoembed.train.run import encoder_spec, frozen_encoder

TRIAL_STEPS = 12


def batches_of(folder: str, config: PretrainConfig):
    """lightly's transform of MoCo v2 without blur, as its CIFAR-10 benchmark has it."""
    from lightly.transforms import MoCoV2Transform

    listing = scan(folder)
    images = _Paths.__new__(_Paths)
    images.paths = [bytes(listing.full_path(row)).decode() for row in range(len(listing))]
    images.transform = MoCoV2Transform(input_size=32, gaussian_blur=0.0)
    return torch.utils.data.DataLoader(images, config.batch_size, shuffle=True, drop_last=True, num_workers=1,
                                       persistent_workers=True)


def train(encoder: Encoder, batches, config: PretrainConfig, minutes: float, ours: bool) -> tuple[int, float]:
    """Epochs and minutes; as many epochs as fit by the rate of the first steps."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.utils.scheduler import cosine_schedule

    width = encoder.backbone.features
    encoder_q = nn.Sequential(encoder.backbone, MoCoProjectionHead(width, width, 128)).train()
    encoder_k = copy.deepcopy(encoder_q)
    deactivate_requires_grad(encoder_k)
    criterion = NTXentLoss(config.temperature if ours else 0.5, (4096, 128))
    more = {"momentum": config.sgd_momentum, "weight_decay": config.weight_decay} if ours else {}
    optimizer = torch.optim.SGD(encoder_q.parameters(), config.lr, **more)
    begun, steps, epoch, epochs = time.monotonic(), 0, 0, 10**6
    while epoch < epochs:
        if ours and epoch:
            set_learning_rate(optimizer, learning_rate(replace(config, epochs=epochs), epoch, 1))
        momentum = config.momentum if ours else cosine_schedule(epoch, max(2, epochs), 0.996, 1)
        for x_q, x_k in batches:
            update_momentum(encoder_q, encoder_k, m=momentum)
            loss = criterion(encoder_q(x_q), encoder_k(x_k))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if steps == min(TRIAL_STEPS, len(batches)):
                rate = steps / (time.monotonic() - begun)
                epochs = max(1, int(0.95 * 60 * minutes * rate / len(batches)))
        epoch += 1
    return epoch, (time.monotonic() - begun) / 60


def embedded(encoder: Encoder, folder: str, config: PretrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unit length and labels of a folder's images."""
    listing = scan(folder)
    state = encoder.state_dict()
    embedder = Embedder(frozen_encoder(state, config, {}), Compute.of("cpu", "fp32"), "backbone", True)
    batches = evaluation_batches(listing, embedder.frozen.transform, 256, 1)
    return torch.cat([embedder(batch.pixels) for batch in batches]), torch.from_numpy(listing.labels).long()


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=pathlib.Path))
@click.argument("test", type=click.Path(exists=True, path_type=pathlib.Path))
@click.option("--minutes", default=30.0)
@click.option("--width", default=1.0)
@click.option("--stem", default="3x3s1")
@click.option("--batch-size", default=256)
@click.option("--ours", is_flag=True)
def main(folder, test, minutes, width, stem, batch_size, ours):
    """Train on FOLDER, measure on TEST."""
    network = {"width": width, "stem": stem, "batch_size": batch_size, "bn_groups": 1}
    config = PretrainConfig.of("cifar10", str(folder), **network)
    torch.manual_seed(0)
    encoder = Encoder(encoder_spec(config))
    epochs, took = train(encoder, batches_of(str(folder), config), config, minutes, ours)
    bank, bank_labels = embedded(encoder, str(folder), config)
    queries, labels = embedded(encoder, str(test), config)
    similarities, rows = nearest(queries, bank, 200)
    found = accuracy(best_classes(similarities, bank_labels[rows], int(bank_labels.max()) + 1, 0.1), labels)
    click.echo(json.dumps({"epochs": epochs, "minutes": took, "knn_top1": found.top1}))


if __name__ == "__main__":
    main()
