"""Progress lines of a log: the time left, and when a line comes."""

import io
import types

import pytest

from mocoembed.cli import progress
from mocoembed.config import PretrainConfig
from mocoembed.notes import Forecast
from mocoembed.train.monitor import StepReport


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand, for the lines and for the forecasts; a log in place of a terminal."""
    clock = types.SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "Forecast", lambda: Forecast(clock.monotonic))
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    return clock


@pytest.fixture
def lines(monkeypatch):
    """What has been noted."""
    noted = []
    monkeypatch.setattr(progress, "note", noted.append)
    return noted


def report(step, epoch=0):
    return StepReport(step, epoch, 0.1, 5.0, 0.5, 4.0, 0.1, 0.2, 1.0, 100.0, 0.0, 0.0)


def train(clock, steps, seconds, **settings):
    shown = progress.TrainingProgress(io.StringIO())
    shown.watcher().begin(PretrainConfig.of("small", "images", epochs=10, **settings))
    for step in steps:
        clock.now += seconds
        shown.watcher().step(report(step, (step - 1) // 100), 1000)
    return shown


def test_a_log_of_a_pretraining_tells_the_time_left_within_the_first_steps(clock, lines):
    shown = train(clock, range(1, 41), 2.0)
    assert [line.split()[3] for line in lines] == ["1/1000", "4/1000", "19/1000", "34/1000"]
    assert "left" not in lines[0]
    assert [line.split("  ")[-1] for line in lines[1:]] == [f"about {minutes} min left" for minutes in (35, 35, 30)]
    assert shown.took() == " in 1 min 20 s"


def test_the_last_line_has_nothing_left(clock, lines):
    train(clock, range(990, 1001), 40.0)
    assert lines[-1].startswith("epoch 10/10  step 1000/1000")
    assert "left" not in lines[-1]
    assert lines[-2].endswith("about 40 s left")


@pytest.mark.parametrize("dictionary", ["queue", "memory-bank", "end-to-end"])
def test_only_a_queue_is_said_to_fill(clock, lines, dictionary):
    train(clock, range(1, 5), 2.0, dictionary=dictionary)
    assert ["queue 50%" in line for line in lines] == [dictionary == "queue"] * len(lines)
    assert lines


def test_a_resumed_pretraining_says_that_its_time_is_not_all(clock, lines):
    assert train(clock, range(501, 511), 2.0).took() == " (resumed; 20 s this time)"


def test_a_counter_tells_the_time_left(clock, lines):
    with progress.counter("embed", "images") as count:
        for done in range(10, 101, 10):
            clock.now += 12
            count(done, 500)
    assert lines == ["embed: 30 of 500 images, about 9 min left", "embed: 60 of 500 images, about 9 min left",
                     "embed: 90 of 500 images, about 8 min left"]


def test_a_terminal_has_the_time_left_in_its_bars(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std.tqdm.mininterval", 0, raising=False)
    with progress.counter("embed", "images") as count:
        for done in (10, 20, 30, 500):
            clock.now += 12
            count(done, 500)
            clock.now += 0
    with progress.TrainingProgress(terminal) as shown:
        shown.watcher().begin(PretrainConfig.of("small", "images", epochs=10))
        for step in (1, 2, 3):
            clock.now += 12
            shown.watcher().step(report(step), 1000)
    assert "about 3 h 20 min left" in terminal.getvalue()


def test_short_epochs_do_not_have_a_line_each(clock, lines):
    shown = progress.TrainingProgress(io.StringIO())
    shown.watcher().begin(PretrainConfig.of("small", "images", epochs=400))
    for step in range(1, 401):  # an epoch each
        clock.now += 0.5
        shown.watcher().step(report(step, step - 1), 400)
    steps = [int(line.split()[3].split("/")[0]) for line in lines]
    assert (steps[0], steps[-1]) == (1, 400)
    assert 35 <= len(steps) <= 45
