"""Notes for people: `note(text)` tells one, and every function that takes a `note` can do without. Times in words."""

import collections
import time
from collections.abc import Callable

MARKS = 256  # that a forecast remembers at most


def say_nothing(text: str):
    """The `note` of those who want none."""


def counted(count: int, noun: str) -> str:
    """`1 query`, `2 queries`, `2 classes`."""
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("ss") else "s")
    return f"{count} {noun if count == 1 else many}"


def duration(seconds: float) -> str:
    """A time that was measured, in its two largest units: `7 s`, `26 min 52 s`, `3 h 20 min`, `2 days 5 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} days {rest} h"


def about(seconds: float) -> str:
    """A time that was estimated: `about 40 s`, `about 12 min`, `about 3 h 20 min`, `about 9 h`, `about 3 days`."""
    if seconds < 115:
        step = 1 if seconds < 10 else 5 if seconds < 30 else 10
        return f"about {max(1, step * round(seconds / step))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes if minutes < 20 else 5 * round(minutes / 5)} min"
    hours, rest = divmod(10 * round(minutes / 10), 60)
    if hours < 6:
        return f"about {hours} h {rest} min" if rest else f"about {hours} h"
    hours = round(seconds / 3600)
    return f"about {hours} h" if hours < 48 else f"about {round(hours / 24)} days"


class Forecast:
    """The time left of a piece of work, from the speed of its latest half, or of the last minute if that is longer.

    All time counts, also that between the steps, as for saving and evaluating; only what went before the first call
    does not: the start, and the first step, which is slow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._marks: collections.deque[tuple[float, int]] = collections.deque()
        self._begun = 0.0

    def left(self, done: int, total: int) -> float | None:
        """Seconds left, when `done` of `total` are done by now; `None` before there is enough to tell by."""
        now = self.clock()
        if not self._marks:
            self._begun = now
        if not self._marks or now - self._marks[-1][0] >= (now - self._begun) / MARKS:
            self._marks.append((now, done))
        stretch = max(60.0, (now - self._begun) / 2)
        while len(self._marks) > 2 and self._marks[1][0] <= now - stretch:
            self._marks.popleft()
        then, before = self._marks[0]
        seconds = now - then
        enough = seconds >= 10.0 or (seconds >= 2.0 and len(self._marks) > 3)
        if not enough or done <= before:
            return None
        return (total - done) * seconds / (done - before)

    def words(self, done: int, total: int) -> str:
        """`about 12 min left`; empty before there is enough to tell by, and at the end."""
        left = self.left(done, total)
        return "" if left is None or done >= total else f"{about(left)} left"
