"""HTTP connections with what uvicorn lacks: deadlines for the head of a request and for reading an answer, and a size.

A connection whose head does not come in time, whose answers are not read, or whose body nobody reads and which does not
come either, is closed, so that these do not pile up. What is no request is refused and told like other refusals.
"""

import asyncio
import json
import re
import socket
import struct
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mocoembed.serve.answers import Refusal

SECONDS_FOR_HEAD = 10.0  # until the head of a request is there; after an answer, the rest of a body and the next head
SECONDS_FOR_READING = 120.0  # an answer, most of it
AT_ONCE = struct.pack("ii", 1, 0)
MOST_HEAD = 128 << 10  # bytes of it, and of what comes after a body


def _authority(url: bytes) -> bytes:
    """HOST:PORT of an absolute URL."""
    return re.split(rb"[/?#]", url.partition(b"://")[2])[0].lower()


class Connection(HttpToolsProtocol):
    """uvicorn's, closed when a head does not come in time (the first one, or one that has begun) or is too long."""

    deadline: asyncio.TimerHandle | None = None
    reading: asyncio.TimerHandle | None = None
    rest: asyncio.TimerHandle | None = None
    head_bytes = 0

    def connection_made(self, transport: Any):
        """The first head is waited for."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None):
        """Nothing is waited for any more."""
        self._stop_waiting()
        self._stop_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes):
        """Bytes of a head are counted."""
        super().data_received(data)
        if self.deadline is not None:
            self.head_bytes += len(data)
            if self.head_bytes > MOST_HEAD and not self.transport.is_closing():
                self.send_400_response("The head of the request is too long.", "too large")

    def on_message_begin(self):
        """A head begins."""
        super().on_message_begin()
        self._wait()

    def on_header(self, name: bytes, value: bytes):
        """A header, or one that follows a body in pieces."""
        if self.deadline is None:
            self.head_bytes += len(name) + len(value)
            if self.head_bytes > MOST_HEAD:
                raise ValueError("too long")
        super().on_header(name, value)

    def on_headers_complete(self):
        """It is there."""
        self._stop_waiting()
        if not self.url.startswith((b"/", b"*")) and self._hosts() != [_authority(self.url)]:
            raise ValueError("the target is of another host")  # which uvicorn answers with 400
        super().on_headers_complete()

    def _hosts(self) -> list[bytes]:
        return [value.lower() for name, value in self.headers if name == b"host"]

    def on_response_complete(self):
        """It has been answered; a body that nobody reads would stop uvicorn's timer."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and self.rest is None:
            self.rest = self.loop.call_later(SECONDS_FOR_HEAD, self.transport.abort)

    def pause_writing(self):
        """More has been written than the caller has read."""
        super().pause_writing()
        if self.reading is None:
            self.reading = self.loop.call_later(SECONDS_FOR_READING, self._unread)

    def resume_writing(self):
        """It has been read."""
        super().resume_writing()
        self._stop_reading()

    def send_400_response(self, msg: str, reason: str = "malformed"):
        """Refuse what is no request, in JSON like all refusals, and close."""
        self._tell(Refusal(400, msg, reason))
        data = json.dumps({"error": msg}).encode()
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
                             b"X-Content-Type-Options: nosniff\r\nConnection: close\r\n"
                             b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        self.transport.close()
        self._stop_waiting()

    def _tell(self, refusal: Refusal):
        """By the function that the application keeps in its state."""
        self.app_state["tell"]({"client": self.client}, refusal)

    def _wait(self):
        if self.deadline is None:
            self.head_bytes = 0
            self.deadline = self.loop.call_later(SECONDS_FOR_HEAD, self._too_late)

    def _stop_waiting(self):
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if self.rest is not None:
            self.rest.cancel()
            self.rest = None

    def _stop_reading(self):
        if self.reading is not None:
            self.reading.cancel()
            self.reading = None

    def _too_late(self):
        if self.head_bytes:  # browsers open connections that they may need
            self._tell(Refusal(408, "The head of the request came too slowly.", "slow"))
        self.transport.abort()

    def _unread(self):
        """Close at once; without LINGER, the system would keep what nobody reads for minutes, megabytes of it."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()
