"""Embedding that is killed, stopped, refused the disk, started many times and read meanwhile.

`mocoembed embed` runs in processes of its own (killing.py) on real, if little, pictures. What must hold: the output
is absent, the old file or the new one; what is committed is kept; the same command again leaves the workspace as if
nothing had happened, byte for byte. The exhaustive versions are slow: `make crash-test`.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from killing import Run, at_operation, in_turn, kill, needs_strace
from PIL import Image

import mocoembed
from mocoembed.config import InfoConfig
from mocoembed.model.encoder_file import save_encoder

COMMIT = 4  # pictures, where there are only a dozen
MANY, MANY_COMMIT = 1200, 256
BATCH = ("--batch-size", 4, "--workers", 0)


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to embed: the files of a workspace before and after (relative path -> bytes)."""

    folder: pathlib.Path
    before: dict[str, bytes]
    after: dict[str, bytes]

    @property
    def old(self) -> bytes | None:
        """The embeddings file that was there before."""
        return self.before.get("embeddings.h5")

    @property
    def new(self) -> bytes:
        """The embeddings file that there must be at the end."""
        return self.after["embeddings.h5"]


def files_of(folder) -> dict[str, bytes]:
    """Relative path -> content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


def lay(files: dict[str, bytes], folder) -> pathlib.Path:
    """Make `folder` hold these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def embed(work_or_folder, workspace, *options, prepare=None) -> Run:
    """A waiting run that embeds a folder into a workspace; its output goes beside the workspace."""
    folder = getattr(work_or_folder, "folder", work_or_folder)
    return Run(workspace.with_name(f"{workspace.name}-output"), "embed", folder, "--workspace", workspace,
               "--device", "cpu", "--json", *options, prepare=prepare)


def commit_often():
    """In a run: commit after so few pictures that a dozen make several commits."""
    from mocoembed.embed import extract

    assert extract.COMMIT_PICTURES > COMMIT
    extract.COMMIT_PICTURES = COMMIT


def tell_every_batch():
    """In a run: write a line about the progress after every batch, and commit after every `MANY_COMMIT` pictures."""
    from mocoembed.cli import progress
    from mocoembed.embed import extract

    assert progress.SECONDS_BETWEEN_LINES > 0
    assert extract.COMMIT_PICTURES > MANY_COMMIT
    progress.SECONDS_BETWEEN_LINES, extract.COMMIT_PICTURES = 0.0, MANY_COMMIT


def whole(work: Work, workspace) -> dict[str, bytes]:
    """The files of a workspace after an embedding that nothing disturbed."""
    run = embed(work, lay(work.before, workspace), *BATCH, prepare=commit_often).go()
    assert run.wait() == 0, run.stderr
    return files_of(workspace)


def committed(workspace) -> int:
    """Pictures that an unfinished embedding has committed, as `mocoembed info` says."""
    work = workspace / "embeddings.h5.work"
    return mocoembed.describe(InfoConfig(str(work)))["committed"] if work.exists() else 0


def require_old_or_new(work: Work, workspace):
    """The output is absent, the old file or the new one."""
    output = workspace / "embeddings.h5"
    assert (output.read_bytes() if output.exists() else None) in (work.old, work.new)


def require_recovery(work: Work, workspace, *options):
    """The same command again loses nothing that was committed and comes to the end that was to be."""
    require_old_or_new(work, workspace)
    kept = committed(workspace)
    run = embed(work, workspace, *(options or BATCH)).go()
    assert run.wait() == 0, run.stderr
    assert json.loads(run.stdout)["resumed_from"] >= kept
    assert files_of(workspace) == work.after


