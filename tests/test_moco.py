"""Momentum Contrast's own rules: equal at the start, the moving average, no gradient to keys, shuffling."""

import pytest
import torch

from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.loss import info_nce
from mocoembed.model.moco import MoCo, Views
from mocoembed.model.ranks import Ranks

SPEC = EncoderSpec("resnet18", 0.125, "3x3s2", "mlp", 16)


def built(m=0.9, bn_groups=1, size=32, mask_same_image=False):
    torch.manual_seed(0)
    return MoCo(Encoder(SPEC, bn_groups), size, m, mask_same_image).double()


def keys_of(moco, x, order=None, rows=None):
    """The keys of x, encoded in the order x[order]."""
    rows = torch.arange(len(x)) if rows is None else rows
    return moco.key(x if order is None else x[order], Views([], [], rows, order))


def test_the_encoders_start_equal_but_apart():
    moco = built()
    for q, k in zip(moco.encoder_q.state_dict().values(), moco.encoder_k.state_dict().values()):
        assert torch.equal(q, k)
        assert q.data_ptr() != k.data_ptr()


@pytest.mark.parametrize("m", [0.0, 0.9, 0.999, 1.0])
def test_momentum_update_has_its_closed_form(m):
    """theta_k(n) = m^n theta_k(0) + (1 - m) sum over i of m^(n-i) theta_q(i)."""
    moco = built(m)
    start = [p.detach().clone() for p in moco.encoder_k.parameters()]
    history = []
    for _ in range(6):
        with torch.no_grad():
            for p in moco.encoder_q.parameters():
                p.add_(torch.randn_like(p))
        history.append([p.detach().clone() for p in moco.encoder_q.parameters()])
        moco.momentum_update()
    n = len(history)
    for j, p in enumerate(moco.encoder_k.parameters()):
        closed = m**n * start[j] + (1 - m) * sum(m ** (n - 1 - i) * history[i][j] for i in range(n))
        torch.testing.assert_close(p, closed, rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_key_encoder_or_the_queue():
    moco = built(bn_groups=2)
    q = moco.query(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    keys = keys_of(moco, torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randperm(8))
    info_nce(q, keys.positive, keys.negatives, 0.2).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moco.encoder_q.parameters())
    assert all(p.grad is None and not p.requires_grad for p in moco.encoder_k.parameters())
    assert not keys.positive.requires_grad
    assert not moco.queue.keys.requires_grad


def test_queries_and_keys_have_length_one():
    moco = built()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for vectors in (moco.query(x), keys_of(moco, x).positive):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4, dtype=torch.float64))


def test_shuffling_moves_images_between_groups_and_brings_the_keys_back():
    moco = built(bn_groups=2)
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # each group gets half of either half
    shuffled = keys_of(moco, x, order).positive
    by_hand = torch.empty_like(shuffled)
    with torch.no_grad():
        for group in order.chunk(2):
            alone = built(bn_groups=1)
            by_hand[group] = keys_of(alone, x[group]).positive
    torch.testing.assert_close(shuffled, by_hand)
    assert not torch.allclose(shuffled, keys_of(built(bn_groups=2), x).positive)


def test_keys_of_the_querys_own_image_can_be_left_out():
    moco = built(size=6, mask_same_image=True)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert not keys_of(moco, x).excluded.any()  # nobody's keys at the start
    moco.remember([], [keys_of(moco, x, rows=torch.tensor([5, 6, 7, 8]))], Views([], [], torch.tensor([5, 6, 7, 8])))
    excluded = keys_of(moco, x, rows=torch.tensor([7, 1, 5, 0])).excluded
    assert excluded.nonzero().tolist() == [[0, 2], [2, 0]]
    assert keys_of(built(size=6), x).excluded is None


@pytest.mark.parametrize("masked", [False, True])
def test_whose_keys_they_are_is_gathered_and_noted_only_where_it_is_used(masked):
    moco, x = built(mask_same_image=masked), torch.randn(4, 3, 16, 16).double()
    gathered = []

    class Counting(Ranks):
        def gather(self, x):
            gathered.append(x.dtype)
            return x

    moco.ranks = Counting()
    views = Views([], [], torch.arange(4), None)
    keys = moco.key(x, views)
    moco.remember([], [keys], views)
    assert gathered.count(torch.int64) == masked
    assert moco.queue.rows[:4].tolist() == (list(range(4)) if masked else [-1] * 4)
    assert torch.equal(moco.queue.keys[:, :4], keys.new.T)
