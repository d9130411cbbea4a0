"""The settings of `mocoembed rankme`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, device_name
from mocoembed.config.pretrain import DEFAULT_WORKSPACE


@dataclass(frozen=True)
class RankmeConfig:
    """Everything that `mocoembed rankme` needs."""

    embeddings: str | None = None
    """Embeddings file; by default, embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    images: int = 25_600
    """Number of images to measure, drawn at random where there are more. RankMe grows with it, so compare results for
    the same number only."""
    seed: int = 0
    """Seed of that draw."""
    baselines: bool | None = None
    """Also measure what needs no training, in the same way: raw pixels, colour histogram (HSV), HOG and the same
    architecture untrained. By default, what takes seconds, if the images are still there."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        device_name(self)
        at_least(self, 2, "images")
        at_least(self, 0, "seed")
