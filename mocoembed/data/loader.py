"""From a listing to batches: workers decode and crop, the caller's device does the rest.

`view_batches` gives two uint8 crops per image for pretraining; an unreadable image is replaced by the next
readable one and named. `evaluation_batches` gives one uint8 image per slot for a frozen encoder; an unreadable
one leaves a blank and its reason, so that batches never shift.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from mocoembed.cores import cores
from mocoembed.data.cache import CachedImage, ImageCache
from mocoembed.data.crop import crop
from mocoembed.data.decode import EncodedImage
from mocoembed.data.deep import Seen, joined
from mocoembed.data.digests import DigestTable
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import FACTS, Failure
from mocoembed.data.images import Listing
from mocoembed.data.views import (
    PURPOSE_ORDER,
    PURPOSE_SHUFFLE,
    Draws,
    ViewParameters,
    ViewSettings,
    colour_parameters,
    crop_box,
    generator,
)
from mocoembed.data.workers import Batches, Images

REPLACEMENTS = 50  # images tried in the place of an unreadable one


def worker_count(given: int | None, images: int, available: int | None = None) -> int:
    """Loading processes: as given; else one fewer than the `available` cores (1 to 16), and one for few images."""
    if given is not None:
        return given
    return min(16, max(1, (available or cores()) - 1)) if images > 500 else 1


# ---------------------------------------------------------------------------------------------- pretraining


class Place(NamedTuple):
    """A process's share of a batch before it is loaded: N of the global batch's B images."""

    step: int
    epoch: int
    rows: np.ndarray
    """(N,) rows in the listing."""
    order: np.ndarray | None
    """(B,) int64: the keys of the global batch are encoded in the order batch[order]; `None`: unshuffled."""
    key_rows: np.ndarray
    """(N,) rows of the images whose keys this process encodes."""


class ViewBatch(NamedTuple):
    """Two crops of each of N images (for a memory bank one), and what is still to be done to them on the device."""

    step: int
    epoch: int
    rows: torch.Tensor
    """(N,) int64: rows in the listing, after replacing unreadable images; -1 where no replacement was found."""
    order: torch.Tensor | None
    """As in `Place`."""
    crops: tuple[torch.Tensor, ...]
    """Tensors (N, 3, S, S) uint8, channels last in memory, of each view's own S; or (N, 4), the boxes of crops that the
    device makes."""
    queries: list[ViewParameters]
    """What `apply_views` does to the crops of the query view, or, for a symmetric loss, of both; as tensors."""
    keys: list[ViewParameters]
    """And to the crops of the other view of each, in the images' shuffled order; none for a memory bank."""
    failures: list[Failure]
    seen: Seen | None = None
    """The range of the deep images among them that no value range was given for."""


