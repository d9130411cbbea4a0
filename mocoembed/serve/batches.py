"""Gathers images of simultaneous requests into batches for the encoder.

A batch begins when the encoder is free, so a request that comes alone waits for nobody; those that come while it works
are embedded together. Only where several are on their way is waited for more, `SECONDS` at most.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import numpy as np

MOST = 32  # images in a batch
SECONDS = 0.005  # that are waited for more
Waiting = tuple[Callable, np.ndarray, asyncio.Future]
"""How to encode, pixels, and where the vector goes."""


class Batches:
    """`embed(images, pixels)` gives the vector of one image; `tell(size)` is called with the size of every batch."""

    def __init__(self, pool: Executor, tell: Callable[[int], None] = lambda size: None):
        self._pool, self._tell = pool, tell
        self._waiting: list[Waiting] = []
        self._all_there = asyncio.Event()
        self._task: asyncio.Task | None = None
        self._expected = 0

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """An image is on its way while the block runs: being received or decoded."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._all_there.set()

    async def embed(self, encode: Callable[[list[np.ndarray]], np.ndarray], pixels: np.ndarray) -> np.ndarray:
        """(D,) float32: the vector of pixels (S, S, 3) by `encode`, which takes several."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((encode, pixels, future))
        if len(self._waiting) >= MOST:
            self._all_there.set()
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self):
        try:
            while self._waiting:
                await self._gather()
                encode = self._waiting[0][0]
                some: list[Waiting] = []
                rest: list[Waiting] = []
                for one in self._waiting:
                    (some if one[0] == encode and len(some) < MOST else rest).append(one)
                self._waiting = rest
                await self._run(encode, some)
        finally:
            self._task = None

    async def _gather(self):
        if self._expected and len(self._waiting) < MOST:
            self._all_there.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_there.wait(), SECONDS)

    async def _run(self, encode: Callable, some: list[tuple]):
        futures = [future for _, _, future in some]
        try:
            self._tell(len(some))
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._pool, encode, [pixels for _, pixels, _ in some])
        except Exception as error:  # whatever the encoder raises belongs to those who asked
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, vector in zip(futures, vectors):
            if not future.done():
                future.set_result(vector)
