"""What ends a run before its weights change, and what it warns of."""

import types

import numpy as np
import pytest
import torch

from mocoembed.config import PretrainConfig
from mocoembed.data.facts import Failure
from mocoembed.data.images import Listing, PathTable
from mocoembed.errors import CollectionError, TrainingError
from mocoembed.model.ranks import Ranks
from mocoembed.train.guard import COLLAPSED_STEPS, LEAKING_STEPS, Guard


@pytest.fixture
def notes():
    return []


@pytest.fixture
def guard(notes):
    training = types.SimpleNamespace(config=PretrainConfig.of("small", "images"), ranks=Ranks(1, 2), step=9)
    rows = np.arange(40)
    paths = PathTable([b"%d.jpg" % row for row in rows])
    return Guard(training, Listing(b"/", paths, rows, (), 0), notes.append)


def numbers(loss=3.0, top1=0.2, spread=0.8, unreadable=0, signal=0, in_a_row=0, scale=1.0):
    """Of two ranks, the second as given."""
    return torch.tensor([[3.0, 0.2, 0.5, spread, 0, 0, 0, scale],
                         [loss, top1, 0.5, spread, unreadable, signal, in_a_row, scale]], dtype=torch.float64)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_rank_and_is_printed_once(guard, loss):
    with pytest.raises(TrainingError, match=r"at step 10 on rank 1 \(--lr 0.06") as stopped:
        guard.check(numbers(loss=loss))
    assert stopped.value.quiet  # rank 0 prints it


def test_gradients_that_stay_infinite_end_the_run_once_their_scale_is_used_up(guard):
    for halvings in range(17):
        guard.check(numbers(scale=2.0 ** (16 - halvings)))
    with pytest.raises(TrainingError, match=r"scaled by 0\.5 at step 10 .*lower --lr, or --precision bf16"):
        guard.check(numbers(scale=0.5))


def test_collapse_stops_after_many_steps_in_a_row(guard):
    for _ in range(COLLAPSED_STEPS - 1):
        guard.check(numbers(spread=0.001))
    guard.check(numbers(spread=0.5))  # it has recovered
    for _ in range(COLLAPSED_STEPS - 1):
        guard.check(numbers(spread=0.001))
    with pytest.raises(TrainingError, match="Collapse: for 50 steps, all queries have pointed the same way"):
        guard.check(numbers(spread=0.001))


def test_a_leak_is_told_once_by_rank_0(guard, notes):
    guard.training.ranks = Ranks(0, 2)
    for _ in range(3 * LEAKING_STEPS):
        values = numbers()
        values[:, 1] = 0.995
        guard.check(values)
    (note,) = notes
    assert "the pretext accuracy has been 99.5%" in note


def test_ordinary_steps_pass(guard, notes):
    for _ in range(300):
        guard.check(numbers(signal=15))
    assert (guard.unreadable, guard.signal_number, notes) == ({}, 15, [])


def test_an_image_that_several_ranks_cannot_read_is_named_and_counted_once(guard, notes):
    theirs = [Failure(row, "OSError", "gone") for row in (3, 8)]
    guard.training.ranks = types.SimpleNamespace(first=True, objects=lambda mine: [mine, theirs],
                                                 agreed=lambda error: error)
    batch = types.SimpleNamespace(failures=[theirs[0]] * 2, rows=torch.tensor([4, 5]))
    assert guard.told(batch, 15) == (2, 15, False)
    guard.check(numbers(unreadable=2))
    assert set(guard.unreadable) == {3, 8}
    assert [note.split(": ")[1] for note in notes] == ["'3.jpg'", "'8.jpg'"]
    assert guard.told(batch, None) == (0, 0, False)
    theirs += [Failure(row, "OSError", "gone") for row in (9, 10, 11)]
    with pytest.raises(CollectionError, match="5 of 40 images so far cannot be read, more than 10%"):
        guard.check(numbers(unreadable=3))


def test_no_replacement_found(guard):
    assert guard.told(types.SimpleNamespace(failures=[], rows=torch.tensor([4, -1])), None) == (0, 0, True)
    with pytest.raises(CollectionError, match="too many in a row"):
        guard.check(numbers(in_a_row=1))
