"""An image's bytes -> a smaller JPEG file of it, upright and without metadata."""

import io

from PIL import Image

from mocoembed.data.decode import EncodedImage
from mocoembed.data.deep import ValueRange

SIDE, QUALITY = 320, 82  # of thumbnails: 320 pixels the longer side


def jpeg(data: bytes, side: int = SIDE, quality: int = QUALITY, value_range: ValueRange = ()) -> bytes:
    """A JPEG file at most `side` pixels wide and high; raises whatever a decoder raises.

    A small one is made of a decoded image twice as large at least, a large one by a better filter.
    """
    image, is_small = EncodedImage(data, value_range=value_range), side <= SIDE
    pixels = image.rgb(max(1.0, max(image.width, image.height) / (2 * side if is_small else side)))
    pixels.thumbnail((side, side), Image.Resampling.BILINEAR if is_small else Image.Resampling.LANCZOS)
    pixels.info.clear()  # or Pillow writes the comment again
    out = io.BytesIO()
    pixels.save(out, "JPEG", quality=quality)
    return out.getvalue()
