"""The published linear protocols beside their authors' own code: the same features, order and learning rate.

    git clone --branch colab-notebook https://github.com/facebookresearch/moco
    git clone https://github.com/facebookresearch/dino
    pip install lightly
    python -m benchmarks.linear_peers --moco moco --dino dino --lightly

Their code runs as it is, on the CPU (`Tensor.cuda` gives the tensor), on features that were computed before: 300 of 64
numbers, 6 classes, in batches of 64. What is theirs:

- moco: `train` and `adjust_learning_rate` of main_lincls.py, with its optimizer's options;
- dino: `eval_linear` of eval_linear.py as a whole: first weights, optimizer, scaled rate, schedule, loop; only what
  loads images and weights, tests and saves is replaced;
- lightly: `LinearClassifier` in a `Trainer` of PyTorch Lightning with the epochs of linear_eval.py: first weights,
  optimizer, scaled rate, schedule, loop.

All weights are compared after every step with those of `mocoembed.evaluate.images.heads`, which learn side by side for
several learning rates.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import pathlib
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn

from mocoembed.config.probe import PROTOCOLS
from mocoembed.data.augmentation import Augmentation
from mocoembed.evaluate.images.heads import Heads, first_weights, set_rates

IMAGES, FEATURES, CLASSES, BATCH, SEED = 300, 64, 6, 64, 0
RATES = {"moco": (0.3, 3.0, 30.0), "dino": (0.001, 0.03, 0.3), "lightly": (0.01, 0.1, 3.0)}
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def epochs(protocol: str) -> list[Batches]:
    """The batches of every epoch: features (N, D), raw and positive as after a ReLU and pooling, and classes (N,)."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(IMAGES) % CLASSES
    centres = torch.rand(CLASSES, FEATURES, generator=random)
    made = []
    for _ in range(PROTOCOLS[protocol].epochs):
        x = (centres[y] + 0.5 * torch.randn(IMAGES, FEATURES, generator=random)).relu() * 0.1  # an augmented view
        order = torch.randperm(IMAGES, generator=random)
        batches = [(x[rows], y[rows]) for rows in order.split(BATCH)]
        made.append(batches[:-1] if PROTOCOLS[protocol].drop_last else batches)
    return made


class Loader:
    """A data loader whose every pass is the next epoch."""

    def __init__(self, protocol: str):
        self.sampler = types.SimpleNamespace(set_epoch=lambda epoch: None)
        self._made = epochs(protocol)
        self._next = itertools.chain.from_iterable(self._made)

    def __len__(self):
        return len(self._made[0])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(len(self)):  # nothing is taken until it is asked for: a Trainer begins more passes than it makes
            yield next(self._next)


def seen(weights: list[torch.Tensor], layer: nn.Linear) -> Callable[..., None]:
    """A hook of an optimizer that adds (C, D + 1), the layer's weights and bias, after every step."""
    def hook(*arguments):
        weights.append(torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().clone())

    hook()
    return hook


def moco(folder: pathlib.Path, rate: float) -> list[torch.Tensor]:
    """The weights before and after every step by main_lincls.py's functions; the first ones are ours."""
    module = importlib.import_module("main_lincls")
    module.accuracy = lambda output, target, topk: [torch.zeros(1)] * len(topk)  # only printed; newer torch refuses it
    options = types.SimpleNamespace(lr=rate, schedule=[60, 80], gpu=None, print_freq=1000)
    head = first_weights(FEATURES, CLASSES, "normal", SEED)
    optimizer = torch.optim.SGD(head.parameters(), rate, momentum=0.9, weight_decay=0.0)
    weights: list[torch.Tensor] = []
    optimizer.register_step_post_hook(seen(weights, head))
    for epoch, batches in enumerate(epochs("moco")):
        module.adjust_learning_rate(optimizer, epoch, options)
        module.train(batches, head, nn.CrossEntropyLoss(), optimizer, epoch, options)
    return weights


