"""`--cache ram`: a listing's images, decoded once -> uint8 pixels in memory that all processes of a machine share.

`Sizes` reads how large the images are, from their headers; `Decoding` puts their pixels into a `ImageCache`. The
memory has no name in the file system: it is gone with the last process, however that ends.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from mocoembed.data.decode import EncodedImage, UnreadableImage, pixels_of
from mocoembed.data.deep import Seen, joined
from mocoembed.data.facts import Failure
from mocoembed.data.listing import Listing
from mocoembed.data.shared import SharedBytes
from mocoembed.data.workers import Images


class CachedImage(NamedTuple):
    """A decoded image, with the calls of `EncodedImage`."""

    width: int
    """Of the upright image at full size."""
    height: int
    pixels: np.ndarray
    """(H, W, 3) uint8: as it was decoded, at full size or smaller."""
    seen: Seen | None = None
    """Nothing: what deep images use was told when they were decoded."""

    def rgb(self, shrink: float) -> np.ndarray:
        """The pixels; `shrink` has been allowed for."""
        return self.pixels


@dataclass(frozen=True)
class ImageCache:
    """The decoded images of a listing."""

    sizes: torch.Tensor
    """(N, 4) int64: width and height of the upright image, at full size and as kept."""
    offsets: torch.Tensor
    """(N + 1,) int64: where its pixels begin in `memory`."""
    memory: SharedBytes
    aside: dict[int, Failure]
    """Rows that cannot be read, with the reason."""
    cropped_on_device: bool
    """Whether batches bring boxes, for the device to crop (see `ResidentImages`), instead of crops."""

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, row: int) -> CachedImage:
        width, height, kept_width, kept_height = self.sizes[row].tolist()
        first, end = self.offsets[row:row + 2].tolist()
        return CachedImage(width, height, self.memory.array[first:end].reshape(kept_height, kept_width, 3))

    def stacked(self) -> torch.Tensor:
        """(N, H, W, 3) uint8: images that are all of one size; blanks for those set aside."""
        width, height = self.sizes[0, 2:].tolist()
        return torch.from_numpy(self.memory.array.reshape(len(self), height, width, 3))


def same_size(sizes: torch.Tensor) -> tuple[int, int] | None:
    """The only (width, height) among `sizes` (N, 4) that are not zeros, at full size and as kept; else `None`."""
    different = sizes[sizes[:, 0] > 0].unique(dim=0)
    if len(different) != 1 or different[0, :2].tolist() != different[0, 2:].tolist():
        return None
    return tuple(different[0, :2].tolist())


def bytes_of(sizes: torch.Tensor) -> torch.Tensor:
    """(N,) int64: bytes of each image's pixels, from `sizes` (N, 4)."""
    return sizes[:, 2] * sizes[:, 3] * 3


def smallest_shrink(width: int, height: int, config) -> float:
    """By how much an image may be reduced and still have a pixel for each of the smallest random crop's."""
    if config.full_decode:
        return 1.0
    return max(1.0, min(min((width * height * scale[0] * 3 / 4) ** 0.5 - 1, width, height) / size
                        for scale, size in zip(config.view_scales, config.view_sizes)))


class Sizes(Dataset):
    """Rows -> (their sizes (n, 4) as in `ImageCache`, zeros where a header cannot be read; failures)."""

    def __init__(self, listing: Listing, config):
        self.images, self.config = Images(listing), config

    def __getitem__(self, rows: np.ndarray) -> tuple[np.ndarray, list[Failure]]:
        sizes = np.zeros((len(rows), 4), np.int64)
        failures: list[Failure] = []
        for i, row in enumerate(rows.tolist()):
            with self.images.at_image(row, failures):
                image = EncodedImage(self.images.read(row)[0], self.config.full_decode, self.config.value_range)
                kept = image.reduce(smallest_shrink(image.width, image.height, self.config))
                sizes[i] = (image.width, image.height, *kept)
        return sizes, failures


class Decoding(Dataset):
    """Rows -> (what range the deep ones use, failures); their pixels are put into the cache."""

    def __init__(self, listing: Listing, config, cache: ImageCache):
        self.images, self.config, self.cache = Images(listing), config, cache

    def __getitem__(self, rows: np.ndarray) -> tuple[Seen | None, list[Failure]]:
        failures: list[Failure] = []
        seen: list[Seen | None] = []
        for row in rows.tolist():
            if row not in self.cache.aside:
                with self.images.at_image(row, failures):
                    seen.append(self._keep(row))
        return joined(seen), failures

    def _keep(self, row: int) -> Seen | None:
        image = EncodedImage(self.images.read(row)[0], self.config.full_decode, self.config.value_range)
        decoded = image.rgb(smallest_shrink(image.width, image.height, self.config))
        if [image.width, image.height, decoded.width, decoded.height] != self.cache.sizes[row].tolist():
            raise UnreadableImage("its size has changed while it was being read into memory")
        pixels_of(decoded, self.cache[row].pixels)
        return image.seen
