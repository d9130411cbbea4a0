"""The steps that `step_variants.py` compares: `training_step` as it is, and with one thing changed."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from unittest import mock

import torch

from mocoembed.config import PretrainConfig
from mocoembed.data.loader import shuffle_order
from mocoembed.model.batchnorm import GroupedBatchNorm2d
from mocoembed.model.loss import info_nce
from mocoembed.model.moco import Keys, MoCo, Views, encode, unshuffled
from mocoembed.model.precision import Compute, to_host
from mocoembed.train.run import Training, set_up
from mocoembed.train.step import Learnt, summary, training_step

IMAGES, WARM_UP = 50_000, 2
Step = Callable[[list[torch.Tensor]], float]
"""Learns from two views (N, 3, S, S); the loss."""


class LeftOut(Exception):
    """This machine or this torch cannot do it; the reason."""


class Steps:
    """Every variant of a config that has been asked for, ready for its next step."""

    def __init__(self, config: PretrainConfig, variants: dict[str, dict]):
        """`variants`: what each changes in the config."""
        self.config, self._variants = config, variants
        random, side = torch.Generator().manual_seed(0), config.image_size
        self._views = [torch.randn(config.batch_size, 3, side, side, generator=random) for _ in range(2)]
        self._ready: dict[str, tuple[Step, float]] = {}

    def take(self, name: str) -> dict:
        """One step of a variant: `seconds`, and the `loss` of its first step; or `left_out`."""
        layout = torch.contiguous_format if name == "plain layout" else torch.channels_last
        views = [view.contiguous(memory_format=layout) for view in self._views]
        with Compute.of("cpu", "fp32").keeping_memory():
            if name not in self._ready:
                try:
                    step = made(name, dataclasses.replace(self.config, **self._variants[name]))
                except LeftOut as reason:
                    return {"left_out": str(reason)}
                losses = [step(views) for _ in range(WARM_UP)]
                self._ready[name] = step, losses[0]
            step, loss = self._ready[name]
            begun = time.perf_counter()
            step(views)
            return {"seconds": time.perf_counter() - begun, "loss": loss}


def made(name: str, config: PretrainConfig) -> Step:
    """The step of a variant, whose config this is; `LeftOut` where there is none."""
    compute, within = Compute.of("cpu", config.precision), contextlib.nullcontext
    if slow := compute.slowness():
        raise LeftOut(slow)
    training = set_up(config, compute, IMAGES)
    assert isinstance(training.method, MoCo)
    if name == "plain layout":
        training.method.to(memory_format=torch.contiguous_format)
    elif name.startswith("keys in inference mode"):
        keys_in_inference_mode(training.method, compiled=name.endswith("compiled"))
    elif name == "oneDNN multiplies in bf16":
        within = multiplying_in_bf16
        if not rounds_to_bf16(within):
            raise LeftOut("oneDNN does not, on this processor (without AMX)")
    elif "both views at once" in name:
        for layer in training.method.modules():
            if isinstance(layer, GroupedBatchNorm2d):
                layer.groups *= 2
        within = both_views_at_once
    return stepping(training, within)


def stepping(training: Training, within: Callable[[], contextlib.AbstractContextManager]) -> Step:
    """`training_step` in a context."""
    config = training.config
    rows = torch.arange(config.batch_size)
    order = torch.from_numpy(shuffle_order(0, 0, config.batch_size)) if config.shuffles_keys else None

    def step(views: list[torch.Tensor]) -> float:
        queries = views if config.symmetric else views[:1]
        keys = [view if order is None else view[order] for view in ([views[1], views[0]][:len(queries)])]
        with within():
            numbers = training_step(training, Views(queries, keys, rows, order), (), lambda numbers: None)
        return float(numbers[0, 0])

    return step


def keys_in_inference_mode(method: MoCo, compiled: bool):
    """Without what autograd notes of every tensor; a graph of its own knows that nothing is kept for a gradient."""
    forward = method.encoder_k.forward
    inside = torch.compile(forward) if compiled else forward

    def changed(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            z = inside(x)
        return z.clone()  # which the loss can keep

    method.encoder_k.forward = changed


@contextlib.contextmanager
def multiplying_in_bf16():
    """oneDNN rounds what it multiplies to bfloat16 by itself; weights and outputs stay in float32."""
    mkldnn = torch.backends.mkldnn
    parts = [part for name in ("conv", "matmul") if hasattr(part := getattr(mkldnn, name, None), "fp32_precision")]
    if len(parts) < 2:
        raise LeftOut("needs a newer torch")
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "bf16"
        yield
    finally:
        for part, precision in zip(parts, before):
            part.fp32_precision = precision


@torch.no_grad()
def rounds_to_bf16(within: Callable[[], contextlib.AbstractContextManager]) -> bool:
    """Whether a convolution gives anything else in the context: where oneDNN cannot do it, it says nothing."""
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    with within():
        changed = convolution(x)
    return not torch.equal(changed, convolution(x))


def both_views_at_once():
    """The queries of a symmetric loss go through their encoder together, and so do the keys."""
    return mock.patch("mocoembed.train.step.at_once", at_once_together)


def at_once_together(training: Training, views: Views, told: tuple[float, ...]) -> Learnt:
    """`mocoembed.train.step.at_once`, but both views in one forward pass, with twice the BatchNorm groups.

    Running statistics take one update of the mean of both, instead of two; the loss is the same.
    """
    method, compute, T = training.method, training.compute, training.config.temperature
    assert isinstance(method, MoCo)
    with compute.autocast():
        q = list(method.query(torch.cat(views.queries)).chunk(2))  # N x C each
        method.momentum_update()
        with torch.no_grad():
            new = [unshuffled(one, views.order) for one in encode(method.encoder_k, torch.cat(views.keys)).chunk(2)]
    k = [Keys(one, method.queue.keys, None, one) for one in new]
    contrasts = [info_nce(one, keys.positive, keys.negatives, T) for one, keys in zip(q, k)]
    gathered = to_host(summary(contrasts, q, told, training.scaler))
    training.scaler.scale(torch.stack([contrast.loss for contrast in contrasts]).sum()).backward()
    return q, k, gathered
