"""Devices and precisions."""

import pytest
import torch

from mocoembed.errors import UsageError
from mocoembed.model.precision import Compute


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
