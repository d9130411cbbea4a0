"""The ring against a Python list."""

import pytest
import torch

from mocoembed.model.queue import Queue


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
def test_equals_a_list_over_odd_batches_with_wrap_around(size):
    torch.manual_seed(size)
    queue = Queue(3, size)
    columns, owners = list(queue.keys.T.clone()), [-1] * size
    at = 0
    for n in [1, 5, 3, 16, 7, 40, 2, 2, 33, 1, 11, 70]:
        keys, rows = torch.randn(n, 3), torch.randint(1000, (n,))
        queue.enqueue(keys, rows)
        for key, row in zip(keys, rows.tolist()):
            columns[at % size], owners[at % size] = key, row
            at += 1
        assert queue.rows.tolist() == owners
        assert torch.equal(queue.keys, torch.stack(columns, dim=1))
        assert queue.enqueued == int(queue.counter) == at
        assert queue.filled == min(at, size)


def test_starts_with_random_directions():
    torch.manual_seed(0)
    queue = Queue(8, 50)
    assert queue.keys.shape == (8, 50)
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(50))
    assert len({tuple(column.tolist()) for column in queue.keys.T}) == 50


def test_goes_on_after_loading():
    torch.manual_seed(0)
    one, other = Queue(4, 10), Queue(4, 10)
    one.enqueue(torch.randn(13, 4), torch.arange(13))
    other.load_state_dict(one.state_dict())
    keys = torch.randn(9, 4)
    one.enqueue(keys, torch.arange(9))
    other.enqueue(keys, torch.arange(9))
    assert torch.equal(one.keys, other.keys)
    assert one.enqueued == other.enqueued == 22


def test_takes_no_gradient():
    queue = Queue(4, 10)
    queue.enqueue(torch.randn(3, 4, requires_grad=True), torch.arange(3))
    assert not queue.keys.requires_grad
