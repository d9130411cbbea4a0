"""What to say of a loading process that has died: most often memory is too small, now and then an image is to blame."""

import contextlib
import pathlib
import resource
import signal
from typing import NamedTuple

from mocoembed.memory import available_memory, shown

OF_MEMORY = (signal.SIGKILL, signal.SIGBUS)  # the kernel's, when memory is full
SHARE = 0.8  # of the memory, which loading processes may fill


class Lost(NamedTuple):
    """What was seen when a loading process died."""

    signal_number: int
    """That ended it."""
    image: str | None
    """At which it was, for people."""
    workers: int
    """How many processes there were."""
    held: int
    """Bytes of memory that one of them holds for itself; 0 if none lives to tell."""
    available: int | None
    """Bytes available, and held by all of them; `None` if unknown."""

    @property
    def name(self) -> str:
        """The signal's name."""
        with contextlib.suppress(ValueError):
            return signal.Signals(self.signal_number).name
        return f"signal {self.signal_number}"

    def told(self) -> str:
        """One death, for people, with what to change."""
        where = "" if self.image is None else f" at {self.image}"
        begun = f"A loading process died ({self.name}){where} and is restarted."
        if self.signal_number in OF_MEMORY:
            return f"{begun} Usually there is too little memory: {self.advice()}"
        return begun + ("" if self.image is None else " If it dies there again, the image is skipped.")

    def advice(self) -> str:
        """How much memory there is, and what to type to need less."""
        known = "" if self.available is None else f"{shown(max(0, self.available))} for loading processes"
        if known and self.held:
            known += f", of which each takes {shown(self.held)}"
        if self.workers == 1:
            what = "give --workers 0 or a smaller --batch-size"
        else:
            fits = self.workers - 1
            if self.available is not None and self.held:
                fits = min(fits, max(1, int(SHARE * self.available / self.held)))
            what = f"give fewer --workers: {fits} instead of {self.workers}"
        return f"{known}; {what}." if known else f"{what}."


def seen(signal_number: int, image: str | None, workers: int, living: set[int]) -> Lost:
    """What is to be seen now, while the processes `living` still live."""
    held, available = [own_memory(process) for process in living], available_memory()
    return Lost(signal_number, image, workers, max(held, default=0),
                None if available is None else available + sum(held))


def own_memory(process: int) -> int:
    """Bytes of memory that a process shares with no other; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        _, resident, shared = pathlib.Path(f"/proc/{process}/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * resource.getpagesize()
    return 0
