"""The settings of `mocoembed finetune`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, at_most, device_name, few_labels, one_of, relative_globs, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE, PRECISIONS
from mocoembed.errors import UsageError


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that `mocoembed finetune` needs."""

    train: str
    """Folder (with a folder for each class), list file or tar shards of the labelled images to learn from."""
    test: str | None = None
    """The same of the images to classify at the end; without it, a stratified fifth of TRAIN, which is not learned
    from."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    encoder: str | None = None
    """Encoder to start from, as for embed; by default, the workspace's newest."""
    from_scratch: bool = False
    """Start from random weights of the same architecture, for comparison; all layers learn at the rate of --lr, and the
    workspace's classifier stays as it is."""
    labels: str | None = None
    """Use only a few labels: a share of every class such as 1% or 10%, or a number for each class such as
    5-per-class."""
    freeze_stages: int = 0
    """Number of stages, from the image on, that are not trained and whose BatchNorm keeps its statistics (a ResNet has
    five, the first of which is the stem)."""
    seeds: int | None = None
    """Number of repeats, each with other labels, weights of the classifier and crops; the mean and its interval are
    printed. By default, 3 with --labels, else 1."""
    seed: int = 0
    """Random seed of the first repeat, and of the fifth that is held out."""
    epochs: int | None = None
    """Passes over the labelled images; by default, 20, or as many as make 50 steps."""
    batch_size: int = 32
    """Images per step."""
    lr: float = 0.2
    """Initial learning rate of the linear layer, for a batch of 256; it grows with the batch, and falls to 0 by a
    cosine."""
    backbone_lr: float = 0.01
    """The same of the backbone."""
    weight_decay: float = 0.0
    """Weight decay of SGD."""
    run: str | None = None
    """Name of the folder of the run; by default, made from the settings, the images and the encoder."""
    fresh: bool = False
    """Start over, deleting what this run has done."""
    exclude: tuple[str, ...] = ()
    """Exclude files and folders that match this glob: by name, or by path if it has a slash. May be given again."""
    workers: int | None = None
    """Loading processes that decode and crop; by default, by the number of cores; 0: none."""
    baselines: bool | None = None
    """Also measure what needs no training of the encoder, by logistic regression on the same images: raw pixels, colour
    histogram (HSV), HOG and the same architecture untrained. By default, what takes seconds."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""
    precision: str = "fp32"
    """Precision of the training: fp64, fp32, tf32, bf16 or fp16 (autocast). The test is in fp32."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def __post_init__(self):
        one_of(self, "precision", PRECISIONS)
        relative_globs(self, "exclude")
        few_labels(self)
        device_name(self)
        at_least(self, 1, "seeds", "epochs", "checkpoint_every")
        at_least(self, 2, "batch_size")
        at_least(self, 0, "freeze_stages", "seed", "workers", "weight_decay")
        at_most(self, 2**31 - 1, "seed")
        require(self, "lr", 0 < self.lr <= 1e4, "above 0, up to 10000")
        require(self, "backbone_lr", 0 <= self.backbone_lr <= 1e4, "from 0 to 10000")
        if self.from_scratch and self.freeze_stages:
            raise UsageError(f"--freeze-stages {self.freeze_stages}: not with --from-scratch, whose stages would stay "
                             "random. Leave out one of them.")
        if self.run is not None:
            require(self, "run", self.run not in ("", ".", "..") and "/" not in self.run, "a plain name without '/'")
        for path in (self.train, self.test):
            if path is not None and path.endswith((".h5", ".faiss", ".safetensors")):
                raise UsageError(f"{path} holds no images, and finetune learns from images. Give the folder that they "
                                 "are in: mocoembed finetune TRAIN [TEST]" + (
                                     "\nFor stored features: mocoembed linear TRAIN.h5" if path.endswith(".h5")
                                     else ""))
