"""What a person sees while a command works: notes and counters on standard error."""

import contextlib
import sys
import time

import click

SECONDS_BETWEEN_LINES = 30.0


def note(text: str):
    """A line for people, on standard error."""
    click.echo(text, err=True)


@contextlib.contextmanager
def counter(what: str, unit: str):
    """Yield `progress(done, total)`: a bar on a terminal, elsewhere a line every half minute."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, unit=f" {unit}", dynamic_ncols=True, leave=False, file=sys.stderr) as bar:
            def progress(done: int, total: int):
                bar.total = total
                bar.update(done - bar.n)

            yield progress
        return
    last = time.monotonic()

    def progress(done: int, total: int):
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{what}: {done} of {total} {unit}")

    yield progress
