"""The training step: a golden loss curve, and the same step written out by hand."""

import copy

import pytest
import torch
from torch.nn import functional

from mocoembed.config import PretrainConfig
from mocoembed.data.loader import shuffle_order
from mocoembed.data.views import generator
from mocoembed.model.moco import Views
from mocoembed.model.precision import Compute
from mocoembed.train.run import set_up
from mocoembed.train.step import training_step

CPU = Compute.of("cpu", "fp64")
# 20 steps of `built()` on synthetic images, float64, one CPU thread; to be changed only with a reason in the log.
GOLDEN = [
    0.4646246511, 1.9137701744, 1.7309738814, 1.6785487822, 2.1390209332, 2.1800296647, 2.3057952791,
    2.3517924439, 2.4340180466, 2.3855091259, 2.4935021226, 2.5452092914, 2.5754178815, 2.5674364558,
    2.5916389259, 2.6045107820, 2.6857582791, 2.6698582910, 2.6888936620, 2.7365948657,
]


def built(**overrides):
    config = PretrainConfig.of("small", "images", **{
        "width": 0.125, "stem": "3x3s2", "dim": 16, "queue_size": 20, "batch_size": 8, "bn_groups": 2, "lr": 0.1,
        "momentum": 0.9, "temperature": 0.1, "image_size": 16, "precision": "fp64", "mask_same_image": False,
        **overrides})
    return config, set_up(config, CPU, images=40)


def images(step, n=8):
    """Two noisy versions of n random patterns: (x_q, x_k)."""
    random = generator(7, 0, step)
    patterns = random.standard_normal((n, 3, 16, 16))
    return [torch.from_numpy(patterns + 0.5 * random.standard_normal(patterns.shape)) for _ in range(2)]


def run(training, config, steps):
    losses = []
    for step in range(steps):
        order = torch.from_numpy(shuffle_order(config.seed, step, 8)) if config.shuffles_keys else None
        x = images(step)
        queries = x if config.symmetric else x[:1]
        keys = [x[1 - i] if order is None else x[1 - i][order] for i in range(len(queries))]
        rows = torch.arange(8 * step, 8 * step + 8) % 40
        numbers = training_step(training, Views(queries, keys, rows, order, step), (), lambda numbers: None)
        losses.append(float(numbers[0, 0]))
    return losses


def test_golden_loss_curve():
    config, training = built()
    assert run(training, config, 20) == pytest.approx(GOLDEN, abs=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_the_algorithm_written_out(symmetric):
    """Algorithm 1 of the paper with plain autograd, SGD by hand and a queue that is concatenated."""
    config, training = built(bn_groups=1, symmetric=symmetric)
    f_q, f_k = copy.deepcopy(training.method.encoder_q), copy.deepcopy(training.method.encoder_k)
    queue = list(training.method.queue.keys.T.clone())
    at, velocity = 0, [torch.zeros_like(p) for p in f_q.parameters()]
    ours = run(training, config, 5)
    for step in range(5):
        x_1, x_2 = images(step)
        pairs = [(x_1, x_2), (x_2, x_1)] if symmetric else [(x_1, x_2)]
        q = [functional.normalize(f_q(pairs[0][0]), dim=1)]
        with torch.no_grad():
            for p_q, p_k in zip(f_q.parameters(), f_k.parameters()):
                p_k.copy_(config.momentum * p_k + (1 - config.momentum) * p_q)
            k = [functional.normalize(f_k(pair[1]), dim=1) for pair in pairs]
        q += [functional.normalize(f_q(pair[0]), dim=1) for pair in pairs[1:]]
        losses = []
        for queries, keys in zip(q, k):
            logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ torch.stack(queue).T], 1)
            losses.append(functional.cross_entropy(logits / config.temperature, torch.zeros(8, dtype=torch.long)))
        loss = sum(losses)
        assert loss.item() / len(losses) == pytest.approx(ours[step], abs=1e-10)
        gradients = torch.autograd.grad(loss, list(f_q.parameters()))
        with torch.no_grad():
            for p, gradient, v in zip(f_q.parameters(), gradients, velocity):
                v.mul_(config.sgd_momentum).add_(gradient + config.weight_decay * p)
                p.sub_(config.lr * v)
        for keys in reversed(k):
            for key in keys:
                queue[at % len(queue)] = key
                at += 1
    for mine, by_hand in ((training.method.encoder_q, f_q), (training.method.encoder_k, f_k)):
        for (name, a), b in zip(mine.state_dict().items(), by_hand.state_dict().values()):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=name)
    torch.testing.assert_close(training.method.queue.keys.T, torch.stack(queue))


def test_shuffle_order_is_a_function_of_seed_and_step():
    first = shuffle_order(1, 2, 32).tolist()
    assert sorted(first) == list(range(32))
    assert first == shuffle_order(1, 2, 32).tolist()
    assert first != shuffle_order(1, 3, 32).tolist()
