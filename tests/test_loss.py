"""InfoNCE against equation 1 written out with loops in float64."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from mocoembed.config import PretrainConfig
from mocoembed.model.loss import chance_loss, info_nce


def unit(*shape):
    return functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def written_out(q, k, negatives, temperature):
    """Loss, top-1 and top-5 by loops over Python floats."""
    losses, ranks = [], []
    for i in range(len(q)):
        positive = sum(float(a) * float(b) for a, b in zip(q[i], k[i]))
        others = [sum(float(a) * float(b) for a, b in zip(q[i], one)) for one in negatives]
        total = sum(math.exp(s / temperature) for s in [positive, *others])
        losses.append(-math.log(math.exp(positive / temperature) / total))
        ranks.append(sum(s >= positive for s in others))
    n = len(q)
    return sum(losses) / n, sum(rank < 1 for rank in ranks) / n, sum(rank < 5 for rank in ranks) / n


@pytest.mark.parametrize(("n", "size", "temperature"), [(1, 1, 0.07), (5, 13, 0.1), (8, 40, 0.2), (3, 4, 1.0)])
def test_equals_the_formula(n, size, temperature):
    torch.manual_seed(n)
    q, negatives = unit(n, 6), unit(size, 6)
    k = functional.normalize(q + 0.8 * unit(n, 6), dim=1)
    contrast = info_nce(q, k, negatives.T, temperature)
    loss, top1, top5 = written_out(q, k, negatives, temperature)
    assert float(contrast.loss) == pytest.approx(loss, abs=1e-12)
    assert float(contrast.top1) == pytest.approx(top1)
    assert float(contrast.top5) == pytest.approx(top5)


def test_small_temperature_does_not_overflow():
    q = unit(4, 8).float()
    assert torch.isfinite(info_nce(q, q, -q.T, 1e-3).loss)


def test_a_query_that_cannot_tell_pays_chance():
    q = functional.normalize(torch.ones(3, 4, dtype=torch.float64), dim=1)
    assert float(info_nce(q, q, q.T.repeat(1, 7), 0.1).loss) == pytest.approx(math.log(22))
    config = PretrainConfig.of("moco-v2", "images")
    assert chance_loss(config) == pytest.approx(11.09, abs=0.005)
    assert chance_loss(dataclasses.replace(config, dictionary="end-to-end")) == pytest.approx(math.log(256))


def test_a_tie_is_not_a_hit():
    q = functional.normalize(torch.ones(1, 4), dim=1)
    assert float(info_nce(q, q, q.T, 0.1).top1) == 0.0


def test_excluded_negatives_are_as_good_as_absent():
    torch.manual_seed(0)
    q, k, negatives = unit(3, 6), unit(3, 6), unit(5, 6)
    excluded = torch.tensor([[True, False, False, True, False], [False] * 5, [True] * 5])
    together = info_nce(q, k, negatives.T, 0.1, excluded)
    alone = [written_out(q[i:i + 1], k[i:i + 1], negatives[~excluded[i]], 0.1) for i in range(3)]
    for ours, by_hand in zip(together, zip(*alone)):
        assert float(ours) == pytest.approx(sum(by_hand) / 3, abs=1e-7)
