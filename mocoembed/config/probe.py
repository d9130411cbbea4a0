"""The settings of `mocoembed linear --protocol ...`: the published protocols, on images, and what each of them is."""

from dataclasses import dataclass

from mocoembed.checks import at_least, at_most, device_name, few_labels, one_of, relative_globs, require
from mocoembed.config.linear import LINEAR_METRICS
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError


@dataclass(frozen=True)
class PublishedProtocol:
    """How others train a linear classifier on a frozen backbone: SGD with momentum 0.9 and without weight decay."""

    source: str
    """Where these settings are from."""
    lr: tuple[float, ...]
    """Learning rates to choose from."""
    published_lr: float
    scaled: bool
    """Whether learning rates are for a batch of 256 and grow with the batch."""
    schedule: str
    """`steps`: x 0.1 after 60 % and 80 % of the epochs; `cosine-epochs`, to 0; `cosine-steps`, to 0.001."""
    epochs: int
    batch_size: int
    first_weights: str
    """`normal`: of deviation 0.01, the bias 0; `uniform`: up to 1 / sqrt(D), as PyTorch's Linear."""
    drop_last: bool
    """Whether the images that do not fill the last batch of an epoch are left out."""


PROTOCOLS = {
    "moco": PublishedProtocol("facebookresearch/moco, main_lincls.py",
                              (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), 30.0, False, "steps", 100, 256,
                              "normal", False),
    "dino": PublishedProtocol("facebookresearch/dino, eval_linear.py", (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
                              1e-3, True, "cosine-epochs", 100, 1024, "normal", False),
    "lightly": PublishedProtocol("lightly-ai/lightly, benchmarks/imagenet/resnet50/linear_eval.py",
                                 (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), 0.1, True, "cosine-steps", 90, 256, "uniform", True),
}


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that `mocoembed linear --protocol` needs."""

    protocol: str
    """With folders of images in place of embeddings files: a published protocol, moco, dino or lightly: SGD on raw
    features of augmented images. The options from here on are for it alone."""
    train: str | None = None
    """Folder (list, shards) of the images that are learned from."""
    test: str | None = None
    """Folder of the images to classify; without it, a stratified fifth of TRAIN, which is not learned from."""
    encoder: str | None = None
    """Encoder file, checkpoint, run folder or known name, as for `embed`; by default, the workspace's newest."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    labels: str | None = None
    """Use only a few labels: a share of every class such as 1% or 10%, or a number for each class such as
    5-per-class."""
    seeds: int | None = None
    """Number of repeats, each with other labels, crops, held-out images and first weights; the mean and its interval
    are printed. By default, 5 with --labels, else 1."""
    metric: str = "top1"
    """What the learning rate is chosen by on the held-out images: top1, balanced or ap."""
    lr: tuple[float, ...] = ()
    """Learning rates to choose from, separated by commas, all tried in one pass through the encoder; by default, the
    protocol's. With a single one nothing is held out."""
    epochs: int | None = None
    """Epochs; by default, the protocol's (moco 100, dino 100, lightly 90)."""
    batch_size: int | None = None
    """Images in a batch; by default, the protocol's (moco 256, dino 1024, lightly 256)."""
    exclude: tuple[str, ...] = ()
    """Leave out images whose path, or a folder of it, matches this glob; may be given several times."""
    workers: int | None = None
    """Processes that load images; by default, one fewer than the cores."""
    fresh: bool = False
    """Start over, even if the same was interrupted before."""
    seed: int = 0
    """Random seed of the first repeat, and of the fifth that is tested on without TEST."""
    baselines: bool | None = None
    """Also measure what needs no trained encoder, by logistic regression on the same images: raw pixels, colour
    histogram (HSV), HOG and the same architecture untrained. By default, what takes seconds."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        one_of(self, "protocol", PROTOCOLS)
        one_of(self, "metric", LINEAR_METRICS)
        few_labels(self)
        device_name(self)
        at_least(self, 1, "epochs", "seeds")
        at_least(self, 2, "batch_size")
        at_least(self, 0, "seed", "workers")
        at_most(self, 2**31 - 1, "seed")
        relative_globs(self, "exclude")
        require(self, "lr", all(0 < one <= 1e4 for one in self.lr), "numbers above 0, up to 10000")
        if self.train is None:
            raise UsageError(f"--protocol {self.protocol}: learns from images. Give the folder of the training images: "
                             f"mocoembed linear TRAIN_FOLDER [TEST_FOLDER] --protocol {self.protocol}")
        for path in (self.train, self.test):
            if path is not None and path.endswith(".h5"):
                raise UsageError(f"{path} is an embeddings file, and --protocol {self.protocol} learns from images: "
                                 "its learning rates belong to raw features, not to stored vectors of length 1. "
                                 "Give folders of images, or leave out --protocol.")

    @property
    def published(self) -> PublishedProtocol:
        """What the protocol's authors do."""
        return PROTOCOLS[self.protocol]

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to choose from, the smallest first."""
        return tuple(sorted(set(self.lr or self.published.lr)))
