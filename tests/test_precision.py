"""Devices and precisions."""

import pytest
import torch

from mocoembed.errors import UsageError
from mocoembed.model import precision as precision_module
from mocoembed.model.precision import Compute, bf16_against_fp32


@pytest.mark.parametrize(("given", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_gpu_has_its_index(monkeypatch, given, index):
    """`torch.cuda.set_device` refuses a device without one, and a tensor's device never equals it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Compute.of(given, "fp32").device == torch.device("cuda", index)


@pytest.mark.parametrize("given", ["cuda", "cuda:2", "tpu", "mps"])
def test_a_device_that_is_not_there(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=f"--device {given}"):
        Compute.of(given, "fp32")


@pytest.mark.parametrize(("precision", "times", "said"), [
    ("bf16", 12.3, "about 12 times slower"), ("bf16", 0.6, None), ("fp32", 12.3, None)])
def test_bf16_is_advised_against_where_it_is_slow(monkeypatch, precision, times, said):
    """Without instructions for it a CPU takes about 12 times as long, and nothing else would tell."""
    monkeypatch.setattr(precision_module, "bf16_against_fp32", lambda: times)
    text = Compute.of("cpu", precision).slowness()
    assert said in text if said else text is None


def test_bf16_is_tried():
    """On a GPU nothing is tried; on a CPU two times are compared."""
    assert Compute(torch.device("cuda", 0), "bf16").slowness() is None
    assert 0.01 < bf16_against_fp32() < 1000
