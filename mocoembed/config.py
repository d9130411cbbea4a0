"""One frozen dataclass per command.

The docstring under a field is the help text of the option of the same name; its default is written here alone.
Values are checked when a config is made: `UsageError` names the option, the value and what is allowed.
"""

import dataclasses
import math
from dataclasses import dataclass

from mocoembed.checks import at_least, at_most, in_unit_interval, one_of, require
from mocoembed.errors import UsageError
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD, KNN_PRESETS, RECIPES

DEFAULT_WORKSPACE = "mocoembed-workspace"
STEMS = ("7x7s2-pool", "3x3s1", "3x3s2")
HEADS = ("linear", "mlp")
SCHEDULES = ("cosine", "step")
PRECISIONS = ("fp64", "fp32", "bf16", "fp16")
FEATURES = ("backbone", "projection")
EXPORT_FORMATS = ("encoder", "torchvision", "detectron2", "onnx")
INDEX_TYPES = ("auto", "flat")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that `mocoembed pretrain` needs. The defaults are the recipe `moco-v2`."""

    images: str
    """Folder of pictures to learn from; labels are not used."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves and finds its results."""
    recipe: str = "moco-v2"
    """Preset of all the settings below: moco-v1, moco-v2, cifar10 or small."""
    run: str | None = None
    """Name of the run's folder; by default the recipe and a hash of the settings."""
    fresh: bool = False
    """Start over, deleting this run's earlier checkpoints."""
    arch: str = "resnet50"
    """Backbone: a ResNet, ResNeXt or wide ResNet of torchvision."""
    width: float = 1.0
    """Multiplier of all channel counts: 0.25 for a laptop, 2 for R50w2x."""
    stem: str = "7x7s2-pool"
    """First layers: 7x7s2-pool (ImageNet), 3x3s1 (32-pixel pictures) or 3x3s2 (the same, four times faster)."""
    head: str = "mlp"
    """Projection head: linear, or mlp (one hidden layer as wide as the features)."""
    dim: int = 128
    """Length C of the projected vectors q and k."""
    queue_size: int = 65536
    """Number K of negatives in the queue; any number goes with any batch size."""
    momentum: float = 0.999
    """Momentum m of the key encoder's moving average."""
    temperature: float = 0.2
    """Temperature T of the InfoNCE loss."""
    symmetric: bool = False
    """Use both views as queries and as keys, and minimise the sum of the two losses."""
    bn_groups: int = 8
    """BatchNorm groups that each process splits its batch into; keys are shuffled between them."""
    epochs: int = 200
    """Passes over the pictures."""
    batch_size: int = 256
    """Pictures in a step."""
    drop_last: bool = True
    """Leave out the last, incomplete batch of an epoch."""
    lr: float = 0.03
    """Learning rate at the start (after the warm-up)."""
    schedule: str = "cosine"
    """Learning rate over the epochs: cosine to zero, or step (see milestones)."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the epochs after which the step schedule divides the learning rate by ten."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""
    sgd_momentum: float = 0.9
    """Momentum of SGD (not of the key encoder)."""
    weight_decay: float = 1e-4
    """Weight decay of SGD."""
    image_size: int = 224
    """Side of a view in pixels."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the picture's area that a random crop takes."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of the colour jitter: brightness, contrast, saturation, hue."""
    jitter_probability: float = 0.8
    """Share of views with colour jitter."""
    grey_probability: float = 0.2
    """Share of views turned to greyscale."""
    grey_first: bool = False
    """Turn to greyscale before the colour jitter, as MoCo v1 does, instead of after it."""
    blur_probability: float = 0.5
    """Share of views with Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    solarize_probability: float = 0.0
    """Share of views that are solarised (values of 128 and more inverted)."""
    flip_probability: float = 0.5
    """Share of views mirrored left to right."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of the pixels (red, green, blue; 0 to 1) taken off before the encoder."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of the pixels divided by before the encoder."""
    seed: int = 0
    """Seed of weights, order and views."""
    limit: int | None = None
    """Learn from this many pictures only, drawn at random by the seed."""
    workers: int | None = None
    """Processes that decode and crop; by default chosen from the number of cores; 0: none."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    precision: str = "fp32"
    """Arithmetic of the encoders: fp64, fp32, or bf16 or fp16 by autocast."""
    val: str | None = None
    """Folder of labelled pictures for a kNN accuracy every few epochs; never used to learn or to choose."""
    val_every: int = 10
    """Epochs between two kNN accuracies (also after the first epoch and at the end)."""
    checkpoint_every: int = 500
    """Steps between two checkpoints (also at the end of every epoch)."""

    def __post_init__(self):
        one_of(self, "recipe", tuple(RECIPES))
        one_of(self, "stem", STEMS)
        one_of(self, "head", HEADS)
        one_of(self, "schedule", SCHEDULES)
        one_of(self, "precision", PRECISIONS)
        at_least(self, 1, "queue_size", "dim", "bn_groups", "epochs", "image_size", "val_every",
                 "checkpoint_every")
        at_least(self, 2, "batch_size", "limit")
        at_least(self, 0, "lr", "warmup_epochs", "weight_decay", "sgd_momentum", "seed", "workers")
        at_most(self, 2**63 - 1, "seed")
        in_unit_interval(self, "momentum", "jitter_probability", "grey_probability", "blur_probability",
                         "solarize_probability", "flip_probability")
        require(self, "width", 0 < self.width < math.inf, "more than 0")
        require(self, "std", min(self.std) > 0, "three numbers above 0")
        require(self, "recipe", not (RECIPES[self.recipe] and self._takes_nothing_from_the_recipe()),
                "taken from its preset: use PretrainConfig.of(recipe, images, ...)")
        require(self, "temperature", self.temperature > 0, "more than 0")
        require(self, "crop_scale", 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "two rising numbers in (0, 1]")
        require(self, "jitter", min(self.jitter) >= 0 and self.jitter[3] <= 0.5,
                "four numbers of 0 or more, the hue at most 0.5")
        require(self, "bn_groups", self.batch_size % self.bn_groups == 0 and self.batch_size > self.bn_groups,
                f"a divisor of --batch-size {self.batch_size}, with two or more pictures to a group")
        if self.run is not None:
            require(self, "run", self.run not in ("", ".", "..") and "/" not in self.run, "a plain name without '/'")

    def _takes_nothing_from_the_recipe(self) -> bool:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return all(getattr(self, name) == defaults[name] for name in RECIPES[self.recipe])

    @classmethod
    def of(cls, recipe: str, images: str, **overrides) -> "PretrainConfig":
        """The preset `recipe` with some fields overridden; `UsageError` for an unknown recipe."""
        if recipe not in RECIPES:
            raise UsageError(f"--recipe {recipe}: must be one of {', '.join(RECIPES)}.")
        return cls(images=str(images), recipe=recipe, **{**RECIPES[recipe], **overrides})


@dataclass(frozen=True)
class ExportConfig:
    """Everything that `mocoembed export` needs."""

    source: str | None = None
    """Checkpoint, run folder, encoder file, weights of others or a known name; by default the newest run."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves and finds its results."""
    format: str = "encoder"
    """What to write: encoder (for this tool), torchvision, detectron2 or onnx (backbone only)."""
    output: str | None = None
    """File to write; by default a name made from the encoder's fingerprint, in the workspace."""
    fresh: bool = False
    """Replace the file of --output if it exists."""
    image_size: int | None = None
    """For weights of others: side of the pictures in pixels; by default 224 for a 7x7 stem, 32 for a 3x3 one."""
    mean: tuple[float, ...] = ()
    """For weights of others: mean of the pixels (red, green, blue; 0 to 1); by default ImageNet's or CIFAR-10's."""
    std: tuple[float, ...] = ()
    """For weights of others: standard deviation of the pixels; by default ImageNet's or CIFAR-10's."""

    def __post_init__(self):
        one_of(self, "format", EXPORT_FORMATS)
        at_least(self, 1, "image_size")
        require(self, "mean", len(self.mean) in (0, 3), "three numbers")
        require(self, "std", len(self.std) in (0, 3) and min(self.std, default=1) > 0, "three numbers above 0")


