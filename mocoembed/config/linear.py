"""The settings of `mocoembed linear`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, at_most, device_name, few_labels, one_of, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError

LINEAR_METRICS = ("top1", "balanced", "ap")


@dataclass(frozen=True)
class LinearConfig:
    """Everything that `mocoembed linear` needs."""

    train: str | None = None
    """Embeddings file whose labelled images are learned from; by default, embeddings.h5 in the workspace."""
    test: str | None = None
    """Embeddings file of the images to classify; without it, TRAIN is split into folds."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    folds: int | None = None
    """Without TEST: number of folds; each is classified by what was learned from the others. By default, 5."""
    labels: str | None = None
    """Use only a few labels: a share of every class such as 1% or 10%, or a number for each class such as
    5-per-class."""
    seeds: int | None = None
    """Number of repeats, each with other labels, folds and held-out images; the mean and its interval are printed. By
    default, 5 with --labels, else 1."""
    metric: str = "top1"
    """What the penalty (with --protocol, the learning rate) is chosen by on the held-out images: top1, balanced (mean
    recall of the classes) or ap (mean average precision of the classes)."""
    penalty: tuple[float, ...] = ()
    """Penalties to choose from, separated by commas; by default, 1e-1 to 1e-7, a factor of ten apart. With a single one
    nothing is held out."""
    steps: int = 1000
    """Most steps of the solver for one penalty. A fit that has not converged by then is reported, and the command ends
    with status 1."""
    seed: int = 0
    """Random seed of the first repeat."""
    baselines: bool | None = None
    """Also measure what needs no trained encoder, by logistic regression on the same images: raw pixels, colour
    histogram (HSV), HOG and the same architecture untrained. By default, what takes seconds, if the images are still
    there."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        few_labels(self)
        device_name(self)
        at_least(self, 2, "folds")
        at_least(self, 1, "seeds", "steps")
        at_least(self, 0, "seed")
        at_most(self, 2**31 - 1, "seed")
        one_of(self, "metric", LINEAR_METRICS)
        require(self, "penalty", all(1e-10 <= one <= 1e6 for one in self.penalty), "numbers from 1e-10 to 1e6")
        if self.test is not None and self.folds is not None:
            raise UsageError(f"--folds {self.folds}: with a TEST file, TRAIN is not split. Leave out one of them.")
