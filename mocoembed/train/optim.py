"""SGD and its learning rate over the epochs."""

import math

import torch
from torch import nn


def build_optimizer(parameters: list[nn.Parameter], config) -> torch.optim.SGD:
    """SGD over all that is trained, weight decay on every parameter, as the authors' code has it.

    Without `decay_norms` there is none on vectors: biases, and BatchNorm's weights.
    """
    groups: list[dict] = [{"params": parameters}]
    if not config.decay_norms:
        groups = [{"params": [one for one in parameters if one.ndim > 1]},
                  {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, config.lr, momentum=config.sgd_momentum, weight_decay=config.weight_decay,
                           foreach=True)


def learning_rate(config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step 0, 1, ...; it changes at epoch borders (every step in the warm-up and cosine-by-step).

    cosine: lr (1 + cos(pi e / E)) / 2 in epoch e = 0, 1, ... of E, both counted from the warm-up's end (Chen et al.
    2020, the authors' code; their CIFAR-10 demo counts from 1, so that its last epoch learns nothing); cosine-by-step:
    the same with fractions of epochs, so that the last one of a few ends near zero; step: lr divided by ten at each
    milestone, a fraction of the epochs.
    """
    if step < config.warmup_epochs * steps_per_epoch:
        return config.lr * min(1.0, (step + 1) / (config.warmup_epochs * steps_per_epoch))
    epoch = step / steps_per_epoch if config.schedule == "cosine-by-step" else step // steps_per_epoch
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(epoch >= milestone * config.epochs for milestone in config.milestones)
    past = max(0.0, epoch - config.warmup_epochs) / max(1.0, config.epochs - config.warmup_epochs)
    return config.lr * 0.5 * (1 + math.cos(math.pi * past))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float):
    """Give every group of parameters the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
