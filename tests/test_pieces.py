"""A step in pieces against the whole batch at once: 20 steps in float64, in one process and in two."""

import copy
import dataclasses
import functools
from functools import partial

import pytest
import torch
from test_distributed import little
from test_step import built, images
from torch import nn
from torch.nn import functional

from mocoembed.data.loader import shuffle_order
from mocoembed.errors import UsageError
from mocoembed.model.batchnorm import GroupedBatchNorm2d
from mocoembed.model.moco import Views
from mocoembed.model.pieces import OneUpdate, cut
from mocoembed.model.precision import Compute
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.launch import start
from mocoembed.train.loop import pretrain, pretrain_rank
from mocoembed.train.monitor import Watcher
from mocoembed.train.step import training_step

VARIANTS = {
    "queue": {},
    "symmetric": {"symmetric": True},
    "masked": {"mask_same_image": True},
    "unshuffled": {"batchnorm": "none"},
    "memory-bank": {"dictionary": "memory-bank"},
}


def run(at_once, steps=20, scaler=None, **changes):
    """Numbers of all steps and the state after them; `at_once` groups of four, each of four images.

    Smaller groups or images leave the last BatchNorm a few values, whose signs a rounding error turns.
    """
    config, training = built(bn_groups=4, **{"batch_size": 16, "lr": 0.003, "temperature": 0.5, **changes})
    training.scaler = scaler or training.scaler
    if config.precision == "bf16":
        training.compute = Compute.of("cpu", "bf16")
        training.method.float()
    numbers = []
    for step in range(steps):
        order = torch.from_numpy(shuffle_order(config.seed, step, 16)) if config.shuffles_keys else None
        x = [functional.interpolate(one, size=24).to(training.compute.dtype) for one in images(step, 16)]
        queries = x if config.symmetric else x[:1]
        keys = [x[1 - i] if order is None else x[1 - i][order] for i in range(len(queries))]
        rows = torch.arange(16 * step, 16 * step + 16) % 40
        views = Views(queries, keys, rows, order, step, cut(16, 4, at_once))
        numbers.append(training_step(training, views, (), lambda numbers: None))
    return torch.cat(numbers), training.method.state_dict()


@functools.cache
def whole_batch(name):
    return run(4, **VARIANTS[name])


def require_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize(("name", "at_once"), [*((name, 1) for name in VARIANTS), ("queue", 2), ("symmetric", 3)])
def test_equals_the_whole_batch_at_once(name, at_once):
    """Losses, accuracies, spread, both encoders with their statistics and counts, queue or bank, to 1e-12."""
    whole, weights = whole_batch(name)
    pieces, weights_of_pieces = run(at_once, **VARIANTS[name])
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    require_close(weights, weights_of_pieces, 1e-12)


def test_a_scaled_loss_is_unscaled_once():
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**9)

    whole, weights = whole_batch("queue")
    pieces, weights_of_pieces = run(1, scaler=scaler())
    torch.testing.assert_close(pieces[:, :-1], whole[:, :-1], rtol=0, atol=1e-12)
    assert set(pieces[:, -1].tolist()) == {2.0**10}  # the scale is told, too
    require_close(weights, weights_of_pieces, 1e-12)


def test_bf16_within_its_rounding():
    """The first step has the same weights and so nearly the same numbers."""
    (whole, _), (pieces, _) = (run(at_once, steps=1, precision="bf16") for at_once in (4, 1))
    torch.testing.assert_close(pieces[:, 0], whole[:, 0], rtol=0, atol=2**-7)
    assert not torch.equal(whole, run(4, steps=1)[0])


@pytest.mark.parametrize(("batch", "groups", "at_once", "sizes"), [
    (8, 4, 1, [2, 2, 2, 2]), (8, 4, 3, [6, 2]), (8, 4, 4, []), (8, 1, 1, []), (9, 4, 1, [3, 2, 2, 2]),
    (11, 4, 2, [6, 5]), (3, 4, 1, []), (5, 4, 1, [3, 2])])
def test_pieces_are_whole_groups(batch, groups, at_once, sizes):
    pieces = cut(batch, groups, at_once)
    assert [len(range(batch)[piece.images]) for piece in pieces] == sizes
    assert not pieces or sum(piece.share for piece in pieces) == pytest.approx(1)


@pytest.mark.parametrize("batch", [8, 11])
def test_running_statistics_take_one_update(batch):
    torch.manual_seed(0)
    whole = nn.Sequential(GroupedBatchNorm2d(3, 4), nn.ReLU(), GroupedBatchNorm2d(3, 4)).double()
    other, x = copy.deepcopy(whole), torch.randn(batch, 3, 2, 2, dtype=torch.float64)
    for _ in range(3):
        y, update, parts = whole(x), OneUpdate(other), []
        for piece in cut(batch, 4, 1):
            with update.of(piece):
                parts.append(other(x[piece.images]))
        torch.testing.assert_close(torch.cat(parts), y, rtol=0, atol=1e-14)
    assert int(other[0].num_batches_tracked) == 3
    assert other[0].groups == 4
    require_close(whole.state_dict(), other.state_dict(), 1e-14)


WITH_TWO_PROCESSES = {"queue": {"symmetric": True, "mask_same_image": True},
                      "memory-bank": {"dictionary": "memory-bank"}}


def one_and_all(folder, config, ranks, watcher):
    for at_once in (1, 2):
        for name, changes in WITH_TWO_PROCESSES.items():
            pretrain_rank(dataclasses.replace(config, workspace=f"{folder}/{name}-{at_once}", groups_at_once=at_once,
                                              check_ranks=True, queue_size=10, **changes), ranks, watcher)


def test_two_processes_in_pieces(images, tmp_path):
    """Four groups of two images in two processes: 21 steps, one group at a time and both."""
    start(partial(one_and_all, tmp_path), little(images, bn_groups=4), 2, Watcher())
    for name in WITH_TWO_PROCESSES:
        one, both = (load_newest(next((tmp_path / f"{name}-{n}" / "runs").iterdir())) for n in (1, 2))
        assert (one["groups_at_once"], both["groups_at_once"], one["step"]) == (1, 2, 21)
        require_close(both["model"], one["model"], 1e-12)


def test_resuming_with_another_number_says_so(images, tmp_path):
    notes = []
    config = little(images, workspace=str(tmp_path), epochs=1)
    pretrain(config)
    pretrain(dataclasses.replace(config, epochs=2, groups_at_once=1, run=next((tmp_path / "runs").iterdir()).name),
             Watcher(note=notes.append))
    assert any("1 BatchNorm group at once now, 2 before: the same mathematics, but not the same bits" in note
               for note in notes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"dictionary": "end-to-end"}, r"images are each other's negatives \(--dictionary queue can\)"),
    ({"batchnorm": "sync"}, r"those of all images \(--batchnorm shuffled can\)"),
    ({"bn_groups": 1}, r"a single BatchNorm group \(--bn-groups 2 or more can\)"),
    ({"groups_at_once": 3}, r"--groups-at-once 3: must be --bn-groups 2 or less")])
def test_what_cannot_be_cut_is_refused(images, changes, message):
    with pytest.raises(UsageError, match=message):
        pretrain(little(images, **{"groups_at_once": 1, **changes}))
