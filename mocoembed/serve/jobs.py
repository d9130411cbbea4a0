"""Work that takes longer than a request may: begun by the first one that asks, and its result kept."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from mocoembed.errors import MocoembedError
from mocoembed.serve.answers import Refusal

NICE = 5  # requests come first
SECONDS_TO_STOP = 10.0


class Stopped(Exception):
    """The server ends."""


class Job:
    """Runs `work(job)` once, on a thread of its own, which reports by `progress` and asks `raise_if_set`."""

    def __init__(self, work: Callable[["Job"], Any]):
        self._work, self._lock = work, threading.Lock()
        self._thread: threading.Thread | None = None
        self._finished, self._stop = threading.Event(), threading.Event()
        self._result: Any = None
        self._error: Exception | None = None
        self.done, self.total = 0, 0

    def progress(self, done: int, total: int):
        """Say how far it is."""
        self.done, self.total = done, total

    def raise_if_set(self, message: str = ""):
        """End the work when the server ends."""
        if self._stop.is_set():
            raise Stopped

    def wait(self, seconds: float) -> bool:
        """Begin the work unless it has begun, and wait for it; whether it is finished."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        return self._finished.wait(seconds)

    def result(self) -> Any:
        """What it found; a `Refusal` (409) where it could not be done, or was stopped."""
        if isinstance(self._error, MocoembedError):
            raise Refusal(409, str(self._error), "impossible")
        if self._error is not None:
            raise self._error
        if self._stop.is_set() and self._result is None:
            raise Refusal(409, "The embeddings file has been replaced, or the server ends. Ask again.", "replaced")
        return self._result

    def stop(self, wait: bool = True):
        """End it, and wait for that."""
        self._stop.set()
        with self._lock:
            thread = self._thread
        if wait and thread is not None:
            thread.join(SECONDS_TO_STOP)

    def _run(self):
        if sys.platform == "linux":  # where a thread has a priority of its own, which the threads it starts take over
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            with contextlib.suppress(Stopped):
                self._result = self._work(self)
        except Exception as error:  # whatever it is, those who asked are told
            self._error = error
        self._finished.set()
