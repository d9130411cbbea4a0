"""The published linear protocols: folders of labelled images and an encoder -> percent right of the test images.

Each seed learns from labels of its own (`probing`), and its state is kept, so that what is stopped goes on. Its
learning rate is chosen on images that its choosing classifiers never saw; the number is that of the classifier with
that rate that learned from all. The test images are shown once, when everything is chosen.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch.nn import functional

from mocoembed.config import ProbeConfig
from mocoembed.evaluate.images.baselines import ImageBaselines
from mocoembed.evaluate.images.frozen_backbone import FrozenBackbone, require_finite
from mocoembed.evaluate.images.labelled import Encoded, LabelledImages, both_sides, encoded, features_fit, found_overlap
from mocoembed.evaluate.images.probe_result import ProbeRepeat, ProbeResult
from mocoembed.evaluate.images.probing import Probe
from mocoembed.evaluate.images.tally import Tally
from mocoembed.evaluate.linear.accuracy import seeds_of
from mocoembed.files import StopRequest, locked
from mocoembed.model.precision import Compute
from mocoembed.notes import say_nothing
from mocoembed.train.export import open_encoder
from mocoembed.workspace import Workspace

WHAT = "linear classification"

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


def probe_accuracy(config: ProbeConfig, progress: Progress = lambda done, total: None,
                   note: Note = say_nothing) -> ProbeResult:
    """How many test images a linear classifier gets right that is trained as the protocol's authors do.

    `progress(done, total)` counts images; `note(text)` is told what a person should know. Goes on where it was stopped,
    to the same result. Raises `UsageError` for what does not exist, `CollectionError` for images that cannot be
    learned from, `TrainingError` when features or the loss are not finite or the backbone has changed, `LockedError`
    when another process does the same, `Interrupted` after a signal, when all is saved.
    """
    begun = time.perf_counter()
    compute = Compute.of(config.device, "fp32")  # what is wrong with the options is said before images are read
    frozen = open_encoder(config.encoder, Workspace(config.workspace), note)
    require_finite(frozen)
    train, test = both_sides(config, WHAT, note)
    backbone, encoder = FrozenBackbone(frozen, compute), frozen.fingerprint()
    seeds = range(config.seed, config.seed + seeds_of(config))
    run = Run(config, [Probe(config, backbone, train, encoder, seed) for seed in seeds], train, test, note)
    others = ImageBaselines(train, test, frozen, config, len(seeds))
    with ExitStack() as locks:
        for probe in run.probes:
            locks.enter_context(locked(probe.folder / ".lock", f"The linear classification in {probe.folder}"))
        run.tally.expect(others.read_kept(note))
        run.tally.report_to(progress)
        with compute.keeping_memory():
            run.learn()
            repeats, (learned, of_train), (test, vectors) = run.measure()
        with StopRequest() as stop:
            beside = others.measure(note, run.tally.add, stop)
    known = len(of_train) == len(learned)
    one_side = learned.side(functional.normalize(of_train if known else torch.zeros(len(learned), 1), dim=1), frozen)
    other = test.side(functional.normalize(vectors, dim=1), frozen)
    return ProbeResult(config, one_side, other, run.probes[0].known, repeats, run.probes[0].how, backbone,
                       backbone.require_unchanged(), found_overlap(one_side, other, known),
                       beside.with_majority(one_side, other), time.perf_counter() - begun)


class Run:
    """All seeds, which learn one after the other and are measured together."""

    def __init__(self, config: ProbeConfig, probes: list[Probe], train: LabelledImages, test: LabelledImages,
                 note: Note):
        self.config, self.probes, self.train, self.test, self.note = config, probes, train, test, note
        self.backbone = probes[0].backbone
        self.wanted = self._wanted()
        """(N,) bool: training images that are shown as they are tested."""
        self.tally = Tally()
        self.tally.expect(sum(probe.images_per_epoch * probe.how.epochs for probe in probes) + int(self.wanted.sum())
                          + len(test))

    def _wanted(self) -> np.ndarray:
        """All that are learned from, so that copies of test images are found; if they do not fit, those held out."""
        used = np.logical_or.reduce([probe.used for probe in self.probes])
        if features_fit(int(used.sum()), self.backbone.dimension):
            return used
        wanted = np.zeros(len(self.train), bool)
        for probe in self.probes:
            wanted[probe.held_out_rows] = True
        return wanted

    def learn(self):
        """All steps of all seeds that are not done yet."""
        for probe in self.probes:
            if done := probe.resume(self.note):
                self.tally.add(done)
            probe.learn(self.note, self.tally.add)

    def measure(self) -> tuple[list[ProbeRepeat], tuple[LabelledImages, torch.Tensor],
                               tuple[LabelledImages, torch.Tensor]]:
        """What each seed says of the test images; the images learned from, the test images that can be read, and the
        raw features (N, D) of both. Of the first there are none where they do not fit into memory."""
        used = np.logical_or.reduce([probe.used for probe in self.probes])
        vectors, readable = torch.zeros(0, self.backbone.dimension), np.ones(0, bool)
        if self.wanted.any():
            shown = self._shown(self.train.only(self.wanted))
            vectors, readable = shown.vectors, shown.readable
        place = np.cumsum(self.wanted) - 1
        chosen = []
        for probe in self.probes:
            rows = place[probe.held_out_rows]
            chosen.append(probe.choose(vectors[torch.from_numpy(rows)], readable[rows]))
        found = self._shown(self.test)  # once, when everything is chosen
        test, asked = self.test.only(found.readable), found.vectors[torch.from_numpy(found.readable)]
        truth = test.classes(range(len(test)), self.probes[0].known).numpy()
        repeats = [ProbeRepeat(probe.seed, len(probe.images), truth, probe.shares(one, asked), one,
                               self.config.rates[one.place], probe.losses) for probe, one in zip(self.probes, chosen)]
        whole = vectors if np.array_equal(self.wanted, used) else vectors[:0]
        return repeats, (self.train.only(used), whole), (test, asked)

    def _shown(self, images: LabelledImages) -> Encoded:
        """Raw features of images as they are tested; a signal ends it, and what was learned is kept."""
        with StopRequest() as stop:
            def encode(pixels: torch.Tensor) -> torch.Tensor:
                stop.raise_if_set(f"Stopped after the last step; saved in {self.probes[0].folder.parent}. Run the same "
                                  "command again to continue.")
                return self.backbone.encode(pixels)

            found = encoded(images, self.backbone.transform, encode, self.config.workers, self.tally.add)
        for text in found.notes(images):
            self.note(text)
        return found
