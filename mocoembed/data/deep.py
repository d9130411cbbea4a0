"""Deep pixels (more than 8 bits, signed or floating-point) -> 0..255, and colour laid over white.

`Scale` is the one rule for all formats. `Seen` says which range the deep pixels of a collection use, so that images
that would come out nearly black are not embedded without a word.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from mocoembed.errors import UnreadableImage

BLOCK = 1 << 16  # pixels converted at a time
SHARE_OF_RANGE = 1 / 8  # deep images that use less of their range are warned of,
SHARE_OF_IMAGES = 1 / 4  # where they are so many of all: a few may be blank
ENOUGH = 256  # deep images after which their range is judged

ValueRange = tuple[float, ...]
"""`()`, or the (LOW, HIGH) of `--value-range`."""


def shown_range(value_range: ValueRange) -> str:
    """As it is typed: `0,4095`; `none` for none."""
    return ",".join(f"{end:.15g}" for end in value_range) or "none"


def joined(seen: Iterable["Seen | None"]) -> "Seen | None":
    """The range of the deep images of several."""
    whole: Seen | None = None
    for one in seen:
        whole = one.joined(whole) if one is not None else whole
    return whole


class Seen(NamedTuple):
    """The lowest and the highest pixel of some deep images that were scaled by their own full range.

    Where some of them use little of it, that of these alone.
    """

    low: float
    high: float
    most: float
    """The largest number that their pixels can hold."""
    images: int = 1
    dark: int = 0
    """Of these, the images that use little of their range."""

    @classmethod
    def of(cls, low: float, high: float, most: float) -> "Seen":
        """What one image has shown."""
        return cls(low, high, most, 1, int(high - low < SHARE_OF_RANGE * most))

    def joined(self, other: "Seen | None") -> "Seen":
        """That of these images and others."""
        if other is None:
            return self
        some = [one for one in (self, other) if one.dark] or [self, other]
        return Seen(min(one.low for one in some), max(one.high for one in some), max(one.most for one in some),
                    self.images + other.images, self.dark + other.dark)


class RangeWatch:
    """Warns once, with `note(text)`, of deep images that use little of their range."""

    def __init__(self, note: Callable[[str], None]):
        self.note, self.judged = note, False
        self.seen: Seen | None = None

    def add(self, seen: Seen | None):
        """Take in what a batch has shown; judge when there are enough."""
        if seen is not None and not self.judged:
            self.seen = seen.joined(self.seen)
            if self.seen.images >= ENOUGH:
                self.close()

    def close(self):
        """Judge what has been seen."""
        if self.judged or self.seen is None:
            return
        self.judged = True
        low, high, most, images, dark = self.seen
        if dark >= SHARE_OF_IMAGES * images and high - low < SHARE_OF_RANGE * most:
            high = max(high, low + 1)
            which = "deep images use" if dark == images else f"{dark} of the first {images} deep images use only"
            self.note(f"{which} {low:.0f}..{high:.0f} of 0..{most:.0f}, so they have little contrast: give "
                      f"--value-range {low:.0f},{high:.0f}")


class Scale:
    """Maps samples linearly, clipped, to 0..255 (uint8), and keeps the range that it has seen.

    `kind` is u (unsigned), i (signed) or f (floating-point). Without a `value_range`, unsigned samples mean 0 to
    2^bits - 1 and signed ones 0 to 2^(bits - 1) - 1. 8-bit unsigned samples and fewer bits take no value range. NaN
    counts as LOW.
    """

    def __init__(self, kind: str, bits: int, value_range: ValueRange = ()):
        self.kind, self.bits = kind, bits
        self.is_deep = kind != "u" or bits > 8
        self._given = bool(value_range) and self.is_deep
        self._most = float(2 ** (bits - (kind == "i")) - 1)
        self.low, self.high = value_range if self._given else (0.0, self._most)
        self._lowest, self._highest = np.inf, -np.inf
        self._table: np.ndarray | None = None

    @property
    def seen(self) -> Seen | None:
        """What was seen of deep samples that no value range was given for."""
        if self._given or not self.is_deep or self._lowest > self._highest:
            return None
        return Seen.of(float(self._lowest), float(self._highest), self._most)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """uint8 of the shape of `samples`, which may have either byte order."""
        if self.is_deep:
            lowest, highest = (samples.min, samples.max) if self.kind != "f" else (
                lambda: np.fmin.reduce(samples, axis=None), lambda: np.fmax.reduce(samples, axis=None))  # without NaN
            self._lowest, self._highest = min(self._lowest, float(lowest())), max(self._highest, float(highest()))
        elif self.bits == 8:
            return samples
        if samples.dtype.kind != "f" and samples.dtype.itemsize <= 2:
            return self._by_table(samples)
        return self._mapped(samples)

    def require_known(self):
        """Raise `UnreadableImage`, once all is seen, when only a value range could tell how dark the pixels are."""
        if self._given or not self.is_deep:
            return
        found = f"from {self._lowest:g} to {self._highest:g}" if self._lowest <= self._highest else "all NaN"
        if self.kind == "f" or self.bits > 16:
            what = "floating-point" if self.kind == "f" else "integer"
            raise UnreadableImage(f"{self.bits}-bit {what} pixels ({found}): give --value-range LOW,HIGH")
        if self._lowest < 0:
            raise UnreadableImage(f"negative pixels ({found}): give --value-range LOW,HIGH")

    def _mapped(self, samples: np.ndarray) -> np.ndarray:
        values = np.nan_to_num(samples.astype(np.float64), nan=self.low, posinf=np.inf, neginf=-np.inf)
        np.clip(values, self.low, self.high, out=values)
        return ((values - self.low) * 255 / (self.high - self.low) + 0.5).astype(np.uint8)

    def _by_table(self, samples: np.ndarray) -> np.ndarray:
        """The same for integers of 16 bits or fewer, by looking them up."""
        native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        index = native.view(f"u{native.itemsize}")
        if self._table is None:
            every = np.arange(1 << 8 * native.itemsize, dtype=index.dtype)
            self._table = self._mapped(every.view(native.dtype))
        return self._table[index]


def alpha_scale(kind: str, bits: int) -> Scale:
    """The scale of an opacity: floating-point ones go from 0 to 1."""
    if kind == "f" or bits > 16:
        return Scale(kind, bits, (0.0, 1.0 if kind == "f" else float(2 ** (bits - (kind == "i")) - 1)))
    return Scale(kind, bits)


def over_white(colour: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """`colour` (h, w, 3) uint8 with the opacity `alpha` (h, w) uint8, laid over white."""
    wide, opacity = colour.astype(np.uint16), alpha[..., None].astype(np.uint16)
    if premultiplied:
        return np.minimum(wide + (255 - opacity), 255).astype(np.uint8)
    return ((wide * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def put_blocks(image: Image.Image, place: tuple[int, int], size: tuple[int, int],
               block: Callable[[int, int], np.ndarray]):
    """Put what `block(top, end)` gives, (end - top, width, 3) uint8 for some rows, into an RGB image at `place`."""
    (x, y), (width, height) = place, size
    for top, end in row_blocks(width, height):
        image.paste(Image.fromarray(np.ascontiguousarray(block(top, end))), (x, y + top))


def row_blocks(width: int, height: int) -> Iterable[tuple[int, int]]:
    """Rows (first, last + 1) of pieces of about `BLOCK` pixels."""
    rows = max(1, BLOCK // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))
