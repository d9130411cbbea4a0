"""The settings of `mocoembed knn`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, device_name, few_labels, one_of, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError
from mocoembed.recipes import KNN_PRESETS


@dataclass(frozen=True)
class KnnConfig:
    """Everything that `mocoembed knn` needs."""

    bank: str | None = None
    """Embeddings file whose labelled images vote; by default, embeddings.h5 in the workspace."""
    queries: str | None = None
    """Embeddings file of the images to classify; without it, leave-one-out on the bank."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    preset: str | None = None
    """Protocol: lightly (backbone, k 200, T 0.1), moco (projection, the same) or dino (backbone, four k, T 0.07).
    DINO's own code assumes 1,000 classes and, for k below 5, counts only k places for top-5; here the classes are the
    bank's, and five places count."""
    k: tuple[int, ...] = ()
    """Numbers k of nearest neighbours that vote, separated by commas; by default, the preset's, or 200."""
    temperature: tuple[float, ...] = ()
    """Temperatures T of the vote's weights exp(s/T), separated by commas; by default, the preset's, or 0.1."""
    labels: str | None = None
    """Let only a few images vote: a share of every class such as 1% or 10%, or a number for each class such as
    5-per-class. Without QUERIES, all others are classified."""
    seeds: int = 5
    """With --labels: number of repeats, each with other images; the mean and its interval are printed."""
    tune: bool = False
    """Choose k and T on a held-out fifth of the bank, never on the queries, from the values
    given or the usual ones."""
    suspects: bool = False
    """List the images whose neighbours vote most clearly for another label: suspected wrong labels."""
    baselines: bool | None = None
    """Also measure what needs no training, by the same protocol: raw pixels, colour histogram (HSV), HOG and the same
    architecture untrained. By default, what takes seconds, if the images are still there."""
    index: str | None = None
    """Index file of the bank to find the neighbours by, for large banks. An approximate index misses some
    neighbours; its recall is printed. By default, every image of the bank is compared."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N. With --index, auto searches the index on the CPU."""

    def __post_init__(self):
        if self.preset is not None:
            one_of(self, "preset", tuple(KNN_PRESETS))
        if self.tune and self.queries is None:
            raise UsageError("--tune: without QUERIES, k and T would be chosen on the images that they are measured on."
                             " Give two files: mocoembed knn TRAIN.h5 TEST.h5 --tune")
        few_labels(self)
        device_name(self)
        at_least(self, 1, "seeds")
        if self.labels is not None and self.tune:
            raise UsageError("--tune: not with --labels, which leave too few images to choose k and T on. Give -k and "
                             "--temperature.")
        require(self, "k", all(k >= 1 for k in self.k), "numbers of 1 or more")
        require(self, "temperature", all(t > 0 for t in self.temperature), "numbers above 0")
