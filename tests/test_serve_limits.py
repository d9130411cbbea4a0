"""What limits the work at once: gates, batches and jobs, without a server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mocoembed.errors import FormatError
from mocoembed.serve import batches as batches_module
from mocoembed.serve.answers import Refusal
from mocoembed.serve.batches import MOST, Batches
from mocoembed.serve.jobs import Job
from mocoembed.serve.limits import Gate, Shared
from mocoembed.serve.refusals import PER_MINUTE, RefusalLog
from mocoembed.serve.service import WAITING


def test_a_gate_lets_some_run_some_wait_and_refuses_the_rest():
    async def scenario():
        gate, running, most, going = Gate(2, 3), 0, 0, asyncio.Event()

        async def work():
            nonlocal running, most
            async with gate.turn():
                running += 1
                most = max(most, running)
                await going.wait()
                running -= 1

        tasks = [asyncio.create_task(work()) for _ in range(8)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        going.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 2
        assert [getattr(one, "status", None) for one in done] == [None] * 5 + [429] * 3
        assert gate.inside == 0

    asyncio.run(scenario())


def ask(shared, question, work, times):
    return [asyncio.create_task(shared.answer(question, work)) for _ in range(times)]


async def settled():
    for _ in range(9):
        await asyncio.sleep(0)


def test_who_asks_the_same_at_once_shares_an_answer():
    """Each question is worked on once, one after the other; one that is asked later is worked on again."""
    async def scenario():
        shared, going, begun, ended = Shared(100), asyncio.Event(), [], []

        def worked(name):
            async def work():
                begun.append(name)
                await going.wait()
                ended.append(name)
                return f"{name} {begun.count(name)}"
            return work

        tasks = [*ask(shared, "a", worked("a"), 10), *ask(shared, "b", worked("b"), 2)]
        await settled()
        assert begun == ["a"]
        going.set()
        assert await asyncio.gather(*tasks) == ["a 1"] * 10 + ["b 1"] * 2
        assert begun == ended == ["a", "b"]
        assert await shared.answer("a", worked("a")) == "a 2"
        assert shared._open == {}

    asyncio.run(scenario())


def test_a_shared_answer_is_given_when_the_first_one_who_asked_goes_away_and_an_error_goes_to_all():
    async def scenario():
        shared, going, begun = Shared(100), asyncio.Event(), []

        async def work():
            begun.append(work)
            await going.wait()
            return "found"

        async def fail():
            raise Refusal(409, "impossible")

        first, *others = ask(shared, "a", work, 3)
        await settled()
        first.cancel()
        await settled()
        assert first.cancelled()
        going.set()
        assert await asyncio.gather(*others) == ["found"] * 2
        assert len(begun) == 1
        failed = await asyncio.gather(*ask(shared, "a", fail, 3), return_exceptions=True)
        assert [one.status for one in failed] == [409] * 3
        assert await shared.answer("a", work) == "found"

    asyncio.run(scenario())


def test_so_many_may_ask_and_so_many_be_worked_for():
    async def scenario():
        shared, going = Shared(3), asyncio.Event()
        tasks = [*ask(shared, "a", going.wait, 2), *ask(shared, "b", going.wait, 4)]
        await settled()
        for task in tasks[4:]:
            with pytest.raises(Refusal) as refused:
                await task
            assert refused.value.status == 429
        for number in range(2):  # work for those who have gone counts as well
            tasks[number].cancel()
            await settled()
            (gone,) = ask(shared, number, going.wait, 1)
            await settled()
            gone.cancel()
            await settled()
        assert shared.askers.inside == 2
        with pytest.raises(Refusal):
            await shared.answer("c", going.wait)
        going.set()
        assert await tasks[3]
        await settled()
        assert (shared.askers.inside, shared._work.inside, shared._open) == (0, 0, {})

    asyncio.run(scenario())


def test_batches_keep_what_belongs_together():
    """Two encoders, many images at once: each gets its own vector; a failing encoder fails only those who asked."""
    async def scenario():
        sizes: list[int] = []
        with ThreadPoolExecutor(1) as pool:
            batches = Batches(pool, sizes.append)

            def double(images):
                return 2 * np.stack(images)

            def fail(images):
                raise ValueError("no encoder")

            asked = [batches.embed(fail if number % 10 == 9 else double, np.array([number])) for number in range(100)]
            found = await asyncio.gather(*asked, return_exceptions=True)
        for number, one in enumerate(found):
            assert isinstance(one, ValueError) if number % 10 == 9 else one == [2 * number]
        assert sum(sizes) == 100
        assert max(sizes) == MOST
        assert batches._task is None

    asyncio.run(scenario())


def test_the_batches_can_be_full_while_uploads_wait():
    assert WAITING >= 4 * MOST


def test_a_batch_waits_for_images_that_are_on_their_way_and_for_no_others(monkeypatch):
    """The last one that is expected, decoded or not, ends the waiting at once: here a minute would be waited for it."""
    monkeypatch.setattr(batches_module, "SECONDS", 60)

    async def scenario():
        sizes: list[int] = []
        with ThreadPoolExecutor(1) as pool:
            batches = Batches(pool, sizes.append)
            decoded = [asyncio.Event() for _ in range(4)]

            async def ask(number: int):
                with batches.expecting():
                    await decoded[number].wait()
                    if number == 3:
                        raise ValueError("no image")
                return await batches.embed(np.stack, np.array([number]))

            tasks = [asyncio.create_task(ask(number)) for number in range(4)]
            for number, event in enumerate(decoded):
                for _ in range(9):
                    await asyncio.sleep(0)
                assert sizes == [], number
                event.set()
            found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
            assert [one.tolist() for one in found[:3]] == [[0], [1], [2]]
            assert isinstance(found[3], ValueError)
            assert await asyncio.wait_for(batches.embed(np.stack, np.array([9])), 30) == [9]  # alone: waits for nobody
        assert sizes == [3, 1]

    asyncio.run(scenario())


def test_a_job_is_done_once_and_tells_its_progress():
    going, runs = threading.Event(), []

    def work(job):
        runs.append(job)
        job.progress(3, 10)
        going.wait(10)
        return "found"

    job = Job(work)
    assert not job.wait(0.01)
    while not job.total:
        pass
    assert (job.done, job.total) == (3, 10)
    going.set()
    assert job.wait(10)
    assert job.wait(10)
    assert job.result() == "found"
    assert len(runs) == 1


def test_a_job_that_fails_says_why_and_one_that_is_stopped_ends():
    def fail(job):
        raise FormatError("the file is damaged")

    job = Job(fail)
    assert job.wait(10)
    with pytest.raises(Refusal, match="damaged") as refused:
        job.result()
    assert refused.value.status == 409

    def endless(job):
        while True:
            job.raise_if_set()

    job = Job(endless)
    job.wait(0.01)
    job.stop()
    assert job.wait(10)
    with pytest.raises(Refusal, match="Ask again"):
        job.result()


def test_the_log_of_refusals_is_limited():
    lines: list[str] = []
    now = [0.0]
    log = RefusalLog(lines.append, lambda: now[0])
    scope = {"method": "GET", "path": "/api/info", "client": ("127.0.0.1", 5)}
    for _ in range(PER_MINUTE + 30):
        log(scope, Refusal(421, "", "host"))
    assert len(lines) == PER_MINUTE
    assert lines[0].endswith("refused: GET /api/info from 127.0.0.1: 421 host")
    now[0] = 61.0
    log({**scope, "path": "/\x1b[31m", "client": None}, Refusal(421, "", "host"))
    assert lines[-2] == "refused: 30 more requests (30 host)"
    assert lines[-1].endswith("GET a path from unknown: 421 host")
    for reason in ("gone", "nothing selected", "gone", "disconnected"):  # what happens to honest callers
        log(scope, Refusal(404, "", reason))
    assert len(lines) == PER_MINUTE + 2
    log(scope, Refusal(410, "", "outside"))
    assert lines[-1].endswith("GET /api/info from 127.0.0.1: 410 outside")
    log.tell_rest()
    assert lines[-1] == "refused: 3 more requests (2 gone, 1 nothing selected)"
    log.tell_rest()
    assert len(lines) == PER_MINUTE + 4  # nothing more was left out
    for _ in range(PER_MINUTE):
        log(scope, Refusal(421, "", "host"))
    log.tell_rest()
    assert lines[-1] == "refused: 2 more requests (2 host)"
