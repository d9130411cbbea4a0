"""Fine-tuning one network: labelled images and an encoder -> a classifier, from the step of its checkpoint to the last.

The protocol is that of the semi-supervised evaluations of SwAV (`eval_semisup.py`: SGD with momentum 0.9, 20 epochs, no
weight decay, random resized crop and flip, 0.2 for the new layer and 0.01 for the backbone with a batch of 256) and
Barlow Twins (`evaluate.py`: the same with a cosine schedule). Both report the best epoch on the test set; here it is
the last.
"""

import copy
import math
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from mocoembed.config import FinetuneConfig
from mocoembed.data.augmentation import Augmentation, augmented
from mocoembed.data.loader import ViewBatch, steps_per_epoch
from mocoembed.errors import Interrupted, TrainingError, UsageError
from mocoembed.evaluate.images.labelled import LabelledImages, require_readable, training_batches
from mocoembed.files import StopRequest
from mocoembed.model.classifier_file import Classifier
from mocoembed.model.encoder import Encoder
from mocoembed.model.encoder_file import FrozenEncoder, tool_provenance
from mocoembed.model.precision import Compute
from mocoembed.model.stages import Tuned, stages_of
from mocoembed.train.checkpoint import load_newest, not_finite, require_resumable, save_checkpoint

EPOCHS, LEAST_STEPS = 20, 50
BATCH_OF_RATES = 256  # the batch that learning rates are given for
SGD_MOMENTUM = 0.9


def epochs_of(config: FinetuneConfig, images: int) -> int:
    """`--epochs`, or as many as its help says."""
    return config.epochs or max(EPOCHS, -(-LEAST_STEPS // max(1, steps_per_epoch(images, config.batch_size, False))))


def share_of_rate(step: int, steps: int) -> float:
    """The cosine that all learning rates follow: 1 at step 0, near 0 at the last."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def require_stages(config: FinetuneConfig, frozen: FrozenEncoder):
    """Raise `UsageError` for more frozen stages than there are."""
    if config.freeze_stages > (count := len(stages_of(frozen.encoder.backbone))):
        raise UsageError(f"--freeze-stages {config.freeze_stages}: {frozen.encoder.spec.arch} has {count} stages. "
                         f"Give 0 to {count}.")


class FineTuning:
    """One seed's network while it learns."""

    def __init__(self, config: FinetuneConfig, frozen: FrozenEncoder, images: LabelledImages, labels: list[str],
                 seed: int):
        """`images` are those whose labels are used; `labels` are the names of all classes, in order."""
        self.config, self.frozen, self.images, self.labels, self.seed = config, frozen, images, labels, seed
        self.compute = Compute.of(config.device, config.precision)
        self.compute.tune()
        self.how = Augmentation.of(frozen.transform, seed=seed, batch_size=config.batch_size,
                                   epochs=epochs_of(config, len(images)))
        self.steps = self.how.epochs * steps_per_epoch(len(images), config.batch_size, False)
        backbone = copy.deepcopy(frozen.encoder.backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Tuned(backbone, len(labels), config.freeze_stages)
        self.compute.place(self.network).train()
        self.optimizer = self._optimizer()
        self.scaler = torch.amp.GradScaler(self.compute.device.type, enabled=config.precision == "fp16")
        self.step, self.unreadable = 0, set[int]()
        self.loss = math.nan

    def _optimizer(self) -> torch.optim.SGD:
        config, scale = self.config, self.config.batch_size / BATCH_OF_RATES
        backbone = [one for one in self.network.backbone.parameters() if one.requires_grad]
        rate = config.lr if config.from_scratch else config.backbone_lr
        layer = list(self.network.classifier.parameters())
        groups: list[dict[str, Any]] = [{"params": layer, "base": scale * config.lr}]
        groups += [{"params": backbone, "base": scale * rate}] if backbone else []
        return torch.optim.SGD(groups, config.lr, momentum=SGD_MOMENTUM, weight_decay=config.weight_decay)

    def resume(self, folder: pathlib.Path):
        """Go on from the newest checkpoint in `folder`, if it is of this seed."""
        state = load_newest(folder)
        if state is None or state["seed"] != self.seed:
            return
        require_resumable(state, self.network, self.optimizer)
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.unreadable, self.loss = state["position"], set(state["unreadable"]), state["loss"]

    def save(self, folder: pathlib.Path, before: int, about: dict):
        """Write all that a resumed run needs; `before` steps were done by the seeds before, `about` is the run's."""
        weights = self.network.state_dict()
        if broken := not_finite(weights):
            raise TrainingError(f"{len(broken)} tensors hold values that are not finite after step {self.step} "
                                f"({broken[0]}). No checkpoint contains them: start over with a lower --lr.")
        epoch = self.step * self.how.epochs // self.steps
        save_checkpoint(folder, {
            **about, "step": before + self.step, "epoch": epoch, "position": self.step, "seed": self.seed,
            "model": weights, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "unreadable": sorted(self.unreadable), "loss": self.loss})

    def learn(self, stop: StopRequest, note: Callable[[str], None], save: Callable[[], None],
              done: Callable[[int], None]):
        """Train to the last step; `save()` writes a checkpoint, `done(n)` counts images.

        Raises `Interrupted` after a signal, with all saved, `TrainingError` when the loss is not finite and
        `CollectionError` when too many images cannot be read.
        """
        device = self.compute.device
        batches = training_batches(self.images, self.how, self.step, self.config.workers, device.type == "cuda")
        with self.compute.keeping_memory():
            for batch in batches:
                self._one_step(batch, note)
                done(len(batch.rows))
                last = self.step == self.steps
                if not last and (stop.signal_number or self.step % self.config.checkpoint_every == 0):
                    save()
                if stop.signal_number and not last:
                    raise Interrupted(f"Stopped after step {self.step} of {self.steps} of seed {self.seed}; saved. Run "
                                      "the same command again to continue.", stop.signal_number)

    def _one_step(self, batch: ViewBatch, note: Callable[[str], None]):
        require_readable(batch, self.images, self.unreadable, note)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share_of_rate(self.step, self.steps)
        x = augmented(batch, self.how, self.compute.device, self.compute.dtype)
        y = self.images.classes(batch.rows.tolist(), self.labels).to(self.compute.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.compute.autocast():
            logits = self.network(x)  # N x classes
        loss = functional.cross_entropy(logits.to(self.compute.dtype), y)
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise TrainingError(f"The loss is {self.loss} at step {self.step + 1} of seed {self.seed} (--lr "
                                f"{self.config.lr:g}, --backbone-lr {self.config.backbone_lr:g}). No checkpoint "
                                "contains it: start over (--fresh) with lower ones.")
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1

    def classifier(self, provenance: dict) -> Classifier:
        """What has been learned, in float32."""
        network = copy.deepcopy(self.network).to("cpu", torch.float32)
        encoder = Encoder(self.frozen.encoder.spec)
        encoder.backbone.load_state_dict(network.backbone.state_dict())
        trained = FrozenEncoder(encoder.eval(), self.frozen.transform, {})
        return Classifier.of(trained, network.classifier.weight, network.classifier.bias, self.labels,
                             {**provenance, "seed": self.seed, "images": len(self.images), "steps": self.step,
                              "epochs": self.how.epochs, "last_loss": self.loss, **tool_provenance()})
