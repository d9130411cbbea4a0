"""What a person sees while a command works, on standard error: a bar on a terminal, else a line now and then."""

import contextlib
import sys
import time

from mocoembed.cli.output import note
from mocoembed.notes import Forecast, duration

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_EPOCHS = 5.0  # that are told; a few images make hundreds of epochs in a minute
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit}{postfix}"  # without tqdm's own estimate


@contextlib.contextmanager
def counter(what: str, unit: str):
    """Yield `progress(done, total)`: a bar on a terminal, elsewhere a line every half minute; with the time left."""
    forecast = Forecast()
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = None

        def progress(done: int, total: int):
            nonlocal bar
            if bar is None:  # not earlier: the notes before the work stand above it
                bar = tqdm(desc=what, unit=f" {unit}", total=total, dynamic_ncols=True, leave=False, file=sys.stderr,
                           bar_format=BAR)
            bar.set_postfix_str(forecast.words(done, total), refresh=False)
            bar.update(done - bar.n)

        try:
            yield progress
        finally:
            if bar is not None:
                bar.close()
        return
    last = time.monotonic()

    def lines(done: int, total: int):
        nonlocal last
        left = forecast.words(done, total)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{what}: {done} of {total} {unit}" + (f", {left}" if left else ""))

    yield lines


class TrainingProgress:
    """Shows a pretraining: a bar on a terminal, elsewhere a line every half minute and at an epoch's end.

    The end of an epoch that takes only seconds has no line. Each line tells the time left, as soon as there is
    something to tell it by; the first time in a line of its own.
    """

    def __init__(self, stream):
        self.stream = stream
        self.epochs, self.with_queue, self.bar, self.last = 0, True, None, 0.0
        self.forecast, self.foreseen = Forecast(), False
        self.begun, self.resumed = time.monotonic(), False

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
        self.epochs, self.with_queue = config.epochs, config.dictionary == "queue"

    def took(self) -> str:
        """How long it has taken, to stand behind the steps: ` in 26 min 52 s`."""
        taken = duration(time.monotonic() - self.begun)
        return f" (resumed; {taken} this time)" if self.resumed else f" in {taken}"

    def _note(self, text: str):
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            note(text)

    def _step(self, report, steps: int):
        numbers = (f"loss {report.loss:.3f} (chance {report.chance:.2f})  top-1 {report.top1:.1%}  "
                   f"top-5 {report.top5:.1%}  lr {report.lr:.4f}  {report.images_per_second:.0f} images/s  "
                   f"waiting {report.waiting:.0%}")
        numbers += f"  queue {report.queue_filled:.0%}" if self.with_queue else ""
        left = self.forecast.words(report.step, steps)
        if self.bar is None and self.last == 0.0:
            self.resumed = report.step > 1
        numbers += f"  {left}" if left else ""
        first_forecast = bool(left) and not self.foreseen
        self.foreseen |= first_forecast
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=steps, unit=" steps", dynamic_ncols=True, file=self.stream,
                                        initial=report.step - 1, bar_format=BAR)
            self.bar.set_description_str(f"epoch {report.epoch + 1}/{self.epochs}")
            self.bar.set_postfix_str(numbers)
            self.bar.update(report.step - self.bar.n)
        elif first_forecast or report.step == steps or self._is_due(report.step * self.epochs % steps == 0):
            self.last = time.monotonic()
            note(f"epoch {report.epoch + 1}/{self.epochs}  step {report.step}/{steps}  {numbers}")

    def _is_due(self, end_of_epoch: bool) -> bool:
        since = time.monotonic() - self.last
        return self.last == 0.0 or since >= (SECONDS_BETWEEN_EPOCHS if end_of_epoch else SECONDS_BETWEEN_LINES)
