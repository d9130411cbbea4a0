"""How much is done at once: gates for work, questions that are shared, and a budget for what is being received.

What is over a limit is refused at once (429, with Retry-After), so no queue grows without end.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any

from starlette.requests import Request

from mocoembed.memory import shown
from mocoembed.serve.answers import Refusal
from mocoembed.serve.refusals import DISCONNECTED

MOST_UPLOAD = 64 << 20  # bytes of an image
MOST_JSON = 16 << 20  # bytes of queries in JSON
MOST_RECEIVED = 256 << 20  # bytes of all large bodies together, until they are answered
SMALL = 64 << 10  # bytes of a body that need no place among them, so that large ones keep no search by row waiting
SECONDS_FOR_BODY = 20.0  # until it is there as a whole, and
BYTES_A_SECOND = 100_000  # for each so many bytes that have come a second more: a slow connection is none that stalls.
# What came quickly earns no more than the 20 seconds from then on, or a few bodies could stall for minutes.
SECONDS_FOR_PART = 5.0  # until the next part of it


class Gate:
    """Lets `running` pieces of work through at once; `waiting` more may wait for their turn."""

    def __init__(self, running: int, waiting: int):
        self._turns, self._most, self.inside = asyncio.Semaphore(running), running + waiting, 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a place while the block runs; a `Refusal` (429) when all are taken."""
        if self.inside >= self._most:
            raise Refusal(429, "The server is busy; try again in a moment.", "busy")
        self.inside += 1
        try:
            async with self._turns:
                yield
        finally:
            self.inside -= 1


class Shared:
    """Answers questions one at a time; those who ask the same at once share one answer. `waiting` may wait for it."""

    def __init__(self, waiting: int):
        self.askers, self._work = Gate(1 + waiting, 0), Gate(1, waiting)
        self._open: dict[Hashable, asyncio.Task] = {}

    async def answer(self, question: Hashable, work: Callable[[], Awaitable[Any]]) -> Any:
        """What `work()` gives, also for others who ask this meanwhile; a `Refusal` (429) when too many ask.

        It goes on when the one who asked first goes away.
        """
        async with self.askers.turn():
            if (task := self._open.get(question)) is None:
                task = self._open[question] = asyncio.create_task(self._done(question, work))
            return await asyncio.shield(task)

    async def _done(self, question: Hashable, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with self._work.turn():
                return await work()
        finally:
            del self._open[question]


class Bodies:
    """Receives the bodies of requests: within a size, a time, and a sum of all of them."""

    def __init__(self, most: int = MOST_RECEIVED, seconds: float = SECONDS_FOR_BODY,
                 seconds_for_part: float = SECONDS_FOR_PART):
        self.most, self.seconds, self.seconds_for_part, self.held = most, seconds, seconds_for_part, 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body of a request, of at most `limit` bytes, which counts as held while the block runs.

        A `Refusal` for one that is too large (413), too slow (408), or when too much is held already (429).
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise Refusal(413, f"The body has {shown(int(announced))}; at most {shown(limit)} are read.", "too large")
        taken = held = 0
        body = bytearray()  # one piece of memory, which the system takes back
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        try:
            is_more = True
            while is_more:
                try:
                    message = await asyncio.wait_for(request.receive(), min(self.seconds_for_part, end - loop.time()))
                except (asyncio.TimeoutError, TimeoutError) as error:
                    raise Refusal(408, "The body came too slowly.", "slow") from error
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The connection was closed.", DISCONNECTED)
                part, is_more = message.get("body", b""), message.get("more_body", False)
                taken += len(part)
                end = min(end + len(part) / BYTES_A_SECOND, loop.time() + self.seconds)
                if taken > limit:
                    raise Refusal(413, f"The body is too large; at most {shown(limit)} are read.", "too large")
                if taken > SMALL:
                    self.held, held = self.held + taken - held, taken
                    if self.held > self.most:
                        raise Refusal(429, "The server is receiving too much; try again in a moment.", "busy")
                body += part
            yield part if len(part) == taken else bytes(body)
        finally:
            self.held -= held
