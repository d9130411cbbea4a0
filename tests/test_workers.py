"""Loading processes that are killed or hang: the batches are what they would be if one image were unreadable."""

import collections
import itertools
import os
import signal
import time

import pytest
import torch

from mocoembed.config import EmbedConfig, PretrainConfig
from mocoembed.data import loader, workers
from mocoembed.data.decode import EncodedImage
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import scan
from mocoembed.data.loader import Places, evaluation_batches, view_batches
from mocoembed.data.shared import SharedRows
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MocoembedError

TRANSFORM = EvaluationTransform(32, 32, (0.5,) * 3, (0.5,) * 3)
VICTIM = 13


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LOOKS", 0.1)


@pytest.fixture
def decode(monkeypatch, images):
    """`decode(what)`: from now on `what()` is done before row 13 of `images` is decoded."""
    victim = scan(images).read(VICTIM)[0]

    def install(what):
        def image(data, *more):
            if data == victim:
                what()
            return EncodedImage(data, *more)

        monkeypatch.setattr(loader, "EncodedImage", image)

    return install


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in a decoder's own code, which hears of no signal
    time.sleep(600)


def refuse():
    raise OSError("refused")


def evaluated(listing, number):
    return [(batch.first, batch.pixels, batch.facts.tolist(), [failure.row for failure in batch.failures])
            for batch in evaluation_batches(listing, TRANSFORM, 5, number)]


def views(listing, number):
    config = PretrainConfig.of("small", "images", batch_size=8, bn_groups=2, image_size=32, epochs=2)
    return [(batch.step, *batch.crops, batch.rows, batch.order, [failure.row for failure in batch.failures])
            for batch in view_batches(listing, config, Places(len(listing), config, 0), number, pin=False)]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b for x, y in zip(one, other) for a, b in zip(x, y))


@pytest.mark.parametrize("batches", [evaluated, views])
@pytest.mark.parametrize("what", [die, hang])
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_that_dies_or_hangs_costs_its_image(images, decode, batches, what, number, monkeypatch):
    if what is hang:  # a busy machine may keep the others from their images for as long: no shorter
        monkeypatch.setattr(workers, "SECONDS_FOR_AN_IMAGE", 1.5)
    listing = scan(images)
    decode(refuse)
    expected = batches(listing, 0)
    decode(what)
    got = batches(listing, number)
    assert same(got, expected)
    assert sum(len(one[-1]) for one in got) == (1 if batches is evaluated else 2)


@pytest.mark.parametrize("batches", [evaluated, views])
def test_a_process_killed_once_costs_nothing(images, decode, batches, tmp_path):
    listing = scan(images)
    expected = batches(listing, 0)

    def die_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            die()

    decode(die_once)
    assert same(batches(listing, 2), expected)


def test_a_death_is_heard_of_only_when_the_next_batch_is_asked_for(images, decode):
    """An error in the middle of a training step would leave it half done."""
    decode(die)
    batches = iter(evaluation_batches(scan(images), TRANSFORM, 2, 1))
    got = [next(batches)]
    time.sleep(1)  # the process dies meanwhile
    got += list(batches)
    assert [batch.first for batch in got] == list(range(0, 24, 2))
    assert [(one.row, one.error, one.reason) for batch in got for one in batch.failures] == [
        (VICTIM, "WorkerDied", "the process that read it died 2 times")]


def test_processes_killed_for_no_image_are_an_error(images, monkeypatch):
    monkeypatch.setattr(loader.EvaluationImages, "__getitem__", lambda dataset, slots: die())
    with pytest.raises(MocoembedError, match=r"killed repeatedly.*fewer --workers"):
        evaluated(scan(images), 2)


