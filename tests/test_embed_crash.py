"""`mocoembed embed` killed and stopped at every point, in processes of its own (killing.py, embed_runs.py).

The exhaustive versions are slow: `make crash-test`.
"""

import itertools
import os
import random
import re
import signal
import time
from functools import partial
from typing import NamedTuple

import pytest
from embed_runs import (
    BATCH,
    MANY,
    MANY_COMMIT,
    commit_often,
    committed,
    done,
    embed,
    files_of,
    lay,
    require_old_or_new,
    require_recovery,
    tell_every_batch,
    whole,
)
from killing import Run, at_operation, in_turn, kill, needs_strace

# ------------------------------------------------------------------------------------------------ kill -9


def test_the_files_are_the_same_every_time(work, tmp_path):
    assert whole(work, tmp_path / "ws") == work.after


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_operation(work, tmp_path, step):
    """Before each opening for writing, write, fsync, renaming and removal that Python does; or each fourth."""
    for n in itertools.count(1, step):
        workspace = lay(work.before, tmp_path / str(n))
        prepare = partial(in_turn, commit_often, partial(at_operation, n, kill, ("write", "remove")))
        status = embed(work, workspace, *BATCH, prepare=prepare).go().wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL
        require_recovery(work, workspace)
    assert n > 15  # operations before it ran through


def killed_at_call(work, workspace, name: str, n: int, *options) -> bool:
    """Embed, killed at a process's or thread's n-th system call of this name; false when there was none."""
    run = embed(work, lay(work.before, workspace), *BATCH, prepare=commit_often)
    run.trace(f"--trace={name}", f"--inject={name}:signal=KILL:when={n}", *options)
    status = run.go().wait()
    if status == 0:
        assert files_of(workspace) == work.after
        return False
    assert status == -signal.SIGKILL
    require_recovery(work, workspace)
    return True


@needs_strace
@pytest.mark.parametrize(("name", "n"), [("pwrite64", 2), ("pwrite64", 9), ("fsync", 2), ("rename", 2)])
def test_killed_at_a_system_call(first, tmp_path, name, n):
    assert killed_at_call(first, tmp_path / "ws", name, n)


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("name", ["pwrite64", "write", "fsync", "rename", "unlink"])
def test_killed_at_every_system_call(work, tmp_path, name):
    """Those of libraries too. strace counts in each thread, so those on the file of the work are gone through apart."""
    everywhere = next(n for n in itertools.count(1) if not killed_at_call(work, tmp_path / f"a{n}", name, n))
    assert everywhere > 1
    for n in itertools.count(1):
        workspace = tmp_path / f"b{n}"
        if not killed_at_call(work, workspace, name, n, "-P", str(workspace / "embeddings.h5.work")):
            break


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("again", [False, True])
def test_killed_at_random_instants(many, tmp_path, times, again):
    """With its workers, and the second time during the resume: at most the images since a commit are done again."""
    instants = random.Random(times)
    for number in range(times):
        workspace = lay(many.before, tmp_path / str(number))
        for _ in range(1 + again):
            begin = min(committed(workspace), MANY - 1)
            run = embed(many, workspace, "--workers", 2, prepare=tell_every_batch).go()
            until = instants.randrange(begin, MANY)
            while run.running and done(run) < until:
                time.sleep(0.002)
            time.sleep(instants.uniform(0, 0.05))
            run.kill()
            require_old_or_new(many, workspace)
            if (workspace / "embeddings.h5").exists():
                break  # it was quicker
            assert done(run) - committed(workspace) < MANY_COMMIT + 64
            assert committed(workspace) >= begin
        require_recovery(many, workspace, "--workers", 2)


