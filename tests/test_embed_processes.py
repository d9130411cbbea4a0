"""Embedding by several processes: the same file as by one, and a job that ends when one of them does."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mocoembed.config import EmbedConfig, InfoConfig
from mocoembed.embed import extract, fill
from mocoembed.embed.claim import output_lock
from mocoembed.embed.extract import Watcher, embed_images, embed_rank
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import Interrupted, LockedError, ProcessError, UsageError
from mocoembed.files import is_running
from mocoembed.info import describe
from mocoembed.model.encoder_file import save_encoder
from mocoembed.train.launch import start
from mocoembed.workspace import Workspace


@pytest.fixture
def config(tmp_path, make_encoder, make_images):
    """Of 24 images, one of which cannot be read and three of which have the same bytes."""
    folder = make_images(tmp_path / "p")
    (folder / "green" / "text.jpg").write_text("not an image")
    for name in ("blue/again.png", "red/again.png"):
        (folder / name).write_bytes((folder / "green" / "000.png").read_bytes())
    save_encoder(Workspace(tmp_path / "ws").newest_encoder, make_encoder())
    return EmbedConfig(str(folder), workspace=str(tmp_path / "ws"), workers=0, device="cpu", batch_size=4,
                       timeout=60.0)


def content(path):
    with EmbeddingFile(path) as file:
        file.verify()
        return file.paths(), file.facts(), file.failed(), np.asarray(file.embeddings())


def test_two_processes_make_the_same_file(config, tmp_path):
    one = embed_images(config)
    two = embed_images(replace(config, output=str(tmp_path / "two.h5"), processes=2, workers=1))
    assert (two.listed, two.embedded, two.counts.new) == (27, 26, 26)
    (paths, facts, failed, vectors), other = content(one.path), content(two.path)
    assert other[:1] == (paths,)
    assert other[1].tobytes() == facts.tobytes()
    assert other[2] == failed
    np.testing.assert_allclose(other[3], vectors, atol=1e-6)
    same = [paths.index(name) for name in (b"blue/again.png", b"green/000.png", b"red/again.png")]
    assert len(np.unique(other[3][same], axis=0)) == 1  # also where different processes met the same bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "two.h5", "ws"]


def on_rank(rank, misdeed, config, ranks, watcher):
    """`embed_rank` with `misdeed()` before that rank's third batch."""
    if ranks.rank == rank:
        real, calls = fill.Writer.put, []

        def instead(*arguments):
            calls.append(1)
            if len(calls) == 3:
                misdeed()
            real(*arguments)

        fill.Writer.put = instead
    return embed_rank(config, ranks, watcher)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize(("misdeed", "message"), [
    (die, r"Rank 1 \(process \d+\) was killed by SIGKILL\. What was saved is kept; run the same command again"),
    (hang, r"Rank 1 has committed nothing within --timeout\. What was saved is kept; run the same command again"),
])
def test_one_bad_process_ends_the_job_and_the_rest_is_kept(config, misdeed, message):
    config = replace(config, timeout=5.0)
    with pytest.raises(ProcessError, match=message):
        start(partial(on_rank, 1, misdeed), config, 2, Watcher(lambda *_: None, lambda *_: None))
    assert not multiprocessing.active_children()
    assert not (pathlib.Path(config.workspace) / "embeddings.h5").exists()
    result = embed_images(config)
    assert result.resumed_from >= 3  # with another number of processes
    assert result.embedded == 26


def slow_to_prepare(config, ranks, watcher):
    """`embed_rank` that finds the images only after more than the others' patience."""
    real = extract.scan

    def slow(*arguments, **more):
        time.sleep(3 * config.timeout)
        return real(*arguments, **more)

    extract.scan = slow
    return embed_rank(config, ranks, watcher)


def test_preparing_may_take_longer_than_the_timeout(config):
    result = start(slow_to_prepare, replace(config, timeout=3.0), 2, Watcher(lambda *_: None, lambda *_: None))
    assert result.embedded == 26


def test_a_signal_stops_all_processes_and_keeps_what_they_did(config):
    asked = []

    def progress(done, total):
        if done >= 6 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(Interrupted, match=r"Stopped after \d+ of 27 images; they are kept") as stopped:
        embed_images(replace(config, processes=2), progress)
    assert stopped.value.status == 130
    assert not multiprocessing.active_children()
    status = describe(InfoConfig(str(pathlib.Path(config.workspace) / "embeddings.h5")))
    assert 6 <= status["committed"] < 27
    result = embed_images(replace(config, processes=2))
    assert result.resumed_from == status["committed"]
    assert result.embedded == 26


def test_killed_launcher_keeps_the_lock_until_the_processes_are_gone(config, tmp_path):
    script = ("import sys, time; from mocoembed.config import EmbedConfig\n"
              "from mocoembed.embed.extract import embed_images\n"
              "if __name__ == '__main__':\n"
              "    embed_images(EmbedConfig(sys.argv[1], workspace=sys.argv[2], workers=0, device='cpu', batch_size=1, "
              "processes=2), lambda done, total: print(done, flush=True))\n")
    path = tmp_path / "script.py"
    path.write_text(script)
    many = config.collections[0]
    for number in range(400):
        os.link(f"{many}/red/000.png", f"{many}/red/{number:05d}-link.png")
    launcher = subprocess.Popen([sys.executable, str(path), many, config.workspace], stdout=subprocess.PIPE, text=True)
    launcher.stdout.readline()
    children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    processes = [one for one in children if b"spawn_main" in pathlib.Path(f"/proc/{one}/cmdline").read_bytes()]
    assert len(processes) == 2
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    for _ in range(100):  # the processes notice that the launcher is gone, save and end
        try:
            with output_lock(config):
                assert not [process for process in processes if is_running(process)]
                break
        except LockedError:
            time.sleep(0.05)
    else:
        pytest.fail("the lock was never let go")
    assert len(processes) >= 2
    result = embed_images(replace(config, batch_size=1))
    assert result.resumed_from > 0
    assert result.embedded == 426


def test_torchrun(config, tmp_path):
    one = embed_images(config)
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                 "mocoembed", "embed", *config.collections, "--workspace", config.workspace, "--device", "cpu",
                 "--workers", "0", "--batch-size", "4", "--output", str(tmp_path / "two.h5"), "--json"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"embedded": 26') == 1  # rank 0 alone tells
    other = content(tmp_path / "two.h5")
    assert other[1].tobytes() == content(one.path)[1].tobytes()


def test_more_processes_than_work(config):
    assert embed_images(replace(config, batch_size=64, processes=2)).embedded == 26


def test_processes_are_checked(config):
    with pytest.raises(UsageError, match="--processes 0: must be 1 or more"):
        replace(config, processes=0)
