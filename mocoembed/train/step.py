"""One step of Momentum Contrast, in the order of the paper (He et al. 2019, algorithm 1)."""

import torch

from mocoembed.data.loader import ViewBatch
from mocoembed.data.views import PURPOSE_SHUFFLE, ViewSettings, apply_views, generator
from mocoembed.model.loss import Contrast, info_nce
from mocoembed.model.moco import MoCo
from mocoembed.model.precision import Compute


def training_step(moco: MoCo, optimizer, scaler, views, order: torch.Tensor, compute: Compute, symmetric: bool):
    """Learn from two normalised views (N, 3, S, S); the loss and accuracies as tensors (`Contrast`)."""
    x_q, x_k = views
    with compute.autocast():
        q = moco.query(x_q)  # N x C
        moco.momentum_update()
        k = moco.key(x_k, order)  # N x C, no gradient
        contrast = info_nce(q, k, moco.queue.keys, moco.T)
        keys = [k]
        if symmetric:  # each view is query and key in turn; the loss is the mean of both
            k_other = moco.key(x_q, order)
            other = info_nce(moco.query(x_k), k_other, moco.queue.keys, moco.T)
            contrast = Contrast(*((one + two) / 2 for one, two in zip(contrast, other)))
            keys.append(k_other)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(contrast.loss).backward()
    scaler.step(optimizer)
    scaler.update()
    for k in keys:  # after backward, which still needs the old queue: so no copy of it is made
        moco.queue.enqueue(k)
    return Contrast(*(value.detach() for value in contrast))


def to_views(batch: ViewBatch, settings: ViewSettings, compute: Compute) -> list[torch.Tensor]:
    """The two normalised views (N, 3, S, S) of a batch, made on the device."""
    views = []
    for crops, parameters in zip(batch.crops, batch.parameters):
        crops = crops.to(compute.device, non_blocking=True)
        parameters = type(parameters)(*(value.to(compute.device, non_blocking=True) for value in parameters))
        views.append(apply_views(crops, parameters, settings, compute.dtype))
    return views


def shuffle_order(seed: int, step: int, n: int, device) -> torch.Tensor:
    """(n,) int64: how the keys of a step are shuffled between BatchNorm's groups; a function of its arguments."""
    return torch.from_numpy(generator(seed, PURPOSE_SHUFFLE, step).permutation(n)).to(device)