# ------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_after_a_batch(many, tmp_path, number, status):
    """Sent to the whole process group, as a terminal does."""
    workspace = lay(many.before, tmp_path / "ws")
    run = embed(many, workspace, "--workers", 2, prepare=tell_every_batch).go()
    while run.running and not done(run):
        time.sleep(0.002)
    run.signal(number)
    assert run.wait() == status
    stopped = re.fullmatch(r"mocoembed: Stopped after (\d+) of 1200 images; they are kept\. "
                           r"Run the same command again to continue\.", run.stderr.splitlines()[-1])
    assert stopped, run.stderr
    assert 0 < int(stopped[1]) < MANY
    assert committed(workspace) == int(stopped[1])
    assert not list(workspace.glob(".*"))
    require_recovery(many, workspace, "--workers", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_instant_leaves_no_traceback(first, tmp_path, number):
    for attempt in range(5):
        workspace = lay(first.before, tmp_path / str(attempt))
        run = embed(first, workspace, *BATCH).go()
        time.sleep(0.05 * attempt)
        run.signal(number)
        # -number: it came while the interpreter was ending, which had given up its handlers by then
        assert run.wait() in (0, 128 + number, -number)
        assert "Traceback" not in run.stderr.partition("Exception ignored in")[0]  # at the exit, all done
        require_recovery(first, workspace)


# ------------------------------------------------------------------------------------------------ order of system calls


class Call(NamedTuple):
    """A system call of a trace; `path` is what it writes, syncs, renames or removes."""

    name: str
    path: str
    begin: int
    end: int
    line: str


CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed)")
PATH = re.compile(r'\d+<([^>]+)>|"([^"]*)"')


def calls_of(run: Run) -> list[Call]:
    """The calls of a trace with `-y`, in the order of their ends; begin and end are line numbers."""
    open_calls, calls = {}, []
    for number, line in enumerate((run.folder / "strace").read_text(errors="replace").splitlines()):
        if not (match := CALL.match(line)):
            continue
        thread, name = match.groups()
        begin, text = open_calls.pop(thread) if " resumed>" in line else (number, line)
        if line.endswith("<unfinished ...>"):
            open_calls[thread] = (number, line)
        elif path := PATH.search(text):
            calls.append(Call(name, path[1] or path[2], begin, number, text))
    return calls


@needs_strace
def test_the_order_of_the_system_calls(work, tmp_path):
    """Content, fsync, renaming, fsync of the folder, for every file; rows, fsync, counter, fsync, for every commit."""
    workspace = lay(work.before, tmp_path / "ws")
    run = embed(work, workspace, *BATCH, prepare=commit_often)
    run.trace("-y", "-s", "4096", "--trace=write,pwrite64,fsync,fdatasync,rename,renameat,unlink")
    assert run.go().wait() == 0
    calls = calls_of(run)
    syncs = [call for call in calls if call.name in ("fsync", "fdatasync")]
    writes = [call for call in calls if call.name in ("write", "pwrite64")]
    published = set()
    for renaming in (call for call in calls if call.name == "rename"):
        source, target = re.findall(r'"([^"]*)"', renaming.line)
        assert os.path.dirname(source) == os.path.dirname(target)
        last = max(call.end for call in writes if call.path == source)
        assert any(call.path == source and last < call.begin and call.end < renaming.begin for call in syncs)
        following = [call for call in calls if call.begin > renaming.end and call.name in ("rename", "unlink")]
        until = min((call.begin for call in following), default=calls[-1].end + 1)
        assert any(call.path == os.path.dirname(target) and renaming.end < call.begin and call.end < until
                   for call in syncs)
        published.add(os.path.relpath(target, workspace))
    assert "embeddings.h5" in published
    require_commits_in_order([call for call in writes if call.path == f"{workspace}/embeddings.h5.work"], syncs)


def require_commits_in_order(writes: list[Call], syncs: list[Call]):
    """Between a write of rows and the counter's, and between that and the next rows, there is an fsync of the file."""
    counters = [call for call in writes if re.search(r", 8, \d+\) += 8$", call.line)]
    assert len(counters) > 1
    assert len(writes) > len(counters)
    for one, other in itertools.pairwise(writes):
        if (one in counters) != (other in counters):
            assert any(call.path == one.path and one.end < call.begin and call.end < other.begin for call in syncs)
