"""How fast is a pretraining step, against the bare encoders (the limit) and against the authors' own code (a peer)?

All three work on the same ready tensors with the same network (ResNet-18, stem 3x3s1, full width), batch size,
BatchNorm groups, K and optimizer, one step each in turn, so that they share whatever the machine does meanwhile.
`bare` is the forward pass of both encoders and the backward pass of one: no queue, loss over K keys, shuffling,
momentum update or optimizer.

The authors' CIFAR-10 demo is a notebook in a branch of their repository; its model is read from there, unchanged:

    git clone --branch colab-notebook https://github.com/facebookresearch/moco moco-official
    python benchmarks/pretrain_speed.py --official moco-official/colab/moco_cifar10_demo.ipynb --batch-size 64

Prints images per second of each (median, lowest, highest of the rounds) and the ratios of medians.
"""

import dataclasses
import json
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

import click
import torch
from torch.nn import functional

from mocoembed.config import PretrainConfig
from mocoembed.data.loader import shuffle_order
from mocoembed.model.moco import Views
from mocoembed.model.precision import Compute
from mocoembed.train.optim import build_optimizer
from mocoembed.train.run import set_up
from mocoembed.train.step import training_step

IMAGES = 50_000
MODEL_CELLS = ("class SplitBatchNorm", "class ModelMoCo")


def official_step(notebook: str, config: PretrainConfig, compute: Compute):
    """A step of the authors' demo; their calls of `.cuda()` do nothing on a CPU."""
    if compute.device.type == "cpu":
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *arguments, **more: self
    with open(notebook, encoding="utf-8") as file:
        cells = ["".join(cell["source"]) for cell in json.load(file)["cells"]]
    names: dict = {}
    preamble = ("import torch\nimport torch.nn as nn\nfrom functools import partial\n"
                "from torchvision.models import resnet\n")
    classes = [cell.split("# create model")[0] for cell in cells for start in MODEL_CELLS if start in cell]
    exec(preamble + "\n".join(classes), names)
    model = names["ModelMoCo"](config.dim, config.queue_size, config.momentum, config.temperature, config.arch,
                               config.bn_groups, config.symmetric).to(compute.device).train()
    optimizer = build_optimizer(list(model.parameters()), config)

    def step(views):
        loss = model(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(config: PretrainConfig, compute: Compute):
    """`training_step` on ready views."""
    training = set_up(config, compute, IMAGES)
    rows = torch.arange(config.batch_size, device=compute.device)
    order = torch.from_numpy(shuffle_order(0, 0, config.batch_size)) if config.shuffles_keys else None
    if order is not None and compute.device.type == "cuda":
        order = order.pin_memory()  # as the loader gives it: from other memory the step would wait for its copy

    def step(views):
        x_q, x_k = views
        if order is not None:
            x_k = x_k[order.to(x_k.device, non_blocking=True)]
        views = Views([x_q], [x_k], rows, order)
        training_step(training, views, (), lambda numbers: None)

    return step


def bare_step(config: PretrainConfig, compute: Compute):
    """Forward of both encoders, backward of one."""
    moco = set_up(config, compute, IMAGES).method

    def step(views):
        with compute.autocast():
            q = moco.encoder_q(views[0])
            with torch.no_grad():
                k = moco.encoder_k(views[1])
        (functional.normalize(q.float(), dim=1) * k.float()).sum().backward()
        moco.encoder_q.zero_grad(set_to_none=True)

    return step


def timed(step, views, device: torch.device) -> float:
    """Seconds for one step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    step(views)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


@click.command()
@click.option("--official", type=click.Path(exists=True, dir_okay=False), help="The authors' notebook.")
@click.option("--batch-size", default=64, show_default=True, help="Images in a step.")
@click.option("--bn-groups", default=1, show_default=True, help="BatchNorm groups.")
@click.option("--rounds", default=9, show_default=True, help="Steps of each that count, after two that do not.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="fp32", show_default=True, help="Of ours and the bare encoders.")
@click.option("--compile", "compiled", is_flag=True, help="Time our step with --compile, too.")
def main(official, batch_size, bn_groups, rounds, device, precision, compiled):
    """Print images per second of ours, the bare encoders and the authors' step."""
    config = PretrainConfig.of("cifar10", "none", batch_size=batch_size, bn_groups=bn_groups, precision=precision)
    compute = Compute.of(device, precision)
    compute.tune()
    steps = {"ours": our_step(config, compute), "bare": bare_step(config, compute)}
    if compiled:
        steps["compiled"] = our_step(dataclasses.replace(config, compile=True), compute)
    if official:
        steps["official"] = official_step(official, config, compute)
    torch.manual_seed(0)
    ready = [torch.randn(batch_size, 3, 32, 32, device=compute.device) for _ in range(2)]
    channels_last = [view.contiguous(memory_format=torch.channels_last) for view in ready]
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            seconds = timed(step, ready if name == "official" else channels_last, compute.device)
            if turn >= 2:
                rates[name].append(batch_size / seconds)
    print(f"{compute.device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}, batch "
          f"{batch_size}, {bn_groups} BatchNorm groups, n = {rounds}")
    for name, values in rates.items():
        print(f"{name:9} {statistics.median(values):8.1f} images/s ({min(values):.1f} to {max(values):.1f}); ours is "
              f"{statistics.median(rates['ours']) / statistics.median(values):.2f} of it")


if __name__ == "__main__":
    main()
