"""The memory of a step: counted, planned, chosen, refused with what would fit."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
import torch
from test_distributed import little

import mocoembed.train.loop
import mocoembed.train.memory_plan
from mocoembed.errors import MocoembedError
from mocoembed.memory import MIB
from mocoembed.model.precision import Compute
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.loop import pretrain
from mocoembed.train.memory_plan import plan, running_out_said
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import set_up
from mocoembed.train.trial import Tally, measured


@pytest.fixture
def training(images):
    config = little(images, batch_size=64, bn_groups=4, image_size=64, precision="fp32")
    return set_up(config, Compute.of("cpu", "fp32"), 100)


def test_tally_counts_what_lives():
    with Tally() as tally:
        a = torch.zeros(1000)
        b = a + 1
        b.view(10, 100).add_(1)
        del b
        assert tally.now == 4000
    assert tally.peak == 8000
    assert len(a) == 1000


def test_the_trial_changes_nothing_and_equals_that_without_memory(training):
    before = {name: value.clone() for name, value in training.method.state_dict().items()}
    stream = torch.random.get_rng_state()
    real = measured(training.method.encoder_q, training.config, training.compute)
    assert real == measured(training.method.encoder_q, training.config, Compute(torch.device("meta"), "fp32"))
    assert real.image > 64 * 64 * 3 * 4
    assert real.base > 0
    assert torch.equal(stream, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in training.method.state_dict().items())
    assert all(one.grad is None for one in training.method.parameters())


def with_available(monkeypatch, size):
    monkeypatch.setattr(mocoembed.train.memory_plan, "available_memory", lambda sharing=1: size)


def test_the_number_is_chosen_by_memory(training, monkeypatch):
    notes = []
    with_available(monkeypatch, 1 << 40)
    whole = plan(training, 0, notes.append)
    assert training.groups_at_once == 4
    with_available(monkeypatch, int(whole.needed(2) / 0.95) + 1)
    plan(training, 0, notes.append)
    assert training.groups_at_once == 2
    with_available(monkeypatch, whole.needed(3))  # less than needed by the margin; two pieces either way
    plan(training, 0, notes.append)
    assert training.groups_at_once in (1, 2)
    assert re.fullmatch(r"memory: all 4 BatchNorm groups at once would need [\d.]+ MiB, [\d.]+ MiB available: "
                        r"computing 2 at a time \([\d.]+ MiB\), with the same result", notes[1])


def test_what_does_not_fit_is_refused_with_what_would(training, monkeypatch):
    with_available(monkeypatch, 1 << 40)
    least = plan(training, 0, lambda text: None).needed(1)
    with_available(monkeypatch, least)
    with pytest.raises(MocoembedError, match=r"a step with 1 BatchNorm group at a time needs .* MiB are available\. "
                                             r"What would fit: --batch-size \d+ \(.*--image-size 32 \(") as refused:
        plan(training, 0, lambda text: None)
    size = int(re.search(r"--batch-size (\d+)", str(refused.value))[1])
    other = set_up(dataclasses.replace(training.config, batch_size=size), training.compute, 100)
    plan(other, 0, lambda text: None)  # fits indeed
    assert other.groups_at_once >= 1


def test_a_whole_run_in_little_memory(images, tmp_path, monkeypatch):
    config = little(images, workspace=str(tmp_path), epochs=1)
    with_available(monkeypatch, 1 * MIB)
    with pytest.raises(MocoembedError, match="Memory: a step with 1 BatchNorm group at a time needs"):
        pretrain(config, Watcher())


@pytest.mark.parametrize("error", [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate")])
def test_running_out_is_said_with_advice(training, monkeypatch, error):
    with_available(monkeypatch, 1 << 40)
    mine = plan(training, 0, lambda text: None)
    with pytest.raises(MocoembedError, match=r"Out of memory after step 0, with 4 BatchNorm groups at a time"), \
            running_out_said(mine, training):
        raise error
    with pytest.raises(RuntimeError, match="another"), running_out_said(mine, training):
        raise RuntimeError("another")


def test_running_out_in_mid_run_leaves_the_checkpoint_whole(images, tmp_path, monkeypatch):
    config = little(images, workspace=str(tmp_path), epochs=6, batch_size=24, bn_groups=8, image_size=64,
                    stem="3x3s1")
    real = mocoembed.train.loop.training_step

    def third_fails(training, *rest):
        if training.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(training, *rest)

    monkeypatch.setattr(mocoembed.train.loop, "training_step", third_fails)
    with pytest.raises(MocoembedError, match=r"\AOut of memory after step 2, with 8 BatchNorm groups at a time .*"
                                             r"What was saved is kept\. What would take less: --groups-at-once 4 \("):
        pretrain(config)
    (run,) = (tmp_path / "runs").iterdir()
    assert load_newest(run)["step"] == 2
    monkeypatch.setattr(mocoembed.train.loop, "training_step", real)
    notes = []
    assert pretrain(config, Watcher(note=notes.append)).steps == 6
    assert any("resuming" in note and "after step 2" in note for note in notes)


UNDER_A_LIMIT = """
import pathlib, resource, sys
import torch
from mocoembed.cli.main import main
import mocoembed.train.loop
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("left", "status", "told"), [
    (180, 1, r"Memory: a step with 1 BatchNorm group at a time needs [\d.]+ MiB, and [\d.]+ MiB are available\. "
             r"What would fit: "),
    (420, 0, r"MiB available: computing \d at a time \([\d.]+ MiB\)")])
def test_a_limit_of_the_process_is_never_run_into(images, tmp_path, left, status, told):
    """`ulimit -v` of so many MiB more than the process has: a refusal, or fewer groups at a time and the run done."""
    options = ["--recipe", "small", "--batch-size", "24", "--bn-groups", "8", "--image-size", "96", "--epochs", "1",
               "--stem", "3x3s1", "--workers", "0", "--device", "cpu", "--workspace", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT, str(left * MIB), "pretrain", str(images), *options],
                          capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # each thread takes address space of its own
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert re.search(told, done.stderr), done.stderr


@pytest.mark.slow
def test_the_default_network_under_8_gb(images, tmp_path):
    """ResNet-50, batch 256 at 224 pixels, under `ulimit -v` of 8 GB: refused with figures, or a step is taken."""
    folder = tmp_path / "images"
    folder.mkdir()
    first = next(images.rglob("*.png"), None) or next(one for one in images.rglob("*") if one.is_file())
    for i in range(256):
        os.link(first, folder / f"{i}{first.suffix}")
    command = (f"ulimit -v 8000000; exec {sys.executable} -m mocoembed pretrain {folder} --recipe moco-v2 --epochs 1 "
               f"--workers 1 --device cpu --workspace {tmp_path / 'ws'}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 1:
        assert re.search(r"needs [\d.]+ GiB, and [\d.]+ GiB are available\. What would fit: --", done.stderr)
