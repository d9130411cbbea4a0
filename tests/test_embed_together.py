"""`mocoembed embed` beside others of its kind and beside readers, and how much memory it takes.

The exhaustive versions are slow: `make crash-test`.
"""

import atexit
import collections
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from embed_runs import BATCH, MANY, Work, embed, files_of, lay, put_image, require_recovery, tell_every_batch
from PIL import Image

import mocoembed
from mocoembed.config import IndexConfig, InfoConfig, SearchConfig
from mocoembed.errors import MismatchError, UsageError
from mocoembed.files import locked
from mocoembed.search.build import build_index

# ------------------------------------------------------------------------------------------------ writers


def holder(workspace) -> int:
    """The process that holds the lock of the embeddings file, when there is one."""
    while True:
        try:
            if text := (workspace / ".embeddings.h5.lock").read_text().strip():
                return int(text)
        except FileNotFoundError:
            pass
        time.sleep(0.001)


@pytest.mark.parametrize("starts", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_of_many_starts_one_wins(second, tmp_path, starts):
    """The others leave while the winner, which is held up, still has the lock, and say who it is."""
    workspace = lay(second.before, tmp_path / "ws")
    runs = {run.pid: run for run in (embed(second, workspace, *BATCH, output=tmp_path / str(i)) for i in range(starts))}
    for run in runs.values():
        run.go()
    winner = runs.pop(holder(workspace))
    winner.signal(signal.SIGSTOP)
    for run in runs.values():
        assert run.wait() == 1
        assert f"embeddings.h5 is being written by another process (id {winner.pid})" in run.stderr
        assert len(run.stderr.splitlines()) == 1
        assert (workspace / "embeddings.h5").read_bytes() == second.old
    winner.signal(signal.SIGCONT)
    assert winner.wait() == 0
    assert files_of(workspace) == second.after


def test_a_killed_holder_leaves_no_lock(second, tmp_path):
    workspace = lay(second.before, tmp_path / "ws")
    run = embed(second, workspace, *BATCH).go()
    assert holder(workspace) == run.pid
    assert run.kill() == -signal.SIGKILL
    require_recovery(second, workspace)


def test_a_second_start_leaves_before_it_loads_torch(first, tmp_path):
    """In a process that is started as people do it; Python tells what it imports."""
    workspace = lay(first.before, tmp_path / "ws")
    with locked(workspace / ".embeddings.h5.lock", "x"):
        left = subprocess.run([sys.executable, "-X", "importtime", "-m", "mocoembed", "embed", first.folder,
                               "--workspace", workspace], capture_output=True, text=True)
    assert left.returncode == 1
    assert f"is being written by another process (id {os.getpid()})" in left.stderr
    imported = {line.rpartition("|")[2].strip() for line in left.stderr.splitlines()}
    assert "mocoembed.cli.main" in imported
    assert not imported & {"torch", "h5py", "torchvision"}


# ------------------------------------------------------------------------------------------------ readers


@pytest.fixture(scope="module")
def grown(tmp_path_factory, encoder_files) -> Work:
    """To embed `MANY` images when there is a file of 40 of them, and an index of it."""
    root = tmp_path_factory.mktemp("grown")
    work = Work(root / "images", encoder_files, {})
    for number in range(40):
        put_image(work.folder / f"{number:04}.png", number)
    run = embed(work, lay(encoder_files, root / "ws")).go()
    assert run.wait() == 0, run.stderr
    build_index(IndexConfig(workspace=str(root / "ws")))
    work = dataclasses.replace(work, before=files_of(root / "ws"))
    for number in range(40, MANY):
        put_image(work.folder / f"{number:04}.png", number)
    run = embed(work, root / "ws").go()
    assert run.wait() == 0, run.stderr
    return dataclasses.replace(work, after=files_of(root / "ws"))


def ask(workspace, work: Work) -> str:
    """What `info` tells of the output, which must be right: `nothing`, `progress`, `old` or `new`."""
    try:
        told = mocoembed.describe(InfoConfig(str(workspace / "embeddings.h5")))
    except UsageError as error:
        if work.old is not None or "does not exist" not in str(error):
            raise
        return "nothing"
    for progress in [told] if "unfinished" in told["kind"] else [told[name] for name in told if name == "in_progress"]:
        assert 0 <= progress["committed"] <= progress["listed"] == MANY
    if "unfinished" in told["kind"]:
        assert work.old is None
        return "progress"
    assert told["count"] in (40, MANY)
    assert told["count"] == told["listed"]
    return "old" if told["count"] == 40 else "new"


def load(workspace) -> str:
    """Read all rows, none of which may be half."""
    with mocoembed.EmbeddingFile(workspace / "embeddings.h5") as file:
        file.verify()
        np.testing.assert_allclose(np.linalg.norm(file.embeddings(), axis=1), 1, atol=1e-5)
        return "rows"


def search(workspace, image) -> str:
    """Look for an image: it is found, or the index is said to be of another file."""
    try:
        (result,) = mocoembed.search_images(SearchConfig((str(image),), str(workspace), k=1, device="cpu"))
    except MismatchError:
        return "stale"
    assert result.hits[0].path == str(image)
    return "hits"


@pytest.mark.parametrize("reads", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["many", "grown"])
def test_readers_see_the_old_file_or_the_new_one_or_how_far_it_is(request, tmp_path, name, reads):
    work, seen = request.getfixturevalue(name), collections.Counter()
    image = sorted(work.folder.rglob("*.png"))[0]
    for attempt in itertools.count():
        workspace = lay(work.before, tmp_path / str(attempt))
        run = embed(work, workspace, prepare=tell_every_batch).go()
        while run.running:
            seen[now := ask(workspace, work)] += 1
            if now in ("old", "new"):
                seen[load(workspace)] += 1
            if name == "grown" and seen.total() % 7 == 0:
                seen[found := search(workspace, image)] += 1
                assert found == "hits" or (workspace / "embeddings.h5").read_bytes() == work.new
        assert run.wait() == 0, run.stderr
        assert ask(workspace, work) == "new"
        if seen.total() >= reads:
            break
    assert seen["progress" if work.old is None else "old"] > 10
    assert not work.old or seen["hits"] > 3


# ------------------------------------------------------------------------------------------------ memory


def tell_memory(path):
    """In a run: when it ends, write down the most memory (kB) that it and any of its children had."""
    def write():
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        (own,) = re.findall(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
        path.write_text(f"{own} {children}")

    atexit.register(write)


def put_tiny_images(folder, numbers: range):
    """Images of 4 x 4 pixels, no two with the same bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "BMP")
    head = buffer.getvalue()[:-48]
    for number in numbers:
        (folder / f"{number // 1000:03}").mkdir(exist_ok=True, parents=True)
        (folder / f"{number // 1000:03}" / f"{number:06}.bmp").write_bytes(head + number.to_bytes(3, "little") * 16)


@pytest.mark.slow
def test_memory_hardly_grows_with_the_collection(encoder_files, tmp_path):
    work, memory = Work(tmp_path / "images", encoder_files, {}), []
    for count, before in ((10_000, 0), (100_000, 10_000)):
        put_tiny_images(work.folder, range(before, count))
        workspace = lay(encoder_files, tmp_path / str(count))
        told = tmp_path / f"memory-{count}"
        run = embed(work, workspace, "--workers", 2, prepare=partial(tell_memory, told)).go()
        assert run.wait() == 0, run.stderr
        assert json.loads(run.stdout)["embedded"] == count
        memory.append([int(number) / 1024 for number in told.read_text().split()])
    print(f"own and children's memory in MB: {memory}")
    assert all(large - small <= 50 for small, large in zip(*memory)), memory
