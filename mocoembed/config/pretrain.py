"""The settings of a pretraining: the longest config, with the published recipes as presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from mocoembed.checks import at_least, at_most, in_unit_interval, one_of, relative_globs, require, rising_pair
from mocoembed.errors import UsageError
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD, RECIPES

DEFAULT_WORKSPACE = "mocoembed-workspace"
AUTO = "auto"  # the recipe that is chosen when the images are known
STEMS = ("7x7s2-pool", "3x3s1", "3x3s2")
HEADS = ("linear", "mlp")
SCHEDULES = ("cosine", "step")
DICTIONARIES = ("queue", "memory-bank", "end-to-end")
KEY_ENCODERS = ("shared", "separate")
BATCHNORMS = ("shuffled", "none", "sync")
CACHES = ("none", "ram")
FROM_INIT = "init"  # as `arch`: that of the encoder to start from
PRECISIONS = ("fp64", "fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that `mocoembed pretrain` needs.

    The defaults are those of moco-v2; the recipe `auto` takes other values for the fields that are not given.
    """

    images: str
    """Folder of images, list file, or tar shards to learn from; labels are not used."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    recipe: str = AUTO
    """Preset of all the settings below: auto (chosen for the images and the machine), moco-v1, moco-v2, moco-v2-plus,
    cifar10, lightly, solo-learn or small."""
    given: tuple[str, ...] = ()
    """Of the recipe auto: fields that it leaves as they are, besides those that differ from the defaults."""
    run: str | None = None
    """Name of the run's folder; by default the recipe and a hash of the settings."""
    fresh: bool = False
    """Start over, deleting this run's earlier checkpoints."""
    init: str | None = None
    """Start from this encoder instead of random weights: anything that embed takes as --encoder. Its architecture,
    mean, standard deviation and value range become the defaults."""
    arch: str = "resnet50"
    """Backbone: a ResNet, ResNeXt or wide ResNet, another classifier of torchvision, or timm:NAME (see
    docs/pretraining.md)."""
    width: float = 1.0
    """Multiplier of all channel counts: 0.25 for a laptop, 2 for R50w2x."""
    stem: str = "7x7s2-pool"
    """First layers: 7x7s2-pool (ImageNet), 3x3s1 (32-pixel images) or 3x3s2 (the same, four times faster)."""
    head: str = "mlp"
    """Projection head: linear, or mlp (one hidden layer as wide as the features)."""
    dim: int = 128
    """Length C of the projected vectors q and k."""
    zero_init_residual: bool = False
    """Start every residual block as the identity: the last BatchNorm's weights are 0."""
    dictionary: str = "queue"
    """Where negatives come from: queue (MoCo), memory-bank (one feature per image) or end-to-end (the batch)."""
    queue_size: int = 65536
    """Number K of negatives in the queue, or drawn from the memory bank; any number goes with any batch size."""
    key_encoder: str = "shared"
    """Of the end-to-end dictionary: shared (the query encoder itself) or separate."""
    bank_momentum: float = 0.5
    """Momentum of the memory bank's features."""
    mask_same_image: bool | None = None
    """Keys of a query's own image are no negatives of its; by default where K is over a tenth of the images."""
    momentum: float = 0.999
    """Momentum m of the key encoder's moving average."""
    temperature: float = 0.2
    """Temperature T of the InfoNCE loss."""
    symmetric: bool = False
    """Use both views as queries and as keys, and minimise the sum of the two losses."""
    batchnorm: str = "shuffled"
    """BatchNorm: shuffled (in groups, keys shuffled between them), none (groups, unshuffled) or sync (all as one)."""
    bn_groups: int = 8
    """BatchNorm groups of the batch, shared out among the processes."""
    epochs: int = 200
    """Passes over the images."""
    batch_size: int = 256
    """Images in a step, over all processes."""
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
    decay_norms: bool = True
    """Weight decay on biases and BatchNorm's weights too, as in the authors' code."""
    image_size: int = 224
    """Side of a view in pixels."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a random crop takes."""
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
    """Learn from this many images only, drawn at random by the seed."""
    exclude: tuple[str, ...] = ()
    """Glob of files and folders to leave out, by name, or with a slash by path; may be given again."""
    workers: int | None = None
    """Processes that decode and crop; by default chosen from the number of cores; 0: none (see docs/pretraining.md)."""
    cache: str = "none"
    """Where decoded images are kept: none, or ram (decoded once, in memory that all processes share)."""
    full_decode: bool = False
    """Decode JPEG files at full size, instead of at the smallest of the decoder's scales that is large enough."""
    value_range: tuple[float, ...] = ()
    """LOW,HIGH: 16-bit, 32-bit and floating-point pixels from LOW to HIGH become 0 to 255; by default all that a pixel
    can hold. The encoder remembers it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    precision: str = "tf32"
    """Arithmetic of the encoders: fp64, fp32, tf32 (fp32, faster on GPUs), bf16 or fp16 (autocast)."""
    groups_at_once: int | None = None
    """BatchNorm groups of a process's batch that go forward and backward together; by default, what fits in memory."""
    compile: bool = False
    """Compile the encoders with torch.compile: slow to start, faster steps."""
    processes: int | None = None
    """Processes on this machine; by default one for each of its GPUs, or one on a CPU. Under torchrun: theirs."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before the job ends."""
    check_ranks: bool = False
    """After every step compare weights and queue of all processes (slow; for finding faults)."""
    val: str | None = None
    """Collection of labelled images for a kNN accuracy every few epochs; never used to learn or to choose."""
    val_every: int = 10
    """Epochs between two kNN accuracies (also after the first epoch and at the end)."""
    checkpoint_every: int = 500
    """Steps between two checkpoints (also at the end of every epoch)."""

    def __post_init__(self):
        one_of(self, "recipe", (AUTO, *RECIPES))
        relative_globs(self, "exclude")
        one_of(self, "stem", STEMS)
        one_of(self, "head", HEADS)
        one_of(self, "schedule", SCHEDULES)
        one_of(self, "precision", PRECISIONS)
        one_of(self, "cache", CACHES)
        one_of(self, "dictionary", DICTIONARIES)
        one_of(self, "key_encoder", KEY_ENCODERS)
        one_of(self, "batchnorm", BATCHNORMS)
        at_least(self, 1, "queue_size", "dim", "bn_groups", "epochs", "image_size", "val_every",
                 "checkpoint_every", "processes", "groups_at_once")
        at_least(self, 2, "batch_size", "limit")
        at_least(self, 0, "lr", "warmup_epochs", "weight_decay", "sgd_momentum", "seed", "workers")
        at_most(self, 2**63 - 1, "seed")
        in_unit_interval(self, "momentum", "bank_momentum", "jitter_probability", "grey_probability",
                         "blur_probability", "solarize_probability", "flip_probability")
        rising_pair(self, "value_range")
        require(self, "width", 0 < self.width < math.inf, "more than 0")
        missing = 0 if self.init is None else 1  # with --init they may be its source's
        require(self, "mean", len(self.mean) == 3 or bool(missing and not self.mean), "three numbers")
        require(self, "std", min(self.std, default=missing) > 0, "three numbers above 0")
        require(self, "init", self.init != "", "an encoder")
        require(self, "arch", self.arch != FROM_INIT or self.init is not None, "a network's name without --init")
        require(self, "recipe", not (RECIPES.get(self.recipe) and self._takes_nothing_from_the_recipe()),
                "taken from its preset: use PretrainConfig.of(recipe, images, ...)")
        require(self, "temperature", self.temperature > 0, "more than 0")
        require(self, "timeout", self.timeout > 0, "more than 0")
        if self.symmetric and self.dictionary == "memory-bank":
            raise UsageError("--symmetric: not with --dictionary memory-bank, which encodes no keys.")
        require(self, "crop_scale", 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "two rising numbers in (0, 1]")
        require(self, "jitter", min(self.jitter) >= 0 and self.jitter[3] <= 0.5,
                "four numbers of 0 or more, the hue at most 0.5")
        chosen_later = self.recipe == AUTO and not {"batch_size", "bn_groups"} <= set(self.given_fields())
        fits = self.batch_size % self.bn_groups == 0 and self.batch_size > self.bn_groups
        require(self, "bn_groups", chosen_later or fits,
                f"a divisor of --batch-size {self.batch_size}, with two or more images to a group")
        if self.groups_at_once is not None:
            require(self, "groups_at_once", chosen_later or self.groups_at_once <= self.bn_groups,
                    f"--bn-groups {self.bn_groups} or less")
        if self.run is not None:
            require(self, "run", self.run not in ("", ".", "..") and "/" not in self.run, "a plain name without '/'")

    @property
    def whole_because(self) -> str:
        """Why a step needs the whole batch at once, and what would not; empty when it does not."""
        if self.dictionary == "end-to-end":
            return "with --dictionary end-to-end its images are each other's negatives (--dictionary queue can)"
        if self.batchnorm == "sync":
            return "with --batchnorm sync its statistics are those of all images (--batchnorm shuffled can)"
        if self.bn_groups == 1:
            return "it is a single BatchNorm group (--bn-groups 2 or more can)"
        return ""

    @property
    def shuffles_keys(self) -> bool:
        """Whether keys are shuffled between BatchNorm's groups."""
        return self.batchnorm == "shuffled" and self.bn_groups > 1 and self.dictionary != "memory-bank"

    def given_fields(self) -> tuple[str, ...]:
        """The fields that `auto` leaves as they are."""
        return tuple(field.name for field in dataclasses.fields(self) if field.name not in ("images", "recipe", "given")
                     and (field.name in self.given or getattr(self, field.name) != field.default))

    def _takes_nothing_from_the_recipe(self) -> bool:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return all(getattr(self, name) == defaults[name] for name in RECIPES[self.recipe])

    @classmethod
    def of(cls, recipe: str, images: str, **overrides) -> "PretrainConfig":
        """The preset `recipe` with some fields overridden; `UsageError` for an unknown recipe.

        With `init`, architecture (unless `arch`, `width` or `stem` is overridden), mean and standard deviation are
        left to it. Of `auto` the fields given are those that it leaves as they are.
        """
        if recipe == AUTO:
            return cls(images=str(images), given=tuple(overrides), **overrides)
        if recipe not in RECIPES:
            raise UsageError(f"--recipe {recipe}: must be one of {', '.join((AUTO, *RECIPES))}.")
        of_source: dict[str, Any] = {}
        if overrides.get("init") is not None:
            of_source = {"mean": (), "std": ()}
            if not {"arch", "width", "stem"} & set(overrides):
                of_source["arch"] = FROM_INIT
        return cls(images=str(images), recipe=recipe, **{**RECIPES[recipe], **of_source, **overrides})
