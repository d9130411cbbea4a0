"""A contact sheet: hits -> one PNG, each row a query (framed) and its hits, with score and label under each.

A green dot marks a hit whose label is the name of the folder that the query lies in. Groups of near-duplicates are
drawn in the same way, under other words: the image to keep is framed, the dot marks those with its very bytes.
"""

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from mocoembed.data.decode import EncodedImage
from mocoembed.data.deep import ValueRange
from mocoembed.data.shards import read_path
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.files import replacing
from mocoembed.notes import counted
from mocoembed.search.duplicates import DuplicatesResult
from mocoembed.search.queries import STANDARD_INPUT
from mocoembed.search.query import Hit, QueryResult

SHOWN_HITS, SHOWN_QUERIES = 12, 50
SIGNATURE = "mocoembed contact sheet"  # in the PNG, so that a sheet may replace a sheet and nothing else
TILE, GAP, MARGIN, HEADER = 152, 14, 28, 64  # pixels
LINE = 19  # height of a line under an image
CAPTION = 2 * LINE + 10
AFTER_QUERY = 22  # between the query and its hits
SUPERSAMPLED = 4  # the dot is drawn larger and reduced, for a smooth edge
PAPER, EMPTY, INK, PALE, ACCENT, SAME = "#ffffff", "#e6e7ea", "#1d2129", "#6a7180", "#2f5fd0", "#2f9e57"


@dataclass(frozen=True)
class Words:
    """What a sheet says, and which of its hits get a dot."""

    title: str = "Search by image"
    unit: str = "query"
    first: Callable[[QueryResult], str] = lambda result: "query"
    """Under the framed image of a row, above its file's name."""
    legend: str = "same label as the query"
    marks: Callable[[QueryResult, Hit], bool] = lambda result, hit: hit.label == folder_of(result.query)
    count: str = "nearest image"
    """What the hits of every row are; none: the rows differ, and each tells how many of its own are not drawn."""


SEARCH = Words()


def folder_of(path: str) -> str:
    """Name of the folder that an image lies in."""
    return os.path.basename(os.path.dirname(os.path.abspath(path)))


def require_sheet(path):
    """Raise `UsageError` when `path` (or `None`) is not a name for a PNG, or is a file but not a contact sheet."""
    if path is None:
        return
    if not str(path).lower().endswith(".png"):
        raise UsageError(f"--sheet {path}: must end in .png")
    if os.path.exists(path) and not _is_sheet(path):
        raise UsageError(f"--sheet {path}: exists and is not a contact sheet. Give another name, or delete it.")


