"""Batches on their way out of loading processes, with a `/dev/shm` of any size."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mocoembed.data.shared import AVAILABLE, Parcel, SharedRows
from mocoembed.model.encoder_file import load_encoder

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs memfd_create, which only Linux has")


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor


@dataclass
class Holder:
    pixels: torch.Tensor
    facts: np.ndarray
    pairs: list


def batch():
    crops = torch.arange(2 * 3 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 4, 3).permute(0, 1, 4, 2, 3)
    pairs = [Pair(torch.randn(3), torch.empty(0, 4)), Pair(torch.tensor([True, False]), torch.tensor(7))]
    return Holder(crops[1], np.arange(3), pairs), crops[0], None, [("name", 1.5)]


def same(one, other):
    if torch.is_tensor(one):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Holder):
        return all(same(getattr(one, name), getattr(other, name)) for name in ("pixels", "facts", "pairs"))
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_parcel_brings_what_was_put_in():
    packed = batch()
    opened = Parcel(packed).open()
    assert same(opened, packed)
    opened[1].fill_(3)  # it may be written to, and what was one memory still is
    assert packed[1].max() != 3
    assert opened[0].pixels.untyped_storage().data_ptr() == opened[1].untyped_storage().data_ptr()


def test_an_opened_parcel_holds_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    first = Parcel(batch()).open()  # starts the thread that hands descriptors over
    kept = [Parcel(batch()).open() for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) < before + 10  # the thread's socket, and what it is about to close
    assert all(same(one[1], first[1]) for one in kept)


def test_no_memory_is_a_memory_error(monkeypatch):
    def full(*arguments):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MemoryError, match="batch of 512 bytes"):
        Parcel(torch.zeros(500, dtype=torch.uint8))


def put_five(rows):
    rows.array[1, 2] = 5


@pytest.mark.parametrize("method", ["fork", "spawn"])  # spawned: by the processes of a pretraining on several GPUs
def test_rows_are_seen_by_a_child(method):
    rows = SharedRows(2, 3)
    assert rows.array.tolist() == [[-1] * 3] * 2
    child = multiprocessing.get_context(method).Process(target=put_five, args=(rows,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert rows.array.tolist() == [[-1] * 3, [-1, -1, 5]]


# ------------------------------------------------------------------------------------------ a small /dev/shm

SCRIPT = "mount -t tmpfs -o size=$1 tmpfs /dev/shm && shift && exec \"$@\""


def run(size, *arguments):
    """The command in a mount namespace of its own, with a /dev/shm of that size, or as usual."""
    command = [sys.executable, "-m", "mocoembed", *map(str, arguments)]
    if size is not None:
        command = ["unshare", "-m", "sh", "-c", SCRIPT, "sh", size, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "loading process" not in done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def _small_shm():
    if subprocess.run(["unshare", "-m", "sh", "-c", SCRIPT, "sh", "1m", "true"], capture_output=True).returncode:
        pytest.skip("a small /dev/shm needs the right to mount, which this user has not")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """300 images of 64 pixels: a batch of 256 at 64 takes 3 MB, at 32 two views 1.5 MB."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    for number in range(300):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def usual(many, tmp_path_factory):
    """A pretraining and an embedding by its encoder without loading processes: (encoder, what is to come out)."""
    workspace = tmp_path_factory.mktemp("usual")
    losses = pretrained(many, workspace, None, 0)
    encoder = workspace / "encoder.safetensors"
    return encoder, losses, embedded(many, workspace, None, 0, encoder)


def pretrained(many, workspace, size, workers):
    """The losses of three steps, and the encoder's fingerprint."""
    run(size, "pretrain", many, "--recipe", "small", "--workspace", workspace, "--epochs", 3, "--batch-size", 256,
        "--bn-groups", 4, "--width", 0.125, "--image-size", 32, "--queue-size", 256, "--workers", workers, "--device",
        "cpu", "--run", "one")
    lines = (workspace / "runs/one/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], load_encoder(workspace / "encoder.safetensors").fingerprint()


def embedded(many, workspace, size, workers, encoder):
    """The digest of the embeddings file."""
    run(size, "embed", many, "--workspace", workspace, "--workers", workers, "--batch-size", 256, "--device", "cpu",
        "--encoder", encoder)
    return hashlib.sha256((workspace / "embeddings.h5").read_bytes()).hexdigest()


@pytest.mark.usefixtures("_small_shm")
@pytest.mark.parametrize("size", ["1m", pytest.param("64m", marks=pytest.mark.slow)])
def test_a_small_dev_shm_changes_nothing(size, many, usual, tmp_path):
    encoder, losses, digest = usual
    assert pretrained(many, tmp_path, size, 3) == losses
    assert embedded(many, tmp_path, size, 3, encoder) == digest
