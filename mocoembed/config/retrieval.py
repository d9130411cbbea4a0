"""The settings of `mocoembed retrieval`."""

from dataclasses import dataclass

from mocoembed.checks import device_name, one_of, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE

DEFINITIONS = ("steps", "revisitop")


@dataclass(frozen=True)
class RetrievalConfig:
    """Everything that `mocoembed retrieval` needs."""

    bank: str | None = None
    """Embeddings file that is searched; by default, embeddings.h5 in the workspace."""
    queries: str | None = None
    """Embeddings file of the queries; without it, each image of the bank searches all the others."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    pairs: str | None = None
    """CSV file that says what should be found instead of labels: columns query and match (paths as in the embeddings,
    or full paths), and optionally junk (1: the match is neither right nor wrong)."""
    at: tuple[int, ...] = (1, 5, 10)
    """Numbers k of first hits that are looked at, separated by commas."""
    exclude_identical: bool = False
    """Leave out of a query's ranking images with exactly the same bytes."""
    definition: str = "steps"
    """Average precision: steps (the mean of the precision at every relevant image, as scikit-learn), or revisitop (by
    trapezoids, and P@k over the last relevant rank where that is below k)."""
    baselines: bool | None = None
    """Also measure what needs no training, by the same protocol: raw pixels, colour histogram (HSV), HOG and the same
    architecture untrained. By default, what takes seconds, if the images are still there."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        device_name(self)
        one_of(self, "definition", DEFINITIONS)
        require(self, "at", bool(self.at) and min(self.at) >= 1, "numbers of 1 or more")
