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
SCHEDULES = ("cosine", "cosine-by-step", "step")
DICTIONARIES = ("queue", "memory-bank", "end-to-end")
KEY_ENCODERS = ("shared", "shared-backbone", "separate")
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
    """Folder of images, list file or tar shards to learn from; labels are not used."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    recipe: str = AUTO
    """Preset for the options below: auto (chosen for the images and the machine), moco-v1, moco-v2, moco-v2-plus,
    cifar10, lightly, solo-learn or small."""
    given: tuple[str, ...] = ()
    """Fields that the recipe auto keeps, besides those that differ from the defaults."""
    run: str | None = None
    """Name of the run folder; by default, the recipe and a hash of the settings."""
    fresh: bool = False
    """Start over, deleting this run's earlier checkpoints."""
    init: str | None = None
    """Start from this encoder instead of random weights: anything that embed takes as --encoder. Its architecture,
    mean, standard deviation and value range become the defaults."""
    arch: str = "resnet50"
    """Backbone: a ResNet, ResNeXt or wide ResNet, another torchvision classifier, or timm:NAME (see
    docs/pretraining.md)."""
    width: float = 1.0
    """Multiplier of all channel counts: 0.25 for a laptop, 2 for R50w2x."""
    stem: str = "7x7s2-pool"
    """First layers: 7x7s2-pool (ImageNet), 3x3s1 (32-pixel images) or 3x3s2 (the same, four times faster)."""
    head: str = "mlp"
    """Projection head: linear or mlp (one hidden layer as wide as the features)."""
    dim: int = 128
    """Dimension C of the projected vectors q and k."""
    zero_init_residual: bool = False
    """Initialise every residual block as the identity (weights of its last BatchNorm are 0)."""
    dictionary: str = "queue"
    """Source of the negatives: queue (MoCo), memory-bank (one feature per image) or end-to-end (the batch)."""
    queue_size: int = 65536
    """Number K of negatives in the queue, or drawn from the memory bank; any number works with any batch size."""
    key_encoder: str = "shared"
    """Key encoder of the end-to-end dictionary: shared (the query encoder itself), shared-backbone (its backbone with a
    head of its own) or separate."""
    bank_momentum: float = 0.5
    """Momentum with which the features in the memory bank are updated."""
    mask_same_image: bool | None = None
    """Do not use keys of the query's own image as negatives; by default, if K is over a tenth of the images."""
    momentum: float = 0.999
    """Momentum m of the key encoder's moving average."""
    temperature: float = 0.2
    """Temperature T of the InfoNCE loss."""
    symmetric: bool = False
    """Symmetric loss: use both views as queries and as keys, and minimise the sum of the two losses."""
    batchnorm: str = "shuffled"
    """BatchNorm: shuffled (groups, keys shuffled between them), none (groups, not shuffled) or sync (whole batch)."""
    bn_groups: int = 8
    """BatchNorm groups in a batch, divided among the processes."""
    epochs: int = 200
    """Passes over the images."""
    batch_size: int = 256
    """Batch size: images per step, over all processes."""
    drop_last: bool = True
    """Drop the last, incomplete batch of an epoch."""
    lr: float = 0.03
    """Initial learning rate, after the warm-up."""
    schedule: str = "cosine"
    """Learning rate schedule: cosine (to zero, once an epoch), cosine-by-step (every step: for runs of few epochs) or
    step (see --milestones)."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the epochs at which the step schedule divides the learning rate by ten."""
    warmup_epochs: float = 0.0
    """Warm-up: epochs over which the learning rate rises linearly from zero."""
    sgd_momentum: float = 0.9
    """Momentum of SGD (not of the key encoder)."""
    weight_decay: float = 1e-4
    """Weight decay of SGD."""
    decay_norms: bool = True
    """Apply weight decay to biases and BatchNorm weights too, as in the authors' code."""
    image_size: int = 224
    """Side length of a view in pixels."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Random resized crop: smallest and largest fraction of the image's area."""
    key_image_size: int | None = None
    """Side length of a key's view in pixels; by default, --image-size."""
    key_crop_scale: tuple[float, ...] = ()
    """SMALLEST,LARGEST: random resized crop of a key's view; by default, --crop-scale."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Colour jitter: strength for brightness, contrast, saturation and hue."""
    jitter_probability: float = 0.8
    """Probability of colour jitter."""
    grey_probability: float = 0.2
    """Probability of converting a view to greyscale."""
    grey_first: bool = False
    """Convert to greyscale before the colour jitter, as in MoCo v1, instead of after it."""
    blur_probability: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the Gaussian blur, in pixels."""
    solarize_probability: float = 0.0
    """Probability of solarisation (values of 128 and more are inverted)."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Normalisation: mean subtracted from the pixels (red, green, blue; 0 to 1)."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Normalisation: standard deviation by which the pixels are divided."""
    seed: int = 0
    """Random seed for weights, order of the images and views."""
    limit: int | None = None
    """Use only this many images, sampled at random by the seed."""
    exclude: tuple[str, ...] = ()
    """Exclude files and folders that match this glob: by name, or by path if it has a slash. May be given again."""
    workers: int | None = None
    """Loading processes that decode and crop; by default, by the number of cores; 0: none (docs/pretraining.md)."""
    cache: str = "none"
    """Cache of decoded images: none, or ram (decoded once, in memory that all processes share)."""
    full_decode: bool = False
    """Decode JPEG files at full size instead of the smallest scale of the decoder that is large enough."""
    value_range: tuple[float, ...] = ()
    """LOW,HIGH: map 16-bit, 32-bit and floating-point pixels from LOW..HIGH to 0..255; by default, from the whole range
    of the pixel type. Stored in the encoder."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""
    precision: str = "tf32"
    """Precision of the encoders: fp64, fp32, tf32 (fp32, faster on GPUs), bf16 or fp16 (autocast)."""
    groups_at_once: int | None = None
    """Per-process number of BatchNorm groups computed at a time; by default, as many as fit in memory."""
    compile: bool = False
    """Compile the encoders with torch.compile: a slow start, then faster steps."""
    processes: int | None = None
    """Processes on this machine; by default, one per GPU; on a CPU one, or two where the recipe auto finds
    them faster. Not used under torchrun and srun."""
    timeout: float = 600.0
    """Timeout in seconds: how long a process waits for the others before the job is ended."""
    check_ranks: bool = False
    """Compare weights and queue of all processes after every step (slow; for debugging)."""
    val: str | None = None
    """Collection of labelled images for kNN accuracy during the run; never used for training or model selection."""
    val_every: int = 10
    """Epochs between kNN evaluations (also after the first epoch and at the end)."""
    checkpoint_every: int = 500
    """Steps between checkpoints (also at the end of every epoch)."""

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
        at_least(self, 8, "image_size", "key_image_size")
        at_least(self, 1, "queue_size", "dim", "bn_groups", "epochs", "val_every", "checkpoint_every", "processes",
                 "groups_at_once")
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
        self._require_keys_to_suit_the_dictionary()
        for name, scale in (("crop_scale", self.crop_scale), ("key_crop_scale", self.key_crop_scale or (1.0, 1.0))):
            require(self, name, len(scale) == 2 and 0 < scale[0] <= scale[-1] <= 1, "two rising numbers in (0, 1]")
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

    def _require_keys_to_suit_the_dictionary(self):
        """Raise `UsageError` for settings of keys that the dictionary or the loss cannot have."""
        encodes_none = self.dictionary == "memory-bank"
        if self.symmetric and encodes_none:
            raise UsageError("--symmetric: not with --dictionary memory-bank, which encodes no keys.")
        if self.key_encoder != "shared" and self.dictionary != "end-to-end":
            why = "which encodes no keys" if encodes_none else "whose key encoder is the query encoder's moving average"
            raise UsageError(f"--key-encoder {self.key_encoder}: not with --dictionary {self.dictionary}, {why}. "
                             "Give --dictionary end-to-end.")
        for option, given in (("--key-image-size", self.key_image_size), ("--key-crop-scale", self.key_crop_scale)):
            if given and encodes_none:
                raise UsageError(f"{option}: not with --dictionary memory-bank, which encodes no keys.")
            if given and self.symmetric:
                raise UsageError(f"{option}: not with --symmetric, where each view is a query and a key.")

    @property
    def view_sizes(self) -> tuple[int, int]:
        """Side lengths of the two views in pixels: the query's, the key's."""
        return self.image_size, self.key_image_size or self.image_size

    @property
    def view_scales(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Ranges of the random resized crops of the two views: the query's, the key's."""
        return self.crop_scale, self.key_crop_scale or self.crop_scale

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
