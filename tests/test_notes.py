"""Times in words."""

import pytest

from mocoembed.notes import about, duration


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
