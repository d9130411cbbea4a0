"""Images kept in memory: the same views as without, to the bit; refused when they do not fit; nothing left behind."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mocoembed.config import PretrainConfig
from mocoembed.data import cache as cache_module
from mocoembed.data import resident, workers
from mocoembed.data.crop import crop
from mocoembed.data.decode import EncodedImage
from mocoembed.data.images import scan
from mocoembed.data.loader import Places, view_batches
from mocoembed.data.resident import ResidentImages, crops_on_device
from mocoembed.data.shared import SharedBytes
from mocoembed.errors import Interrupted, MocoembedError
from mocoembed.model.ranks import ALONE
from mocoembed.train import filling
from mocoembed.train.filling import Filling

CPU = torch.device("cpu")


def config(**overrides):
    return PretrainConfig.of("small", "images", **{"batch_size": 8, "bn_groups": 2, "image_size": 32, "epochs": 2,
                                                     "cache": "ram", "device": "cpu", **overrides})


def filled(listing, settings, workers=0, note=lambda text: None, stop=lambda: None):
    return Filling(listing, settings, workers, ALONE, note, stop).cache()


def batches_of(listing, settings, cache, workers=0):
    return list(view_batches(listing, settings, Places(len(listing), settings, 0), workers, False, cache))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """20 images of noise, 24 pixels wide and 20 high."""
    folder, random = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("number", [0, 2])
def test_crops_from_the_cache_are_those_of_the_files(images, number):
    listing, settings = scan(images), config()
    cache = filled(listing, settings, number)
    assert not cache.cropped_on_device  # they are of three sizes
    for ours, theirs in zip(batches_of(listing, settings, cache, number), batches_of(listing, settings, None)):
        assert all(torch.equal(one, other) for one, other in zip(ours.crops, theirs.crops))
        assert torch.equal(ours.rows, theirs.rows)


@pytest.mark.parametrize("full", [False, True])
def test_large_jpeg_files_are_kept_at_the_scale_that_the_smallest_crop_needs(tmp_path, full):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    for i in range(8):
        noise.resize((600, 500)).save(tmp_path / f"{i}.jpg", exif=orientation(1 + i % 8))
    listing, settings = scan(tmp_path), config(full_decode=full, crop_scale=(0.2, 1.0))
    cache = filled(listing, settings)
    # sqrt(600 x 500 x 0.2 x 3/4) = 212 pixels for 32: a quarter is enough
    kept = [[600, 500, 600, 500], [500, 600, 500, 600]] if full else [[600, 500, 150, 125], [500, 600, 125, 150]]
    assert cache.sizes.tolist() == [kept[row >= 4] for row in range(8)]
    if full:
        for ours, theirs in zip(batches_of(listing, settings, cache), batches_of(listing, settings, None)):
            assert all(torch.equal(one, other) for one, other in zip(ours.crops, theirs.crops))


def test_sizes_are_read_without_decoding(squares, monkeypatch):
    def load(image):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    sizes, failures = cache_module.Sizes(scan(squares), config())[np.arange(3)]
    assert (sizes.tolist(), failures) == ([[24, 20, 24, 20]] * 3, [])


def test_the_smallest_crop_of_either_view_decides_the_scale(tmp_path):
    Image.new("RGB", (600, 500)).save(tmp_path / "one.jpg")
    listing = scan(tmp_path)
    for changes, kept in (({}, [150, 125]), ({"key_image_size": 64}, [300, 250]), ({"key_image_size": 24}, [150, 125]),
                          ({"key_crop_scale": (0.05, 0.1)}, [300, 250])):
        sizes, _ = cache_module.Sizes(listing, config(crop_scale=(0.2, 1.0), **changes))[np.arange(1)]
        assert sizes[0, 2:].tolist() == kept, changes


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = number
    return exif


@pytest.mark.parametrize(("width", "height", "size"), [(24, 20, 32), (32, 32, 32), (40, 33, 16), (24, 20, 7)])
def test_crops_on_the_device_are_pillows_to_the_bit(width, height, size):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (5, height, width, 3), np.uint8)
    pixels[0] = random.choice([0, 255], (height, width, 3))  # sums at the ends of what a byte holds
    boxes = [(left, top, left + w, top + h) for w in (1, 2, 5, 13, width - 1, width) for h in (1, 3, 7, 18, height)
             for left in {0, (width - w) // 2, width - w} for top in {0, (height - h) // 3, height - h}]
    rows = torch.arange(len(boxes)) % 5
    ours = ResidentImages(stack(pixels), (size, size), CPU).crops(rows, torch.tensor(boxes))
    assert ours.shape == (len(boxes), 3, size, size)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for one, row, box in zip(ours, rows, boxes):
        expected = crop(Image.fromarray(pixels[row]), box, size)
        assert np.array_equal(one.permute(1, 2, 0).numpy(), expected), box


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("share", [0.25, 0.0])
def test_crops_on_a_gpu_are_those_of_the_cpu(monkeypatch, share):
    monkeypatch.setattr(resident, "SHARE_OF_GPU", share)
    pixels, device = np.random.default_rng(1).integers(0, 256, (50, 32, 32, 3), np.uint8), torch.device("cuda")
    boxes = torch.tensor([(i % 7, i % 5, 20 + i % 12, 9 + i % 23) for i in range(300)])
    ours, expected = (ResidentImages(stack(pixels), (32, 32), where).crops(torch.arange(300) % 50, boxes)
                      for where in (device, CPU))
    assert torch.equal(ours.cpu(), expected)


def stack(pixels):
    """A cache's `stacked` alone."""
    return type("Stack", (), {"stacked": lambda self: torch.from_numpy(pixels)})()


