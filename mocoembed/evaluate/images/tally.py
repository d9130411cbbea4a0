"""How many images are done, of those that a run will learn from, classify and compare with."""

from collections.abc import Callable


class Tally:
    """Counts images, and reports them once somebody asks for that."""

    def __init__(self):
        self._done, self._total = 0, 0
        self._progress: Callable[[int, int], None] = lambda done, total: None

    def expect(self, images: int):
        """There will be so many images more."""
        self._total += images

    def report_to(self, progress: Callable[[int, int], None]):
        """Call `progress(done, total)` from now on."""
        self._progress = progress

    def add(self, images: int):
        """So many images more are done."""
        self._done = min(self._done + images, self._total)
        self._progress(self._done, self._total)
