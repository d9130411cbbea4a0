"""What the routes share: the collection, threads, limits, the encoder's batches, thumbnails, metrics."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mocoembed.config.serve import ServeConfig
from mocoembed.cores import cores
from mocoembed.serve.answers import Refusal
from mocoembed.serve.batches import Batches
from mocoembed.serve.collection import Collection
from mocoembed.serve.following import Following
from mocoembed.serve.jobs import Job
from mocoembed.serve.limits import Bodies, Gate, Shared
from mocoembed.serve.mapping import Mapping
from mocoembed.serve.metrics import Metrics
from mocoembed.serve.thumbnails import Thumbnails

SECONDS_BETWEEN_LOOKS = 1.0
WAITING = 256  # pieces of work of a kind that may wait for their turn
SLOW = ("copies", "health", "map")  # kinds of questions that take long: of each, one is answered at a time


class Service:
    """Everything behind the routes. `start()` begins the work in the background, `stop()` ends it."""

    def __init__(self, config: ServeConfig, note: Callable[[str], None]):
        self.config, self.note = config, note
        self.following = Following(config, note)
        # Threads of each kind of their own: a disk that hangs holds up images, and nothing else.
        self._searching = ThreadPoolExecutor(cores() + len(SLOW) + 1, "search")
        self._decoding = ThreadPoolExecutor(cores(), "decode")
        self._encoding = ThreadPoolExecutor(1, "encode")
        self.metrics, self.thumbnails, self.bodies = Metrics(), Thumbnails(), Bodies()
        self.searches, self.images, self.decoded = (Gate(cores(), WAITING) for _ in range(3))
        self.slow = {kind: Shared(WAITING) for kind in SLOW}
        self.uploads = Gate(WAITING, 0)  # they wait for the encoder, in batches
        self.batches = Batches(self._encoding, self.metrics.batch)
        self.ready = False
        self._told: str | None = None
        self._jobs: dict[str, tuple[Collection, Job]] = {}
        self._tasks: list[asyncio.Task] = []
        self.mapping: Mapping | None = None

    def start(self):
        """Warm up, and follow the files."""
        self._tasks = [asyncio.create_task(self._follow())]
        if self.config.map:
            self.mapping = Mapping(lambda: self.following.current.file.path, self.note)
            self._tasks.append(asyncio.create_task(self.mapping.run()))

    async def stop(self):
        """End what runs in the background, and close the files."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for _, job in self._jobs.values():
            await self.run(job.stop)
        for pool in (self._searching, self._decoding, self._encoding):
            pool.shutdown(wait=False, cancel_futures=True)
        self.following.close()

    async def run(self, function: Callable, *arguments: Any) -> Any:
        """The result of a function that is run on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._searching, function, *arguments)

    async def decode(self, function: Callable, *arguments: Any) -> Any:
        """The same of a function that reads and decodes an image."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, function, *arguments)

    def job(self, name: str, collection: Collection, work: Callable[[Collection, Job], Any]) -> Job:
        """The job of that name for a collection; that of another collection is stopped."""
        of, job = self._jobs.get(name, (None, None))
        if job is None or of is not collection:
            if job is not None:
                job.stop(wait=False)
            self._jobs[name] = collection, (job := Job(lambda this: work(collection, this)))
        return job

    def _warm_up(self, collection: Collection):
        """One search before requests are promised quick answers; one image is embedded, too."""
        try:
            if len(collection):
                collection.warm_up()
            self.ready, self._told = True, None
        except Exception as error:  # whatever the encoder raises: images of the collection can still be looked at
            if str(error) != self._told:
                self.note(f"The first search failed: {error}")
            self.ready, self._told = False, str(error)

    async def _follow(self):
        while True:
            if not self.ready:
                await self.run(self._warm_up, self.following.current)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                if await self.run(self.following.look, self._warm_up) and self.mapping is not None:
                    self.mapping.again()
            except Exception as error:  # whatever is wrong with new files: those that are open are served
                self.note(f"The new files cannot be served: {error}")

    async def embedded(self, collection: Collection, data: bytes, crop: tuple[int, ...] = ()) -> np.ndarray:
        """(D,) float32: the vector of an image's bytes, or of its region `crop`."""
        if not collection.encodes:
            raise Refusal(409, "There is no encoder here to embed an image with. Search for images of the collection.",
                          "no encoder")
        async with self.uploads.turn():
            with self.batches.expecting():
                async with self.decoded.turn():
                    pixels = await self.decode(collection.pixels, data, crop)
            return await self.batches.embed(collection.pair.embed, pixels)