def test_small_images_of_one_size_are_cropped_on_the_device(squares):
    notes, listing, settings = [], scan(squares), config()
    cache = filled(listing, settings, note=notes.append)
    assert cache.cropped_on_device
    assert notes[0].startswith("--cache ram: 0.0 MiB of ")
    assert notes[1].endswith("crops are made in batches on the device")
    images = ResidentImages(cache, (32, 32), CPU)
    for number in (0, 1):
        for ours, theirs in zip(batches_of(listing, settings, cache, number), batches_of(listing, settings, None)):
            assert torch.equal(ours.rows, theirs.rows)
            for boxes, crops in zip(ours.crops, theirs.crops):
                assert torch.equal(images.crops(ours.rows, boxes), crops)


@pytest.mark.parametrize(("size", "image_size", "device", "expected"), [
    ((32, 32), 32, "cpu", True), ((64, 64), 64, "cpu", True), ((32, 65), 32, "cpu", False),
    ((32, 32), 96, "cpu", False), ((96, 96), 96, "cuda", True), ((129, 32), 32, "cuda", False),
    (None, 32, "cuda", False)])
def test_what_is_small(size, image_size, device, expected):
    assert crops_on_device(size, (32, image_size), torch.device(device)) is expected


@pytest.mark.parametrize("one_size", [False, True])
def test_unreadable_images_are_replaced_and_named_as_without(tmp_path, squares, images, one_size):
    for i, path in enumerate(sorted((squares if one_size else images).rglob("*.png"))):
        (tmp_path / f"{i:02d}.png").write_bytes(path.read_bytes())
    (tmp_path / "03.png").write_bytes(b"not an image")
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:-700])  # found only when it is decoded
    notes, listing, settings = [], scan(tmp_path), config()
    cache = filled(listing, settings, 1, notes.append)
    assert set(cache.aside) == {3, 5}
    assert cache.cropped_on_device is one_size
    assert notes[-1].startswith("2 images could not be read")
    ours, theirs = batches_of(listing, settings, cache, 1), batches_of(listing, settings, None)
    assert [batch.failures for batch in ours] == [batch.failures for batch in theirs]
    assert [batch.rows.tolist() for batch in ours] == [batch.rows.tolist() for batch in theirs]


@pytest.mark.parametrize("what", ["die", "hang"])
def test_an_image_that_kills_its_decoder_is_set_aside(images, monkeypatch, what):
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(workers, "SECONDS_FOR_AN_IMAGE", 0.5)
    listing = scan(images)
    victim = listing.read(13)[0]

    class Deadly(EncodedImage):
        def rgb(self, *shrink):
            if self._data == victim:
                os.kill(os.getpid(), signal.SIGKILL) if what == "die" else time.sleep(600)
            return super().rgb(*shrink)

    monkeypatch.setattr(cache_module, "EncodedImage", Deadly)
    cache = filled(listing, config(), 2)
    assert {row: failure.error for row, failure in cache.aside.items()} == {
        13: "WorkerDied" if what == "die" else "WorkerHung"}
    batches = batches_of(listing, config(), cache)
    assert {failure.row for batch in batches for failure in batch.failures} == {13}


