"""Several linear classifiers of the same features, each with its own learning rate: one batch -> one step of all.

In: features (N, D) float32 and classes (N,) int64. For every learning rate there is a classifier that learns from all
images and, where a rate is to be chosen, another that never sees the held-out ones. All begin with the same weights.
The optimizer is torch's SGD, momentum 0.9, no weight decay: as in the authors' main_lincls.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from mocoembed.config.probe import PublishedProtocol
from mocoembed.data.augmentation import Augmentation

MOMENTUM = 0.9
FOR_A_BATCH_OF = 256  # images, of learning rates that grow with the batch
MILESTONES = (0.6, 0.8)  # of the epochs, at which the learning rate falls to a tenth
LEAST = 1e-3  # share of the learning rate that lightly's cosine ends at


class Heads(nn.Module):
    """Linear classifiers D -> C, `everything` and `choosing`, a list each with one for every rate."""

    def __init__(self, features: int, classes: int, protocol: PublishedProtocol, rates: tuple[float, ...], seed: int):
        super().__init__()
        first = first_weights(features, classes, protocol.first_weights, seed)
        self.rates = rates
        self.everything = nn.ModuleList(_copy(first) for _ in rates)
        self.choosing = nn.ModuleList(_copy(first) for _ in rates if len(rates) > 1)

    def optimizer(self) -> torch.optim.SGD:
        """SGD with a group for every classifier, its rate in `initial_lr`."""
        pairs = [*zip(self.rates, self.everything), *zip(self.rates, self.choosing)]
        groups = [{"params": [*head.parameters()], "lr": rate, "initial_lr": rate} for rate, head in pairs]
        return torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=0)

    def losses(self, x: torch.Tensor, y: torch.Tensor, held_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of all losses, for backward, and (R,) those of `everything`.

        x: (N, D), y: (N,), held_out: (N,) bool, the images that `choosing` must not see.
        """
        each = torch.stack([functional.cross_entropy(head(x), y) for head in self.everything])
        total = each.sum()
        if len(self.choosing) and not bool(held_out.all()):
            seen, known = x[~held_out], y[~held_out]
            total = total + torch.stack([functional.cross_entropy(head(seen), known) for head in self.choosing]).sum()
        return total, each.detach()


def first_weights(features: int, classes: int, kind: str, seed: int) -> nn.Linear:
    """A linear layer as the protocol begins with; see `PublishedProtocol.first_weights`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(features, classes)
        if kind == "normal":
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
    return head


def _copy(head: nn.Linear) -> nn.Linear:
    new = nn.Linear(head.in_features, head.out_features)
    new.load_state_dict(head.state_dict())
    return new


def set_rates(optimizer: torch.optim.Optimizer, protocol: PublishedProtocol, step: int, steps_per_epoch: int,
              how: Augmentation):
    """Set the learning rates of step `step`, from 0; `how` knows the epochs and the batch."""
    scale = how.batch_size / FOR_A_BATCH_OF if protocol.scaled else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * scale * factor(protocol.schedule, step, steps_per_epoch, how.epochs)


def factor(schedule: str, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the schedule makes of a learning rate at a step."""
    epoch = step // steps_per_epoch
    if schedule == "steps":
        value = 1.0
        for milestone in MILESTONES:
            value *= 0.1 if epoch >= round(milestone * epochs) else 1.0
        return value
    if schedule == "cosine-epochs":  # torch's CosineAnnealingLR
        return (1 + math.cos(math.pi * epoch / epochs)) / 2
    last = max(1, steps_per_epoch * epochs - 1)
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * min(1.0, step / last))) / 2
