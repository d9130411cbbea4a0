"""Several processes: the same numbers as one process, and a job that ends when one of them does."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from PIL import Image
from test_loop import flat, require_equal

import mocoembed.train.step
from mocoembed.config import PretrainConfig
from mocoembed.errors import Interrupted, LockedError, ProcessError, TrainingError, UsageError
from mocoembed.files import locked
from mocoembed.model.loss import Contrast
from mocoembed.model.ranks import ALONE
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.launch import start
from mocoembed.train.loop import pretrain, pretrain_rank
from mocoembed.train.monitor import Watcher

VARIANTS = {
    "queue": {},
    "masked": {"mask_same_image": True, "queue_size": 40},
    "symmetric": {"symmetric": True},
    "four-groups": {"bn_groups": 4},
    "unshuffled": {"batchnorm": "none"},
    "end-to-end": {"dictionary": "end-to-end"},
    "end-to-end-separate": {"dictionary": "end-to-end", "key_encoder": "separate"},
    "two-heads": {"dictionary": "end-to-end", "key_encoder": "shared-backbone"},
    "keys-own-views": {"key_image_size": 40, "key_crop_scale": (0.1, 0.3)},
    "memory-bank": {"dictionary": "memory-bank", "queue_size": 10},
}


def little(images, **changes):
    return PretrainConfig.of("small", str(images), **{
        "width": 0.125, "stem": "3x3s2", "dim": 16, "queue_size": 20, "batch_size": 8, "bn_groups": 2, "image_size": 32,
        "epochs": 7, "workers": 0, "device": "cpu", "precision": "fp64", "lr": 0.003, "warmup_epochs": 0.0,
        "mask_same_image": False, "blur_probability": 0.3, "timeout": 60.0, **changes})


def newest(workspace):
    """The newest checkpoint of the workspace's only run."""
    (run,) = (workspace / "runs").iterdir()
    return load_newest(run)


# ------------------------------------------------------------------------------------------- the same mathematics


def each_variant(folder, config, ranks, watcher):
    """Pretrain with every variant, one after another, in the same processes."""
    for name, changes in VARIANTS.items():
        pretrain_rank(dataclasses.replace(config, workspace=f"{folder}/{name}", check_ranks=True, **changes), ranks,
                      watcher)


