"""Grouped BatchNorm against separate BatchNorms that each see their own group."""

import copy

import pytest
import torch
from torch import nn

from mocoembed.model.batchnorm import GroupedBatchNorm2d, shares_of_update


def built(groups):
    torch.manual_seed(0)
    grouped = GroupedBatchNorm2d(5, groups).double()
    nn.init.normal_(grouped.weight)
    nn.init.normal_(grouped.bias)
    plain = nn.BatchNorm2d(5).double()
    plain.load_state_dict(grouped.state_dict())
    return grouped, [copy.deepcopy(plain) for _ in range(groups)]


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_one_batchnorm_for_each_group(groups, layout):
    grouped, ranks = built(groups)
    for _ in range(3):
        x = torch.randn(12, 5, 4, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        x_again = x.detach().clone().requires_grad_()
        y = grouped(x)
        y_again = torch.cat([rank(part) for rank, part in zip(ranks, x_again.chunk(groups))])
        torch.testing.assert_close(y, y_again)
        weights = torch.randn_like(y)
        (y * weights).sum().backward()
        (y_again * weights).sum().backward()
        torch.testing.assert_close(x.grad, x_again.grad)
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(rank, name) for rank in ranks]).mean(0)
            torch.testing.assert_close(getattr(grouped, name), mean, rtol=0, atol=1e-14)
            for rank in ranks:
                setattr(rank, name, mean.clone())


def test_evaluation_uses_the_running_statistics():
    grouped, (plain, *_) = built(4)
    x = torch.randn(7, 5, 2, 2, dtype=torch.float64)
    assert torch.equal(grouped.eval()(x), plain.eval()(x))


def test_a_smaller_last_batch_is_split_evenly():
    grouped, _ = built(4)
    x = torch.randn(9, 5, 2, 2, dtype=torch.float64)
    y = grouped(x)
    for part in y.detach().tensor_split(4):
        normalized = (part - grouped.bias.view(1, 5, 1, 1)) / grouped.weight.view(1, 5, 1, 1)
        torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [16, 19])
def test_equals_one_call_for_each_group_to_the_bit(dtype, count):
    """Output, gradients and running statistics; in half precision the latter stay float32."""
    torch.manual_seed(0)
    layer = GroupedBatchNorm2d(6, 4).to(torch.promote_types(dtype, torch.float32))
    nn.init.normal_(layer.weight)
    other = copy.deepcopy(layer)
    x = torch.randn(count, 6, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    x_again = x.detach().clone().requires_grad_()
    y = layer(x)
    y_again = torch.cat([
        nn.functional.batch_norm(part, other.running_mean, other.running_var, other.weight, other.bias, True, momentum)
        for part, momentum in zip(x_again.tensor_split(4), shares_of_update(0.1, 4))])
    weights = torch.randn(y.shape).to(dtype)
    y.backward(weights)
    y_again.backward(weights)
    assert layer.running_var.dtype == torch.promote_types(dtype, torch.float32)
    for one, another in ((y, y_again), (x.grad, x_again.grad), (layer.weight.grad, other.weight.grad),
                         (layer.bias.grad, other.bias.grad), (layer.running_mean, other.running_mean),
                         (layer.running_var, other.running_var)):
        assert torch.equal(one, another)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
