"""JPEG files: opened as such whatever follows the first image, and whatever metadata they carry.

A file of several images (MPO, of cameras and phones) is a JPEG file with more of them behind: the first one is decoded,
at the decoder's scales. Segments that Pillow cannot read and that no pixel needs are passed over.
"""

import io
from collections.abc import Iterator

from PIL import JpegImagePlugin

from mocoembed.data.pieces import as_file
from mocoembed.errors import UnreadableImage

START = b"\xff\xd8\xff"
BASELINE, EXTENDED, SCAN, COMMENT = 0xC0, 0xC1, 0xDA, 0xFE  # second bytes of markers
APP, EXIF, ADOBE = range(0xE0, 0xF0), 0xE1, 0xEE
ADOBE_BYTES = 12  # up to the kind of colours, which pixels need


def open_jpeg(data: bytes) -> JpegImagePlugin.JpegImageFile:
    """The image, not decoded yet; `UnreadableImage` where there is none."""
    try:
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except SyntaxError:
        pass
    view = memoryview(data)
    parts = [view[:2], *(view[place:end] for marker, place, end in _segments(data) if _is_needed(data, marker, place))]
    try:
        return JpegImagePlugin.JpegImageFile(as_file(parts))
    except SyntaxError as error:
        raise UnreadableImage(f"not a whole JPEG file ({error})") from None


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """(second byte of the marker, where it begins, where it ends) of each segment; the scan takes all that is left."""
    place = 2
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        marker = jpeg[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        end = len(jpeg) if marker == SCAN else place + 2 + int.from_bytes(jpeg[place + 2:place + 4], "big")
        yield marker, place, end
        place = end


def _is_needed(jpeg: bytes, marker: int, place: int) -> bool:
    """Whether a segment says how to decode or to turn the image."""
    if marker == ADOBE:
        return int.from_bytes(jpeg[place + 2:place + 4], "big") >= 2 + ADOBE_BYTES
    return marker not in (*APP, COMMENT) or (marker == EXIF and jpeg.startswith(b"Exif\0\0", place + 4))


def is_one_scan(jpeg: bytes) -> bool:
    """Whether all components come in the first scan of a file that is not progressive; also false when unclear."""
    components = None
    for marker, place, _ in _segments(jpeg):
        if marker in (BASELINE, EXTENDED):
            components = jpeg[place + 9] if place + 9 < len(jpeg) else None
        elif marker == SCAN:
            return place + 4 < len(jpeg) and jpeg[place + 4] == components
    return False
