"""An image that a caller has decoded already: a PIL image or an array of uint8."""

import numpy as np
from PIL import Image, ImageOps

from mocoembed.data.decode import to_rgb
from mocoembed.errors import UsageError

DEEP = ("I", "F")  # beginnings of the modes of PIL whose values are not 0 to 255


class GivenImage:
    """What `EncodedImage` is for encoded bytes: upright size, and pixels as 8-bit RGB."""

    def __init__(self, image: Image.Image):
        self._image = image
        self.width, self.height = image.size

    @classmethod
    def of(cls, image) -> "GivenImage":
        """From a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) uint8; `UsageError` for anything else.

        A PIL image is turned as its EXIF data say; transparency is laid over white.
        """
        if cls.is_pil(image):
            if image.mode.startswith(DEEP):
                raise UsageError(f"its mode is {image.mode}, whose values have no fixed range. Scale them to 0 to 255 "
                                 "and convert it to L or RGB, or give the file itself.")
            return cls(to_rgb(ImageOps.exif_transpose(image)))
        if not isinstance(image, np.ndarray):
            raise UsageError(f"not an image, but of type {type(image).__name__}. Give a path, bytes, a PIL image or an "
                             "array of uint8.")
        channels = image.shape[2] if image.ndim == 3 else None
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (None, 3, 4) or 0 in image.shape:
            raise UsageError(f"an array of {image.dtype} and shape {image.shape}. It must be of uint8, with shape "
                             "(H, W, 3) for RGB, (H, W, 4) for RGBA or (H, W) for grey.")
        return cls(to_rgb(Image.fromarray(np.ascontiguousarray(image))))

    @staticmethod
    def is_pil(image) -> bool:
        """Whether it is an image of PIL."""
        return isinstance(image, Image.Image)

    def rgb(self, shrink: float = 1.0) -> Image.Image:
        """The upright image as 8-bit RGB, at full size."""
        return self._image