def test_an_image_that_changes_meanwhile_is_set_aside(tmp_path, make_images):
    listing, settings = scan(make_images(tmp_path)), config()
    sizes, aside = Filling(listing, settings, 0, ALONE, print, lambda: None)._sizes([np.arange(24)], "")
    Image.new("RGB", (9, 9)).save(tmp_path / "blue" / "000.png")
    cache = Filling(listing, settings, 0, ALONE, print, lambda: None)._decoded(sizes, aside)
    assert "has changed" in cache.aside[0].reason


@pytest.mark.parametrize("sample", [1024, 4])
def test_images_that_do_not_fit_are_refused_with_the_figures(images, monkeypatch, sample):
    """With the small sample, from an estimate."""
    monkeypatch.setattr(filling, "available_memory", lambda: 60_000)
    monkeypatch.setattr(filling, "SAMPLE", sample)
    needed = "more than 0.1 MiB" if sample == 4 else "0.1 MiB"
    with pytest.raises(MocoembedError, match=rf"24 decoded images need {needed}, and at most 80% of the 0.1 "
                                             r"MiB available may be taken. Leave --cache out"):
        filled(scan(images), config())


def test_shared_bytes_are_seen_by_spawned_processes_and_go_with_the_last_user():
    memory = SharedBytes(100)
    memory.array[:] = 7
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(double, (memory,)) == 700
    assert set(memory.array) == {14}
    path = memory.path
    del memory
    assert not os.path.exists(path)


def double(memory):
    total = int(memory.array.sum())
    memory.array *= 2
    return total


def test_a_stop_ends_the_filling_and_its_processes(images):
    def stop():
        raise Interrupted("stopped", signal.SIGINT)

    with pytest.raises(Interrupted):
        filled(scan(images), config(), 2, stop=stop)
    assert not multiprocessing.active_children()


SLOW_FILLING = """
import sys, time
from mocoembed.cli import main
from mocoembed.data import cache
from mocoembed.train import filling
class Slow(cache.EncodedImage):
    def rgb(self, shrink):
        print("decoding", file=sys.stderr, flush=True)
        time.sleep(0.5)
        return super().rgb(shrink)
cache.EncodedImage = Slow
filling.AT_A_TIME = 2
main.main(sys.argv[1:])
"""


def test_ctrl_c_while_filling_says_so_and_leaves_nothing(images, tmp_path):
    command = [sys.executable, "-c", SLOW_FILLING, "pretrain", str(images), "--workspace", str(tmp_path), "--recipe",
               "small", "--batch-size", "8", "--bn-groups", "2", "--cache", "ram", "--workers", "1", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line == "decoding\n":
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert ("mocoembed: Stopped while reading the images into memory. "
            "Run the same command again to continue.") in rest
    assert not list(tmp_path.rglob("*.pt"))


def test_the_cache_is_used_only_when_there_is_something_to_train(config_of_a_run, monkeypatch):
    from mocoembed.train.loop import pretrain

    pretrain(config_of_a_run)
    monkeypatch.setattr(Filling, "cache", lambda self: 1 / 0)
    assert pretrain(config_of_a_run).last is None


@pytest.fixture
def config_of_a_run(tmp_path, squares):
    return dataclasses.replace(config(width=0.125, stem="3x3s2", dim=16, queue_size=20, image_size=16, epochs=2,
                                      workers=0, warmup_epochs=0.0), images=str(squares), workspace=str(tmp_path))


@pytest.mark.parametrize("changes", [{}, {"dictionary": "memory-bank", "queue_size": 5}, {"symmetric": True},
                                     {"key_image_size": 24, "key_crop_scale": (0.1, 0.4)}])
def test_a_run_is_the_same_with_and_without_and_can_change_in_the_middle(config_of_a_run, tmp_path, changes):
    from mocoembed.train.loop import pretrain
    from mocoembed.train.monitor import Watcher

    def stop(report, steps):
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    one = dataclasses.replace(config_of_a_run, workspace=str(tmp_path / "one"), **changes)
    fingerprint = pretrain(one).fingerprint
    assert pretrain(dataclasses.replace(one, workspace=str(tmp_path / "two"), cache="none")).fingerprint == fingerprint
    mixed, notes = dataclasses.replace(one, workspace=str(tmp_path / "three")), []
    with pytest.raises(Interrupted):
        pretrain(mixed, Watcher(step=stop))
    resumed = pretrain(dataclasses.replace(mixed, cache="none"), Watcher(note=notes.append))
    assert resumed.fingerprint == fingerprint
    assert any("--cache none now, ram before" in note for note in notes)
