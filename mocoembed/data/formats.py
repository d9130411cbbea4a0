"""AVIF and HEIC images, and which suffixes are those of images that can be read here.

The content decides what an image is; suffixes only say which files of a folder or a shard are listed. A decoder is
loaded when its first image is met. HEIC files take the package pillow-heif, of the extra `heif`.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator

from PIL import Image

from mocoembed.errors import UnreadableImage

PILLOW_SUFFIXES = (b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff",
                   b".avif")
HEIF_SUFFIXES = (b".heic", b".heif", b".hif")
IMAGE_SUFFIXES = (*PILLOW_SUFFIXES, *HEIF_SUFFIXES)
HEIF_EXTRA = "pip install 'mocoembed[heif]'"
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
NOT_READ = {".jxl": "JPEG XL is not read", **dict.fromkeys(
    (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"), "RAW photographs are not read")}
THREADS = 1  # of a decoder: loading processes share out the cores, and every thread takes memory
SAMPLES = {400: 1.0, 420: 1.5, 422: 2.0, 444: 3.0}  # of a pixel, by the chroma format


def suffixes_read() -> tuple[bytes, ...]:
    """The suffixes, in lower case, of images that can be read with what is installed."""
    return IMAGE_SUFFIXES if _has_heif() else PILLOW_SUFFIXES


def what_reads(suffix: str) -> str:
    """What to install to read files of a suffix, or why they are not read; empty when there is nothing to say."""
    return HEIF_EXTRA if suffix.encode() in HEIF_SUFFIXES else NOT_READ.get(suffix, "")


def kind_of(data: bytes) -> str | None:
    """`AVIF`, `HEIF` or `JPEG XL`, by the first bytes of a file; `None` for any other."""
    if data.startswith(JXL_STARTS):
        return "JPEG XL"
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), len(data), 1024)
    for place in (8, *range(16, end, 4)):  # the major brand, then the compatible ones
        if data[place:place + 4] in AVIF_BRANDS:
            return "AVIF"
        if data[place:place + 4] in HEIF_BRANDS:
            return "HEIF"
    return None


def open_modern(data: bytes, kind: str) -> Image.Image:
    """An image of a `kind_of`, not decoded yet; HEIF comes upright, with its orientation removed from the metadata.

    Raises `UnreadableImage` when there is none in it or the decoder is missing.
    """
    if kind == "JPEG XL":
        raise UnreadableImage("JPEG XL is not read; convert it, for example with djxl")
    try:
        return _avif(data) if kind == "AVIF" else _heif(data)
    except SyntaxError as error:
        raise UnreadableImage(f"not a whole {kind} file ({error})") from None


def bytes_beside(image: Image.Image, data: bytes) -> float:
    """Bytes a pixel that an opened image's decoder holds at most beside the image; 0 for other formats.

    HEIF: two copies of the samples (turned, or put together from tiles) and the converted image. AVIF: three (film
    grain too), and two of the converted image, of which one is there before the image is. And a byte of margin.
    """
    if image.format not in ("AVIF", "HEIF"):
        return 0.0
    samples, is_deep = _samples_of_avif(data) if image.format == "AVIF" else (
        SAMPLES.get(image.info.get("chroma", 444), 3.0), image.info.get("bit_depth", 16) > 8)
    bands = len(image.getbands())
    held = (samples + (bands in (2, 4))) * (2 if is_deep else 1)
    return 2 * bands + 3 * held - 3 if image.format == "AVIF" else bands + 2 * held + 1


@contextlib.contextmanager
def bounded(image: Image.Image, most: int) -> Iterator[None]:
    """Let the process take at most `most` more bytes while an AVIF or HEIF image is decoded (Linux).

    Their headers can say a small size while the coded frames are large: the decoder then raises, for want of memory.
    """
    if image.format not in ("AVIF", "HEIF") or sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", encoding="ascii") as statm:
        limit = int(statm.read().split()[5]) * resource.getpagesize() + most
    lower = [one for one in (limit, *before) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(lower), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _samples_of_avif(data: bytes) -> tuple[float, bool]:
    """Samples a pixel and whether they have more than 8 bits, as the file's av1C box says; the most without one."""
    place = data.find(b"av1C") + 6
    if not 6 <= place < len(data):
        return SAMPLES[444], True
    flags = data[place]
    across, down = flags & 0x08, flags & 0x04
    chroma = 400 if flags & 0x10 else 420 if across and down else 422 if across else 444
    return SAMPLES[chroma], bool(flags & 0x40)


def _avif(data: bytes) -> Image.Image:
    from PIL import AvifImagePlugin

    if not AvifImagePlugin.SUPPORTED:
        raise UnreadableImage("AVIF: this Pillow was built without it; pip install --force-reinstall pillow")
    AvifImagePlugin.DEFAULT_MAX_THREADS = THREADS
    return AvifImagePlugin.AvifImageFile(io.BytesIO(data))


def _heif(data: bytes) -> Image.Image:
    if not _has_heif():
        raise UnreadableImage(f"HEIC: {HEIF_EXTRA}")
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = THREADS
    pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False
    return pillow_heif.HeifImageFile(io.BytesIO(data))


def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None
