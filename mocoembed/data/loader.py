"""From a listing to batches: workers decode and crop, the caller's device does the rest.

`view_batches` gives two uint8 crops per picture for pretraining; an unreadable picture is replaced by the next
readable one and named. `evaluation_batches` gives one uint8 picture per slot for a frozen encoder; an unreadable
one leaves a blank and its reason, so that batches never shift.
"""

import hashlib
import os
import signal
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mocoembed.data.images import Listing, Picture, read_file
from mocoembed.data.views import (
    PURPOSE_ORDER,
    PURPOSE_SHUFFLE,
    EvaluationTransform,
    ViewParameters,
    ViewSettings,
    colour_parameters,
    crop,
    crop_box,
    draw,
    generator,
)
from mocoembed.errors import CollectionError, MocoembedError

SECONDS_AFTER_SIGTERM = 30
REPLACEMENTS = 50  # pictures tried in the place of an unreadable one


class Failure(NamedTuple):
    """A picture that could not be read."""

    row: int
    """Its place in the listing."""
    error: str
    """Class of the exception."""
    reason: str
    """Message of the exception, on one line."""

    @classmethod
    def of(cls, row: int, error: Exception) -> "Failure":
        """The failure of picture `row` with `error`."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return cls(row, type(error).__name__, " ".join(reason.split()) or type(error).__name__)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(given: int | None, pictures: int, sharing: int = 1) -> int:
    """Loading processes: as given; else one fewer than the cores of each of `sharing` processes (1 to 16).

    For few pictures there are none.
    """
    if given is not None:
        return given
    return min(16, max(1, cores() // sharing - 1)) if pictures > 500 else 0


def _load(dataset: Dataset, batches, workers: int, pin: bool) -> "Batches":
    return Batches(DataLoader(dataset, batch_size=None, sampler=batches, num_workers=workers, pin_memory=pin,
                      prefetch_factor=4 if workers else None, collate_fn=_as_it_is,
                      worker_init_fn=_leave_signals_to_the_parent))


def _as_it_is(batch):
    return batch


def _leave_signals_to_the_parent(worker: int):
    """In a worker: a signal to the whole process group is for the parent, which first saves its work.

    SIGTERM is also how a parent ends its workers, so it does end them, some time later.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM))


class Batches:
    """The batches of a DataLoader; a worker that dies is a `MocoembedError` that says so."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            yield from self.loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise MocoembedError("A loading process was killed, often for want of memory: give fewer --workers. "
                                 "What was saved is kept; run the same command again to go on.") from error


# ---------------------------------------------------------------------------------------------- pretraining


class Place(NamedTuple):
    """A process's share of a batch before it is loaded: N of the global batch's B pictures."""

    step: int
    epoch: int
    rows: np.ndarray
    """(N,) rows in the listing."""
    order: np.ndarray | None
    """(B,) int64: the keys of the global batch are encoded in the order batch[order]; `None`: unshuffled."""
    key_rows: np.ndarray
    """(N,) rows of the pictures whose keys this process encodes."""


class ViewBatch(NamedTuple):
    """Two crops of each of N pictures, and what is still to be done to them on the device."""

    step: int
    epoch: int
    rows: torch.Tensor
    """(N,) int64: rows in the listing, after replacing unreadable pictures; -1 where no replacement was found."""
    order: torch.Tensor | None
    """As in `Place`."""
    crops: tuple[torch.Tensor, torch.Tensor]
    """Two tensors (N, 3, S, S) uint8, channels last in memory."""
    queries: list[ViewParameters]
    """What `apply_views` does to the crops of the query view, or, for a symmetric loss, of both; as tensors."""
    keys: list[ViewParameters]
    """And to the crops of the other view of each, in the pictures' shuffled order."""
    failures: list[Failure]


