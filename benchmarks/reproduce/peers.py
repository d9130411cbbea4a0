"""A training step of the authors' own code and of lightly's, on ready views; what `gpu.py` measures ours against.

Both compute in float32 as they are written (on a GPU PyTorch convolves in TF32 then); with `autocast` (a dtype) under
autocast, as a user would add it.
"""

import contextlib
import importlib.util
import pathlib
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.lightly_moco import LightlyMoCo
from mocoembed.config import PretrainConfig
from mocoembed.model.encoder import Encoder
from mocoembed.model.precision import Compute
from mocoembed.train.optim import build_optimizer
from mocoembed.train.run import encoder_spec

Step = Callable[[list[torch.Tensor]], None]
"""Learns from two views (N, 3, S, S)."""


def authors_step(checkout: str, config: PretrainConfig, compute: Compute, autocast: torch.dtype | None) -> Step:
    """`moco/builder.py` of github.com/facebookresearch/moco, unchanged, in a group of one process."""
    import torch.distributed as dist

    if compute.device.type == "cpu":
        torch.Tensor.cuda = nn.Module.cuda = lambda self, *arguments, **more: self  # type: ignore[assignment]
    if not dist.is_initialized():
        dist.init_process_group("nccl" if compute.device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0,
                                world_size=1)
    spec = importlib.util.spec_from_file_location("official", pathlib.Path(checkout, "moco", "builder.py"))
    assert spec is not None
    assert spec.loader is not None  # it is a file
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))

    def backbone(num_classes: int) -> nn.Module:
        encoder = Encoder(encoder_spec(config)).backbone
        encoder.fc = nn.Linear(encoder.features, num_classes)
        return encoder

    model = module.MoCo(backbone, config.dim, config.queue_size, config.momentum, config.temperature,
                        mlp=config.head == "mlp").to(compute.device).train()
    return _learning(model, config, compute, autocast, lambda views: functional.cross_entropy(*model(*views)))


def lightly_step(config: PretrainConfig, compute: Compute, autocast: torch.dtype | None) -> Step:
    """lightly's example of MoCo (pip install lightly), with its memory bank of K keys."""
    method = LightlyMoCo(Encoder(encoder_spec(config)).backbone, config.dim, config.queue_size, config.temperature,
                         compute.device)
    return _learning(method.encoder_q, config, compute, autocast,
                     lambda views: method.loss(views[0], views[1], config.momentum))


def _learning(model: nn.Module, config: PretrainConfig, compute: Compute, autocast: torch.dtype | None,
              loss_of: Callable[[list[torch.Tensor]], torch.Tensor]) -> Step:
    optimizer = build_optimizer([one for one in model.parameters() if one.requires_grad], config)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=autocast == torch.float16)

    def step(views: list[torch.Tensor]) -> None:
        with contextlib.nullcontext() if autocast is None else torch.autocast(compute.device.type, autocast):
            loss = loss_of(views)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
