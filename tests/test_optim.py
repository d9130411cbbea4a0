"""Learning-rate curves against the authors' formulas."""

import math

import pytest
import torch

from mocoembed.config import PretrainConfig
from mocoembed.train.optim import build_optimizer, learning_rate, set_learning_rate


def curve(recipe, steps_per_epoch=3, **overrides):
    config = PretrainConfig.of(recipe, "images", **overrides)
    return config, [learning_rate(config, step, steps_per_epoch) for step in range(config.epochs * steps_per_epoch)]


def test_step_schedule_divides_by_ten_at_120_and_160_of_200():
    _, rates = curve("moco-v1", 1)
    assert rates[:120] == [0.03] * 120
    assert rates[120:160] == pytest.approx([0.003] * 40)
    assert rates[160:] == pytest.approx([0.0003] * 40)


@pytest.mark.parametrize("recipe", ["moco-v2", "cifar10"])
def test_cosine_schedule_by_epoch(recipe):
    config, rates = curve(recipe)
    for epoch in range(200):
        expected = config.lr * 0.5 * (1 + math.cos(math.pi * epoch / 200))
        assert rates[3 * epoch:3 * epoch + 3] == pytest.approx([expected] * 3)


def test_cosine_schedule_by_step():
    _, rates = curve("moco-v2", 10, epochs=2, schedule="cosine-by-step", lr=1.0)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])
    _, rates = curve("moco-v2", 10, epochs=2, schedule="cosine-by-step", lr=1.0, warmup_epochs=0.5)
    assert rates[5:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 15)) for step in range(15)])


def test_warm_up_rises_linearly_and_the_cosine_takes_the_rest():
    _, rates = curve("moco-v2", 10, epochs=10, warmup_epochs=2.0, lr=1.0)
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20:30] == pytest.approx([1.0] * 10)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


@pytest.mark.parametrize("epochs", [0.04, 0.2, 0.55, 1.05])
def test_a_warm_up_that_ends_within_a_step_never_exceeds_the_rate(epochs):
    _, rates = curve("moco-v2", 10, epochs=3, warmup_epochs=epochs, lr=1.0)
    assert max(rates) == 1.0


def test_the_optimizer_is_plain_sgd_on_every_parameter():
    config = PretrainConfig.of("cifar10", "images")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = build_optimizer(list(network.parameters()), config)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 4
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.06, 0.9, 5e-4, False)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_biases_and_norms_can_be_left_without_decay():
    """With gradients of zero, a step takes lr times weight decay of a matrix, and nothing of a vector."""
    config = PretrainConfig.of("lightly", "images", lr=0.5, weight_decay=0.1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(list(network.parameters()), config)
    optimizer.step()
    for name, value in network.named_parameters():
        torch.testing.assert_close(value, before[name] * (0.95 if name == "0.weight" else 1.0))
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
