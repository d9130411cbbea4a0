"""The settings of `mocoembed index`."""

import re
from dataclasses import dataclass

from mocoembed.checks import require, size_in_bytes
from mocoembed.config.pretrain import DEFAULT_WORKSPACE

INDEX_TYPES = ("auto", "flat", "rabitq", "ivf-sq8", "ivf-pq", "ivf-flat", "hnsw")


@dataclass(frozen=True)
class IndexConfig:
    """Everything that `mocoembed index` needs."""

    embeddings: str | None = None
    """Embeddings file; by default, embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    output: str | None = None
    """Index file to write; by default, beside the embeddings file, with the extension .faiss."""
    fresh: bool = False
    """Build anew instead of updating, and replace an index of another embeddings file."""
    type: str = "auto"
    """Kind of index: auto, flat (exact), rabitq, ivf-sq8, ivf-pq, ivf-flat, hnsw, or a factory string of FAISS. If
    an index exists, auto keeps the type that was asked for when it was built."""
    recall: float | None = None
    """Recall@10 to reach: the share of the ten nearest neighbours that a search finds. By default, that of the
    existing index, or 0.99 for a new one. A lower one than it was built for requires --fresh."""
    allow_lower_recall: bool = False
    """Keep an index that misses --recall."""
    memory: str | None = None
    """Memory limit for building, which takes more than searching: 4GB or 500MiB, for example. By default, what is
    free."""
    gpu: bool = False
    """Find the centres of inverted lists on the GPUs."""

    def __post_init__(self):
        require(self, "type", self.type in INDEX_TYPES or not re.fullmatch("[a-z-]*", self.type),
                f"one of {', '.join(INDEX_TYPES)}, or a factory string of FAISS such as IVF1024,SQ8")
        require(self, "recall", self.recall is None or 0 < self.recall <= 1, "above 0 and at most 1")
        size_in_bytes(self, "memory")
