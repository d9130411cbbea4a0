"""Filling the cache of `--cache ram`: what it needs is known, said and compared with what is available, then decoded.

Every process of a machine reads and decodes its part of the images into one memory. What cannot be read is set aside
with its reason.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed.config import PretrainConfig
from mocoembed.data.cache import Decoding, ImageCache, Sizes, bytes_of, same_size
from mocoembed.data.deep import RangeWatch, joined
from mocoembed.data.facts import Failure
from mocoembed.data.images import Listing, Teller
from mocoembed.data.resident import crops_on_device
from mocoembed.data.shared import SharedBytes
from mocoembed.data.workers import Batches, HasImages
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.memory import available_memory, shown
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import Ranks
from mocoembed.notes import counted

SHARE = 0.8  # of the available memory, which may be taken
AT_A_TIME = 32  # images
SAMPLE = 1024  # images whose sizes tell, before all are looked at, that a collection is far too large


@dataclass(frozen=True)
class Filling:
    """What filling a cache needs to know of its surroundings."""

    listing: Listing
    config: PretrainConfig
    workers: int
    """Processes that decode, for each rank."""
    ranks: Ranks
    note: Callable[[str], None]
    stop: Callable[[], None]
    """Called between batches, and now and then while one is waited for; raises what is to end the work."""

    def cache(self) -> ImageCache:
        """The cache, filled; called by all ranks.

        Raises `UsageError` where the system has no memory of that kind, and `MocoembedError` when the images do not
        fit into the memory available.
        """
        if not hasattr(os, "memfd_create"):
            raise UsageError("--cache ram: works on Linux only. Give --cache none.")
        available = min((one for one in self.ranks.objects(available_memory()) if one is not None), default=None)
        count = len(self.listing)
        if count > 4 * SAMPLE:
            self._require(self.estimated(self.sample(SAMPLE)) // 2, available, "more than ")
        sizes, aside = self._sizes(self._slices(), "reading the images' sizes")
        if (same := same_size(sizes)) is not None:
            sizes[:] = torch.tensor([*same, *same])  # so that they can be stacked
        needed = int(bytes_of(sizes).sum())
        self._require(needed, available, "")
        of_available = "" if available is None else f" of {shown(available)} available"
        self.note(f"--cache ram: {shown(needed)}{of_available}, for {count:,} decoded images")
        return self._decoded(sizes, aside)

    def sample(self, count: int) -> torch.Tensor:
        """(M, 4): the sizes of up to `count` images, from all over the collection; zeros where one is unreadable."""
        rows = np.linspace(0, len(self.listing) - 1, min(count, len(self.listing))).astype(int)
        return self._sizes(np.array_split(rows, -(-len(rows) // AT_A_TIME)), "")[0]

    def estimated(self, sample: torch.Tensor) -> int:
        """About the bytes that all decoded images take, from the sizes of a sample."""
        return int(bytes_of(sample).double().mean() * len(self.listing))

    def _slices(self) -> list[np.ndarray]:
        return [np.arange(first, min(first + AT_A_TIME, len(self.listing)))
                for first in range(0, len(self.listing), AT_A_TIME)]

    def _require(self, needed: int, available: int | None, about: str):
        """Raise `MocoembedError` on all ranks unless so many bytes may be taken."""
        if available is not None and needed > SHARE * available:
            raise self.ranks.agreed(MocoembedError(
                f"--cache ram: {len(self.listing):,} decoded images need {about}{shown(needed)}, and at most "
                f"{SHARE:.0%} of the {shown(max(0, available))} available may be taken. Leave --cache out, or make "
                "the images smaller."))

    def _sizes(self, slices: list[np.ndarray], what: str) -> tuple[torch.Tensor, dict[int, Failure]]:
        """(M, 4) sizes of the images in `slices`, each rank reading some, and who could not be read."""
        own = slices[self.ranks.rank::self.ranks.size]
        parts = self.ranks.objects(list(self._loaded(Sizes(self.listing, self.config), own, what)))
        sizes = [parts[i % self.ranks.size][i // self.ranks.size][0] for i in range(len(slices))]
        return torch.from_numpy(np.concatenate(sizes)), _by_row(some for of_rank in parts for _, some in of_rank)

    def _decoded(self, sizes: torch.Tensor, aside: dict[int, Failure]) -> ImageCache:
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), bytes_of(sizes).cumsum(0)])
        cache = ImageCache(sizes, offsets, self._memory(int(offsets[-1])), aside, self._on_device(sizes))
        own = self._slices()[self.ranks.local_rank::self.ranks.local_size]
        parts = list(self._loaded(Decoding(self.listing, self.config, cache), own, "decoding into memory"))
        watch = RangeWatch(self.note)
        watch.add(joined(self.ranks.objects(joined(seen for seen, _ in parts))))
        watch.close()
        failures = self.ranks.objects([failures for _, failures in parts])  # waits for all
        aside.update(_by_row(one for of_rank in failures for one in of_rank))
        if aside:
            self.note(f"{counted(len(aside), 'image')} could not be read; they are named when their turn comes")
        return cache

    def _on_device(self, sizes: torch.Tensor) -> bool:
        """Whether the crops are made on the device; said if so."""
        device = Compute.of(self.config.device, "fp32").device
        if not crops_on_device(same_size(sizes), self.config.view_sizes, device):
            return False
        self.note("the images are small and all of one size: crops are made in batches on the device")
        return True

    def _memory(self, size: int) -> SharedBytes:
        """The machine's memory: its first process makes it, the others open it."""
        ranks, machine = self.ranks, socket.gethostname()
        made = SharedBytes(size) if ranks.local_rank == 0 else None
        of_machine = {name: path for name, path in ranks.objects((machine, made and made.path)) if path}
        problem = None
        if made is None:
            try:
                made = SharedBytes(size, of_machine[machine])
            except (OSError, KeyError) as error:
                problem = f"process {os.getpid()} on {machine} cannot open the memory of its first process ({error})"
        for one in ranks.objects(problem):
            if one is not None:
                raise ranks.agreed(MocoembedError(f"--cache ram: {one}. Leave --cache out."))
        assert made is not None  # what could not be opened has been raised
        return made

    def _loaded(self, dataset: HasImages, slices: list[np.ndarray], what: str) -> Iterator:
        """What the dataset gives for each of `slices`, in order."""
        tell = Teller(what, self.note if what else lambda text: None, len(self.listing))
        done, batches = 0, Batches(dataset, slices, self.workers, pin=False, meanwhile=self.stop)
        with contextlib.closing(iter(batches)) as parts:
            for rows, part in zip(slices, parts, strict=True):
                yield part
                done += len(rows)
                tell(min(len(self.listing), done * self.ranks.size))
                self.stop()


def _by_row(failures) -> dict[int, Failure]:
    return {failure.row: failure for some in failures for failure in some}
