"""What a person sees while a command works, on standard error: a bar on a terminal, else a line now and then."""

import contextlib
import sys
import time

from mocoembed.cli.output import note

SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def counter(what: str, unit: str):
    """Yield `progress(done, total)`: a bar on a terminal, elsewhere a line every half minute."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = None

        def progress(done: int, total: int):
            nonlocal bar
            if bar is None:  # not earlier: the notes before the work stand above it
                bar = tqdm(desc=what, unit=f" {unit}", total=total, dynamic_ncols=True, leave=False, file=sys.stderr)
            bar.update(done - bar.n)

        try:
            yield progress
        finally:
            if bar is not None:
                bar.close()
        return
    last = time.monotonic()

    def progress(done: int, total: int):
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{what}: {done} of {total} {unit}")

    yield progress


class TrainingProgress:
    """Shows a pretraining: a bar on a terminal, elsewhere a line at every epoch's end and every half minute."""

    def __init__(self, stream):
        self.stream = stream
        self.epochs, self.bar, self.last = 0, None, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()

    def watcher(self):
        """The `Watcher` to give to `pretrain`."""
        from mocoembed.train.monitor import Watcher

        return Watcher(self._step, self._note, self._begin)

    def _begin(self, config):
        self.epochs = config.epochs

    def _note(self, text: str):
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            note(text)

    def _step(self, report, steps: int):
        numbers = (f"loss {report.loss:.3f} (chance {report.chance:.2f})  top-1 {report.top1:.1%}  "
                   f"top-5 {report.top5:.1%}  lr {report.lr:.4f}  {report.images_per_second:.0f} images/s  "
                   f"waiting {report.waiting:.0%}  queue {report.queue_filled:.0%}")
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=steps, unit=" steps", dynamic_ncols=True, file=self.stream,
                                        initial=report.step - 1)
            self.bar.set_description_str(f"epoch {report.epoch + 1}/{self.epochs}")
            self.bar.set_postfix_str(numbers)
            self.bar.update(report.step - self.bar.n)
        elif report.step * self.epochs % steps == 0 or time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            note(f"epoch {report.epoch + 1}/{self.epochs}  step {report.step}/{steps}  {numbers}")
