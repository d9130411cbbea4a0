"""The published linear protocols: folders of labelled images and an encoder -> percent right of the test images.

Every training image is seen augmented in every epoch, once through the frozen backbone, by all classifiers: for each
learning rate one that learns from all images, and one that never sees the held-out fifth. The rate is the one whose
second classifier does best on that fifth after the last epoch; the number is that of its first classifier. The test
images are shown once, after that.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from mocoembed.checks import to_dict
from mocoembed.config import ProbeConfig
from mocoembed.data.augmentation import Augmentation, augmented
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.loader import ViewBatch, steps_per_epoch
from mocoembed.errors import CollectionError, TrainingError
from mocoembed.evaluate.folds import held_out
from mocoembed.evaluate.frozen_backbone import FrozenBackbone
from mocoembed.evaluate.heads import Heads, set_rates
from mocoembed.evaluate.labelled import (
    Encoded,
    LabelledImages,
    both_sides,
    encoded,
    require_readable,
    training_batches,
    with_few_labels,
)
from mocoembed.evaluate.penalty import HELD_OUT, score_of
from mocoembed.evaluate.probe_result import Chosen, ProbeResult
from mocoembed.evaluate.sides import Overlap, Side, overlap, shared_bytes
from mocoembed.evaluate.stored import fits
from mocoembed.files import StopRequest, locked, sha256_json
from mocoembed.knn import neighbours
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.notes import say_nothing
from mocoembed.train.checkpoint import delete_checkpoints, load_newest, require_resumable, save_checkpoint
from mocoembed.train.export import open_encoder
from mocoembed.workspace import Workspace

SECONDS_BETWEEN_CHECKPOINTS = 60.0
CPU = torch.device("cpu")
WHAT = "linear classification"
EXECUTION = ("workspace", "workers", "fresh", "device", "train", "test", "encoder", "exclude")  # not in a run's name


def probe_accuracy(config: ProbeConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                   note: Callable[[str], None] = say_nothing) -> ProbeResult:
    """How many test images a linear classifier gets right that is trained as the protocol's authors do.

    `progress(done, total)` counts images; `note(text)` is told what a person should know. Goes on where it was stopped,
    to the same result. Raises `UsageError` for what does not exist, `CollectionError` for images that cannot be
    learned from, `TrainingError` when the loss is not finite or the backbone has changed, `LockedError` when another
    process does the same, `Interrupted` after a signal, when all is saved.
    """
    begun = time.perf_counter()
    train, test = both_sides(config, WHAT, note)
    train = with_few_labels(train, config.labels, config.seed)
    frozen = open_encoder(config.encoder, Workspace(config.workspace), note)
    backbone = FrozenBackbone(frozen, Compute.of(config.device, "fp32"))
    folder = run_folder(config, train, frozen)
    with locked(folder / ".lock", f"The linear classification in {folder}"):
        probe = Probe(config, backbone, train, folder, note)
        probe.all_images = probe.images_per_epoch * probe.how.epochs + len(train) + len(test)
        probe.progress = progress
        probe.resume()
        with backbone.compute.keeping_memory():
            probe.learn()
            chosen = probe.choose()
            test, vectors, shares = probe.classify(chosen, test)  # once, when everything is chosen
        backbone.require_unchanged()
    of_train = chosen.vectors if chosen.vectors is not None else torch.zeros(1, vectors.shape[1])
    learned = train.side(functional.normalize(of_train, dim=1).expand(len(train), -1), frozen)
    asked = test.side(functional.normalize(vectors, dim=1), frozen)
    truth = test.classes(range(len(test)), probe.known).numpy()
    return ProbeResult(config, learned, asked, probe.known, truth, shares, chosen, probe.losses, backbone,
                       found_overlap(learned, asked, chosen.vectors is not None), time.perf_counter() - begun)


def run_folder(config: ProbeConfig, train: LabelledImages, frozen: FrozenEncoder) -> pathlib.Path:
    """Where the state is kept: its name depends on all that changes what is learned."""
    learned = {name: value for name, value in to_dict(config).items() if name not in EXECUTION}
    learned.update(train=train.identity, encoder=frozen.fingerprint(), lr=list(config.rates))
    return Workspace(config.workspace).probes / f"{config.protocol}-{sha256_json(learned)[:12]}"


def augmentation(config: ProbeConfig, transform: EvaluationTransform) -> Augmentation:
    """How the training images are seen."""
    published = config.published
    return Augmentation.of(transform, seed=config.seed, batch_size=config.batch_size or published.batch_size,
                           epochs=config.epochs or published.epochs, drop_last=published.drop_last)


class Probe:
    """Classifiers that learn, from the step of their checkpoint to the last one."""

    def __init__(self, config: ProbeConfig, backbone: FrozenBackbone, train: LabelledImages, folder: pathlib.Path,
                 note: Callable[[str], None]):
        self.config, self.backbone, self.train, self.folder, self.note = config, backbone, train, folder, note
        self.known = sorted(set(train.names))
        self.how = augmentation(config, backbone.transform)
        if len(train) < self.how.batch_size and self.how.drop_last:
            self.how = dataclasses.replace(self.how, drop_last=False)
        self.steps_per_epoch = steps_per_epoch(len(train), self.how.batch_size, self.how.drop_last)
        self.images_per_epoch = min(len(train), self.steps_per_epoch * self.how.batch_size)
        self.apart = held_out_part(train, config)
        self.heads = Heads(backbone.dimension, len(self.known), config.published, config.rates, config.seed)
        self.heads.to(backbone.compute.device)
        self.optimizer = self.heads.optimizer()
        self.step, self.done, self.unreadable = 0, 0, set[int]()
        self.losses: list[list[float]] = []
        """For every epoch that is over, the mean loss for each rate."""
        self.sums = torch.zeros(len(config.rates), dtype=torch.float64)
        self.all_images = 0
        self.progress: Callable[[int, int], None] = lambda done, total: None

    def resume(self):
        """Go on from the newest checkpoint, if there is one."""
        if self.config.fresh:
            delete_checkpoints(self.folder)
        state = load_newest(self.folder)
        if state is None:
            return
        require_resumable(state, self.heads, self.optimizer)
        self.heads.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self.sums = state["step"], state["losses"], state["sums"]
        self.unreadable = set(state["unreadable"])
        self.done = self.images_per_epoch * self.step // self.steps_per_epoch
        self.note(f"going on after step {self.step} of {self.steps_per_epoch * self.how.epochs} ({self.folder})")

    def save(self):
        """Write all that going on needs."""
        save_checkpoint(self.folder, {
            "step": self.step, "epoch": self.step // self.steps_per_epoch, "config": to_dict(self.config),
            "model": self.heads.state_dict(), "optimizer": self.optimizer.state_dict(), "losses": self.losses,
            "sums": self.sums, "unreadable": sorted(self.unreadable)})

    def learn(self):
        """All steps to the last one."""
        last, saved = self.steps_per_epoch * self.how.epochs, time.monotonic()
        on_gpu = self.backbone.compute.device.type == "cuda"
        with StopRequest() as stop:
            for batch in training_batches(self.train, self.how, self.step, self.config.workers, on_gpu):
                self.learn_from(batch)
                stopped = stop.signal_number is not None
                if stopped or self.step == last or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    self.backbone.require_unchanged()
                    self.save()
                    saved = time.monotonic()
                stop.raise_if_set(f"Stopped after step {self.step} of {last}; saved in {self.folder}. Run the same "
                                  "command again to continue.")

    def learn_from(self, batch: ViewBatch):
        """One step of all classifiers."""
        require_readable(batch, self.train, self.unreadable, self.note)
        device, rows = self.backbone.compute.device, batch.rows.tolist()
        x = self.backbone.features(augmented(batch, self.how, device, self.backbone.compute.dtype))
        y = self.train.classes(rows, self.known).to(device)
        total, losses = self.heads.losses(x, y, torch.from_numpy(self.apart[rows]).to(device))
        if not bool(torch.isfinite(total)):
            raise TrainingError(f"The loss is {float(total)} at step {self.step + 1} (--lr "
                                f"{','.join(f'{one:g}' for one in self.config.rates)}). Give lower rates.")
        set_rates(self.optimizer, self.config.published, self.step, self.steps_per_epoch, self.how)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.step += 1
        self.sums += losses.double().cpu()
        if self.step % self.steps_per_epoch == 0:
            self.losses.append((self.sums / self.steps_per_epoch).tolist())
            self.sums = torch.zeros_like(self.sums)
        self.count(len(rows))

    def count(self, images: int):
        """Report the progress."""
        self.done = min(self.done + images, self.all_images)
        self.progress(self.done, self.all_images)

    def shown(self, images: LabelledImages) -> Encoded:
        """Raw features of images as they are tested; a signal ends it, and what was learned is kept."""
        with StopRequest() as stop:
            def encode(pixels: torch.Tensor) -> torch.Tensor:
                stop.raise_if_set(f"Stopped after the last step; saved in {self.folder}. Run the same command again to "
                                  "continue.")
                return self.backbone.encode(pixels)

            found = encoded(images, self.backbone.transform, encode, self.config.workers, self.count)
        for text in found.notes(images):
            self.note(text)
        return found

    @torch.no_grad()
    def choose(self) -> Chosen:
        """The best rate on the held-out images, among equals the lower one.

        The training images are all shown as they are tested, so that copies of test images are found; where that
        does not fit into memory, only the held-out ones.
        """
        rates, whole = self.config.rates, fits(8 * len(self.train) * self.backbone.dimension, CPU)
        if not whole and len(rates) == 1:
            return Chosen(0, [], 0, None)
        apart = self.apart if whole else np.ones(int(self.apart.sum()), bool)
        images = self.train if whole else self.train.only(self.apart)
        found = self.shown(images)
        vectors = found.vectors if whole else None
        if len(rates) == 1:
            return Chosen(0, [], 0, vectors)
        asked = found.readable & apart
        truth = images.classes(np.flatnonzero(asked).tolist(), self.known).numpy()
        x = found.vectors[torch.from_numpy(asked)].to(self.backbone.compute.device)
        scores = [score_of(self.config.metric, head(x), truth) for head in self.heads.choosing]
        tried = [{"lr": rate, "score": score} for rate, score in zip(rates, scores)]
        return Chosen(int(np.argmax(scores)), tried, int(asked.sum()), vectors)

    @torch.no_grad()
    def classify(self, chosen: Chosen, test: LabelledImages) -> tuple[LabelledImages, torch.Tensor, np.ndarray]:
        """Of the test images that can be read: they, their raw features (Q, D) and probabilities (Q, C) float32."""
        found = self.shown(test)
        vectors = found.vectors[torch.from_numpy(found.readable)]
        scores = self.heads.everything[chosen.place](vectors.to(self.backbone.compute.device))
        return test.only(found.readable), vectors, scores.softmax(dim=1).cpu().numpy()


def held_out_part(train: LabelledImages, config: ProbeConfig) -> np.ndarray:
    """(N,) bool: the training images on which the learning rate is chosen; none for a single rate."""
    if len(config.rates) == 1:
        return np.zeros(len(train), bool)
    try:
        return held_out(train.names, train.groups, HELD_OUT, config.seed)
    except CollectionError as error:
        raise CollectionError("Every class has a single labelled image, so none can be held out to choose the learning "
                              f"rate on. Give more images, or one --lr, for example {config.published.published_lr:g}."
                              ) from error


def found_overlap(train: Side, test: Side, known: bool) -> Overlap:
    """Test images that are among the training images; near-duplicates only where the vectors of those are `known`."""
    if not known:
        same = shared_bytes(test, train, False)
        return Overlap(int(same.sum()), None, None, True)
    nearest = torch.cat([piece[:, 0].cpu() for piece, _ in neighbours(test.vectors, train.vectors, 1)])
    return overlap(test, train, False, nearest.numpy())
