"""The time that a pretraining waits for data: measured, and, when it is much, what to do about it, said once.

The advice has the numbers at hand: cores without work, what `--cache ram` would take, how large the images are.
"""

import collections
import contextlib
import os
import pathlib
import time

from mocoembed.memory import available_memory, shown
from mocoembed.train.filling import SHARE, Filling

STRETCH, SHARE_OF_STRETCH = 60.0, 0.2  # seconds of steps over which waiting counts, and the share that is much
SAMPLE = 64  # images looked at for the advice
LARGE = 3.0  # shorter side of an image in sides of a view, from which smaller files are advised


class Meter:
    """Times the steps: images per second, and the share of the time that went into waiting for data."""

    def __init__(self):
        self.all_waited, self.all_seconds = 0.0, 0.0
        self._stretch: collections.deque[tuple[float, float, float]] = collections.deque()
        self.restart()

    def wait_for(self, batches):
        """The batches, while counting the time that each one takes to come."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def restart(self):
        """Count from now: what has gone by since the last step is no step's."""
        self._begin(idle_core_seconds())

    def _begin(self, idle: float):
        self.images, self.waited, self.begun, self._idle_before = 0, 0.0, time.perf_counter(), idle

    def rates(self) -> tuple[float, float]:
        """(images per second, waiting share) of a step, since the last one."""
        seconds, idle = max(time.perf_counter() - self.begun, 1e-9), idle_core_seconds()
        rates = self.images / seconds, self.waited / seconds
        self.all_waited += self.waited
        self.all_seconds += seconds
        self._stretch.append((self.waited, seconds, idle - self._idle_before))
        self._begin(idle)
        return rates

    @property
    def mean(self) -> float:
        """The waiting share of all steps so far."""
        return self.all_waited / self.all_seconds if self.all_seconds else 0.0

    def stretch(self) -> tuple[float, float] | None:
        """(waiting share, cores without work) over the last `STRETCH` seconds of steps, once they are over."""
        waited, seconds, idle = map(sum, zip(*self._stretch))
        if seconds < STRETCH:
            return None
        self._stretch.clear()
        return waited / seconds, idle / seconds


def idle_core_seconds() -> float:
    """Seconds for which this process's cores have had no work, summed; 0 where the system does not say."""
    idle = 0.0
    with contextlib.suppress(OSError, AttributeError):
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        for line in pathlib.Path("/proc/stat").read_text().splitlines():
            name, *ticks = line.split()
            if name in ours:
                idle += sum(map(int, ticks[3:5])) / os.sysconf("SC_CLK_TCK")  # idle, and waiting for a disk
    return idle


def advice(share: float, idle: float, cores: int, filling: Filling) -> str:
    """What to do when the `share` of the time goes into waiting; `filling` knows the images and the workers.

    idle: cores without work, of the `cores` that this process may use.
    """
    config, workers, ways = filling.config, filling.workers, []
    sizes = filling.sample(SAMPLE)
    needed, available = filling.estimated(sizes), available_memory()
    idle = min(round(idle), cores - 1 - workers)
    if workers == 0:
        ways.append("--workers 1 or more (with 0, images are loaded between the steps)")
    elif idle > 0:
        ways.append(f"--workers {workers + idle} ({idle} of {cores} cores are idle)")
    if config.cache == "none" and available is not None and needed <= SHARE * available:
        ways.append(f"--cache ram (about {shown(needed)}, {shown(available)} are available)")
    side = int(sizes[:, :2].min(dim=1).values.median())
    size = max(config.view_sizes)
    if config.cache == "none" and side >= LARGE * size:
        ways.append(f"smaller image files (shorter side {side} pixels in the median; {2 * size} would do)")
    if not ways:
        ways.append(f"a faster disk or more cores ({workers} loading processes, {cores} cores)")
    return f"{share:.0%} of the last {STRETCH:.0f} s were spent waiting for images. What would help: {'; '.join(ways)}."
