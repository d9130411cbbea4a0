"""lightly's MoCo as its documentation has it (`pip install lightly`): what ours is measured against."""

import copy
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn


class LightlyMoCo:
    """Its projection head, momentum encoder, memory bank and loss, around a backbone of ours.

    By default of the size and temperature of its example. `encoder_q` learns; `loss` is that of two views.
    """

    def __init__(self, backbone: nn.Module, dim: int = 128, queue_size: int = 4096, temperature: float = 0.5,
                 device: torch.device | str = "cpu"):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        features = backbone.features
        self.encoder_q = nn.Sequential(backbone, MoCoProjectionHead(features, features, dim)).to(device).train()
        self.encoder_k = copy.deepcopy(self.encoder_q)
        deactivate_requires_grad(self.encoder_k)
        self.criterion = NTXentLoss(temperature, (queue_size, dim)).to(device)

    def loss(self, x_q: torch.Tensor, x_k: torch.Tensor, momentum: float) -> torch.Tensor:
        """Of queries and keys, both (N, 3, S, S), after the momentum encoder's update by `momentum`."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder_q, self.encoder_k, m=momentum)
        with torch.no_grad():
            k = self.encoder_k(x_k)
        return self.criterion(self.encoder_q(x_q).float(), k.float())

    def train(self, optimizer: torch.optim.Optimizer, batches, momenta: Sequence[float],
              begin: Callable[[int], None] = lambda epoch: None, done: Callable[[], None] = lambda: None) -> float:
        """An epoch over `batches` for each momentum: the last loss. Calls `begin(epoch)`, and `done()` after a step."""
        for epoch, momentum in enumerate(momenta):
            begin(epoch)
            for x_q, x_k in batches:
                loss = self.loss(x_q, x_k, momentum)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done()
        return loss.item()


def momenta(epochs: int) -> list[float]:
    """Its example's, from 0.996 to 1."""
    from lightly.utils.scheduler import cosine_schedule

    return [cosine_schedule(epoch, max(2, epochs), 0.996, 1) for epoch in range(epochs)]


class Paths(torch.utils.data.Dataset):
    """The views that a transform makes of image files."""

    def __init__(self, paths: list[str], transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def batches_of(paths: list[str], transform, batch_size: int = 256, workers: int = 0) -> torch.utils.data.DataLoader:
    """Two views each, in random order, whole batches only."""
    return torch.utils.data.DataLoader(Paths(paths, transform), batch_size, shuffle=True, drop_last=True,
                                       num_workers=workers, persistent_workers=workers > 0)