@dataclass(frozen=True)
class EmbedConfig:
    """Everything that `mocoembed embed` needs."""

    folder: str
    """Folder of pictures, of any depth."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves and finds its results."""
    encoder: str | None = None
    """Encoder file, run folder, weights of others or a known name; by default the workspace's newest encoder."""
    output: str | None = None
    """Embeddings file to write; by default embeddings.h5 in the workspace."""
    fresh: bool = False
    """Replace an embeddings file of another folder, encoder or setting, or start over an unfinished one."""
    features: str = "backbone"
    """Which vectors: backbone, or projection (the head's output, compared in training)."""
    normalize: bool = True
    """Scale every vector to length 1, so that an inner product is the cosine similarity."""
    labels: str = "parent"
    """Label of a picture: parent (its folder's name), first (the first folder below the root) or none."""
    batch_size: int = 64
    """Pictures in a batch."""
    workers: int | None = None
    """Processes that decode; by default chosen from the number of cores; 0: none."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    precision: str = "fp32"
    """Arithmetic of the encoder: fp64, fp32, bf16 or fp16."""

    def __post_init__(self):
        one_of(self, "features", FEATURES)
        one_of(self, "labels", ("parent", "first", "none"))
        one_of(self, "precision", PRECISIONS)
        at_least(self, 1, "batch_size")
        at_least(self, 0, "workers")


@dataclass(frozen=True)
class IndexConfig:
    """Everything that `mocoembed index` needs."""

    embeddings: str | None = None
    """Embeddings file; by default embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves and finds its results."""
    output: str | None = None
    """Index file to write; by default beside the embeddings file, with the ending .faiss."""
    fresh: bool = False
    """Replace an index of another embeddings file."""
    type: str = "auto"
    """Kind of index: auto or flat, both exact."""

    def __post_init__(self):
        one_of(self, "type", INDEX_TYPES)


@dataclass(frozen=True)
class SearchConfig:
    """Everything that `mocoembed search` needs."""

    images: tuple[str, ...]
    """Pictures to look for."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves and finds its results."""
    index: str | None = None
    """Index file; by default embeddings.faiss in the workspace."""
    embeddings: str | None = None
    """Embeddings file that the index was built from; by default the one that the index names."""
    encoder: str | None = None
    """Encoder, as for embed; by default the one in the workspace that made the embeddings."""
    k: int = 10
    """Hits for each picture."""
    root: str | None = None
    """Where the collection's pictures are now, if they have moved."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        at_least(self, 1, "k")
        if not self.images:
            raise UsageError("No picture to look for. Give one or more: mocoembed search PICTURE...")


@dataclass(frozen=True)
class KnnConfig:
    """Everything that `mocoembed knn` needs."""

    bank: str | None = None
    """Embeddings file whose labelled pictures vote; by default embeddings.h5 in the workspace."""
    queries: str | None = None
    """Embeddings file of the pictures to classify; without it each of the bank's is classified by the others."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves and finds its results."""
    preset: str | None = None
    """Protocol: lightly (backbone, k 200, T 0.1), moco (projection, the same) or dino (backbone, four k, T 0.07)."""
    k: tuple[int, ...] = ()
    """Numbers of neighbours that vote, separated by commas; by default the preset's, or 200."""
    temperature: tuple[float, ...] = ()
    """Temperatures T of the vote's weights exp(s/T), separated by commas; by default the preset's, or 0.1."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        if self.preset is not None:
            one_of(self, "preset", tuple(KNN_PRESETS))
        require(self, "k", all(k >= 1 for k in self.k), "numbers of 1 or more")
        require(self, "temperature", all(t > 0 for t in self.temperature), "numbers above 0")


@dataclass(frozen=True)
class InfoConfig:
    """Everything that `mocoembed info` needs."""

    path: str
    """A checkpoint, run folder, encoder, embeddings or index file."""
    verify: bool = False
    """Recompute every hash and compare."""


@dataclass(frozen=True)
class DemoConfig:
    """Everything that `mocoembed demo` needs."""

    workspace: str = "demo-workspace"
    """Folder for the generated pictures and all results; new, empty, or of an earlier demo."""
    pictures: int = 2400
    """Generated pictures to learn from; a sixth as many more are held out."""
    epochs: int | None = None
    """Passes over the pictures; by default the recipe's."""
    seed: int = 0
    """Seed of the pictures and of the pretraining."""

    def __post_init__(self):
        at_least(self, 1, "epochs")
        at_least(self, 0, "seed")
        at_most(self, 2**63 - 1, "seed")
        at_least(self, 160, "pictures")
