"""What can be measured without labels: an embeddings file -> RankMe and uniformity, of a fixed number of its images.

Alignment is not among them: it takes two views of every image, and an embeddings file has one. Pretraining has both
(`train/monitor.py`). The definitions and their sources are in `mocoembed/geometry.py`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed import geometry
from mocoembed.config import RankmeConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import CollectionError
from mocoembed.evaluate.baselines import Baseline, Baselines, baselines
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.result import Evaluation, Protocol
from mocoembed.evaluate.sides import Side, read_side
from mocoembed.model.precision import Compute
from mocoembed.workspace import Workspace

WHAT = "RankMe"
QUANTILE = 1.959964  # of the normal distribution, 97.5 %
FEWEST_FOR_INTERVAL = 10  # images


@dataclass(frozen=True)
class RankmeResult:
    """What `measure_unlabelled` measured, and all that the numbers depend on."""

    config: RankmeConfig
    side: Side
    """The images that were looked at."""
    listed: int
    """Images of the file."""
    values: dict[str, Measured]
    """rankme, in directions, and uniformity, a logarithm."""
    baselines: Baselines
    seconds: float

    @property
    def protocol(self) -> Protocol:
        """All that the numbers depend on but the data and the encoder."""
        return Protocol("rankme", {
            "preprocessing": "vectors scaled to length 1, not centred", "n": len(self.side.names),
            "drawn_by_seed": self.config.seed if self.listed > len(self.side.names) else None,
            "rankme": f"exp of the entropy of the singular values' shares, plus {geometry.EPSILON:g} each",
            "uniformity": f"log of the mean of exp(-{geometry.HEAT:g} squared distance), pairs of different images"})

    def as_json(self) -> dict:
        """The schema of all evaluations, as plain JSON types."""
        entry = {name: one.as_json() for name, one in self.values.items()}
        return Evaluation("rankme", self.protocol, self.side, self.side, None, [entry],
                          baselines=self.baselines.as_json(), device=str(self.side.vectors.device),
                          seconds=self.seconds, unit=None).as_json()

    def summary(self) -> str:
        """One line on what was looked at."""
        of_all = f" of {self.listed}" if self.listed > len(self.side.names) else ""
        return (f"n {len(self.side.names)}{of_all} images; {self.side.features} features of dimension "
                f"{self.side.vectors.shape[1]}, so RankMe is at most "
                f"{min(len(self.side.names), self.side.vectors.shape[1])}")

    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = []
        if len(self.side.names) < self.side.vectors.shape[1]:
            notes.append(f"{len(self.side.names)} images are fewer than the {self.side.vectors.shape[1]} dimensions, "
                         "and limit RankMe; compare it for the same images only")
        if self.values["uniformity"].value > -1e-6:
            notes.append("all vectors are the same (collapse)")
        return [*notes, *self.baselines.without]


def measure_unlabelled(config: RankmeConfig,
                       progress: Callable[[int, int], None] = lambda done, total: None) -> RankmeResult:
    """RankMe and uniformity of an embeddings file; labels play no part.

    `progress(done, total)` counts images. Raises `UsageError` for a missing file, `CollectionError` for fewer than two
    images, `FormatError` for a damaged file or vectors that are not finite.
    """
    begun = time.perf_counter()
    with EmbeddingFile(Workspace(config.workspace).embeddings_file(config.embeddings)) as file:
        if (listed := len(file)) < 2:
            raise CollectionError(f"{file.path} has {listed} images; {WHAT} needs 2 or more. Embed a larger folder.")
        side = read_side(file, Compute.of(config.device, "fp32").device, False, WHAT, streamed=True)
    wanted = np.zeros(listed, bool)
    wanted[geometry.sample(listed, config.images, config.seed)] = True
    side = side.only(wanted)
    others = baselines(side, side, config.baselines, lambda one, _: Baseline(values_of(one.vectors[:])))
    return RankmeResult(config, side, listed, values_of(side.vectors[:], progress), others,
                        time.perf_counter() - begun)


def values_of(vectors: torch.Tensor,
              progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Measured]:
    """RankMe and uniformity of vectors (N, D); RankMe has no interval, as drawing with repetition lowers it."""
    means = geometry.kernel_means(vectors, progress).numpy()
    return {"rankme": Measured(geometry.rankme(vectors), None, "", len(vectors), "directions"),
            "uniformity": log_mean(means)}


def log_mean(means: np.ndarray) -> Measured:
    """The uniformity from each image's mean over the pairs that it is in (N,), with the interval of the jackknife.

    Leaving image i out takes its pairs from the mean over all pairs (Arvesen 1969).
    """
    count, value = len(means), math.log(means.mean())
    if count < FEWEST_FOR_INTERVAL:
        return Measured(value, None, "", count, "log")
    left_out = np.log(np.maximum(count * means.mean() - 2 * means, np.finfo(float).tiny) / (count - 2))
    half = QUANTILE * math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    return Measured(value, (value - half, value + half), "jackknife over the images, normal", count, "log")
