"""The contact sheet: what is drawn where, what is shortened, what is not overwritten."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mocoembed.errors import MocoembedError, UsageError
from mocoembed.notes import counted
from mocoembed.search import sheet as module
from mocoembed.search.query import Hit, QueryResult
from mocoembed.search.sheet import Sheet, contact_sheet, readable, require_sheet

STEP = module.TILE + module.GAP
FIRST_HIT = module.MARGIN + module.TILE + module.AFTER_QUERY


@pytest.fixture
def colours(tmp_path):
    """`colours(*names)` gives hits whose images lie in a folder `red` and have one colour each."""
    (tmp_path / "red").mkdir()

    def make(*names: str) -> list[Hit]:
        for name in names:
            Image.new("RGB", (50, 50), name).save(tmp_path / "red" / f"{name}.png")
        return [Hit(rank, 1 - rank / 100, str(tmp_path / "red" / f"{name}.png"), name, rank)
                for rank, name in enumerate(names, 1)]

    return make


def pixel(image, left: float, top: float) -> tuple[int, ...]:
    return image.getpixel((round(left), round(top)))


def tile(image, row: int, column: int) -> tuple[int, ...]:
    """The pixel in the middle of a hit's tile."""
    top = module.HEADER + row * (module.TILE + module.CAPTION + module.GAP)
    return pixel(image, FIRST_HIT + column * STEP + module.TILE / 2, top + module.TILE / 2)


def has_dot(image, column: int) -> bool:
    """Whether the first row's hit is marked."""
    left = FIRST_HIT + column * STEP
    top = module.HEADER + module.TILE
    caption = np.asarray(image.crop((left, top, left + module.TILE, top + module.CAPTION))).astype(int)
    return bool((caption[..., 1] > caption[..., 0] + 60).any())


def test_tiles_are_the_images_in_order(colours, tmp_path):
    hits = colours("red", "lime", "blue")
    path = contact_sheet([QueryResult(hits[0].path, hits), QueryResult(hits[1].path, hits[::-1])], tmp_path / "s.png")
    with Image.open(path) as image:
        assert [tile(image, 0, column) for column in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        assert [tile(image, 1, column) for column in range(3)] == [(0, 0, 255), (0, 255, 0), (255, 0, 0)]
        query = pixel(image, module.MARGIN + module.TILE / 2, module.HEADER + module.TILE / 2)
        frame = pixel(image, module.MARGIN - 3, module.HEADER + module.TILE / 2)
        assert (query, frame) == ((255, 0, 0), (0x2f, 0x5f, 0xd0))
        assert image.width == FIRST_HIT + 3 * STEP - module.GAP + module.MARGIN


def test_only_a_hit_of_the_query_s_folder_is_marked(colours):
    hits = colours("red", "lime")
    image = Sheet([QueryResult(hits[1].path, hits)], 1).image
    assert [has_dot(image, column) for column in range(2)] == [True, False]


def test_what_cannot_be_shown_is_grey(colours, tmp_path):
    hits = colours("red", "lime", "blue")
    (tmp_path / "red" / "lime.png").unlink()
    (tmp_path / "red" / "blue.png").write_bytes(b"no image")
    image = Sheet([QueryResult(hits[0].path, hits)], 1).image
    corner = [pixel(image, FIRST_HIT + column * STEP + 5, module.HEADER + 5) for column in range(3)]
    assert corner == [(255, 0, 0), (0xe6, 0xe7, 0xea), (0xe6, 0xe7, 0xea)]
    assert module._is_sheet(contact_sheet([QueryResult(str(tmp_path / "gone.png"), hits)], tmp_path / "s.png"))


def test_long_images_keep_their_shape(colours, tmp_path):
    hits = colours("red")
    Image.new("RGB", (3000, 30), "red").save(tmp_path / "red" / "red.png")
    image = Sheet([QueryResult(hits[0].path, hits)], 1).image
    assert tile(image, 0, 0) == (255, 0, 0)
    assert pixel(image, FIRST_HIT + 20, module.HEADER + 20) == (0xf5, 0xf6, 0xf8)


def test_rows_and_columns_have_an_end(colours, monkeypatch):
    hits = colours("red") * 30
    monkeypatch.setattr(module, "SHOWN_QUERIES", 3)
    image = Sheet([QueryResult(hits[0].path, hits)] * 3, 9).image
    assert image.width == FIRST_HIT + 12 * STEP - module.GAP + module.MARGIN
    path = contact_sheet([QueryResult(hits[0].path, hits)] * 9, hits[0].path.replace("red.png", "s.png"))
    with Image.open(path) as drawn:
        assert drawn.height == image.height


def test_texts_fit():
    sheet = Sheet([QueryResult("absent.png", [])], 1)
    long = "a label that goes on and on... and on"
    fitted = sheet._fit(long, 100, sheet.small)
    assert sheet.pen.textlength(fitted, sheet.small) <= 100
    assert fitted.startswith("a lab")
    assert fitted.endswith("on")
    assert sheet._fit("short", 100, sheet.small) == "short"
    assert sheet._fit("wide", 1, sheet.small)
    assert readable("caf\udce9\n.png") == "caf??.png"
    assert [counted(1, "query"), counted(2, "query"), counted(2, "image")] == ["1 query", "2 queries", "2 images"]


def test_only_a_sheet_is_replaced(colours, tmp_path):
    hits = colours("red", "lime")
    results = [QueryResult(hits[0].path, hits)]
    contact_sheet(results, tmp_path / "s.png")
    contact_sheet(results[:1], tmp_path / "s.png")
    photo = shutil.copy(hits[0].path, tmp_path / "photo.png")
    for path, message in ((photo, "not a contact sheet"), (tmp_path / "s.jpg", r"must end in \.png"),
                          (tmp_path / "red", r"must end in \.png")):
        with pytest.raises(UsageError, match=message):
            contact_sheet(results, path)
    require_sheet(None)
    with pytest.raises(MocoembedError, match="no results"):
        contact_sheet([], tmp_path / "s.png")


def test_a_query_on_standard_input_has_no_image(colours, monkeypatch):
    """Not the file of that name, nor one that is missing."""
    said = []
    monkeypatch.setattr(Sheet, "_blank", lambda self, left, top, reason: said.append(reason))
    Sheet([QueryResult("-", colours("red"))], 1)
    assert said == ["standard input"]


def test_command_draws_a_sheet(indexed_workspace, images, run_cli, tmp_path):
    path = tmp_path / "deeper" / "hits.png"
    status, out, err = run_cli("search", images / "red" / "000.png", "--workspace", indexed_workspace, "-k", "4",
                               "--sheet", path, "--format", "paths")
    assert (status, err) == (0, f"sheet: {path}\n")
    assert len(out.splitlines()) == 4
    with Image.open(path) as image:
        assert image.width == FIRST_HIT + 4 * STEP - module.GAP + module.MARGIN
