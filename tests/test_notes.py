"""Times in words."""

import pytest

from mocoembed.notes import Forecast, about, duration


@pytest.mark.parametrize(("seconds", "words"), [
    (-1, "0.0 s"), (0, "0.0 s"), (7.04, "7.0 s"), (9.96, "10.0 s"), (10, "10 s"), (59.4, "59 s"),
    (59.6, "1 min 0 s"), (1612, "26 min 52 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 0 min"), (12000, "3 h 20 min"),
    (47.9 * 3600, "47 h 54 min"), (53 * 3600, "2 days 5 h")])
def test_a_measured_time(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [
    (0, "1 s"), (0.2, "1 s"), (7.4, "7 s"), (13, "15 s"), (42, "40 s"), (89, "90 s"), (114, "110 s"), (115, "2 min"),
    (721, "12 min"), (1612, "25 min"), (3000, "50 min"), (5395, "1 h 30 min"), (12000, "3 h 20 min"), (7300, "2 h"),
    (9 * 3600, "9 h"), (21599, "6 h"), (47.9 * 3600, "2 days"), (80 * 3600, "3 days")])
def test_an_estimated_time(seconds, words):
    assert about(seconds) == f"about {words}"


def test_an_estimate_is_never_far_from_the_time():
    """At most a quarter off, from 10 s to a month."""
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    for exponent in range(230, 1500):
        seconds = 1.01 ** exponent
        words = about(seconds).removeprefix("about ").split()
        read = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2]))
        assert abs(read - seconds) <= 0.25 * seconds


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run(forecast, clock, steps, seconds, done=0, total=1000):
    """What is left after each of so many steps of so many seconds."""
    left = []
    for step in range(done + 1, done + steps + 1):
        clock.now += seconds
        left.append(forecast.left(step, total))
    return left


def test_nothing_is_foretold_before_there_is_something_to_tell_by():
    clock = Clock()
    forecast = Forecast(clock)
    clock.now += 50  # the start, and the first step
    assert run(forecast, clock, 4, 1.0) == [None, None, None, pytest.approx(996)]
    assert run(Forecast(clock), clock, 2, 40.0) == [None, pytest.approx(998 * 40)]
    assert run(Forecast(clock), clock, 200, 0.001)[-1] is None


def test_a_resumed_work_counts_what_it_does_itself():
    clock = Clock()
    assert run(Forecast(clock), clock, 10, 2.0, done=900)[-1] == pytest.approx(90 * 2)


def test_the_latest_half_counts():
    clock = Clock()
    forecast = Forecast(clock)
    run(forecast, clock, 100, 10.0)
    left = run(forecast, clock, 400, 5.0, done=100)
    assert left[0] == pytest.approx(899 * 10, rel=0.02)
    assert left[-1] == pytest.approx(500 * 5, rel=0.02)


def test_time_between_the_steps_counts():
    """An evaluation of 50 seconds after every tenth step of a second each."""
    clock = Clock()
    forecast = Forecast(clock)
    for step in range(1, 501):
        clock.now += 51 if step % 10 == 0 else 1
        left = forecast.left(step, 1000)
    assert left == pytest.approx(500 * 6, rel=0.05)


def test_a_forecast_remembers_little():
    clock = Clock()
    forecast = Forecast(clock)
    run(forecast, clock, 20_000, 0.5, total=100_000)
    assert len(forecast._marks) < 1000
    assert forecast.left(20_001, 100_000) == pytest.approx(40_000, rel=0.02)


def test_the_words_of_a_forecast():
    clock = Clock()
    forecast = Forecast(clock)
    assert forecast.words(1, 100) == ""
    clock.now += 12
    assert forecast.words(2, 100) == "about 20 min left"
    clock.now += 12 * 98
    assert forecast.words(100, 100) == ""
