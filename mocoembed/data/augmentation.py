"""How labelled images are seen in training: one view of each, a random resized crop and a flip, counted by the seed.

`Augmentation` is what `view_batches` and `Places` need to know instead of a `PretrainConfig`; `augmented` makes the
network's input of a batch, on its device.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.loader import ViewBatch
from mocoembed.data.views import ViewSettings, apply_views


@dataclass(frozen=True)
class Augmentation:
    """The view of an image in an epoch, and how many images are seen at a time: a function of seed, epoch and row."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    batch_size: int
    epochs: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Torchvision's RandomResizedCrop: the crop's share of the image's area."""
    flip_probability: float = 0.5
    drop_last: bool = False
    value_range: tuple[float, ...] = ()
    """Of deep images, as in `EvaluationTransform`."""
    # No other change of the colours, as in the published linear protocols.
    jitter: ClassVar[tuple[float, float, float, float]] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: ClassVar[float] = 0.0
    grey_probability: ClassVar[float] = 0.0
    grey_first: ClassVar[bool] = False
    blur_probability: ClassVar[float] = 0.0
    blur_sigma: ClassVar[tuple[float, float]] = (0.1, 2.0)
    solarize_probability: ClassVar[float] = 0.0
    # What else the loader asks for: one view, as for a memory bank, whose keys nobody encodes.
    dictionary: ClassVar[str] = "memory-bank"
    symmetric: ClassVar[bool] = False
    shuffles_keys: ClassVar[bool] = False
    full_decode: ClassVar[bool] = False

    @classmethod
    def of(cls, transform: EvaluationTransform, **more) -> "Augmentation":
        """For an encoder that is tested with `transform`: its size, its normalisation; `more` are other fields."""
        return cls(transform.crop, transform.mean, transform.std, value_range=transform.value_range, **more)

    @property
    def view_sizes(self) -> tuple[int, int]:
        """As of a `PretrainConfig`."""
        return self.image_size, self.image_size

    @property
    def view_scales(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """As of a `PretrainConfig`."""
        return self.crop_scale, self.crop_scale


def augmented(batch: ViewBatch, how: Augmentation, device: torch.device,
              dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(N, 3, S, S) normalised views on the device, channels last in memory, from a batch of uint8 crops."""
    crops = batch.crops[0].to(device, non_blocking=True)
    return apply_views(crops, batch.queries[0], ViewSettings.of(how), dtype)
