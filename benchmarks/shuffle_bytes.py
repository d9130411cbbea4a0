"""How many bytes does shuffling the keys move between processes, against the authors' own code?

Counted, not computed: the collectives of torch.distributed are wrapped, and each one adds up what this rank receives of
other ranks' data (own rows do not cross the wire), in gloo processes on one machine. Ours exchanges uint8 crops, each
row straight to the rank that encodes its key, and gathers keys and rows for the queue. The authors' `moco/builder.py`
is run unchanged; it gathers all float32 views on every rank, and gathers keys twice.

    git clone --branch colab-notebook https://github.com/facebookresearch/moco moco-official
    python benchmarks/shuffle_bytes.py --official moco-official

The encoder is one in name only, of the right output size: no encoder's bytes cross the wire here. Gradients and
BatchNorm statistics, which both reduce, are left out.
"""

import importlib.util
import os
import pathlib
from collections import Counter
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

import click
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mocoembed.config import PretrainConfig
from mocoembed.data.loader import ViewBatch, shuffle_order
from mocoembed.data.views import DRAWS, ViewSettings, colour_parameters
from mocoembed.model.encoder import EncoderSpec
from mocoembed.model.moco import MoCo
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import Ranks
from mocoembed.train.launch import start
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import Training
from mocoembed.train.step import make_views


class NoEncoder(nn.Module):
    """(N, dim) from (N, 3, S, S): what an encoder gives, by no work."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.spec = EncoderSpec("resnet50", 1.0, "7x7s2-pool", "mlp", num_classes)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x[:, :, 0, 0])


def count_collectives(ranks: Ranks) -> Counter:
    """From here on, bytes that this rank receives from others, by (collective, dtype)."""
    received: Counter = Counter()
    all_gather, into_tensor, all_to_all, broadcast = (
        dist.all_gather, dist.all_gather_into_tensor, dist.all_to_all_single, dist.broadcast)

    def add(name: str, x: torch.Tensor, rows: int):
        received[f"{name} {str(x.dtype).removeprefix('torch.')}"] += rows * x[0].nbytes

    def counted_all_gather(parts, x, async_op):
        add("all_gather", x, len(x) * (ranks.size - 1))
        return all_gather(parts, x, async_op=async_op)

    def counted_into_tensor(whole, x):
        add("all_gather", x, len(whole) - len(x))
        return into_tensor(whole, x)

    def counted_all_to_all(whole, x, sources, targets):
        add("all_to_all", x, len(whole) - sources[ranks.rank])
        return all_to_all(whole, x, sources, targets)

    def counted_broadcast(x, src):
        add("broadcast", x, len(x) * (ranks.rank != src))
        return broadcast(x, src)

    dist.all_gather, dist.all_gather_into_tensor = counted_all_gather, counted_into_tensor
    dist.all_to_all_single, dist.broadcast = counted_all_to_all, counted_broadcast
    return received


def our_steps(steps: int, config: PretrainConfig, ranks: Ranks):
    """Views, keys and queue of so many steps."""
    n, size = config.batch_size // ranks.size, config.image_size
    method = MoCo(NoEncoder(config.dim), config.queue_size, config.momentum, ranks=ranks)
    training = Training(config, Compute.of("cpu", "fp32"), ranks, method, None, None, ViewSettings.of(config))
    unchanged = colour_parameters(np.ones((n, DRAWS)), ViewSettings.of(config))
    crops = torch.zeros(n, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for step in range(steps):
        order = torch.from_numpy(shuffle_order(config.seed, step, config.batch_size))
        batch = ViewBatch(step, 0, torch.arange(n), order, (crops, crops), [unchanged], [unchanged], [])
        views = make_views(batch, training)
        method.remember([], [method.key(x_k, views) for x_k in views.keys], views)


def official_steps(checkout: str, steps: int, config: PretrainConfig, ranks: Ranks):
    """The forward pass of the authors' `MoCo`, whose calls of `.cuda()` do nothing here."""
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *arguments, **more: self
    spec = importlib.util.spec_from_file_location("official", pathlib.Path(checkout, "moco", "builder.py"))
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    model = module.MoCo(NoEncoder, config.dim, config.queue_size)
    x = torch.zeros(config.batch_size // ranks.size, 3, config.image_size, config.image_size)
    for _ in range(steps):
        model(x, x)


def received_bytes(take_steps, steps: int, config: PretrainConfig, ranks: Ranks, watcher: Watcher) -> Counter:
    """Bytes a step that a rank receives by each collective, the mean over ranks and steps."""
    torch.manual_seed(ranks.rank)
    received = count_collectives(ranks)
    take_steps(steps, config, ranks)
    counts = ranks.objects(dict(received))  # its own collectives are not among those wrapped
    total = sum(map(Counter, counts), Counter())
    return Counter({name: count / ranks.size / steps for name, count in total.items()})


@click.command()
@click.option("--official", type=click.Path(exists=True, file_okay=False), help="A checkout of the authors' code.")
@click.option("--processes", default="2,4", show_default=True, help="Numbers of processes, separated by commas.")
@click.option("--batch-size", default=256, show_default=True, help="Images in a step, over all processes.")
@click.option("--image-size", default=224, show_default=True, help="Side of a view in pixels.")
@click.option("--steps", default=3, show_default=True, help="Steps that are counted.")
def main(official, processes, batch_size, image_size, steps):
    """Print the bytes that a rank receives in a step, ours and the authors'."""
    none = {name: 0.0 for name in ("jitter_probability", "grey_probability", "blur_probability", "flip_probability")}
    config = PretrainConfig.of("moco-v2", "none", batch_size=batch_size, image_size=image_size, device="cpu", **none)
    codes = {"ours": our_steps, **({"official": partial(official_steps, official)} if official else {})}
    print(f"batch {batch_size}, {image_size} pixels, C {config.dim}; bytes received by a rank in a step, mean of "
          f"{steps} steps; torch {torch.__version__}, gloo")
    for count in map(int, processes.split(",")):
        sums = {}
        for name, take_steps in codes.items():
            received = start(partial(received_bytes, take_steps, steps), config, count, Watcher())
            sums[name] = sum(received.values())
            parts = ", ".join(f"{what} {bytes_:,.0f}" for what, bytes_ in received.items())
            print(f"{count} processes  {name:9} {sums[name]:13,.0f}  ({parts})")
        if official:
            print(f"{count} processes  the authors' code receives {sums['official'] / sums['ours']:.2f} times as much")


if __name__ == "__main__":
    main()
