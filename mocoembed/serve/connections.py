"""HTTP connections with a deadline for the request's head, which uvicorn lacks: a silent connection is closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS_FOR_HEAD = 10.0  # until the head of a request is there


class Connection(HttpToolsProtocol):
    """uvicorn's, closed when a head does not come in time: the first one, or one that has begun."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any):
        """The first head is waited for."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None):
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self):
        """A head begins."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self):
        """It is there."""
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self):
        if self.deadline is None:
            self.deadline = self.loop.call_later(SECONDS_FOR_HEAD, self._too_late)

    def _stop_waiting(self):
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _too_late(self):
        if not self.transport.is_closing():
            self.transport.abort()
