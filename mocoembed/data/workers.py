"""Loading processes that may die: items -> a dataset's batches in order, whatever happens to the processes.

torch's DataLoader ends when one of its processes does, or waits for ever for one that hangs. Here each process notes
which image it is at; when one dies or hangs, all are started anew, the image is set aside as unreadable, and what
had not been delivered is loaded again. What a batch holds depends on its item alone, so the batches are the same.
They travel as parcels (see `shared`), whatever the size of `/dev/shm`.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from multiprocessing.connection import wait
from typing import Any, Protocol, cast

from torch.utils.data import DataLoader, Dataset, get_worker_info

from mocoembed.data.facts import Failure
from mocoembed.data.listing import Listing, Origin
from mocoembed.data.lost import OF_MEMORY, Lost, seen
from mocoembed.data.shared import SharedRows, opened, parcel
from mocoembed.errors import MocoembedError
from mocoembed.memory import LARGEST_KEPT, available_memory, keep_freed_blocks

SECONDS_AFTER_SIGTERM = 30
SECONDS_FOR_AN_IMAGE = 40.0  # to read and decode it; a hung process is found at most SECONDS_BETWEEN_LOOKS later
SECONDS_BETWEEN_LOOKS = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SECONDS_TO_DIE = 10.0  # for a process whose pipe has broken to be seen dead
DEATHS = 2  # of processes at the same image, until it is set aside: one may be killed for want of memory
RESTARTS = 6  # without a batch or an image set aside in between
PREFETCHED = 4  # items that each process has ready, or in work


class _SetAside(Exception):
    """The image is not touched any more."""


class Images:
    """Reads images of a listing in loading processes, of which others can see what they are at."""

    def __init__(self, listing: Listing):
        self.listing = listing
        self.aside: dict[int, Failure] = {}
        """Row -> why it is not touched any more."""
        self.at = SharedRows(1, 3)
        """(workers, 3) int64: process, row it is at (or -1), and since when, in ns of the monotonic clock."""

    def __len__(self):
        return len(self.listing)

    def read(self, row: int) -> tuple[bytes, Origin]:
        """The bytes of image `row`; within `at_image`."""
        self.require(row)
        return self.listing.read(row)

    def require(self, row: int):
        """Go on only when image `row` has not been set aside; within `at_image`."""
        if row in self.aside:
            raise _SetAside

    @contextlib.contextmanager
    def at_image(self, row: int, failures: list[Failure]) -> Iterator[None]:
        """While the block runs, others see that this process is at image `row`.

        Whatever a decoder raises in the block costs this one image: it is added to `failures`.
        """
        worker = get_worker_info()
        if worker is not None:
            self.at.array[worker.id] = os.getpid(), row, time.monotonic_ns()
        try:
            yield
        except _SetAside:
            failures.append(self.aside[row])
        except Exception as error:
            failures.append(Failure.of(row, error))
        if worker is not None:
            self.at.array[worker.id, 1] = -1

    def stopped_at(self, alive: set[int]) -> tuple[list[int], list[int]]:
        """The rows at which processes that are not `alive` stopped, and those at which living ones hang."""
        too_long = time.monotonic_ns() - SECONDS_FOR_AN_IMAGE * 1e9
        at = [one for one in self.at.array.tolist() if one[1] >= 0]
        return ([row for process, row, _ in at if process not in alive],
                [row for process, row, since in at if process in alive and since < too_long])

    def seen(self) -> list[list[int]] | None:
        """What all processes have noted last, to be compared later; `None` while one is at an image."""
        at = self.at.array.tolist()
        return None if any(row >= 0 for _, row, _ in at) else at


class HasImages(Protocol):
    """A dataset that reads by `Images`: item -> batch."""

    images: Images

    def __getitem__(self, item: Any) -> Any:
        ...


class Batches:
    """`dataset[item]` for each of `items`, in order, loaded ahead by `workers` processes (0: by this one).

    The dataset reads by its `images`, an `Images`. Raises `MocoembedError` when processes die or hang again and
    again and no image is to blame, or run out of memory. A death is told in a warning, with what to change.
    `meanwhile` is called now and then while a batch is waited for; it may raise.
    """

    def __init__(self, dataset: HasImages, items: Iterable, workers: int, pin: bool,
                 meanwhile: Callable[[], None] = lambda: None):
        self.dataset, self.items, self.workers, self.pin, self.meanwhile = dataset, items, workers, pin, meanwhile
        self.deaths = 0
        """Times that processes had to be started again so far."""

    def __len__(self):
        return len(cast(Sized, self.items))

    def __iter__(self):
        source, restarts, lost = iter(self.items), 0, None
        again: deque = deque()
        deaths: dict[int, int] = {}
        while True:
            loading = _Loading(self, itertools.chain(_popped(again), source))
            try:
                while (batch := loading.next()) is not None:
                    restarts = 0
                    yield batch
                return
            except _ProcessLost:
                again.extendleft(reversed(loading.undelivered))
                lost = loading.lost()
                restarts = 0 if self._set_aside(loading, deaths) else restarts + 1
                self._tell(lost, blamed=restarts == 0)
            finally:
                loading.end()
            if restarts > RESTARTS:
                raise MocoembedError(_no_way_on(lost))

    def _tell(self, lost: Lost | None, blamed: bool):
        """Say what has died, unless an image is `blamed` for it and named: the 1st, 2nd, 4th, 8th ... time."""
        self.deaths += 1
        if lost is not None and not blamed and self.deaths & (self.deaths - 1) == 0:
            warnings.warn(lost.told(), stacklevel=2)

    def _set_aside(self, loading: "_Loading", deaths: dict[int, int]) -> bool:
        """Set aside the images that are to blame; whether there are any."""
        images, before = self.dataset.images, len(self.dataset.images.aside)
        dead, hung = images.stopped_at(loading.alive())
        for row in dead:
            deaths[row] = deaths.get(row, 0) + 1
            if deaths[row] >= DEATHS:
                reason = f"the process that read it died {deaths[row]} times"
                images.aside[row] = Failure(row, "WorkerDied", reason)
        for row in hung:
            reason = f"not read and decoded after {SECONDS_FOR_AN_IMAGE:g} seconds"
            images.aside[row] = Failure(row, "WorkerHung", reason)
        return len(images.aside) > before


def _popped(items: deque) -> Iterator:
    """The items, of which those that are not asked for stay where they are."""
    while items:
        yield items.popleft()


def _no_way_on(lost: Lost | None) -> str:
    """Why no more processes are started, and what to do."""
    kept = "What was saved is kept; run the same command again to continue."
    if lost is None:
        return f"Loading processes stopped responding repeatedly: give fewer --workers. {kept}"
    if lost.signal_number in OF_MEMORY:
        return f"Loading processes were killed repeatedly ({lost.name}), most often for lack of memory: " \
               f"{lost.advice()} {kept}"
    return f"Loading processes died repeatedly ({lost.name}). {kept}"


class _ProcessLost(Exception):
    """A loading process has died or hangs."""


class _Loading:
    """A DataLoader at work, until it ends or one of its processes is lost."""

    def __init__(self, batches: Batches, items: Iterator):
        self.undelivered: deque = deque()
        self.images, workers, self._meanwhile = batches.dataset.images, batches.workers, batches.meanwhile
        self.images.at = SharedRows(max(1, workers), 3)
        with _signal_of_a_child_as_it_was(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # as many as were asked for
            loader = DataLoader(cast(Dataset, batches.dataset), batch_size=None, sampler=self._handing_out(items),
                                num_workers=workers, prefetch_factor=PREFETCHED if workers else None,
                                pin_memory=batches.pin, collate_fn=parcel if workers else _as_it_is,
                                worker_init_fn=_begin_worker,
                                timeout=SECONDS_BETWEEN_LOOKS if workers else 0)
            self._iterator = iter(loader)
        self._processes: list[Any] = self._iterator._workers if workers else []  # type: ignore[attr-defined]  # torch's own, private

    def _handing_out(self, items: Iterator):
        for item in items:
            self.undelivered.append(item)
            yield item

    def next(self):
        """The next batch; `None` at the end; raises `_ProcessLost`."""
        seen, still_since = None, time.monotonic()
        while True:
            try:
                batch = opened(next(self._iterator))
            except StopIteration:
                return None
            except MemoryError as error:
                held = Lost(signal.SIGKILL, None, max(1, len(self._processes)), 0, available_memory())
                raise MocoembedError(f"A loading process ran out of memory: {held.advice()} What was saved is kept; "
                                     "run the same command again to continue.") from error
            except Exception as error:
                late = str(error).startswith("DataLoader timed out")
                if not late:
                    self._wait_for_a_death()
                alive = self.alive()
                cut_off = isinstance(error, EOFError | ConnectionError)  # while it handed over a batch
                if cut_off or len(alive) < len(self._processes) or any(self.images.stopped_at(alive)):
                    raise _ProcessLost from error
                if not late:
                    raise
                self._meanwhile()
                before, seen = seen, self.images.seen()
                if seen is None or seen != before:
                    still_since = time.monotonic()
                elif time.monotonic() - still_since > SECONDS_FOR_AN_IMAGE:  # all live, and none is at an image
                    raise _ProcessLost from error
            else:
                self.undelivered.popleft()
                return batch

    def _wait_for_a_death(self) -> None:
        """What a process left in its pipe may fail to be read a moment before the process is seen to be dead."""
        ended = wait([process.sentinel for process in self._processes], SECONDS_TO_DIE) if self._processes else []
        for process in self._processes:
            if process.sentinel in ended:
                process.join(SECONDS_TO_DIE)  # its pipes close a moment before it counts as dead

    def alive(self) -> set[int]:
        """Ids of the processes that run."""
        return {process.pid for process in self._processes if process.is_alive()}

    def lost(self) -> Lost | None:
        """What one of the processes died of, if one did."""
        alive = self.alive()
        dead = [process for process in self._processes if process.pid not in alive]
        if not dead:
            return None
        rows = {process: row for process, row, _ in self.images.at.array.tolist() if row >= 0}
        first = next((process for process in dead if process.pid in rows), dead[0])
        image = repr(os.fsdecode(self.images.listing.paths[rows[first.pid]])) if first.pid in rows else None
        return seen(-(first.exitcode or 0), image, len(self._processes), alive)

    def end(self):
        """End the processes at once: one that hangs would hear of nothing else."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        del self._iterator


@contextlib.contextmanager
def _signal_of_a_child_as_it_was():
    """Undo that a DataLoader raises an error anywhere in the main thread when one of its processes dies."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


def _as_it_is(batch):
    return batch


def _begin_worker(worker: int):
    """In a worker: a signal to the whole process group is for the parent, which first saves its work.

    SIGTERM is also how a parent ends its workers, so it does end them, some time later.
    """
    keep_freed_blocks(LARGEST_KEPT)  # the parent may keep larger ones, for its encoder
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):  # torch's handlers print; the parent tells it better
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM))
    if sys.platform == "linux":  # to die with the parent at once: other ranks wait for the last holder of its sockets
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
