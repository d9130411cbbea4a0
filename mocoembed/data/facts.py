"""What is known of an image once it has been read: its facts, or why it could not be read."""

import os
import re
from typing import NamedTuple

import numpy as np

FACTS = np.dtype([("width", "<i4"), ("height", "<i4"), ("size", "<i8"), ("mtime_ns", "<i8"), ("digest", "V32")])
REPLACED = "replaced by the next image"  # what training does without an image
UNKNOWN = bytes(32)  # digest of an image whose bytes nobody has read


class Failure(NamedTuple):
    """An image that could not be read."""

    row: int
    """Its place in the listing."""
    error: str
    """Class of the exception; or `WorkerDied` or `WorkerHung`, of a process that did not come to an end with it."""
    reason: str
    """Message of the exception, on one line."""

    @classmethod
    def of(cls, row: int, error: Exception) -> "Failure":
        """The failure of image `row` with `error`."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = re.sub(r" ?<[\w.]+ object at 0x\w+>", "", reason)  # an address differs from run to run
        return cls(row, type(error).__name__, " ".join(reason.split()) or type(error).__name__)

    @property
    def said(self) -> str:
        """Why it cannot be read, for people."""
        return reason_for_people(self.error, self.reason)

    def told(self, path: bytes, what: str) -> str:
        """A line for people: which image cannot be read, `what` is done without it, and why it cannot."""
        return f"unreadable, {what}: {os.fsdecode(path)!r}: {self.said}"


def reason_for_people(error: str, reason: str) -> str:
    """The reason of a failure; what says nothing by itself, such as the `0` of a KeyError, as the decoder's error."""
    return reason if " " in reason else f"the decoder failed ({error if reason == error else f'{error}: {reason}'})"
