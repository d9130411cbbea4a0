"""The evaluation transform: how an image enters a frozen encoder. It needs no torch."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mocoembed.data.crop import by_torch, resize


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize the shorter side, crop the middle, normalise: how an image enters a frozen encoder."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    mode: str = "shorter-side"
    """Or `squash`: resize both sides to `resize`, whatever the image's shape."""
    value_range: tuple[float, ...] = ()
    """(LOW, HIGH): deep pixels from LOW to HIGH become 0 to 255; empty: all that they can hold."""

    @classmethod
    def of(cls, image_size: int, mean, std) -> "EvaluationTransform":
        """The usual transform for an encoder trained at `image_size`: 256/224 of it from 96 pixels up, else as is."""
        resize = round(image_size * 256 / 224) if image_size >= 96 else image_size
        return cls(resize, image_size, tuple(mean), tuple(std))

    def pixels(self, image, with_torch: bool = True) -> np.ndarray:
        """(crop, crop, 3) uint8 from an `EncodedImage`.

        The same as torchvision's Resize and CenterCrop; without torch, by Pillow, at most one level off. Of a long or
        a large image only the part that the crop keeps is resized, which is slower but takes no more memory.
        """
        short = min(image.width, image.height)
        decoded = image.rgb(shrink=short / self.resize)
        width, height = (self.resize if self.mode == "squash" else int(self.resize * side / short)
                         for side in (image.width, image.height))
        left, top = (round((side - self.crop) / 2) for side in (width, height))
        usual = max(width, height) <= 4 * self.resize and by_torch(decoded.width * decoded.height, width * height)
        if with_torch and usual and self.interpolation == "bilinear":
            return resize(np.asarray(decoded), width, height)[top:top + self.crop, left:left + self.crop]
        across, down = decoded.width / width, decoded.height / height
        box = (left * across, top * down, (left + self.crop) * across, (top + self.crop) * down)
        return np.asarray(decoded.resize((self.crop, self.crop), Image.Resampling[self.interpolation.upper()], box))