def steps_per_epoch(count: int, batch_size: int, drop_last: bool) -> int:
    """Batches in an epoch; `CollectionError` when there is not one whole batch and `drop_last` is on."""
    whole, rest = divmod(count, batch_size)
    steps = whole if drop_last or rest == 1 else -(-count // batch_size)  # BatchNorm cannot do with one picture
    if steps == 0:
        raise CollectionError(f"{count} pictures do not fill one batch of {batch_size}. "
                              f"Give --batch-size {count} or less that --bn-groups divides.")
    return steps


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
    """Loads a `Place` as a `ViewBatch`."""

    def __init__(self, listing: Listing, config):
        self.listing, self.settings, self.seed = listing, ViewSettings.of(config), config.seed
        self.query_views = (0, 1) if config.symmetric else (0,)

    def __getitem__(self, place: Place) -> ViewBatch:
        n, size = len(place.rows), self.settings.image_size
        crops = np.empty((2, n, size, size, 3), np.uint8)
        rows = np.array(place.rows)
        failures = []
        draws = {(row, view): draw(self.seed, place.epoch, row, view)
                 for row in {*place.rows.tolist(), *place.key_rows.tolist()} for view in range(2)}
        for i, row in enumerate(place.rows.tolist()):
            rows[i] = self._fill(crops[:, i], [draws[row, view] for view in range(2)], row, failures)

        def parameters(of_rows, view: int) -> ViewParameters:
            drawn = np.stack([draws[row, view] for row in of_rows.tolist()])
            return ViewParameters(*map(torch.from_numpy, colour_parameters(drawn, self.settings)))

        return ViewBatch(place.step, place.epoch, torch.from_numpy(rows),
                         None if place.order is None else torch.from_numpy(place.order),
                         tuple(torch.from_numpy(crops[view]).permute(0, 3, 1, 2) for view in range(2)),
                         [parameters(place.rows, view) for view in self.query_views],
                         [parameters(place.key_rows, 1 - view) for view in self.query_views], failures)

    def _fill(self, crops: np.ndarray, draws: list[np.ndarray], row: int, failures: list[Failure]) -> int:
        """Put two crops (2, S, S, 3) of picture `row`, or of the next readable one, and return its row, else -1."""
        size = self.settings.image_size
        for candidate in (row + shift for shift in range(min(REPLACEMENTS + 1, len(self.listing)))):
            candidate %= len(self.listing)
            try:
                picture = Picture(read_file(self.listing.full_path(candidate))[0])
                boxes = [crop_box(u, picture.width, picture.height, self.settings.crop_scale) for u in draws]
                shrink = min(min(right - left, bottom - top) for left, top, right, bottom in boxes) / size
                image = picture.rgb(shrink)
                across, down = image.width / picture.width, image.height / picture.height
                for view, (left, top, right, bottom) in enumerate(boxes):
                    box = (int(left * across), int(top * down), round(right * across), round(bottom * down))
                    crops[view] = crop(image, box, size)
                return candidate
            except Exception as error:  # whatever a decoder raises costs this one picture
                failures.append(Failure.of(candidate, error))
        return -1


def view_batches(listing: Listing, config, places: Places, workers: int, pin: bool) -> Batches:
    """The `ViewBatch`es of a pretraining at `places`."""
    return _load(TwoViews(listing, config), places, workers, pin)


# ---------------------------------------------------------------------------------------------- evaluation


@dataclass
class EvaluationBatch:
    """Slots first .. first + N - 1 of a listing, ready for a frozen encoder."""

    first: int
    pixels: torch.Tensor
    """(N, 3, S, S) uint8, channels last in memory; zeros where a picture failed."""
    facts: np.ndarray
    """(N,) records of `FACTS`: what the embeddings file tells about each picture."""
    failures: list[Failure]


FACTS = np.dtype([("width", "<i4"), ("height", "<i4"), ("size", "<i8"), ("mtime_ns", "<i8"), ("digest", "V32")])


class EvaluationPictures(Dataset):
    """Loads the slots (first, last + 1) of a listing as an `EvaluationBatch`."""

    def __init__(self, listing: Listing, transform: EvaluationTransform):
        self.listing, self.transform = listing, transform

    def __getitem__(self, slots: tuple[int, int]) -> EvaluationBatch:
        first, end = slots
        side = self.transform.crop
        pixels = np.zeros((end - first, side, side, 3), np.uint8)
        facts = np.zeros(end - first, FACTS)
        failures = []
        for i, row in enumerate(range(first, end)):
            try:
                data, status = read_file(self.listing.full_path(row))
                picture = Picture(data)
                pixels[i] = self.transform.pixels(picture)
                facts[i] = (picture.width, picture.height, status.st_size, status.st_mtime_ns,
                            hashlib.sha256(data).digest())
            except Exception as error:  # whatever a decoder raises costs this one picture
                failures.append(Failure.of(row, error))
        return EvaluationBatch(first, torch.from_numpy(pixels).permute(0, 3, 1, 2), facts, failures)


def evaluation_batches(listing: Listing, transform: EvaluationTransform, batch_size: int,
                       workers: int | None = None, start: int = 0) -> Batches:
    """The `EvaluationBatch`es of a listing: fixed slices of `batch_size` slots, from slot `start` on."""
    count = len(listing)
    slices = [(first, min(first + batch_size, count)) for first in range(start, count, batch_size)]
    return _load(EvaluationPictures(listing, transform), slices, worker_count(workers, count - start), pin=False)
