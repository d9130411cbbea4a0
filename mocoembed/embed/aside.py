"""Reading and hashing beside writing, so that a file of rows takes as long as the slowest of the three, not their sum.

A thread suffices: reading, CRC-32, SHA-256 and writing all work without the interpreter's lock.
"""

import hashlib
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
SMALL = 1 << 20  # bytes, hashed in less than a thread is worth, which takes 70 MB of address space


def made_ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """`items` in order; while one is used, the next is made in a thread. Raises where they would.

    Who may not use them all closes it, which waits for the thread.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, source, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, source, end)
            yield item  # type: ignore[misc]  # `end` is no item


class HashAside:
    """SHA-256 computed in a thread; a context manager. Data given to `update` must not change until the next call."""

    def __init__(self):
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future | None = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.shutdown()

    def update(self, data):
        """Take in anything with a buffer, after all that was given before; little data at once, without a thread."""
        self._wait()
        if memoryview(data).nbytes < SMALL:
            self._digest.update(data)
        else:
            self._running = self._thread.submit(self._digest.update, data)

    def hexdigest(self) -> str:
        """Of all that was given."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self):
        if self._running is not None:
            self._running.result()
            self._running = None
