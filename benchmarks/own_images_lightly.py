"""lightly's MoCo as its documentation has it: what `own_images.py` measures ours against."""

import copy
import pathlib

import torch

from mocoembed.model.encoder import Encoder


def train_lightly(encoder: Encoder, list_file: pathlib.Path, image_size: int, epochs: int) -> tuple[int, float]:
    """Train the encoder's backbone on the images of a list: the number of steps, and the last loss."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform
    from lightly.utils.scheduler import cosine_schedule

    width = encoder.backbone.features
    encoder_q = torch.nn.Sequential(encoder.backbone, MoCoProjectionHead(width, width, 128))
    encoder_k = copy.deepcopy(encoder_q)
    deactivate_requires_grad(encoder_k)
    batches = torch.utils.data.DataLoader(_Paths(list_file, MoCoV2Transform(input_size=image_size)), 256,
                                          shuffle=True, drop_last=True)
    criterion = NTXentLoss(memory_bank_size=(4096, 128))
    optimizer = torch.optim.SGD(encoder_q.parameters(), lr=0.06)
    for epoch in range(epochs):
        momentum = cosine_schedule(epoch, epochs, 0.996, 1)
        for x_q, x_k in batches:
            update_momentum(encoder_q, encoder_k, m=momentum)
            loss = criterion(encoder_q(x_q), encoder_k(x_k))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return epochs * len(batches), loss.item()


class _Paths(torch.utils.data.Dataset):
    """The views that a transform makes of the images of a list."""

    def __init__(self, list_file: pathlib.Path, transform):
        self.paths, self.transform = list_file.read_text().splitlines(), transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        from PIL import Image

        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))
