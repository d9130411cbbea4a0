"""Running the cells of a reproduction: a few at a time, one thread and low priority each, stopped and gone on with.

A cell is a function that runs commands, one after another, by `Work.run`. A command that saves on SIGTERM and goes on
when it is run again makes the whole restartable.
"""

import json
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import click

from mocoembed.notes import counted

NICENESS = 10
MORE_TO_DO = 3
"""Exit status when the time was over before the work was."""


class Stopped(Exception):
    """The time is over, or a signal came: what is running has been asked to save."""


class Work:
    """The commands that run now; `stop` ends them all."""

    def __init__(self, end: float, threads: int = 1, niceness: int = NICENESS):
        self.end, self.threads, self.niceness = end, threads, niceness
        """`time.monotonic()` at which to stop, and threads and niceness of each command."""
        self._running: set[subprocess.Popen] = set()
        self._lock, self._over = threading.Lock(), threading.Event()

    @property
    def over(self) -> bool:
        """Whether no more is to be begun."""
        return self._over.is_set() or time.monotonic() >= self.end

    def run(self, command: list[str], log) -> str:
        """Run a command to its end; its standard output. The rest goes into the file `log`.

        Raises `Stopped` when it was ended early, `RuntimeError` when it failed.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        with self._lock:
            if self.over:
                raise Stopped
            child = subprocess.Popen(["nice", "-n", str(self.niceness), *command], env=environment, text=True,
                                     stdout=subprocess.PIPE, stderr=log, start_new_session=True)
            self._running.add(child)
        try:
            output = self._waited_for(child)
        finally:
            with self._lock:
                self._running.discard(child)
        if child.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
            raise Stopped
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {child.returncode}")
        return output

    def _waited_for(self, child: subprocess.Popen) -> str:
        try:
            return child.communicate(timeout=max(0.1, self.end - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            self.stop()
            return child.communicate()[0]

    def stop(self, *_):
        """Let all that runs save and end, and begin nothing more; may be the handler of a signal."""
        self._over.set()
        for child in list(self._running):
            child.terminate()


def run_all(work: Work, cells: Iterable[tuple[str, Callable[[], None]]], at_a_time: int,
            say: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    """Run the cells, so many at a time: the names of those left, and why each of the others failed."""
    left, failed = [], {}

    def one(name: str, cell: Callable[[], None]):
        begun = time.monotonic()
        try:
            if work.over:
                raise Stopped
            cell()
        except Stopped:
            left.append(name)
        except Exception as error:  # the other cells can still be run
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            say(f"{name}: {failed[name]}")
        else:
            say(f"{name}: {time.monotonic() - begun:.0f} s")

    before = {number: signal.signal(number, work.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(at_a_time) as pool:
            waiting = [pool.submit(one, name, cell) for name, cell in cells]
            for future in waiting:
                future.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return left, failed


def is_done(output: pathlib.Path, name: str, options: list[str], images: str | None = None) -> bool:
    """Whether the cell's file is there; `UsageError` when it was made with other options or images (their digest)."""
    kept = output / "cells" / f"{name}.json"
    if not kept.exists():
        return False
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["options"] != options:
        raise click.UsageError(f"{kept} was made with other options. Remove it, or give another --output.")
    if found.get("images_digest", images) != images:
        raise click.UsageError(f"{kept} was made with other images. Give another --output.")
    return True


def ended(left: list[str], failed: dict[str, str], log: Callable[[str], pathlib.Path]) -> NoReturn:
    """Say what failed (`log` names a cell's log) and what is left, and end with 0, 1 or `MORE_TO_DO`."""
    for name, reason in failed.items():
        click.echo(f"{name} failed: {reason} ({log(name)})", err=True)
    if left:
        click.echo(f"{counted(len(left), 'cell')} left: {', '.join(left)}. Run the same command again to go on.",
                   err=True)
    raise SystemExit(1 if failed else MORE_TO_DO if left else 0)
