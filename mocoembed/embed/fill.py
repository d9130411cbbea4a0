"""One process's share of an embedding: batches -> vectors -> its parts of the work file.

Loading processes read and decode, the device computes, a thread writes: all at once. Images whose bytes are known,
from the embeddings that there were or from an image before in this process's share, are not encoded.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from mocoembed.data.facts import Failure
from mocoembed.data.loader import EvaluationBatch
from mocoembed.embed.work import EMBEDDED, WorkFile
from mocoembed.model.embedder import Embedder

COMMIT_IMAGES, COMMIT_SECONDS = 1024, 10.0
BATCHES_AHEAD = 2  # computed and not yet written


class Writer:
    """Writes batches to a work file and commits them, in a thread of its own; a context manager.

    What is written is committed after `COMMIT_IMAGES` images, at the end of a part and after `COMMIT_SECONDS`, even
    if no batch comes. What goes wrong in the thread is raised by the next `put`, or by `close`; nothing later is
    written then.
    """

    def __init__(self, work: WorkFile):
        self.work = work
        self._thread = ThreadPoolExecutor(1, "mocoembed-writer")
        self._pending: deque[Future] = deque()
        self._failed = False
        self._end: int | None = None  # written up to here, and not committed
        self._uncommitted = 0
        self._timer: threading.Timer | None = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.close()
        finally:
            self._thread.shutdown()

    def put(self, batch: EvaluationBatch, encoded: np.ndarray, vectors: Callable[[], torch.Tensor]):
        """Write a batch, of whose images those that are `encoded` (N,) bool have `vectors`, as soon as they come."""
        self._pending.append(self._thread.submit(self._guarded, self._write, batch, encoded, vectors))
        while len(self._pending) > BATCHES_AHEAD:
            self._pending.popleft().result()

    def close(self):
        """Write and commit all that was put."""
        self._pending.append(self._thread.submit(self._guarded, self._commit))
        while self._pending:
            self._pending.popleft().result()

    def _commit_in_time(self):
        """In the timer's thread."""
        with contextlib.suppress(RuntimeError):  # all is written, and the writing thread has gone
            self._pending.append(self._thread.submit(self._guarded, self._commit))

    def _guarded(self, function, *arguments):
        if not self._failed:
            self._failed = True
            function(*arguments)
            self._failed = False

    def _write(self, batch: EvaluationBatch, encoded: np.ndarray, vectors: Callable[[], torch.Tensor]):
        if self._end is not None and batch.first != self._end:
            self._commit()  # another part begins
        whole = np.zeros((len(encoded), self.work.dimension), self.work.dtype)
        with np.errstate(over="ignore"):  # too large for float16: not finite, and told below
            whole[encoded] = vectors().numpy()
        unreadable = {failure.row for failure in batch.failures}
        problem = f"the vector is not finite in {self.work.dtype}"
        broken = [Failure(batch.first + int(place), "FloatingPointError", problem)
                  for place in np.flatnonzero(~np.isfinite(whole).all(axis=1))
                  if batch.first + place not in unreadable]
        self.work.write(batch.first, whole, batch.facts, ~encoded, batch.failures + broken)
        self._end = batch.first + len(encoded)
        self._uncommitted += len(encoded)
        part_ends = self._end == self.work.slots or self._end % self.work.part_slots == 0
        if part_ends or self._uncommitted >= COMMIT_IMAGES:
            self._commit()
        elif self._timer is None:
            self._timer = threading.Timer(COMMIT_SECONDS, self._commit_in_time)
            self._timer.daemon = True
            self._timer.start()

    def _commit(self):
        if self._timer is not None:
            self._timer.cancel()
        if self._end is not None:
            self.work.commit(self._end)
        self._end, self._uncommitted, self._timer = None, 0, None


def slices(work: WorkFile, parts: range, batch_size: int) -> list[tuple[int, int]]:
    """The batches (first slot, last slot + 1) of some parts that are not committed yet."""
    return [(first, min(first + batch_size, work.range_of(part)[1])) for part in parts
            for first in range(work.committed(part), work.range_of(part)[1], batch_size)]


def seen_before(work: WorkFile, parts: range) -> set[bytes]:
    """Digests of the images that were embedded in some parts by an earlier, interrupted run."""
    seen: set[bytes] = set()
    for part in parts:
        first, end = work.range_of(part)[0], work.committed(part)
        for start in range(first, end, COMMIT_IMAGES):
            block = work.read(start, min(end, start + COMMIT_IMAGES))
            seen.update(block["facts"]["digest"][block["status"] == EMBEDDED].tolist())
    return seen


def fill(work: WorkFile, parts: range, batches, embedder: Embedder, report: Callable[[int], bool]):
    """Embed the `batches` of `slices` into some parts of the work; `report(slots done)` tells to stop by `True`."""
    seen, done = seen_before(work, parts), work.done(parts)
    with Writer(work) as writer:
        for batch in batches:
            encoded = ~batch.known
            for place, digest in enumerate(batch.facts["digest"].tolist()):
                if encoded[place] and any(digest):  # none: it could not be read, and leaves a blank
                    encoded[place] = digest not in seen
                    seen.add(digest)
            writer.put(batch, encoded, _vectors(batch.pixels, encoded, embedder, work.dimension))
            done += len(encoded)
            if report(done):
                break


def _vectors(pixels: torch.Tensor, encoded: np.ndarray, embedder: Embedder,
             dimension: int) -> Callable[[], torch.Tensor]:
    """The vectors of those of `pixels` (N, 3, S, S) that are to be `encoded`, when they are asked for."""
    if encoded.all():
        return embedder.begin(pixels)
    if not encoded.any():
        return lambda: torch.empty(0, dimension)
    return embedder.begin(pixels[torch.from_numpy(encoded)])
