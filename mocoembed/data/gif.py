"""GIF files: the first image without what it does not need, so that no comment or extension can cost it."""

from PIL import Image

from mocoembed.data.pieces import as_file

START = (b"GIF87a", b"GIF89a")
EXTENSION, GRAPHIC_CONTROL = 0x21, 0xF9  # the latter tells the transparent colour
HEADER = 13  # bytes before the palette


def open_gif(data: bytes) -> Image.Image:
    """The image, not decoded yet."""
    flags = data[10] if len(data) > 10 else 0
    place = HEADER + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    view = memoryview(data)
    parts = [view[:place]]
    while place + 2 < len(data) and data[place] == EXTENSION:
        end = place + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
        if data[place + 1] == GRAPHIC_CONTROL:
            parts.append(view[place:end + 1])
        place = end + 1
    return Image.open(as_file([*parts, view[place:]]), formats=["GIF"])
