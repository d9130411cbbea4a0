"""One step of Momentum Contrast, in the order of the paper (He et al. 2019, algorithm 1)."""

import torch

from mocoembed.data.loader import ViewBatch
from mocoembed.data.views import PURPOSE_SHUFFLE, ViewSettings, apply_views, generator
from mocoembed.model.loss import Contrast, info_nce
from mocoembed.model.moco import MoCo
from mocoembed.model.precision import Compute


def training_step(moco: MoCo, optimizer, scaler, views, order: torch.Tensor, compute: Compute, symmetric: bool):
    """Learn from two normalised views (N, 3, S, S); the loss and accuracies as tensors (`Contrast`).

    With `symmetric`, the sum of both losses is minimised, as the authors' CIFAR-10 demo does, and their mean reported,
    to be held against ln(K+1).
    """
    pairs = [views, views[::-1]] if symmetric else [views]  # symmetric: each view is query and key in turn
    with compute.autocast():
        q = [moco.query(x_q) for x_q, _ in pairs]  # N x C each
        moco.momentum_update()
        k = [moco.key(x_k, order) for _, x_k in pairs]  # N x C each, no gradient
    contrasts = [info_nce(*pair, moco.queue.keys, moco.T) for pair in zip(q, k)]
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(sum(contrast.loss for contrast in contrasts)).backward()
    scaler.step(optimizer)
    scaler.update()
    for keys in reversed(k):  # after backward, which still needs the old queue: so no copy of it is made
        moco.queue.enqueue(keys)
    return Contrast(*(torch.stack(values).mean().detach() for values in zip(*contrasts)))


def to_views(batch: ViewBatch, settings: ViewSettings, compute: Compute) -> list[torch.Tensor]:
    """The two normalised views (N, 3, S, S) of a batch, made on the device."""
    views = []
    for crops, parameters in zip(batch.crops, batch.parameters):
        crops = crops.to(compute.device, non_blocking=True)
        views.append(apply_views(crops, parameters, settings, compute.dtype))
    return views


def shuffle_order(seed: int, step: int, n: int, device) -> torch.Tensor:
    """(n,) int64: how the keys of a step are shuffled between BatchNorm's groups; a function of its arguments."""
    return torch.from_numpy(generator(seed, PURPOSE_SHUFFLE, step).permutation(n)).to(device)
