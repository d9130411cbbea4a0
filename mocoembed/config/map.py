"""The settings of `mocoembed map`."""

from dataclasses import dataclass

from mocoembed.config.pretrain import DEFAULT_WORKSPACE


@dataclass(frozen=True)
class MapConfig:
    """Everything that `mocoembed map` needs."""

    embeddings: str | None = None
    """Embeddings file; by default, embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    fresh: bool = False
    """Arrange all images anew, instead of keeping those that are already on the map in their places."""
