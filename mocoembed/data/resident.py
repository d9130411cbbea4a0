"""Random resized crops of small images of one size, in batches on the device: (rows, boxes) -> uint8 crops.

The pixels are those of `crop.crop`, to the bit. A crop is two multiplications by small matrices, first along the rows,
then down the columns. Their entries are Pillow's resampling weights, which are whole numbers, and so are the sums, all
of which float64 holds exactly.
"""

import math

import numpy as np
import torch

from mocoembed.data.cache import ImageCache
from mocoembed.data.uploads import uploaded

BITS = 22  # of a weight, behind the point (PRECISION_BITS in Pillow's Resample.c)
LARGEST_SIDE = {"cpu": 64, "cuda": 128}  # of images and views; beyond it loading processes are faster
SHARE_OF_GPU = 0.25  # of its free memory, which the images may take


def crops_on_device(size: tuple[int, int] | None, view_sizes: tuple[int, int], device: torch.device) -> bool:
    """Whether crops are made on the device, of images that are all of this size (`None`: of several sizes)."""
    return size is not None and max(*size, *view_sizes) <= LARGEST_SIDE.get(device.type, 0)


class ResidentImages:
    """The images of a cache, all of one size, on the device where they fit, else in the host's memory."""

    def __init__(self, cache: ImageCache, view_sizes: tuple[int, int], device: torch.device):
        self.device, self.pixels = device, cache.stacked()
        if device.type == "cuda" and self.pixels.nbytes <= SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
            self.pixels = self.pixels.to(device)
        self._sizes = view_sizes
        self._weights = {(side, size): weights(side, size).to(device)
                         for side in self.pixels.shape[1:3] for size in view_sizes}

    def crops(self, rows: torch.Tensor, boxes: torch.Tensor, view: int = 0) -> torch.Tensor:
        """(N, 3, S, S) uint8, channels last in memory, on the device; S is that of the view's size.

        rows: (N,), boxes: (N, 4), left, top, right, bottom, both on the CPU. A box without area gives black.
        """
        _, height, width, _ = self.pixels.shape
        x = uploaded(self.pixels[rows], self.device) if self.pixels.device.type == "cpu" else \
            self.pixels[rows.to(self.device, non_blocking=True)]
        boxes = boxes.to(self.device, non_blocking=True)
        across = self._weights_of((width, self._sizes[view]), boxes[:, 0], boxes[:, 2])  # N x S x W
        down = self._weights_of((height, self._sizes[view]), boxes[:, 1], boxes[:, 3])  # N x S x H
        n, size = len(x), across.shape[1]
        x = x.double().permute(0, 3, 1, 2).reshape(n, 3 * height, width)
        x = rounded(torch.bmm(x, across.mT)).view(n, 3, height, size)  # N x 3H x S
        x = rounded(torch.bmm(down, x.transpose(1, 2).reshape(n, height, 3 * size)))  # N x S x 3S
        x = x.to(torch.uint8).view(n, size, 3, size).transpose(2, 3)  # N x S x S x 3
        return x.contiguous().permute(0, 3, 1, 2)

    def _weights_of(self, sides: tuple[int, int], first: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """(N, S, side): the weights of pixels first .. end - 1 of a side, N of each; `sides` are (side, S)."""
        table, side = self._weights[sides], sides[0]
        places = torch.arange(side, device=self.device) - first.view(-1, 1)  # N x side: within the crop
        places = torch.where(places < 0, side, places)  # the last column is 0
        chosen = table[end - first]  # N x S x (side + 1)
        return chosen.gather(2, places.view(-1, 1, side).expand(-1, table.shape[1], -1))


def rounded(sums: torch.Tensor) -> torch.Tensor:
    """Sums of pixels times weights, as whole numbers from 0 to 255."""
    return sums.add_(1 << (BITS - 1)).div_(1 << BITS).floor_().clamp_(0, 255)


def weights(side: int, size: int) -> torch.Tensor:
    """(side + 1, size, side + 1) float64: for crops of 0 .. side pixels, what each pixel counts in each of `size`.

    Pillow's bilinear filter: a triangle that is as wide as the larger of a pixel before and one after.
    """
    table = np.zeros((side + 1, size, side + 1))
    for length in range(1, side + 1):
        scale = length / size
        reach = max(scale, 1.0)
        for place in range(size):
            centre = (place + 0.5) * scale
            first, end = max(0, int(centre - reach + 0.5)), min(length, int(centre + reach + 0.5))
            triangle = [max(0.0, 1.0 - abs((x - centre + 0.5) * (1.0 / reach))) for x in range(first, end)]
            total = sum(triangle)
            table[length, place, first:end] = [math.floor(0.5 + one / total * (1 << BITS)) for one in triangle]
    return torch.from_numpy(table)