def test_processes_that_hang_at_no_image_are_an_error(images, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_FOR_AN_IMAGE", 0.3)
    monkeypatch.setattr(workers, "RESTARTS", 1)
    monkeypatch.setattr(loader.EvaluationImages, "__getitem__", lambda dataset, slots: hang())
    with pytest.raises(MocoembedError, match="stopped responding repeatedly"):
        evaluated(scan(images), 2)


def test_slow_images_in_a_batch_are_waited_for(images, monkeypatch):
    """A batch may take longer than the seconds that an image may."""
    listing = scan(images)
    expected = evaluated(listing, 0)

    def slow(data, *more):
        time.sleep(0.2)
        return EncodedImage(data, *more)

    monkeypatch.setattr(workers, "SECONDS_FOR_AN_IMAGE", 0.7)
    monkeypatch.setattr(workers, "RESTARTS", -1)
    monkeypatch.setattr(loader, "EncodedImage", slow)
    assert same(evaluated(listing, 1), expected)


def test_a_caller_may_end_the_waiting(images, decode):
    """As a signal does while the cache of a pretraining is filled."""
    def end():
        raise KeyboardInterrupt

    decode(hang)
    dataset = loader.EvaluationImages(scan(images), TRANSFORM)
    with pytest.raises(KeyboardInterrupt):
        list(workers.Batches(dataset, [(VICTIM, VICTIM + 1)], 1, False, end))


def test_torch_does_not_warn_of_many_processes(images, recwarn):
    iterator = iter(evaluation_batches(scan(images), TRANSFORM, 5, (os.cpu_count() or 1) + 1))
    next(iterator)
    iterator.close()
    assert not [one for one in recwarn if "worker processes" in str(one.message)]


def test_an_error_that_is_no_images_comes_through(images, monkeypatch):
    def broken(dataset, slots):
        raise RuntimeError("our own mistake")

    monkeypatch.setattr(loader.EvaluationImages, "__getitem__", broken)
    with pytest.raises(RuntimeError, match="our own mistake"):
        evaluated(scan(images), 2)


def test_no_process_is_left_behind(images, decode, monkeypatch):
    import multiprocessing

    decode(hang)
    batches = iter(evaluation_batches(scan(images), TRANSFORM, 4, 2))
    next(batches)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 2
    assert not multiprocessing.active_children()


def test_embedding_goes_on_and_names_the_image(fresh_workspace, images, decode):
    decode(die)
    result = embed_images(EmbedConfig(str(images), workspace=str(fresh_workspace), workers=2, device="cpu",
                                      batch_size=5, fresh=True))
    (failed,) = result.failed
    assert (failed.path, failed.error) == (scan(images).paths[VICTIM], "WorkerDied")
    with EmbeddingFile(result.path) as file:
        assert len(file) == 23


@pytest.mark.parametrize(("number", "said"), [
    (signal.SIGKILL, r"died \(SIGKILL\) at '.*005.*' and is restarted\. Usually there is too little memory: .*iB "
                     r"for loading processes, of which each takes .*iB; give fewer --workers: 1 instead of 2\."),
    (signal.SIGBUS, r"SIGBUS.*Usually there is too little memory.*fewer --workers: 1 instead of 2"),
    (signal.SIGSEGV, r"died \(SIGSEGV\) at '.*005.*' and is restarted\. If it dies there again, the image is skip"),
])
def test_a_death_is_told_at_once_with_what_to_change(images, decode, number, said, tmp_path, capfd):
    def die_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), number)

    decode(die_once)
    with pytest.warns(UserWarning, match=said) as told:
        assert sum(len(one[-1]) for one in evaluated(scan(images), 2)) == 0
    assert len(told) == 1
    assert capfd.readouterr().err == ""


def test_a_process_without_memory_is_an_error_that_says_what_to_change(images, monkeypatch):
    def full(dataset, slots):
        raise MemoryError

    monkeypatch.setattr(loader.EvaluationImages, "__getitem__", full)
    monkeypatch.setattr(workers, "SECONDS_TO_DIE", 0.1)
    with pytest.raises(MocoembedError, match=r"^A loading process ran out of memory: .* for loading processes; give "
                                             r"fewer --workers: 1 instead of 2\."):
        evaluated(scan(images), 2)


def test_what_is_left_to_load_survives_two_deaths_in_a_row(images, monkeypatch):
    """The second comes when only a part of what the first had left has been handed out again."""
    ahead = [5, 2, 1]  # items asked for before a process dies, dies again, or gives a batch

    class Loading:
        def __init__(self, batches, items):
            self.items, self.undelivered = items, collections.deque()

        def next(self):
            self.undelivered.extend(itertools.islice(self.items, ahead[0]))
            if len(ahead) > 1:
                ahead.pop(0)
                raise workers._ProcessLost
            return self.undelivered.popleft() if self.undelivered else None

        def lost(self):
            return None

        def alive(self):
            return set()

        def end(self):
            pass

    monkeypatch.setattr(workers, "_Loading", Loading)
    dataset = loader.EvaluationImages(scan(images), TRANSFORM)
    dataset.images.at = SharedRows(1, 3)
    for items in (list(range(1, 11)), iter(range(1, 11)), (item for item in range(1, 11))):
        ahead[:] = [5, 2, 1]
        assert list(workers.Batches(dataset, items, 1, False)) == list(range(1, 11))