def _is_sheet(path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get("Software") == SIGNATURE
    except (OSError, ValueError, SyntaxError):
        return False


def read_hit(hit: Hit) -> bytes:
    """The bytes of a hit's image on this machine."""
    return read_path(hit.path)


def contact_sheet(results: list[QueryResult], path, words: Words = SEARCH,
                  read: Callable[[Hit], bytes] = read_hit) -> pathlib.Path:
    """Draw the first hits of the first queries into the PNG file `path`; the path. `read` gives a hit's bytes.

    An image that has gone or cannot be read leaves a grey tile that says so. Raises `UsageError` for a name that is
    not a PNG's or a file that is not a contact sheet, `MocoembedError` when the disk is full.
    """
    require_sheet(path)
    sheet = Sheet(results[:SHOWN_QUERIES], len(results), words, read)
    signed = PngImagePlugin.PngInfo()
    signed.add_text("Software", SIGNATURE)
    with replacing(path) as temporary:
        sheet.image.save(temporary, format="PNG", pnginfo=signed)
    return pathlib.Path(path)


def duplicates_sheet(result: DuplicatesResult, path) -> pathlib.Path:
    """Draw the first groups into the PNG file `path`, as `contact_sheet` does; the path."""
    identical = {one.row for group in result.groups for one in group.members[1:]
                 if one.identical is not None and one.identical == group.keeper.identical}
    rows = [QueryResult(group.keeper.path, [
        Hit(rank, one.similarity, one.path, f"{one.pixels}  {os.path.basename(one.path)}".lstrip(), one.row)
        for rank, one in enumerate(group.members[1:], 1)], result.value_range) for group in result.groups]
    return contact_sheet(rows, path, Words("Duplicates", "group", lambda row: "keep", "same bytes as the framed one",
                                           lambda row, hit: hit.row in identical, ""))


class Sheet:
    """The drawing; `image` is the finished image (RGB). `queries` is the number of all queries; `read` reads a hit."""

    def __init__(self, results: list[QueryResult], queries: int, words: Words = SEARCH,
                 read: Callable[[Hit], bytes] = read_hit):
        if not results:
            raise MocoembedError("There are no results to draw.")
        self.words, self.read = words, read
        self.columns = max(1, min(SHOWN_HITS, max(len(result.hits) for result in results)))
        width = 2 * MARGIN + TILE + AFTER_QUERY + self.columns * (TILE + GAP) - GAP
        height = HEADER + MARGIN + len(results) * (TILE + CAPTION + GAP) - GAP
        self.image = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.title, self.large, self.small = (ImageFont.load_default(size=size) for size in (22, 15, 14))
        marked = [self._row(HEADER + row * (TILE + CAPTION + GAP), result) for row, result in enumerate(results)]
        self._header(results, queries, any(marked))

    def _header(self, results: list[QueryResult], queries: int, marked: bool):
        words, all_of_them = self.words, counted(queries, self.words.unit)
        text = f"{len(results)} of {all_of_them}" if queries > len(results) else all_of_them
        if words.count:
            text += f", {counted(min(self.columns, len(results[0].hits)), words.count)} each"
        right = self.image.width - MARGIN
        self.pen.text((MARGIN, 18), words.title, INK, self.title)
        at = MARGIN + self.pen.textlength(words.title, self.title) + 14
        self.pen.text((at, 25), self._fit(text, right - at, self.small), PALE, self.small)
        start = right - self.pen.textlength(words.legend, self.small)
        if marked and start > at + self.pen.textlength(text, self.small) + 30:
            self._dot(start - 16, 33)
            self.pen.text((start, 25), words.legend, PALE, self.small)
        self.pen.line((MARGIN, HEADER - 12, right, HEADER - 12), EMPTY)

    def _row(self, top: int, result: QueryResult) -> bool:
        """Draw a query and its hits; whether a hit was marked."""
        query = result.image or result.query
        self._image((MARGIN, top), query, result.value_range, partial(read_path, query))
        self.pen.rounded_rectangle((MARGIN - 4, top - 4, MARGIN + TILE + 3, top + TILE + 3), 5, outline=ACCENT, width=3)
        heading = self._fit(readable(self.words.first(result)), TILE, self.large)
        self._caption(MARGIN, top, (heading, ACCENT), readable(os.path.basename(result.query)))
        marked, shown = False, result.hits[:self.columns]
        if not self.words.count and len(result.hits) > self.columns:
            shown = shown[:-1]
            self._blank(self.image.width - MARGIN - TILE, top, f"+{len(result.hits) - len(shown)} more")
        for column, hit in enumerate(shown):
            left = MARGIN + TILE + AFTER_QUERY + column * (TILE + GAP)
            self._image((left, top), hit.path, result.value_range, partial(self.read, hit))
            self._caption(left, top, (score_text(hit), INK), under(hit))
            if self.words.marks(result, hit):
                self._dot(left + TILE - 11, top + TILE + 15)
                marked = True
        return marked

    def _image(self, place: tuple[int, int], path: str, value_range: ValueRange, read: Callable[[], bytes]):
        """The image within its tile, or a grey tile with the reason."""
        left, top = place
        if path == STANDARD_INPUT:
            self._blank(left, top, "standard input")
            return
        try:
            image = EncodedImage(read(), value_range=value_range)
            tile = ImageOps.contain(image.rgb(max(image.width, image.height) / TILE), (TILE, TILE))
        except Exception as error:  # whatever a decoder raises
            self._blank(left, top, "file not found" if isinstance(error, FileNotFoundError) else "cannot be read")
            return
        self.pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), "#f5f6f8")
        self.image.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))

    def _blank(self, left: int, top: int, reason: str):
        self.pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), EMPTY)
        self.pen.text((left + TILE / 2, top + TILE / 2), reason, PALE, self.small, anchor="mm")

    def _caption(self, left: int, top: int, heading: tuple[str, str], text: str):
        """Two lines under a tile: the heading in its colour, and the text."""
        self.pen.text((left, top + TILE + 6), heading[0], heading[1], self.large)
        self.pen.text((left, top + TILE + 6 + LINE), self._fit(text, TILE, self.small), PALE, self.small)

    def _dot(self, left: float, middle: float, size: int = 10):
        big = Image.new("L", (SUPERSAMPLED * size,) * 2)
        ImageDraw.Draw(big).ellipse((0, 0, SUPERSAMPLED * size - 1, SUPERSAMPLED * size - 1), 255)
        self.image.paste(SAME, (round(left), round(middle - size / 2)), big.resize((size, size)))

    def _fit(self, text: str, width: float, font) -> str:
        """The text, with its middle left out where it is wider than `width` pixels."""
        kept, room = text, len(text)
        while room > 1 and self.pen.textlength(kept, font) > width:
            room -= 1
            kept = text[:(room + 1) // 2] + "..." + text[len(text) - room // 2:]
        return kept


def score_text(hit: Hit) -> str:
    """The score with three decimals, or fewer when it is large."""
    return f"{hit.score:.3f}" if abs(hit.score) < 100 else f"{hit.score:.4g}"


def under(hit: Hit) -> str:
    """What stands under a hit: its label, or its file's name where it has none."""
    return readable(hit.label if hit.label is not None else os.path.basename(hit.path))


def readable(text: str) -> str:
    """The text as a font can show it: undecodable bytes and control characters become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
