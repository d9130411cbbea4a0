"""`mocoembed embed` where the disk is full, refuses writes, or has no locks and cannot reserve space; and damage.

The exhaustive versions are slow: `make crash-test`.
"""

import itertools
import os
import random
import re
import shutil
import subprocess

import pytest
from embed_runs import BATCH, Work, commit_often, embed, files_of, lay, require_old_or_new, require_recovery
from killing import Run, needs_strace

import mocoembed
from mocoembed.config import InfoConfig

BLOCK = 4096  # bytes: what tmpfs hands out


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def leave_free(folder, blocks: int):
    """Fill a file system but for some blocks."""
    (folder / "ballast").unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free - blocks * BLOCK
    with open(folder / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free)
    assert shutil.disk_usage(folder).free == blocks * BLOCK


def require_clear_failure(run: Run, work: Work, workspace):
    """It left with an exit status of its own and told in a line or two which file and why; the old output is there."""
    status = run.wait()
    assert 1 <= status <= 125, (status, run.stderr)
    require_old_or_new(work, workspace)
    lines = run.stderr.splitlines()
    assert 1 <= len(lines) <= 3, lines
    assert str(workspace) in run.stderr
    assert "Traceback" not in run.stderr
    assert "unexpected" not in run.stderr
    assert not [name for name in files_of(workspace) if name.endswith((".tmp", ".lock"))]


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_every_block(work, small_disk, step):
    """However few blocks are left, it says how many bytes are needed or free; with space the end is the same."""
    for blocks in itertools.count(0, step):
        workspace = lay(work.before, small_disk / "ws")
        leave_free(small_disk, blocks)
        run = embed(work, workspace, *BATCH, output=small_disk.with_name(f"output-{blocks}")).go()
        if run.wait() == 0:
            break
        require_clear_failure(run, work, workspace)
        assert re.search(r"(needs \d+\.\d MB and|No space left to write) .*\d+\.\d MB free", run.stderr), run.stderr
        (small_disk / "ballast").unlink()
        require_recovery(work, workspace)
        shutil.rmtree(workspace)
    assert (workspace / "embeddings.h5").read_bytes() == work.new
    (small_disk / "ballast").unlink(missing_ok=True)
    require_recovery(work, workspace)  # which makes the encoder's graph, too, if there was no room for it
    assert blocks >= 7


def refused_at_call(work: Work, workspace, name: str, error: str, n: int) -> bool:
    """Embed while the disk refuses each thread's n-th system call of this name and all later ones."""
    run = embed(work, lay(work.before, workspace), *BATCH, prepare=commit_often)
    run.trace(f"--trace={name}", f"--inject={name}:error={error}:when={n}+").go()
    if run.wait() == 0:
        require_recovery(work, workspace)
        return False
    require_clear_failure(run, work, workspace)
    assert ("No space left to write" if error == "ENOSPC" else "Input/output error") in run.stderr
    require_recovery(work, workspace)
    return True


@needs_strace
@pytest.mark.parametrize(("name", "error", "n"), [
    ("pwrite64", "ENOSPC", 3), ("pwrite64", "EIO", 12), ("fsync", "EIO", 3), ("rename", "EIO", 2),
    ("fallocate", "ENOSPC", 1)])
def test_a_system_call_that_is_refused(second, tmp_path, name, error, n):
    assert refused_at_call(second, tmp_path / "ws", name, error, n)


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", ["pwrite64", "fsync", "rename", "fallocate"])
def test_every_system_call_is_refused(work, tmp_path, name, error):
    calls = next(n for n in itertools.count(1) if not refused_at_call(work, tmp_path / str(n), name, error, n))
    assert calls > 1


@needs_strace
@pytest.mark.parametrize(("inject", "warning"), [
    ("flock:error=ENOLCK", "has no locks"),
    ("flock:error=EOPNOTSUPP", "has no locks"),
    ("fallocate:error=EINVAL", "cannot reserve space"), ("fallocate:error=EOPNOTSUPP", None)])
def test_file_systems_that_lack_something(work, tmp_path, inject, warning):
    """Without locks or the reserving of space a warning, and the same file. (glibc reserves by writing, if need be.)"""
    workspace = lay(work.before, tmp_path / "ws")
    run = embed(work, workspace, *BATCH)
    run.trace(f"--trace={inject.partition(':')[0]}", f"--inject={inject}").go()
    assert run.wait() == 0, run.stderr
    assert files_of(workspace) == work.after
    assert "INJECTED" in (run.folder / "strace").read_text()
    if warning:
        assert warning in run.stderr


def flipped(data: bytes, numbers: random.Random) -> bytes:
    """`data` with one bit that is not what it was."""
    changed, bit = bytearray(data), numbers.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["embeddings.h5", "encoder.safetensors"])
def test_every_flipped_bit_is_found(first, tmp_path, name):
    numbers, path = random.Random(0), tmp_path / name
    path.write_bytes(first.after[name])
    assert mocoembed.describe(InfoConfig(str(path), verify=True))["verified"]
    missed = []
    for _ in range(300):
        path.write_bytes(flipped(first.after[name], numbers))
        try:
            mocoembed.describe(InfoConfig(str(path), verify=True))
        except mocoembed.MocoembedError:
            continue
        missed.append(path.read_bytes())
    assert len(missed) == 0


def test_a_damaged_encoder_embeds_nothing(first, tmp_path):
    numbers = random.Random(1)
    workspace = lay(first.before, tmp_path / "ws")
    for _ in range(5):
        (workspace / "encoder.safetensors").write_bytes(flipped(first.before["encoder.safetensors"], numbers))
        run = embed(first, workspace, *BATCH).go()
        assert run.wait() == 1
        assert "encoder.safetensors" in run.stderr
        assert list(files_of(workspace)) == ["encoder.safetensors"]
