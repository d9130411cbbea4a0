"""Baselines of an evaluation on folders of images: what needs no trained encoder, from the same images and labels.

In: the images of both sides and the encoder that was measured. Out: for each baseline its measures, and how its fits
ended. Features of whole images, resized and cropped as in a test, are classified by logistic regression as in
`mocoembed linear`, for the same seeds: to train them as the encoder was trained, on crops, would take as long as the
encoder. Each is kept as soon as it is measured (`kept_baselines`), so a command that goes on, or another one on the
same images, labels and seeds, takes it from there.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from mocoembed.config import FinetuneConfig, LinearConfig, ProbeConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import CollectionError
from mocoembed.evaluate.baselines import FEATURES, UNTRAINED, WIDEST, Baseline, Baselines, planned
from mocoembed.evaluate.images.kept_baselines import KeptBaselines
from mocoembed.evaluate.images.labelled import Encoded, LabelledImages, encoded
from mocoembed.evaluate.linear.accuracy import baseline_of, fits_each, measure
from mocoembed.evaluate.pixels import SIZE
from mocoembed.evaluate.sides import Side
from mocoembed.evaluate.untrained import SEED, random_encoder
from mocoembed.files import StopRequest
from mocoembed.memory import within_memory
from mocoembed.model.cost import multiplications
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute
from mocoembed.workspace import Workspace

FOR_SINGLE_IMAGES = (1e-2,)  # the penalty, where no class has a second image to choose one on

Count = Callable[[int], None]


class ImageBaselines:
    """Raw pixels, colour histogram, HOG and the same architecture untrained, for the images of both sides.

    `config.baselines`: `None` reads up to `baselines.AUTOMATIC` images, and encodes them if that takes seconds. Images
    that cannot be read are left out.
    """

    def __init__(self, train: LabelledImages, test: LabelledImages, frozen: FrozenEncoder,
                 config: ProbeConfig | FinetuneConfig, seeds: int):
        self.train, self.test, self.frozen, self.config = train, test, frozen, config
        self.images = len(train) + len(test)
        self.names, self.without = planned(self.images, config.baselines, lambda: multiplications(
            frozen.encoder.spec, frozen.transform.crop))
        """Those that are to be measured, and why there are no others."""
        self.found: dict[str, Baseline] = {}
        self.asked = LinearConfig(labels=config.labels, seeds=seeds, seed=config.seed,
                                  metric=config.metric if isinstance(config, ProbeConfig) else "top1")
        self.kept = KeptBaselines(Workspace(config.workspace).baselines, {
            "train": train.identity, "test": test.identity, "encoder": frozen.fingerprint(), "labels": config.labels,
            "seeds": seeds, "seed": config.seed, "metric": self.asked.metric})

    def read_kept(self, note: Callable[[str], None]) -> int:
        """Take what was measured before, unless all starts over; how many images are still to be counted."""
        if self.names and self.config.fresh:
            self.kept.delete()
        elif self.names:
            kept = self.kept.read(note)
            self.found = {name: kept[name] for name in self.names if name in kept}
        missing = [name for name in self.names if name not in self.found]
        passes = (1 if set(missing) & set(FEATURES) else 0) + (UNTRAINED in missing) + len(missing)
        return passes * self.images

    def measure(self, note: Callable[[str], None], count: Count, stop: StopRequest) -> Baselines:
        """All of them, of which those that are not kept are measured.

        `note(text)` is told what is being done; `count(n)` counts images that were read, encoded or, fit by fit,
        classified. A signal ends it between two fits, and what was measured is kept.
        """
        if self.found:
            note(f"baselines kept from before: {', '.join(self.found)} ({self.kept.path})")

        def counted(images: int):
            count(images)
            stop.raise_if_set(f"Stopped in the baselines; what was measured is kept in {self.kept.path.parent}. Run "
                              "the same command again to continue.")

        try:
            self._measure(note, counted)
        except CollectionError as error:  # too few images of a class can be read
            return Baselines({}, [f"no baselines: {error}"])
        return Baselines({name: self.found[name] for name in self.names}, self.without)

    def _measure(self, note: Callable[[str], None], count: Count):
        if missing := [name for name in FEATURES if name in self.names and name not in self.found]:
            note(f"baselines: reading {self.images} images at {SIZE} pixels for {', '.join(missing)}")
            with within_memory("The baselines", self.images * WIDEST * 9):  # pixels, and twice their float32 vectors
                small = EvaluationTransform(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3,
                                            value_range=self.frozen.transform.value_range)
                shown = self._shown(small, lambda pixels: pixels, count)
                pixels = [one.vectors.permute(0, 2, 3, 1).numpy() for one in shown]  # N x S x S x 3
                for name in missing:
                    self._add(name, shown, [torch.from_numpy(FEATURES[name](one)) for one in pixels], note, count)
        if UNTRAINED in self.names and UNTRAINED not in self.found:
            note(f"baselines: encoding {self.images} images by the {UNTRAINED}")
            random = random_encoder(self.frozen.encoder.spec, self.frozen.transform, SEED)
            embed = Embedder(random, Compute.of(self.config.device, "fp32"), "backbone", normalized=True)
            shown = self._shown(random.transform, embed, count)
            self._add(UNTRAINED, shown, [one.vectors for one in shown], note, count)

    def _shown(self, transform: EvaluationTransform, encode: Callable[[torch.Tensor], torch.Tensor],
               count: Count) -> list[Encoded]:
        return [encoded(side, transform, encode, self.config.workers, count) for side in (self.train, self.test)]

    def _add(self, name: str, shown: list[Encoded], vectors: list[torch.Tensor], note: Callable[[str], None],
             count: Count):
        """Measure features (N, D) and (Q, D) of both sides, and keep it."""
        note(f"baselines: {name}, logistic regression of {vectors[0].shape[1]} features "
             f"({self.names.index(name) + 1} of {len(self.names)})")
        bank, queries = (_side(images, one.readable, found)
                         for images, one, found in zip((self.train, self.test), shown, vectors))
        try:
            found = self._learned(bank, queries, self.asked, count)
        except CollectionError:
            found = self._learned(bank, queries, dataclasses.replace(self.asked, penalty=FOR_SINGLE_IMAGES), count)
        self.found[name] = found
        self.kept.write(self.found)

    def _learned(self, bank: Side, queries: Side, asked: LinearConfig, count: Count) -> Baseline:
        """Logistic regression; over all its fits, as many images are counted as there are."""
        share = functools.partial(_part, self.images, fits_each(asked) * (asked.seeds or 1))
        return baseline_of(*measure(bank, queries, asked, lambda done, total: count(share(done))))


def _part(images: int, fits: int, done: int) -> int:
    """Of `images`, those that belong to fit number `done`, from 1, of `fits`."""
    return images * done // fits - images * (done - 1) // fits


def _side(images: LabelledImages, readable: np.ndarray, vectors: torch.Tensor) -> Side:
    """The images that could be read, with these vectors."""
    kept = images.only(readable)
    return Side(images.path, "", "backbone", {}, functional.normalize(vectors[torch.from_numpy(readable)], dim=1),
                kept.names, 0, np.arange(len(kept)), kept.digests, np.arange(len(kept)), True)