def put_picture(path, seed: int):
    """A little picture of noise; with another seed another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, make_encoder) -> dict[str, bytes]:
    """The files of a workspace that has an encoder and nothing else."""
    root = tmp_path_factory.mktemp("encoder")
    save_encoder(root / "encoder.safetensors", make_encoder())
    return files_of(root)


@pytest.fixture(scope="module")
def first(tmp_path_factory, encoder) -> Work:
    """To embed a folder of 13 pictures, of which two have equal bytes, and a broken one."""
    root = tmp_path_factory.mktemp("first")
    for i in range(12):
        put_picture(root / "pictures" / "ab"[i % 2] / f"{i:02}.png", i)
    shutil.copy(root / "pictures" / "a" / "00.png", root / "pictures" / "b" / "copy.png")
    (root / "pictures" / "b" / "broken.jpg").write_bytes(b"no picture")
    work = Work(root / "pictures", encoder, {})
    return dataclasses.replace(work, after=whole(work, root / "ws"))


@pytest.fixture(scope="module")
def second(tmp_path_factory, encoder) -> Work:
    """To embed a folder again in which pictures are new, changed, moved and gone."""
    root = tmp_path_factory.mktemp("second")
    folder = root / "pictures"
    for i in range(12):
        put_picture(folder / "ab"[i % 2] / f"{i:02}.png", i)
    before = whole(Work(folder, encoder, {}), root / "before")
    for i in range(20, 26):
        put_picture(folder / "c" / f"{i}.png", i)
    put_picture(folder / "a" / "00.png", 100)
    (folder / "a" / "02.png").rename(folder / "b" / "moved.png")
    (folder / "b" / "01.png").unlink()
    (folder / "b" / "broken.jpg").write_bytes(b"no picture")
    work = Work(folder, before, {})
    return dataclasses.replace(work, after=whole(work, root / "after"))


@pytest.fixture(scope="module")
def many(tmp_path_factory, encoder) -> Work:
    """To embed `MANY` pictures with two workers."""
    root = tmp_path_factory.mktemp("many")
    for i in range(MANY):
        put_picture(root / "pictures" / f"{i % 7}" / f"{i:04}.png", i)
    work = Work(root / "pictures", encoder, {})
    run = embed(work, lay(encoder, root / "ws")).go()
    assert run.wait() == 0, run.stderr
    return dataclasses.replace(work, after=files_of(root / "ws"))


@pytest.fixture(params=["first", "second"])
def work(request) -> Work:
    """A first embedding and one of a changed folder, in turn."""
    return request.getfixturevalue(request.param)


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


@pytest.mark.parametrize("times", [1, pytest.param(9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("again", [False, True])
def test_killed_at_random_instants(many, tmp_path, times, again):
    """With its workers, and the second time during the resume: at most the pictures since a commit are done again."""
    instants = random.Random(times)
    for number in range(times):
        workspace = lay(many.before, tmp_path / str(number))
        for _ in range(1 + again):
            begin = committed(workspace)
            run = embed(many, workspace, "--workers", 2, prepare=tell_every_batch).go()
            until = instants.randrange(begin, MANY)
            while run.running and done(run) < until:
                time.sleep(0.002)
            time.sleep(instants.uniform(0, 0.05))
            run.kill()
            require_old_or_new(many, workspace)
            assert done(run) - committed(workspace) < MANY_COMMIT + 64
            assert committed(workspace) >= begin
        require_recovery(many, workspace, "--workers", 2)


def done(run: Run) -> int:
    """Pictures that a run that tells every batch has said to be done."""
    lines = re.findall(r"^embed: (\d+) of \d+ pictures$", run.stderr, re.MULTILINE)
    return int(lines[-1]) if lines else 0


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
    stopped = re.fullmatch(r"mocoembed: Stopped after (\d+) of 1200 pictures; they are kept\. "
                           r"Run the same command again to go on\.", run.stderr.splitlines()[-1])
    assert stopped, run.stderr
    assert 0 < int(stopped[1]) < MANY
    assert committed(workspace) == int(stopped[1])
    assert not list(workspace.glob(".*"))
    require_recovery(many, workspace, "--workers", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_instant_leaves_no_traceback(first, tmp_path, number):
    for attempt in range(8):
        workspace = lay(first.before, tmp_path / str(attempt))
        run = embed(first, workspace, *BATCH).go()
        time.sleep(0.03 * attempt)
        run.signal(number)
        assert run.wait() in (0, 128 + number, -signal.SIGTERM)
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
    counters = [call for call in writes if call.line.rstrip().endswith(", 8, 4096) = 8")]
    assert len(counters) > 2
    assert len(writes) > len(counters)
    for one, other in itertools.pairwise(writes):
        if (one in counters) != (other in counters):
            assert any(call.path == one.path and one.end < call.begin and call.end < other.begin for call in syncs)
