"""The published linear protocol beside the authors' own code: the same features, order and learning rate.

    git clone https://github.com/facebookresearch/moco
    python -m benchmarks.linear_peers moco/main_lincls.py

`train` and `adjust_learning_rate` of main_lincls.py run as they are, on the CPU (`Tensor.cuda` gives the tensor), on
a network whose backbone hands on features that were computed before: 300 of 64 numbers, 6 classes, 100 epochs of
batches of 50. The loss of every step is compared with that of `mocoembed.evaluate.heads`, for each of several learning
rates that are learned side by side.
"""

import argparse
import contextlib
import importlib.util
import io
import types

import torch
from torch import nn

from mocoembed.config.probe import PROTOCOLS
from mocoembed.data.augmentation import Augmentation
from mocoembed.evaluate.heads import Heads, set_rates

IMAGES, FEATURES, CLASSES, BATCH, EPOCHS = 300, 64, 6, 50, 100
RATES = (0.3, 3.0, 30.0)
HOW = Augmentation(32, (0.0,) * 3, (1.0,) * 3, seed=0, batch_size=BATCH, epochs=EPOCHS)


def epochs() -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The batches of every epoch: features (N, D), raw and positive as after a ReLU and pooling, and classes (N,)."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(IMAGES) % CLASSES
    centres = torch.rand(CLASSES, FEATURES, generator=random)
    made = []
    for _ in range(EPOCHS):
        x = (centres[y] + 0.5 * torch.randn(IMAGES, FEATURES, generator=random)).relu() * 0.1  # an augmented view
        order = torch.randperm(IMAGES, generator=random)
        made.append([(x[rows], y[rows]) for rows in order.split(BATCH)])
    return made


def theirs(path: str, rate: float, head: nn.Linear) -> torch.Tensor:
    """(steps,) losses of main_lincls.py's own functions, and `head` as they leave it."""
    spec = importlib.util.spec_from_file_location("main_lincls", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.accuracy = lambda output, target, topk: [torch.zeros(1)] * len(topk)  # only printed; newer torch refuses it
    options = types.SimpleNamespace(lr=rate, schedule=[60, 80], gpu=None, print_freq=1000)
    optimizer = torch.optim.SGD(head.parameters(), rate, momentum=0.9, weight_decay=0.0)
    losses: list[torch.Tensor] = []

    def criterion(output, target):
        loss = nn.functional.cross_entropy(output, target)
        losses.append(loss.detach())
        return loss

    with contextlib.redirect_stdout(io.StringIO()):
        for epoch, batches in enumerate(epochs()):
            module.adjust_learning_rate(optimizer, epoch, options)
            module.train(batches, head, criterion, optimizer, epoch, options)
    return torch.stack(losses)


def ours(heads: Heads) -> torch.Tensor:
    """(steps, R) losses of the classifiers side by side."""
    optimizer, losses, step, nothing = heads.optimizer(), [], 0, torch.zeros(BATCH, dtype=torch.bool)
    for batches in epochs():
        for x, y in batches:
            set_rates(optimizer, PROTOCOLS["moco"], step, len(batches), HOW)
            total, each = heads.losses(x, y, nothing)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(each)
            step += 1
    return torch.stack(losses)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("main_lincls", help="the file of that name in facebookresearch/moco")
    path = parser.parse_args().main_lincls
    torch.Tensor.cuda = lambda self, *arguments, **options: self  # type: ignore[method-assign]
    heads = Heads(FEATURES, CLASSES, PROTOCOLS["moco"], RATES, 0)
    mine = ours(heads)
    print("lr    first loss  last loss  largest difference of the loss  of the weights, relative")
    for place, rate in enumerate(RATES):
        head = Heads(FEATURES, CLASSES, PROTOCOLS["moco"], (rate,), 0).everything[0]
        losses = theirs(path, rate, head)
        weight, other = (one.weight.detach() for one in (heads.everything[place], head))
        print(f"{rate:<4g}  {losses[0]:.6f}    {losses[-1]:.6f}   {float((losses - mine[:, place]).abs().max()):.1e}"
              f"                         {float((weight - other).norm() / other.norm()):.1e}")


if __name__ == "__main__":
    main()