@pytest.fixture(scope="module")
def both(images, tmp_path_factory):
    """The folders of all variants' runs with one process and with two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    each_variant(one, little(images), ALONE, Watcher())
    start(partial(each_variant, two), little(images), 2, Watcher())
    return one, two


def losses(folder, name):
    (lines,) = (folder / name).glob("runs/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in lines.read_text().splitlines()]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_equal_one_with_two_groups(both, name):
    """Over 21 steps in float64: losses, both encoders with their statistics, queue or bank, to 1e-9."""
    one, two = both
    assert len(losses(one, name)) == 21
    assert losses(two, name) == pytest.approx(losses(one, name), abs=1e-9)
    model, model_of_two = (newest(folder / name)["model"] for folder in both)
    assert model.keys() == model_of_two.keys()
    for key, value in model.items():
        torch.testing.assert_close(model_of_two[key], value, rtol=0, atol=1e-9, msg=key)


def test_the_variants_differ(both):
    finals = [losses(both[0], name)[-1] for name in VARIANTS]
    assert len({round(loss, 6) for loss in finals}) == len(VARIANTS)
    assert all(math.isfinite(loss) for loss in finals)


def with_and_without_cache(folder, config, ranks, watcher):
    """Pretrain from files and from memory; each process decodes a part of what all of them read."""
    for cache in ("none", "ram"):
        pretrain_rank(dataclasses.replace(config, workspace=f"{folder}/{cache}", cache=cache), ranks, watcher)


@pytest.mark.parametrize("one_size", [False, True])  # of one size: crops are made on the device
def test_two_processes_share_the_memory_of_a_cache(images, tmp_path, one_size):
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        with Image.open(path) as image:
            image.resize((24 if one_size else 24 + i, 24)).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").write_bytes(b"not an image")
    notes = []
    start(partial(with_and_without_cache, tmp_path), little(tmp_path, epochs=2), 2, Watcher(note=notes.append))
    assert sum("crops are made in batches on the device" in note for note in notes) == one_size
    one, other = (newest(tmp_path / cache) for cache in ("none", "ram"))
    for state in (one, other):
        state["config"] = state["sha256"] = None
    require_equal(one, other)


# ------------------------------------------------------------------------------------------- stopping and resuming


def stopped_and_resumed(folder, config, ranks, watcher):
    """A whole run, and one that stops in mid-epoch by a signal to rank 0 and goes on; with and without workers."""
    for workers in (0, 2):
        config = dataclasses.replace(config, workers=workers)
        if not workers:
            pretrain_rank(dataclasses.replace(config, workspace=f"{folder}/whole"), ranks, watcher)
        config = dataclasses.replace(config, workspace=f"{folder}/stopped-{workers}")

        def stop(report, steps):
            if report.step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)

        with pytest.raises(Interrupted, match=r"Stopped after step 5 of 9"):
            pretrain_rank(config, ranks, Watcher(step=stop))
        pretrain_rank(config, ranks, watcher)


def test_resuming_with_two_processes_is_exact(images, tmp_path):
    start(partial(stopped_and_resumed, tmp_path), little(images, epochs=3), 2, Watcher())
    whole = newest(tmp_path / "whole")
    assert len(flat(whole["optimizer"])) > 10
    for name in ("stopped-0", "stopped-2"):
        other = newest(tmp_path / name)
        for state in (whole, other):
            state["config"] = state["sha256"] = None
        require_equal(whole, other)


def test_a_signal_to_the_launcher_saves_and_another_number_of_processes_goes_on(images, tmp_path):
    config = little(images, epochs=60, workspace=str(tmp_path), processes=2)

    def stop(report, steps):
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved") as stopped:
        pretrain(config, Watcher(step=stop))
    assert stopped.value.status == 143
    state = newest(tmp_path)
    assert 4 <= state["step"] < 180
    notes = []
    result = pretrain(dataclasses.replace(config, processes=1), Watcher(note=notes.append))
    assert result.steps == 180
    assert any(note.startswith("1 processes now, 2 before") for note in notes)


# ------------------------------------------------------------------------------------------- what goes wrong


def on_rank_1(misdeed, config, ranks, watcher):
    """Do something on rank 1 in the third step."""
    real, calls = mocoembed.train.step.info_nce, []

    def instead(*arguments):
        calls.append(1)
        contrast = real(*arguments)
        return misdeed(contrast, *arguments) if ranks.rank == 1 and len(calls) == 3 else contrast

    mocoembed.train.step.info_nce = instead
    return pretrain_rank(config, ranks, watcher)


def raise_error(contrast, *arguments):
    raise ValueError("a broken thing")


def sleep(contrast, *arguments):
    os.kill(os.getpid(), signal.SIGSTOP)


def not_a_number(contrast, *arguments):
    return Contrast(contrast.loss * math.nan, contrast.top1, contrast.top5)


def die(contrast, *arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("misdeed", "message", "seconds"), [
    (die, r"Rank 1 \(process \d+\) was killed by SIGKILL\. What was saved is kept; run the same", 10),
    (raise_error, r"Rank 1 \(process \d+\) failed: ValueError: a broken thing\. What was saved is kept", 10),
    (sleep, r"Rank 1 did not answer within --timeout\. Rank 0 ", 4 + 45),
    (not_a_number, r"The loss is nan at step 3 on rank 1 ", 10),
])
def test_one_bad_rank_ends_the_job(images, tmp_path, misdeed, message, seconds):
    config = little(images, workspace=str(tmp_path), checkpoint_every=1, timeout=4.0,
                    workers=2 if misdeed is die else 0)
    begun = []
    with pytest.raises(TrainingError if misdeed is not_a_number else ProcessError, match=message):
        start(partial(on_rank_1, misdeed), config, 2, Watcher(step=lambda *_: begun.append(time.monotonic())))
    assert len(begun) == 2
    assert time.monotonic() - begun[-1] < seconds
    assert not multiprocessing.active_children()
    assert newest(tmp_path)["step"] == 2  # the third step never changed the weights
    assert pretrain(config).steps == 21  # and a restart goes on


def test_ranks_that_differ_are_noticed(images, tmp_path):
    config = little(images, workspace=str(tmp_path), check_ranks=True)
    with pytest.raises(TrainingError, match=r"After step 3 .* of ranks 1 differ from those of rank 0"):
        start(partial(on_rank_1, shift_a_key), config, 2, Watcher())


def shift_a_key(contrast, q, k, queue, *more):
    queue.data[0, 8] += 1e-6  # a column that this step does not overwrite
    return contrast


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 9, "bn_groups": 1}, r"--batch-size 9: must be a multiple of the 2 processes"),
    ({"bn_groups": 3, "batch_size": 12}, r"--bn-groups 3: must be a multiple of the 2 processes"),
    ({"batchnorm": "sync"}, r"--batchnorm sync: across processes it needs GPUs"),
])
def test_what_cannot_be_shared_is_refused(images, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        pretrain(little(images, workspace=str(tmp_path), processes=2, **changes))


def test_a_run_is_written_by_one_job_alone(images, tmp_path):
    config = little(images, workspace=str(tmp_path), run="mine", processes=2)
    with locked(tmp_path / "runs" / "mine" / ".lock", "Run 'mine'"), pytest.raises(LockedError, match=str(os.getpid())):
        pretrain(config)


@pytest.mark.parametrize("whole_group", [False, True])
def test_ranks_die_with_the_launcher(images, tmp_path, whole_group):
    """kill -9 of the launcher alone: the ranks save, leave, and release the run; of its group: all are gone."""
    command = [sys.executable, "-m", "mocoembed", "pretrain", str(images), "--recipe", "small", "--width", "0.125",
               "--image-size", "32", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--epochs", "100000",
               "--processes", "2", "--workspace", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as launcher:
        for line in launcher.stderr:
            if line.startswith("epoch"):
                break
        ranks = [int(number) for number in subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], text=True,
                                                          capture_output=True, check=True).stdout.split()]
        os.killpg(launcher.pid, signal.SIGKILL) if whole_group else launcher.kill()
    assert len(ranks) >= 2
    until = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert time.monotonic() < until, "the ranks live on"
        time.sleep(0.2)
    if not whole_group:
        assert newest(tmp_path)["step"] > 1
