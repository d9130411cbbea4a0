"""Baselines: what needs no training, by the same protocol, to stand beside every number.

In: the two sides of an evaluation and the function that measures them. Out: for each baseline its measures, and why
others are left out. A number below a colour histogram's says little of an encoder.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mocoembed.errors import CollectionError
from mocoembed.evaluate import untrained
from mocoembed.evaluate.measures import Measured, share
from mocoembed.evaluate.pixels import colour_histogram, gradients_histogram, raw_pixels, read_pixels
from mocoembed.evaluate.sides import Side
from mocoembed.memory import within_memory

CHEAP = 10**11  # multiplications that the untrained encoder may take unasked: a few seconds of two cores
AUTOMATIC = 1000  # images that are read unasked: a few seconds
FEATURES = {"raw pixels": raw_pixels, "colour histogram": colour_histogram, "HOG": gradients_histogram}
UNTRAINED = "untrained encoder"
TOO_SLOW = "the untrained encoder is left out of the baselines, as it takes a while; give --baselines"
WIDEST = 3 * 32 * 32  # numbers of the longest of them


@dataclass(frozen=True)
class Fits:
    """How the logistic regressions of a baseline ended."""

    count: int
    unconverged: int
    """Those whose numbers are not to be trusted."""
    gradient_norm: float
    """The largest of the unconverged ones, or of all."""

    @classmethod
    def of(cls, fits: Iterable[dict]) -> "Fits":
        """Of `converged` and `gradient_norm` of each fit."""
        every = list(fits)
        bad = [one for one in every if not one["converged"]]
        return cls(len(every), len(bad), max(one["gradient_norm"] for one in bad or every))


@dataclass(frozen=True)
class Baseline:
    """What a baseline gets right."""

    values: dict[str, Measured]
    fits: Fits | None = None
    """How its fits ended; `None`: nothing was fitted."""

    @property
    def converged(self) -> bool:
        """Whether its numbers are to be trusted."""
        return self.fits is None or not self.fits.unconverged

    def as_json(self, name: str) -> dict:
        """An entry like those of `results`, with its name and, if it was fitted, whether that converged."""
        return {"name": name, **{measure: one.as_json() for measure, one in self.values.items()},
                **({} if self.fits is None else {"converged": self.converged})}


@dataclass(frozen=True)
class Baselines:
    """What stands beside the numbers of an encoder."""

    found: dict[str, Baseline]
    without: list[str]
    """Why others are left out."""

    def with_majority(self, bank: Side, queries: Side) -> "Baselines":
        """The most frequent label of the bank, among equals the first by name, before all others."""
        counts = Counter(bank.names)
        label = min(counts, key=lambda name: (-counts[name], name))
        right = np.array([name == label for name in queries.names])
        return Baselines({"majority class": Baseline({"top1": share(right)}), **self.found}, self.without)

    def as_json(self) -> list[dict]:
        """An entry for each."""
        return [one.as_json(name) for name, one in self.found.items()]

    def notes(self, name: str, value: float, what: str = "encoder") -> list[str]:
        """A line when a baseline is as good as `what` was measured, whose measure `name` is `value`; one for each that
        did not converge; and why others are left out."""
        better = [f"{who} ({one.values[name].value:.2f})" for who, one in self.found.items()
                  if name in one.values and one.values[name].value >= value]
        notes = [f"the {what} ({value:.2f}) is no better than these baselines: {', '.join(better)}"] if better else []
        notes += [f"the baseline {who}: {one.fits.unconverged} of {one.fits.count} fits did not converge (gradient "
                  f"norm {one.fits.gradient_norm:.1e}), so do not trust its numbers"
                  for who, one in self.found.items() if one.fits and not one.converged]
        return notes + self.without


def baselines(bank: Side, queries: Side, asked: bool | None, measure: Callable[[Side, Side], Baseline]) -> Baselines:
    """Every baseline of pixels, and the untrained encoder.

    `measure(bank, queries)` measures two sides. asked: `None` reads up to `AUTOMATIC` images, and does without them
    where one cannot be read; `True` reads any number. Raises `CollectionError` for an image that cannot be read.
    """
    names, without = planned_of(bank, queries, asked)
    if not names:
        return Baselines({}, without)
    sides = (bank,) if queries is bank else (bank, queries)
    try:
        with within_memory("The baselines", _images(bank, queries) * WIDEST * 9):  # pixels, twice their float32 vectors
            pixels = [read_pixels(side) for side in sides]
            found = {name: measure(*_sides(bank, queries, [torch.from_numpy(features(one)) for one in pixels]))
                     for name, features in FEATURES.items()}
            if UNTRAINED in names:
                description = untrained.description(bank)
                assert description is not None  # or it would not be planned
                vectors = [untrained.untrained(description, side) for side in sides]
                found[UNTRAINED] = measure(*_sides(bank, queries, vectors))
            return Baselines(found, without)
    except CollectionError as error:
        if asked:
            raise CollectionError(f"--baselines: {error} Leave the option out, or bring the images back.") from error
        return Baselines({}, [f"no baselines: {error}"])


def planned(images: int, asked: bool | None, cost: Callable[[], int] | None) -> tuple[list[str], list[str]]:
    """The names of the baselines of pixels that are to be measured, in order, and what to say about those left out.

    `cost()`: multiplications of the untrained encoder for an image; `None`: there is no such encoder.
    """
    if asked is False:
        return [], []
    if asked is None and images > AUTOMATIC:
        return [], [f"no baselines: {images} images would have to be read; give --baselines"]
    if cost is None:
        return [*FEATURES], []
    if asked is None and cost() * images > CHEAP:
        return [*FEATURES], [TOO_SLOW]
    return [*FEATURES, UNTRAINED], []


def planned_of(bank: Side, queries: Side, asked: bool | None) -> tuple[list[str], list[str]]:
    """The same for embeddings files."""
    found = None if asked is False else untrained.description(bank)
    return planned(_images(bank, queries), asked, None if found is None else lambda: untrained.cost(found))


def _images(bank: Side, queries: Side) -> int:
    return len(bank.names) + (0 if queries is bank else len(queries.names))


def _sides(bank: Side, queries: Side, features: list[torch.Tensor]) -> tuple[Side, Side]:
    """The sides with other vectors; one and the same if they were."""
    made = [dataclasses.replace(side, vectors=functional.normalize(vectors, dim=1).to(side.vectors.device))
            for side, vectors in zip((bank, queries), features)]
    return made[0], made[-1]
