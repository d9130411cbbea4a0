"""`mocoembed map` beside the server, for `serve --map`: a process of its own, so that requests come first."""

import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable

from mocoembed.serve.jobs import NICE

COMMAND = (sys.executable, "-m", "mocoembed", "map")


class Mapping:
    """Makes the map, and again after each `again()`; `run()` ends with its task, and so does the process."""

    def __init__(self, embeddings: Callable[[], pathlib.Path], note: Callable[[str], None]):
        """`embeddings()` is the file that is served now."""
        self._embeddings, self._note, self._wanted = embeddings, note, asyncio.Event()
        self._wanted.set()
        self.running: int | None = None
        """Process that makes it now."""
        self.progress: str | None = None
        """What that process said last, such as `map: 200 of 1000 steps, about 2 min left`."""

    def again(self):
        """The embeddings are others by now."""
        self._wanted.set()

    async def run(self):
        """Make it as often as it is wanted."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._make()

    async def _make(self):
        self._note("The map is being made; the page shows principal components until it is there.")
        process = await asyncio.create_subprocess_exec(
            *COMMAND, str(self._embeddings()), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True)  # Ctrl-C ends the server, and that ends this
        self.running = process.pid
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        try:
            made, wrong = await asyncio.gather(_read(process.stdout), _read(process.stderr, self._tell))
            await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
            self.running = self.progress = None
        text = (made if process.returncode == 0 else wrong).decode(errors="replace").strip()
        self._note(text if process.returncode == 0 else f"The map was not made: {text}")

    def _tell(self, line: bytes):
        self.progress = line.decode(errors="replace").strip()


async def _read(pipe: asyncio.StreamReader | None, tell: Callable[[bytes], None] = lambda line: None) -> bytes:
    """All that a process writes into a pipe; each line is told."""
    lines = []
    if pipe is not None:
        async for line in pipe:
            lines.append(line)
            tell(line)
    return b"".join(lines)