def steps_per_epoch(count: int, batch_size: int, drop_last: bool) -> int:
    """Batches in an epoch; 0 when there is not one."""
    whole, rest = divmod(count, batch_size)
    return whole if drop_last or rest == 1 else -(-count // batch_size)  # BatchNorm cannot do with one image


class Places:
    """One process's share of every batch of a pretraining, from step `start` on.

    The order of an epoch depends on the seed alone, the shuffling of a step's keys on the seed and the step.
    """

    def __init__(self, count: int, config, start: int, rank: int = 0, size: int = 1):
        self.count, self.config, self.start, self.rank, self.size = count, config, start, rank, size
        self.steps_per_epoch = steps_per_epoch(count, config.batch_size, config.drop_last)

    def __len__(self):
        return max(0, self.steps_per_epoch * self.config.epochs - self.start)

    def __iter__(self):
        batch_size = self.config.batch_size
        for epoch in range(self.start // self.steps_per_epoch, self.config.epochs):
            order = generator(self.config.seed, PURPOSE_ORDER, epoch).permutation(self.count)
            first = self.start - epoch * self.steps_per_epoch if epoch == self.start // self.steps_per_epoch else 0
            for position in range(first, self.steps_per_epoch):
                batch = order[position * batch_size:(position + 1) * batch_size]
                yield self._share(epoch * self.steps_per_epoch + position, epoch, batch)

    def _share(self, step: int, epoch: int, batch: np.ndarray) -> Place:
        n = len(batch) // self.size
        own = slice(self.rank * n, (self.rank + 1) * n)
        order = shuffle_order(self.config.seed, step, len(batch)) if self.config.shuffles_keys else None
        return Place(step, epoch, batch[own], order, (batch if order is None else batch[order])[own])


def shuffle_order(seed: int, step: int, n: int) -> np.ndarray:
    """(n,) int64: how the keys of a step are shuffled between BatchNorm's groups; a function of its arguments."""
    return generator(seed, PURPOSE_SHUFFLE, step).permutation(n)


class TwoViews(Dataset):
    """Loads a `Place` as a `ViewBatch`, from the images' files or from a cache; for a memory bank only one view."""

    def __init__(self, listing: Listing, config, cache: ImageCache | None = None):
        self.images, self.settings, self.draws = Images(listing), ViewSettings.of(config), Draws(config.seed)
        self.full_decode, self.value_range, self.cache = config.full_decode, config.value_range, cache
        self.boxes_only = cache is not None and cache.cropped_on_device
        if cache is not None:
            self.images.aside.update(cache.aside)
        self.views = 1 if config.dictionary == "memory-bank" else 2
        self.sizes, self.scales = config.view_sizes[:self.views], config.view_scales[:self.views]
        self.query_views = (0, 1) if config.symmetric else (0,)

    def __getitem__(self, place: Place) -> ViewBatch:
        n = len(place.rows)
        crops: list[np.ndarray] = [np.zeros((n, 4), np.int64) if self.boxes_only else
                                   np.empty((n, size, size, 3), np.uint8) for size in self.sizes]
        rows = np.array(place.rows)
        failures: list[Failure] = []
        seen: list[Seen | None] = []
        draws = {(row, view): self.draws(place.epoch, row, view)
                 for row in {*place.rows.tolist(), *place.key_rows.tolist()} for view in range(self.views)}
        for i, row in enumerate(place.rows.tolist()):
            own = [draws[row, view] for view in range(self.views)]
            rows[i] = self._fill([one[i] for one in crops], own, row, failures, seen)

        def parameters(of_rows, view: int) -> ViewParameters:
            drawn = np.stack([draws[row, view] for row in of_rows.tolist()])
            return colour_parameters(drawn, self.settings)

        cut = [torch.from_numpy(one) for one in crops]
        return ViewBatch(place.step, place.epoch, torch.from_numpy(rows),
                         None if place.order is None else torch.from_numpy(place.order),
                         tuple(one if self.boxes_only else one.permute(0, 3, 1, 2) for one in cut),
                         [parameters(place.rows, view) for view in self.query_views],
                         [parameters(place.key_rows, 1 - view) for view in self.query_views if self.views == 2],
                         failures, joined(seen))

    def _fill(self, crops: list[np.ndarray], draws: list[np.ndarray], row: int, failures: list[Failure],
              seen: list[Seen | None]) -> int:
        """Put the crops of image `row`, one for each view, or of the next readable one; return its row, else -1."""
        for candidate in (row + shift for shift in range(min(REPLACEMENTS + 1, len(self.images)))):
            candidate %= len(self.images)
            with self.images.at_image(candidate, failures):
                image = self._image(candidate)
                boxes = [crop_box(u, image.width, image.height, scale) for u, scale in zip(draws, self.scales)]
                if self.boxes_only:
                    for place, box in zip(crops, boxes):
                        place[:] = box
                else:
                    self._crop(crops, image, boxes)
                seen.append(image.seen)
                return candidate
        return -1

    def _image(self, row: int) -> EncodedImage | CachedImage:
        if self.cache is None:
            return EncodedImage(self.images.read(row)[0], self.full_decode, self.value_range)
        self.images.require(row)
        return self.cache[row]

    def _crop(self, crops: list[np.ndarray], image: EncodedImage | CachedImage, boxes):
        shrink = min(min(right - left, bottom - top) / size
                     for size, (left, top, right, bottom) in zip(self.sizes, boxes))
        decoded = image.rgb(shrink)
        height, width = decoded.shape[:2] if isinstance(decoded, np.ndarray) else (decoded.height, decoded.width)
        across, down = width / image.width, height / image.height
        for view, (left, top, right, bottom) in enumerate(boxes):
            box = (int(left * across), int(top * down), round(right * across), round(bottom * down))
            crops[view][:] = crop(decoded, box, self.sizes[view])


def view_batches(listing: Listing, config, places: Places, workers: int, pin: bool,
                 cache: ImageCache | None = None) -> Batches:
    """The `ViewBatch`es of a pretraining at `places`."""
    return Batches(TwoViews(listing, config, cache), places, workers, pin)


# ---------------------------------------------------------------------------------------------- evaluation


@dataclass
class EvaluationBatch:
    """Slots first .. first + N - 1 of a listing, ready for a frozen encoder."""

    first: int
    pixels: torch.Tensor
    """(N, 3, S, S) uint8, channels last in memory; zeros where an image failed."""
    facts: np.ndarray
    """(N,) records of `FACTS`: what the embeddings file tells about each image; zeros where one failed."""
    known: np.ndarray
    """(N,) bool: not decoded, because its bytes are known; width and height are 0."""
    failures: list[Failure]
    seen: Seen | None = None
    """The range of the deep images among them that no value range was given for."""

    def pin_memory(self) -> "EvaluationBatch":
        """The batch with its pixels in memory from which a GPU can copy while others compute."""
        return replace(self, pixels=self.pixels.pin_memory())


class EvaluationImages(Dataset):
    """Loads the slots (first, last + 1) of a listing as an `EvaluationBatch`.

    With `full_decode`, JPEG files are decoded at full size before they are made small. Deep images are scaled by the
    transform's value range. Images whose bytes are `known` are not decoded.
    """

    def __init__(self, listing: Listing, transform: EvaluationTransform, full_decode: bool = False,
                 known: DigestTable | None = None):
        self.images, self.transform, self.full_decode, self.known = Images(listing), transform, full_decode, known

    def __getitem__(self, slots: tuple[int, int]) -> EvaluationBatch:
        first, end = slots
        side = self.transform.crop
        pixels = np.zeros((end - first, side, side, 3), np.uint8)
        facts, known = np.zeros(end - first, FACTS), np.zeros(end - first, bool)
        failures: list[Failure] = []
        seen: list[Seen | None] = []
        for i, row in enumerate(range(first, end)):
            with self.images.at_image(row, failures):
                data, origin = self.images.read(row)
                digest = hashlib.sha256(data).digest()
                known[i] = self.known is not None and self.known.find(digest) >= 0
                width = height = 0
                if not known[i]:
                    image = EncodedImage(data, self.full_decode, self.transform.value_range)
                    pixels[i] = self.transform.pixels(image)
                    seen.append(image.seen)
                    width, height = image.width, image.height
                facts[i] = (width, height, *origin, digest)
        return EvaluationBatch(first, torch.from_numpy(pixels).permute(0, 3, 1, 2), facts, known, failures,
                               joined(seen))


def evaluation_batches(listing: Listing, transform: EvaluationTransform, batch_size: int,
                       workers: int | None = None, pin: bool = False) -> Batches:
    """The `EvaluationBatch`es of a listing: fixed slices of `batch_size` slots; `pin` them for a GPU."""
    count = len(listing)
    slices = [(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
    return Batches(EvaluationImages(listing, transform), slices, worker_count(workers, count), pin)
