"""Classifiers that learn side by side: each as if it were alone, with a plain loop as the reference."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from mocoembed.config.probe import PROTOCOLS
from mocoembed.data.augmentation import Augmentation
from mocoembed.evaluate.images.heads import Heads, factor, first_weights, set_rates

RATES = (0.1, 1.0, 30.0)
HOW = Augmentation(32, (0.0,) * 3, (1.0,) * 3, seed=0, batch_size=20, epochs=10)
STEPS = 3  # per epoch


def batches():
    """Features, classes and which are held out, of every step."""
    random = torch.Generator().manual_seed(1)
    for _ in range(STEPS * HOW.epochs):
        y = torch.randint(0, 4, (20,), generator=random)
        yield torch.randn(20, 6, generator=random) + functional.one_hot(y, 6), y, torch.arange(20) % 5 == 0


def learned(protocol):
    heads = Heads(6, 4, protocol, RATES, seed=5)
    optimizer, told = heads.optimizer(), []
    for step, (x, y, held_out) in enumerate(batches()):
        set_rates(optimizer, protocol, step, STEPS, HOW)
        optimizer.zero_grad()
        total, losses = heads.losses(x, y, held_out)
        total.backward()
        optimizer.step()
        told.append(losses)
    return heads, torch.stack(told)


def alone(rate: float, without_held_out: bool):
    """As the authors of MoCo do: one classifier, SGD, the rate a tenth after 60 % and 80 % of the epochs."""
    head = first_weights(6, 4, "normal", 5)
    optimizer, told = torch.optim.SGD(head.parameters(), rate, momentum=0.9, weight_decay=0), []
    for step, (x, y, held_out) in enumerate(batches()):
        epoch = step // STEPS
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.1 if epoch >= 6 else 1) * (0.1 if epoch >= 8 else 1)
        if without_held_out:
            x, y = x[~held_out], y[~held_out]
        loss = nn.CrossEntropyLoss()(head(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(loss.detach())
    return head, torch.stack(told)


def test_each_learns_as_if_it_were_alone():
    heads, told = learned(PROTOCOLS["moco"])
    for place, rate in enumerate(RATES):
        head, losses = alone(rate, without_held_out=False)
        torch.testing.assert_close(heads.everything[place].weight, head.weight)
        torch.testing.assert_close(heads.everything[place].bias, head.bias)
        torch.testing.assert_close(told[:, place], losses)
        other = alone(rate, without_held_out=True)[0]
        torch.testing.assert_close(heads.choosing[place].weight, other.weight)
        assert not torch.allclose(head.weight, other.weight)


def test_a_batch_of_held_out_images_alone_leaves_the_choosing_ones_as_they_are():
    heads = Heads(6, 4, PROTOCOLS["moco"], RATES, 0)
    before = heads.choosing[2].weight.clone()
    optimizer = heads.optimizer()
    x, y, _ = next(batches())
    heads.losses(x, y, torch.ones(20, dtype=torch.bool))[0].backward()
    optimizer.step()
    assert torch.equal(heads.choosing[2].weight, before)
    assert not torch.equal(heads.everything[2].weight, before)


def test_with_one_rate_nothing_is_chosen():
    assert len(Heads(6, 4, PROTOCOLS["moco"], (30.0,), 0).choosing) == 0


def test_first_weights():
    normal, uniform = first_weights(400, 50, "normal", 0), first_weights(400, 50, "uniform", 0)
    assert abs(float(normal.weight.std()) - 0.01) < 0.0005
    assert not normal.bias.any()
    assert 0.95 / 20 < float(uniform.weight.abs().max()) <= 1 / 20
    assert torch.equal(normal.weight, first_weights(400, 50, "normal", 0).weight)


def test_schedules_are_those_of_the_authors():
    steps = [factor("steps", epoch * STEPS, STEPS, 100) for epoch in (0, 59, 60, 79, 80, 99)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0)
    for epoch in range(10):
        for step in range(STEPS):
            assert factor("cosine-epochs", epoch * STEPS + step, STEPS, 10) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    for step in range(30):  # lightly/utils/scheduler.py, cosine_schedule(step, 30, 1, 0.001)
        expected = 0.001 - (0.001 - 1) * (math.cos(math.pi * step / 29) + 1) / 2
        assert factor("cosine-steps", step, STEPS, 10) == pytest.approx(expected)


def test_rates_of_dino_and_lightly_grow_with_the_batch():
    for name, expected in (("moco", 1.0), ("dino", 512 / 256), ("lightly", 512 / 256)):
        heads = Heads(6, 4, PROTOCOLS[name], (0.1, 1.0), 0)
        optimizer = heads.optimizer()
        how = Augmentation(32, (0.0,) * 3, (1.0,) * 3, seed=0, batch_size=512, epochs=10)
        set_rates(optimizer, PROTOCOLS[name], 0, STEPS, how)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * expected, expected] * 2)