def dino(folder: pathlib.Path, rate: float) -> list[torch.Tensor]:
    """The same by eval_linear.py; the first weights are drawn by it."""
    module = importlib.import_module("eval_linear")
    weights: list[torch.Tensor] = []
    real_start, real_optimizer = module.LinearClassifier.__init__, torch.optim.SGD
    heads: list[nn.Module] = []

    def start(self, dim, num_labels):
        torch.manual_seed(SEED)
        real_start(self, dim, num_labels)
        heads.append(self)

    def optimizer(parameters, lr, momentum, weight_decay):
        made = real_optimizer(parameters, lr, momentum=momentum, weight_decay=weight_decay)
        made.register_step_post_hook(seen(weights, heads[-1].linear))
        return made

    backbone = nn.Identity()
    backbone.fc = nn.Linear(FEATURES, 1)  # which it asks for the number of features
    loader = Loader("dino")
    options = types.SimpleNamespace(
        arch="features", n_last_blocks=4, avgpool_patchtokens=False, pretrained_weights="", checkpoint_key="",
        patch_size=16, num_labels=CLASSES, data_path="", batch_size_per_gpu=BATCH, num_workers=0, evaluate=False,
        lr=rate, epochs=PROTOCOLS["dino"].epochs, gpu=None, val_freq=1000)
    module.args = options  # `train` reads the global one
    with tempfile.TemporaryDirectory() as options.output_dir, contextlib.ExitStack() as replaced:
        for target, name, value in (
                (module.LinearClassifier, "__init__", start), (torch.optim, "SGD", optimizer),
                (module, "torchvision_models", types.SimpleNamespace(features=lambda: backbone)),
                (module.utils, "init_distributed_mode", lambda args: None), (module.utils, "get_sha", str),
                (module.utils, "load_pretrained_weights", lambda *arguments: None),
                (module.utils, "restart_from_checkpoint", lambda *arguments, **options: None),
                (nn.parallel, "DistributedDataParallel", lambda model, device_ids: model),
                (module.datasets, "ImageFolder", lambda *arguments, **options: range(IMAGES)),
                (torch.utils.data.distributed, "DistributedSampler", lambda dataset: None),
                (torch.utils.data, "DataLoader", lambda *arguments, **options: loader),
                (torch.cuda, "synchronize", lambda: None),
                (module, "validate_network", lambda *arguments: {"acc1": 0.0})):
            replaced.enter_context(mock.patch.object(target, name, value))
        module.eval_linear(options)
    return weights


def lightly(folder: pathlib.Path, rate: float) -> list[torch.Tensor]:
    """The same by lightly's LinearClassifier; the first weights are drawn by it."""
    from lightly.utils.benchmarking import LinearClassifier
    from pytorch_lightning import Callback, Trainer

    weights: list[torch.Tensor] = []

    class Hook(Callback):
        def on_train_start(self, trainer, classifier):
            trainer.optimizers[0].register_step_post_hook(seen(weights, classifier.classification_head))

    torch.manual_seed(SEED)
    classifier = LinearClassifier(nn.Identity(), batch_size_per_device=BATCH, lr=rate, feature_dim=FEATURES,
                                  num_classes=CLASSES, topk=(1,))
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(max_epochs=PROTOCOLS["lightly"].epochs, accelerator="cpu", devices=1, callbacks=[Hook()],
                          logger=False, enable_checkpointing=False, enable_progress_bar=False,
                          enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=root)
        trainer.fit(classifier, Loader("lightly"))
    return weights


def ours(protocol: str) -> list[list[torch.Tensor]]:
    """For each rate, the weights before and after every step."""
    rates, published = RATES[protocol], PROTOCOLS[protocol]
    heads = Heads(FEATURES, CLASSES, published, rates, SEED)
    how = Augmentation(32, (0.0,) * 3, (1.0,) * 3, seed=SEED, batch_size=BATCH, epochs=published.epochs)
    optimizer, step = heads.optimizer(), 0
    weights: list[list[torch.Tensor]] = [[] for _ in rates]
    hooks = [seen(one, head) for one, head in zip(weights, heads.everything)]
    for batches in epochs(protocol):
        for x, y in batches:
            set_rates(optimizer, published, step, len(batches), how)
            total, _ = heads.losses(x, y, torch.zeros(len(x), dtype=torch.bool))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            step += 1
            for hook in hooks:
                hook()
    return weights


def compare(protocol: str, folder: pathlib.Path):
    """Print a line for each learning rate."""
    for rate, mine in zip(RATES[protocol], ours(protocol)):
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = {"moco": moco, "dino": dino, "lightly": lightly}[protocol](folder, rate)
        apart = [float((one - other).norm() / other.norm()) for one, other in zip(mine, theirs, strict=True)]
        moved = float((mine[-1] - mine[0]).norm() / mine[0].norm())
        print(f"{protocol:8}  {rate:<5g}  {len(apart) - 1:5}  {moved:16.2f}  {apart[0]:13.1e}  {max(apart):14.1e}  "
              f"{apart[-1]:12.1e}", flush=True)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moco", type=pathlib.Path, help="a checkout of facebookresearch/moco")
    parser.add_argument("--dino", type=pathlib.Path, help="a clone of facebookresearch/dino")
    parser.add_argument("--lightly", action="store_true", help="compare with lightly, which is installed")
    options = parser.parse_args()
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *arguments, **options: self  # type: ignore[method-assign]
    torch.set_num_threads(1)
    print("protocol  rate   steps  weights changed  first weights  any step, most  last weights  (relative, ours - "
          "theirs)")
    for protocol in ("moco", "dino", "lightly"):
        if folder := getattr(options, protocol):
            sys.path.insert(0, str(folder))
            compare(protocol, folder)


if __name__ == "__main__":
    main()
