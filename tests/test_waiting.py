"""The time that goes into waiting for data: how it is counted, and what is said about it."""

import dataclasses
import types

import pytest

from mocoembed import memory
from mocoembed.config import PretrainConfig
from mocoembed.data.images import scan
from mocoembed.model.ranks import ALONE
from mocoembed.train import waiting
from mocoembed.train.filling import Filling
from mocoembed.train.loop import Session
from mocoembed.train.waiting import Meter, advice, idle_core_seconds


@pytest.fixture
def clock(monkeypatch):
    """`clock.now`, in seconds, is what the meter sees; `clock.idle` what the cores have idled."""
    clock = types.SimpleNamespace(now=100.0, idle=0.0)
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(waiting, "idle_core_seconds", lambda: clock.idle)
    return clock


def step(meter, clock, waited, seconds, idle=0.0):
    """One step, of which so much was waited for the batch, and in which the cores idled so long."""

    def batches():
        clock.now += waited
        yield "batch"

    for _ in meter.wait_for(batches()):
        clock.now += seconds - waited
        clock.idle += idle
        meter.images += 8
        rates = meter.rates()
    return rates


def test_shares_of_steps_and_their_mean(clock):
    meter = Meter()
    assert meter.mean == 0.0
    assert step(meter, clock, 1.0, 4.0) == (2.0, 0.25)
    clock.now += 50  # saving
    meter.restart()
    assert step(meter, clock, 0.0, 8.0) == (1.0, 0.0)
    assert meter.mean == pytest.approx(1 / 12)


def test_a_stretch_is_a_minute_of_steps(clock):
    meter = Meter()
    for _ in range(5):
        step(meter, clock, 3.0, 10.0, 20.0)
        assert meter.stretch() is None
    clock.now, clock.idle = clock.now + 50, clock.idle + 800  # an evaluation
    meter.restart()
    step(meter, clock, 3.0, 10.0, 20.0)
    assert meter.stretch() == pytest.approx((0.3, 2.0))
    step(meter, clock, 9.0, 10.0)
    assert meter.stretch() is None  # a new one has begun


@pytest.mark.parametrize(("line", "below", "limit", "used"), [
    ("0::/user/job", "", "memory.max", "memory.current"),
    ("4:memory:/user/job", "memory/", "memory.limit_in_bytes", "memory.usage_in_bytes")])
def test_memory_left_is_the_least_of_the_control_group_and_those_above(tmp_path, line, below, limit, used):
    assert memory._control_group(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:cpu:/elsewhere\n{line}\n")
    top = tmp_path / "sys/fs/cgroup" / below
    for path, most, expected in (("user/job", "max", None), ("user", "1000", 905), (".", "800", 705),
                                 ("user/job", "500", 405)):
        (top / path).mkdir(parents=True, exist_ok=True)
        (top / path / limit).write_text(f"{most}\n")
        (top / path / used).write_text("100\n")
        (top / path / "memory.stat").write_text("anon 90\ninactive_file 2\nactive_file 3\n")
        assert memory._control_group(tmp_path) == expected


def test_cores_idle():
    before = idle_core_seconds()
    assert before > 0
    assert idle_core_seconds() >= before


def filling(images, workers=3, **changes):
    config = PretrainConfig.of("moco-v2", str(images), image_size=16, **changes)
    return Filling(scan(images), config, workers, ALONE, lambda text: None, lambda: None)


def test_advice_has_the_numbers_at_hand(images, monkeypatch):
    monkeypatch.setattr(waiting, "available_memory", lambda: 3 << 30)
    text = advice(0.43, 4.6, 16, dataclasses.replace(filling(images), workers=1))
    assert text == ("43% of the last 60 s were spent waiting for images. What would help: --workers 6 (5 of 16 cores "
                    "are idle); --cache ram (about 0.1 MiB, 3.00 GiB are available).")


@pytest.mark.parametrize(("workers", "idle", "cores", "changes", "free", "expected"), [
    (0, 5.0, 8, {"cache": "ram"}, 3 << 30, "--workers 1 or more (with 0, images are loaded between the steps)."),
    (1, 5.0, 3, {"cache": "ram"}, 3 << 30, "--workers 2 (1 of 3 cores are idle)."),
    (1, 5.0, 2, {}, 0, "a faster disk or more cores (1 loading processes, 2 cores)."),
    (1, 0.2, 8, {"cache": "ram"}, 3 << 30, "a faster disk or more cores (1 loading processes, 8 cores)."),
    (1, 0.2, 8, {"image_size": 8}, 0, "smaller image files (shorter side 40 pixels in the median; 16 would do)."),
])
def test_advice_in_other_cases(images, monkeypatch, workers, idle, cores, changes, free, expected):
    monkeypatch.setattr(waiting, "available_memory", lambda: free)
    one = filling(images, workers)
    one = dataclasses.replace(one, config=dataclasses.replace(one.config, **changes))
    assert advice(0.5, idle, cores, one).split("What would help: ")[1] == expected


def test_it_is_said_once_and_only_when_much_is_waited(images, clock, monkeypatch):
    monkeypatch.setattr(waiting, "STRETCH", 10.0)
    said = []
    one = filling(images, 1)
    session = types.SimpleNamespace(meter=Meter(), advised=False, ranks=ALONE, say=said.append,
                                    _filling=lambda *arguments: one)
    for share in (0.1, 0.19, 0.3, 0.9):
        step(session.meter, clock, 10 * share, 10.0)
        Session._look_at_waiting(session, 1)
        assert len(said) == (share >= 0.3)
    assert said[0].startswith("30% of the last 10 s were spent waiting")
