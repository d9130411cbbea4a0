"""The page in a real browser: Debian's chromium, driven by Playwright; skipped where there is none."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from mocoembed.config import EmbedConfig, IndexConfig, MapConfig
from mocoembed.embed.extract import embed_images
from mocoembed.search.build import build_index
from mocoembed.search.map import make_map
from mocoembed.search.map_file import read_map, write_map

STATIC = pathlib.Path(__file__).parent.parent / "mocoembed" / "serve" / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PER_CLASS = 40
RARE, HOSTILE_LABEL = "rare", "it's \"quoted\" & <b>odd"
HOSTILE = "<img src=x onerror=window.hacked=1>.png"
WIDTHS = ((390, 844), (1024, 768), (1920, 1080))


def bundle():
    """Every file of the page."""
    return [path for path in STATIC.rglob("*") if path.is_file()]


def test_the_page_is_small_and_asks_no_other_host():
    code = [path for path in bundle() if path.suffix in (".js", ".css")]
    assert len(code) > 20
    assert sum(path.stat().st_size for path in code) < 150_000
    for path in bundle():
        text = path.read_text(encoding="utf-8")
        for address in re.findall(r"https?://[^\s'\")>]+", text):
            assert address.startswith("http://www.w3.org/"), f"{path.name}: {address}"  # names of formats


def test_no_html_is_made_from_strings_and_nothing_is_inline():
    for path in bundle():
        text = path.read_text(encoding="utf-8")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
                    "DOMParser"):
            assert way not in text, f"{path.name}: {way}"
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", page)


# ------------------------------------------------------------------------------------------------------- the server


@contextlib.contextmanager
def serving(workspace):
    """The address of `mocoembed serve` on a workspace."""
    command = [sys.executable, "-m", "mocoembed", "serve", "--workspace", str(workspace), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://\S+/", process.stdout.readline()).group()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def embed(folder, root, fresh=False, labels="parent"):
    embed_images(EmbedConfig(str(folder), workspace=str(root), workers=0, device="cpu", fresh=fresh, labels=labels))


def fill(folder, make_images):
    """Images of three colours, one rare one, near-duplicates, and names that a careless page would run."""
    make_images(folder, PER_CLASS)
    (folder / RARE).mkdir()
    (folder / HOSTILE_LABEL).mkdir()
    pixels = np.random.default_rng(7).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 40)).save(folder / RARE / "only.png")
    Image.fromarray(255 - pixels).resize((64, 40)).save(folder / HOSTILE_LABEL / HOSTILE)
    shutil.copy(folder / "red" / "003.jpg", folder / "red" / "copy.jpg")
    with Image.open(folder / "red" / "004.png") as image:
        image.save(folder / "red" / "again.jpg", quality=97)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the page: Playwright is not installed")
    if CHROMIUM is None:
        text = "The page is not tested in a browser: there is no chromium here (apt-get install chromium)."
        warnings.warn(text, stacklevel=2)  # stands at the end of the run; a skipped test is only a letter
        pytest.skip(text)
    with (playwright.sync_playwright() as driver,
          driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as running):
        yield running


@pytest.fixture(scope="module")
def places(tmp_path_factory, make_images, workspace, browser):
    """(folder of images, workspace) of a collection; `browser` is asked for first, so that nothing is made in vain."""
    folder = tmp_path_factory.mktemp("page") / "images"
    fill(folder, make_images)
    root = pathlib.Path(shutil.copytree(workspace, tmp_path_factory.mktemp("page-workspace") / "ws"))
    embed(folder, root, fresh=True)
    return folder, root


@pytest.fixture(scope="module")
def address(places):
    with serving(places[1]) as where:
        yield where


@pytest.fixture(scope="module")
def mapped(places):
    """The map of the collection."""
    return make_map(MapConfig(workspace=str(places[1]))).path


MANY = 270  # images: more than a page of answers holds, and more than a query takes


@pytest.fixture(scope="module")
def many(tmp_path_factory, make_images, workspace, browser):
    """The address of a collection of `MANY` images."""
    root = pathlib.Path(shutil.copytree(workspace, tmp_path_factory.mktemp("many-workspace") / "ws"))
    embed(make_images(tmp_path_factory.mktemp("many"), MANY // 3), root, fresh=True)
    with serving(root) as where:
        yield where


class Watched:
    """A page of the browser, and what went wrong on it."""

    def __init__(self, browser, address, **options):
        self.address, self.wrong, self.hosts = address, [], set()
        self.context = browser.new_context(**{"viewport": {"width": 1024, "height": 768}, "accept_downloads": True,
                                              "permissions": ["clipboard-read", "clipboard-write"], **options})
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text)
                     if message.type == "error" and "Failed to load resource" not in message.text else None)
        self.page.on("request", lambda request: self.hosts.add(re.match(r"[a-z]+:(//[^/]*/)?", request.url).group()))

    def open(self, query=""):
        self.page.goto(self.address + query)
        self.settled()
        return self.page

    def until(self, expression, arg=None, seconds=30.0):
        """Wait until an expression holds; Playwright's own way evaluates text, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression, arg):
            assert time.monotonic() < end, f"still not: {expression}"
            self.page.wait_for_timeout(25)

    def settled(self):
        self.until("document.querySelector('.tile, .group, .empty:not([hidden]) h2, .card-panel, .legend li')"
                                    " && !document.querySelector('.waiting')")

    def rows(self):
        """The paths that the first tiles tell, in order."""
        return [tile.get_attribute("alt") for tile in self.page.locator("#grid .tile img").all()[:12]]

    def search(self, tile):
        """Click a tile, and wait for its hits."""
        before = self.rows()
        self.page.locator("#grid .tile-link").nth(tile).click()
        self.changed(before)

    def changed(self, before):
        self.until(
            "before => document.querySelector('#grid .tile img')?.alt !== before[0] ||"
            " [...document.querySelectorAll('#grid .tile img')].slice(0, 12).some((img, i) => img.alt !== before[i])",
            arg=before)
        self.settled()


@pytest.fixture
def watched(browser, address):
    one = Watched(browser, address)
    yield one
    one.context.close()
    assert one.wrong == []
    assert one.hosts <= {address, "blob:"}


# ------------------------------------------------------------------------------------------------------- scenarios


def test_load(watched):
    page = watched.open()
    assert page.locator("#grid .tile").count() >= 60
    assert f"{3 * PER_CLASS + 4} images" in page.locator("#status").inner_text()
    chips = page.locator("#labels a").all_inner_texts()
    assert any(text.split() == ["red", str(PER_CLASS + 2)] for text in chips)
    watched.until("document.querySelector('#grid img').naturalWidth > 0")
    heights = page.evaluate("[...document.querySelectorAll('#grid .tile')].slice(0, 4).map(t => t.offsetTop + ' ' +"
                            " t.offsetHeight)")
    assert len({height.split()[1] for height in heights if height.split()[0] == heights[0].split()[0]}) == 1
    assert page.evaluate("window.hacked") is None


def test_more_images_come_by_scrolling_and_another_sample_is_another(watched):
    page = watched.open()
    watched.until("scrollTo(0, document.body.scrollHeight), "  # again and again: the page grows while it is laid out
                  f"document.querySelectorAll('#grid .tile').length === {3 * PER_CLASS + 4}")
    before = watched.rows()
    page.evaluate("scrollTo(0, 0)")
    page.locator("#another").click()
    watched.changed(before)
    assert "seed=" in page.url


def test_more_images_come_also_when_asking_for_them_has_failed(watched):
    asked = []

    def answer(route):  # a few rows at first, then none, as of a server that is busy
        asked.append(route.request.url)
        if len(asked) == 2:
            route.fulfill(status=429, json={"error": "busy"})
        else:
            route.continue_(url=re.sub(r"limit=\d+", "limit=60", asked[-1]))

    watched.page.route("**/api/rows?*limit=*", answer)
    watched.open("?path=*")
    watched.until("scrollTo(0, document.body.scrollHeight), "
                  f"document.querySelectorAll('#grid .tile').length === {3 * PER_CLASS + 4}")
    assert len(asked) > 3


def test_upload_and_paste(watched, places):
    page = watched.open()
    image = places[0] / "red" / "007.jpg"
    page.locator("#files").set_input_files(str(image))
    page.wait_for_selector("#cards .card")
    page.wait_for_selector("#grid .score")
    watched.settled()
    assert watched.rows()[0] == "red, 007.jpg"
    assert page.locator("#grid .score").first.inner_text().startswith("1.000")
    before = watched.rows()
    page.reload()  # the uploaded image is still known
    watched.settled()
    assert watched.rows() == before
    page.evaluate("""async (address) => {
        const data = new DataTransfer();
        data.items.add(new File([await (await fetch(address)).blob()], 'pasted.jpg', {type: 'image/jpeg'}));
        window.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
    }""", "/api/thumbnails/3")
    watched.changed(before)
    assert page.locator("#cards .card").count() == 1
    assert watched.rows()[0].startswith("blue, ")


def test_several_uploads_and_drop(watched, places):
    page = watched.open()
    page.locator("#files").set_input_files([str(places[0] / "red" / "007.jpg"), str(places[0] / "blue" / "007.jpg")])
    page.wait_for_selector("#grid .score")
    assert page.locator("#cards .card").count() == 2
    assert {"red", "blue"} <= {text.split(",")[0] for text in watched.rows()}
    before = watched.rows()
    page.evaluate("""async (address) => {
        const data = new DataTransfer();
        data.items.add(new File([await (await fetch(address)).blob()], 'dropped.jpg', {type: 'image/jpeg'}));
        document.body.dispatchEvent(new DragEvent('dragenter', {dataTransfer: data, bubbles: true}));
        document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
    }""", "/api/thumbnails/50")
    watched.changed(before)
    assert page.locator("#cards .card").count() == 1
    assert page.locator("#drop").is_hidden()


def test_three_hits_and_back(watched):
    page = watched.open()
    seen = [(page.url, watched.rows())]
    for place in (2, 3, 1):
        watched.search(place)
        seen.append((page.url, watched.rows()))
    assert len({url for url, _ in seen}) == 4
    for url, rows in reversed(seen[:-1]):
        before = watched.rows()
        page.go_back()
        watched.changed(before)
        assert (page.url, watched.rows()) == (url, rows)
    page.go_forward()
    watched.changed(seen[0][1])
    assert watched.rows() == seen[1][1]
    other = Watched(watched.context.browser, watched.address)  # a shared link
    other.open("?" + seen[3][0].partition("?")[2])
    assert other.rows() == seen[3][1]
    other.context.close()


def ids_of(page, query="rows=3,50"):
    """The ids of some rows."""
    return page.evaluate("query => fetch(`/api/rows?${query}`).then(answer => answer.json())"
                         ".then(({ rows }) => rows.map(({ id }) => id))", query)


def test_links_name_ids(watched):
    page = watched.open("?label=blue")
    (row_id,) = ids_of(page, "label=blue&limit=1")
    watched.search(0)
    assert page.url.endswith(f"?like={row_id}&label=blue")
    page.locator("#grid .view").first.evaluate("one => one.click()")
    page.wait_for_selector("#lightbox[open]")
    assert re.search(r"&open=\d{17,19}$", page.url)
    page = watched.open("?like=3&unlike=50&open=50")  # rows, as in links of before
    like, unlike = ids_of(page)
    assert page.url.endswith(f"?like={like}&unlike={unlike}&open={unlike}")
    assert page.locator("#cards .card").count() == 2
    watched.until("fetch('/api/rows?rows=3').then(answer => answer.json()).then(({ rows: [{ path }] }) =>"
                  " document.querySelector('#cards canvas').ariaLabel === `More like ${path.split('/').pop()}`)")


def test_links_to_images_that_are_not_there_say_so_and_lead_on(watched):
    page = watched.open()
    (there,) = ids_of(page, "rows=3")
    for lost in ("1234567890123456789", "no-id", "123456789"):
        page = watched.open(f"?like={lost}&label=red")
        assert page.locator("#empty p").inner_text().startswith("A query image of this link is not in this collection.")
        page.locator("#empty-way", has_text="Show all images").click()
        page.wait_for_selector("#grid .tile")
        assert page.url.endswith("?label=red")
    page = watched.open(f"?like={there}&unlike=1234567890123456789")
    assert page.locator("#empty h2").is_visible()
    page.locator("#empty-way", has_text="Search without it").click()
    page.wait_for_selector("#grid .score")
    assert page.url.endswith(f"?like={there}")
    page = watched.open("?like=u123")
    assert "uploaded in another browser" in page.locator("#empty p").inner_text()
    assert page.locator("#empty-way").inner_text() == "Show all images"
    page = watched.open("?rows=123")
    assert "Choose them on the map again" in page.locator("#empty p").inner_text()
    page.locator("#empty-way", has_text="Open the map").click()
    page.wait_for_selector("#view-map:not([hidden])")
    page = watched.open("?label=red&open=1234567890123456789")
    page.wait_for_selector("#lightbox[open] #lb-gone")
    assert "no such image in this collection" in page.locator("#lb-gone").inner_text()
    assert page.locator("#lb-mark").is_hidden()
    for key in ("m", "ArrowRight", "Enter"):  # which do nothing here
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert page.url.endswith("?label=red")


def test_more_and_less_like(watched):
    page = watched.open()
    watched.search(0)
    before = watched.rows()
    tile = page.locator("#grid .tile").nth(1)
    tile.hover()
    tile.locator(".less").click()
    watched.changed(before)
    assert page.locator("#cards .card").count() == 2
    assert "unlike=" in page.url
    before = watched.rows()
    page.locator("#cards .card").nth(1).locator(".remove").click()
    watched.changed(before)
    assert page.locator("#cards .card").count() == 1


def test_crop(watched):
    page = watched.open()
    watched.search(0)
    before = watched.rows()
    page.locator("#cards .crop-it").click()
    page.wait_for_selector("#crop[open]")
    stage = page.locator("#crop-canvas").bounding_box()
    page.mouse.move(stage["x"] + 2, stage["y"] + 2)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2, steps=3)
    page.mouse.up()
    drawn = page.locator("#crop-box").bounding_box()
    page.mouse.click(stage["x"] + 5, stage["y"] + 5)
    assert page.locator("#crop-box").bounding_box() == drawn  # a click is no rectangle
    page.locator("#crop-go").click()
    watched.changed(before)
    assert re.search(r"crop=\d+(%2C\d+){3}", page.url)
    before = watched.rows()
    page.locator("#grid .more").nth(2).evaluate("one => one.click()")  # the part stays beside another image
    watched.changed(before)
    assert re.search(r"\?like=u\w+&like=\d+$", page.url)
    assert page.locator("#cards .card").count() == 2
    before = watched.rows()
    page.locator("#cards .crop-it").last.click()
    page.wait_for_selector("#crop[open]")
    page.locator("#crop-go").click()
    watched.changed(before)
    assert re.search(r"\?like=u\w+&like=u\w+$", page.url)
    assert page.locator("#cards .card:not(.undrawn)").count() == 2
    page = watched.open(f"{page.url.removeprefix(watched.address)}&crop=1,1,9,9")  # of which image?
    assert page.locator("#grid .score").count() > 0


def test_filter_to_one_percent(watched):
    page = watched.open()
    watched.search(0)
    before = watched.rows()
    page.locator("#labels a", has_text=RARE).click()
    watched.changed(before)
    assert watched.rows() == ["rare, only.png"]
    page.locator("#labels a", has_text=RARE).click()
    watched.changed(["rare, only.png"])
    before = watched.rows()
    page.locator("#filter").fill("ONLY")  # capitals or not
    page.keyboard.press("Enter")
    watched.changed(before)
    assert watched.rows() == ["rare, only.png"]
    (path,) = page.evaluate("fetch('/api/rows?label=rare').then(answer => answer.json())")["rows"]
    page.locator("#filter").fill(path["path"])  # as "copy path" gives it
    page.keyboard.press("Enter")
    watched.until("document.querySelectorAll('#grid .tile').length === 1 && !document.querySelector('.waiting')"
                  " && location.search.includes('only.png')")
    assert watched.rows() == ["rare, only.png"]
    page.locator("#filter").fill("nothing-like-it")
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.locator("#empty p").inner_text() == "There is no image in nothing-like-it."
    page.reload()
    page.wait_for_selector("#empty:not([hidden])")
    assert page.locator("#filter").input_value() == "nothing-like-it"  # without the stars of the address
    page.locator("#empty-clear").click()
    page.wait_for_selector("#grid .tile")
    assert (page.locator("#cards .card").count(), "path=" in page.url) == (1, False)


def test_results_begin_at_the_top_and_back_is_where_one_was(watched):
    page = watched.open()
    page.evaluate("scrollTo(0, 900)")
    watched.until("scrollY === 900")
    before = watched.rows()
    page.locator("#grid .tile").nth(30).locator("a").evaluate("one => one.click()")
    watched.changed(before)
    assert page.evaluate("scrollY") == 0
    assert page.title().startswith("Similar images")
    page.go_back()
    watched.until("scrollY === 900")
    page.locator("#grid .tile").nth(30).locator(".view").evaluate("one => one.click()")
    page.wait_for_selector("#lightbox[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert page.evaluate("scrollY") == 900
    assert page.evaluate("history.state.scroll") == 900  # for a reload


def test_a_view_that_was_left_does_not_move_the_page(watched):
    page = watched.page
    page.route("**/api/health-report*", lambda route: (page.wait_for_timeout(1500), route.continue_()))
    page = watched.open()
    page.locator(".tabs [data-view=health]").click()
    page.locator(".tabs [data-view=search]").click()
    page.evaluate("scrollTo(0, 900)")
    watched.until("document.querySelector('#view-health .card-panel') !== null")
    page.wait_for_timeout(100)
    assert page.evaluate("scrollY") == 900


def test_more_hits_come_after_going_back(browser, many):
    one = Watched(browser, many, viewport={"width": 390, "height": 600})  # where the page asks for no more by itself
    page = one.open("?path=*")
    one.search(3)
    before = one.rows()
    page.go_back()
    one.changed(before)
    one.until("scrollTo(0, document.body.scrollHeight), "
              f"document.querySelectorAll('#grid .tile').length === {MANY}")
    one.context.close()
    assert one.wrong == []


def test_a_reload_is_where_one_was(watched):
    page = watched.open("?path=*")
    page.set_viewport_size({"width": 500, "height": 300})  # where all images take several screens
    watched.until("scrollTo(0, document.body.scrollHeight), "
                  f"document.querySelectorAll('#grid .tile').length === {3 * PER_CLASS + 4}")
    page.evaluate("scrollTo(0, document.body.scrollHeight - 700)")
    place = page.evaluate("scrollY")
    watched.until("place => history.state?.scroll === place", place)
    page.reload()
    watched.settled()
    watched.until("place => Math.abs(scrollY - place) < 2", place)
    page.wait_for_timeout(300)
    assert abs(page.evaluate("scrollY") - place) < 2  # and stays there


def test_options(watched):
    page = watched.open()
    watched.search(0)
    page.locator("#options-button").click()
    page.locator("#k").select_option("20")
    watched.until("document.querySelectorAll('#grid .tile').length === 20")
    assert page.locator("#options-button").get_attribute("title") == "Options (1 set)"
    page.locator("#min").evaluate("one => { one.value = 0.99; one.dispatchEvent(new Event('input')); }")
    watched.until("document.querySelectorAll('#grid .tile').length < 20")
    assert "min=0.99" in page.url
    page.locator("#fold").check()
    watched.until("location.search.includes('fold=1')")
    watched.settled()
    page.keyboard.press("Escape")
    assert page.locator("#options").is_hidden()
    assert page.evaluate("document.activeElement.id") == "options-button"
    page.goto(watched.address + "?k=abc&side=-5")  # as somebody may type it
    watched.settled()
    assert page.locator("#grid .tile").count() >= 60


def test_near_duplicates_unfold_in_place(watched):
    """The copy of red/003.jpg is folded into it, or the other way round; f unfolds it, and the address keeps it so."""
    page = watched.open("?label=red")
    watched.search(0)
    page.locator("#options-button").click()
    page.locator("#fold").check()
    watched.until("document.querySelectorAll('#grid .fold').length > 0")
    button, count = page.locator("#grid .fold").first, page.locator("#grid .tile").count()
    folded = int(button.inner_text())
    button.click()
    watched.until(f"document.querySelectorAll('#grid .under').length === {folded}")
    assert button.get_attribute("aria-expanded") == "true"
    assert page.locator("#grid .tile.unfolded + .tile.under").count() == 1
    places = page.evaluate("[...document.querySelectorAll('#grid .tile')].map(tile => Number(tile.dataset.place))")
    assert places == list(range(count + folded))
    page.reload()
    watched.until(f"document.querySelectorAll('#grid .under').length === {folded}")
    page.locator("#grid .tile.unfolded .tile-link").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('.tile').classList.contains('under')")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("f")
    watched.until("document.querySelectorAll('#grid .under').length === 0")
    assert page.locator("#grid .tile").count() == count


def test_images_without_a_label_are_a_filter(browser, make_images, workspace, tmp_path):
    folder, root = tmp_path / "images", tmp_path / "ws"
    make_images(folder, 4)
    shutil.copy(folder / "red" / "000.png", folder / "bare.png")
    shutil.copytree(workspace, root)
    embed(folder, root, fresh=True, labels="first")
    with serving(root) as where:
        one = Watched(browser, where)
        page = one.open()
        page.locator("#labels a", has_text="no label").click()
        one.until("document.querySelectorAll('#grid .tile').length === 1")
        assert one.rows() == ["bare.png"]
        assert "1 image without a label" in page.locator("#status").inner_text()
        page.reload()
        one.until("document.querySelectorAll('#grid .tile').length === 1")
        one.context.close()
        assert one.wrong == []


def test_of_many_labels_the_rest_is_found_by_typing(browser, workspace, tmp_path):
    folder, root = tmp_path / "images", tmp_path / "ws"
    for number in range(70):
        (folder / f"Label {number}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (3 * number, 90, 0)).save(folder / f"Label {number}" / "one.png")
    shutil.copytree(workspace, root)
    embed(folder, root, fresh=True)
    make_map(MapConfig(workspace=str(root)))
    with serving(root) as where:
        one = Watched(browser, where)
        page = one.open("?view=map")
        one.until("document.querySelectorAll('.legend button').length === 60")
        assert page.locator(".legend li").last.inner_text() == "and 10 more labels"
        page = one.open()
        one.until("document.querySelectorAll('#labels a').length === 60")
        assert page.locator("#labels li").last.inner_text() == "and 10 more labels"
        page.locator("#filter").press_sequentially("9")
        one.until("[...document.querySelectorAll('#label-list option')].map(({ value }) => value).join()"
                  " === 'Label 19,Label 29,Label 39,Label 49,Label 59,Label 69,Label 9'")
        page.locator("#filter").fill("label 69")
        page.keyboard.press("Enter")
        one.until("document.querySelectorAll('#grid .tile').length === 1")
        assert page.url.endswith("?label=Label+69")
        assert page.locator("#labels [aria-current]").inner_text() == "Label 69"
        one.context.close()
        assert one.wrong == []


def test_mark_and_export(watched):
    page = watched.open("?label=green")
    for place in (0, 2):
        page.locator("#grid .tile").nth(place).hover()
        page.locator("#grid .mark").nth(place).click()
    assert page.locator("#tray-count").inner_text() == "2 images marked"
    with page.expect_download() as given:
        page.locator("#tray [data-do=csv]").click()
    rows = list(csv.DictReader(io.StringIO(pathlib.Path(given.value.path()).read_text(encoding="utf-8"))))
    assert [os.path.basename(row["path"]) for row in rows] == ["000.png", "002.png"]
    with page.expect_download() as given:
        page.locator("#tray [data-do=json]").click()
    records = json.loads(pathlib.Path(given.value.path()).read_text(encoding="utf-8"))
    assert all(isinstance(record["id"], str) and record["label"] == "green" for record in records)
    with page.expect_download() as given:
        page.locator("#tray [data-do=sheet]").click()
    with Image.open(given.value.path()) as sheet:
        assert sheet.width > 400
    page.locator("#tray [data-do=paths]").click()
    page.wait_for_selector("#toast:not([hidden])")
    assert page.evaluate("navigator.clipboard.readText()").splitlines() == [row["path"] for row in rows]
    page.reload()  # marks are kept
    page.locator("#tray [data-do=show]").click()
    watched.until("document.querySelectorAll('#grid .tile').length === 2")
    page.locator("#tray [data-do=clear]").click()
    page.wait_for_selector("#tray", state="hidden")
    page = watched.open()
    page.locator("#mark-all").click()  # those that are not rendered yet too
    assert page.locator("#tray-count").inner_text() == f"{3 * PER_CLASS + 4} images marked"
    page.locator("#mark-all").click()
    page.wait_for_selector("#tray", state="hidden")


def test_lightbox(watched):
    page = watched.open(f"?label={RARE}")
    page.locator("#grid .tile").first.hover()
    page.locator("#grid .view").first.click()
    page.wait_for_selector("#lightbox[open] #lb-near a")
    assert page.locator("#lb-name").inner_text() == "only.png"
    assert "64 × 40" in page.locator("#lb-facts").inner_text()
    page.locator("#lb-copy").click()
    watched.until("navigator.clipboard.readText().then(text => text.endsWith('rare/only.png'))")
    page.locator("#lb-near a").first.click()
    watched.until("document.querySelector('#lb-name').textContent !== 'only.png'")
    page.reload()
    page.wait_for_selector("#lightbox[open]")
    page.locator("#lb-folder").click()
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert "path=" in page.url
    watched.settled()
    assert page.locator("#grid .tile").count() >= 1


def test_more_like_more_marked_images_than_a_query_takes(browser, many):
    one = Watched(browser, many)
    page = one.open("?path=*")
    one.until("scrollTo(0, document.body.scrollHeight), "
              f"document.querySelector('#mark-all').textContent === 'Mark {MANY} images'")
    page.locator("#mark-all").click()
    page.locator("#tray [data-do=like]").click()
    page.wait_for_selector("#grid .score")
    one.settled()
    assert f"most similar images to 256 of the {MANY} marked images" in page.locator("#status").inner_text()
    assert page.locator("#grid .tile").count() == MANY - 256
    marked = page.evaluate("JSON.parse(localStorage[Object.keys(localStorage).find(key => /marks/.test(key))]).marked"
                           ".map(({ id }) => id)")
    places = [marked.index(one) for one in re.findall(r"like=(\d+)", page.url)]
    assert len(places) == 256
    assert set(np.diff(places)) == {1, 2}
    assert (places[0], places[-1]) == (0, MANY - 2)
    page.locator("#tray [data-do=clear]").click()
    page = one.open("?label=red")
    for place in (0, 1):
        page.locator("#grid .mark").nth(place).evaluate("one => one.click()")
    page.locator("#tray [data-do=like]").click()
    page.wait_for_selector("#grid .score")
    one.settled()
    assert "marked" not in page.locator("#status").inner_text()
    assert "label=red" in page.url  # filters stay, as with a click
    one.context.close()
    assert one.wrong == []


def test_the_lightbox_goes_on_to_images_that_were_not_loaded(browser, many):
    one = Watched(browser, many, viewport={"width": 390, "height": 600})  # where the page asks for no more by itself
    page = one.open()
    ids = ids_of(page, f"path=*&limit={MANY}")
    page = one.open(f"?path=*&open={ids[197]}")
    page.wait_for_selector("#lightbox[open]")
    for step in range(4):
        page.wait_for_selector("#lb-right", state="visible")
        page.keyboard.press("ArrowRight")
        assert page.url.endswith(f"&open={ids[198 + step]}")
    page = one.open(f"?path=*&open={ids[0]}")
    page.wait_for_selector("#lb-right", state="visible")
    assert page.locator("#lb-left").is_hidden()
    page = one.open(f"?path=002*&open={ids[2]}")  # three images, all there
    for _ in range(2):
        page.wait_for_selector("#lb-right", state="visible")
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("#lb-right", state="hidden")
    one.context.close()
    assert one.wrong == []


def test_the_lightbox_goes_on_to_the_next_group(watched):
    page = watched.page
    page.route("**/api/duplicates?*", lambda route: route.continue_(url=re.sub(r"limit=\d+", "limit=1",
                                                                               route.request.url)))
    page = watched.open("?view=duplicates")
    watched.until("Number.parseInt(document.querySelector('#view-duplicates .status').textContent) > 1")
    watched.until("document.querySelectorAll('.group').length > 1")  # they come one by one
    group = set(page.evaluate("[...document.querySelector('.group').querySelectorAll('.member-image')]"
                              ".map(link => link.href)"))
    page.locator(".group").first.locator(".member-image").last.click()
    page.wait_for_selector("#lb-right", state="visible")
    page.keyboard.press("ArrowRight")
    watched.until("document.querySelector('#lb-left').hidden === false")
    assert page.url not in group


def test_a_finger_goes_through_the_images(browser, address):
    one = Watched(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = one.open()
    page.locator("#grid .view").first.tap()
    page.wait_for_selector("#lightbox[open]")
    first = page.locator("#lb-path").inner_text()
    fingers = one.context.new_cdp_session(page)

    def swipe(from_x, to_x):
        for kind, points in (("touchStart", [{"x": from_x, "y": 200}]), ("touchMove", [{"x": to_x, "y": 205}]),
                             ("touchEnd", [])):
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    swipe(300, 100)
    one.until("first => document.querySelector('#lb-path').textContent !== first", arg=first)
    swipe(100, 300)
    one.until("first => document.querySelector('#lb-path').textContent === first", arg=first)
    assert page.locator("#lb-close").bounding_box()["y"] < 100  # within reach, above the image
    page.locator("#lb-close").click()
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    one.context.close()
    assert one.wrong == []


def test_duplicates_slider(watched):
    page = watched.open("?view=duplicates&threshold=1")
    assert page.locator(".group").count() == 1  # the copy to the byte
    page.locator("#threshold").evaluate(
        "one => { one.value = one.min; one.dispatchEvent(new Event('input')); }")
    watched.until("document.querySelectorAll('.member').length > 2")
    watched.until("/threshold=0/.test(location.search)")
    with page.expect_download() as given:
        page.locator(".exports button", has_text="Text").click()
    before = pathlib.Path(given.value.path()).read_text(encoding="utf-8").splitlines()
    page.locator(".keep", has_text="To remove").first.click()
    with page.expect_download() as given:
        page.locator(".exports button", has_text="Text").click()
    after = pathlib.Path(given.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(after) == len(before) - 1
    assert all(os.path.exists(path) for path in before)


def test_all_groups_come_by_scrolling_on_a_large_screen(watched):
    page = watched.open()
    page.set_viewport_size({"width": 2560, "height": 1440})
    rows = page.evaluate("fetch('/api/rows?limit=100').then((answer) => answer.json())")["rows"]
    groups = [{"members": [{**row, "size": 100, "similarity": 1.0, "identical": None} for row in rows[place:place + 2]]}
              for place in range(98)]

    def answer(route):
        first = int((re.search(r"offset=(\d+)", route.request.url) or [0, 0])[1])
        route.fulfill(json={"threshold": 0.98, "auto": 0.98, "least": 0.9, "reason": "", "total": 98, "extra": 98,
                            "groups": groups[first:first + 50]})

    page.route("**/api/duplicates?*", answer)
    page.locator(".tabs [data-view=duplicates]").click()
    watched.until("scrollTo(0, document.body.scrollHeight), document.querySelectorAll('.group').length === 98")
    assert page.locator(".member").count() == 2 * 98


def test_a_threshold_below_the_least_leads_to_the_usual_one(watched):
    page = watched.open("?view=duplicates&threshold=0.01")
    watched.until("!/threshold/.test(location.search) && document.querySelectorAll('.group').length > 0")
    assert "0.01" in page.locator("#toast").inner_text()


def test_duplicates_tell_sizes_and_what_is_on_the_list(watched):
    page = watched.open("?view=duplicates&threshold=1")
    first, second = page.locator(".member").all()
    assert re.search(r"^40 × 40 · \d\.\d kB · red$", first.locator(".member-facts").first.inner_text())
    assert [one.locator(".keep").inner_text() for one in (first, second)] == ["Kept", "To remove"]
    assert "similarity 1.000" in second.inner_text()
    second.locator(".keep").click()
    assert second.locator(".keep").inner_text() == "Kept"
    assert page.locator(".exports").is_hidden()
    page.reload()
    watched.settled()
    assert page.locator(".keep").all_inner_texts() == ["Kept", "Kept"]  # what was decided is remembered
    for one in (first, second):
        one.locator(".keep").click()
    assert page.locator(".group .hint").inner_text() == "No image of this group is kept."
    page.route("**/api/info", lambda route: route.fulfill(json={**route.fetch().json(), "root": "/elsewhere"}))
    page.reload()
    watched.settled()
    assert page.locator(".keep").all_inner_texts() == ["Kept", "To remove"]  # and not for another collection


def test_the_ends_of_a_chain_are_kept_unless_someone_decides_otherwise(watched):
    page = watched.open()
    rows = page.evaluate("fetch('/api/rows?limit=4').then((answer) => answer.json())")["rows"]
    members = [{**row, "size": 100, "similarity": similarity, "identical": None}
               for row, similarity in zip(rows, (1.0, 0.985, 0.98, 0.971))]
    page.route("**/api/duplicates?*", lambda route: route.fulfill(json={
        "threshold": 0.98, "auto": 0.98, "least": 0.9, "reason": "", "total": 1, "extra": 3,
        "groups": [{"members": members}]}))
    page.locator(".tabs [data-view=duplicates]").click()
    page.wait_for_selector(".member")
    assert page.locator(".keep").all_inner_texts() == ["Kept", "To remove", "To remove", "Kept"]
    assert "similarity 0.971, linked through other images" in page.locator(".member").last.inner_text()
    assert page.locator(".exports").inner_text().startswith("2 images to remove:")
    page.locator(".keep").last.click()
    assert page.locator(".exports").inner_text().startswith("3 images to remove:")


def test_health_explains_its_lists_and_marks_them(watched):
    page = watched.open("?view=health")
    outliers = page.locator(".card-panel", has=page.locator("h2", has_text="Outliers"))
    assert "least like their neighbours" in outliers.inner_text()
    count = outliers.locator(".near li").count()
    outliers.locator("button", has_text=f"Mark {count} images").click()
    assert page.locator("#tray-count").inner_text() == f"{count} images marked"
    page.locator("#tray [data-do=show]").click()
    watched.until(f"document.querySelectorAll('#grid .tile').length === {count}")


def test_bad_upload(watched, places, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no image")
    page = watched.open()
    page.locator("#files").set_input_files(str(tmp_path / "bad.jpg"))
    page.wait_for_selector("#empty:not([hidden])")
    assert "cannot be read" in page.locator("#empty p").inner_text()
    assert page.locator("#grid .tile").count() == 0
    page.locator("#cards .remove").click()
    page.wait_for_selector("#grid .tile")
    (tmp_path / "text.jpg").write_bytes(b"nope")
    good = next((places[0] / "red").iterdir())
    page.locator("#files").set_input_files([str(tmp_path / "text.jpg"), str(good)])
    page.wait_for_selector("#empty:not([hidden])")
    said = page.locator("#empty p").inner_text()
    assert said.startswith("The image text.jpg cannot be read: ")
    assert "starts with 'nope'" in said
    page.locator("#empty-way").click()
    page.wait_for_selector("#grid .tile")
    assert page.locator("#cards .card").count() == 1
    assert "Similar images" in page.title()


def test_more_uploads_than_are_kept_are_there_after_a_reload(watched, places):
    some = sorted(str(path) for path in (places[0] / "red").iterdir())
    some = (3 * some)[:70]
    page = watched.open()
    page.locator("#files").set_input_files(some)
    watched.until("document.querySelectorAll('#cards .card').length === 70")
    watched.settled()
    page.reload()
    watched.settled()
    assert page.locator("#cards .card").count() == 70
    assert page.locator("#grid .tile").count() > 0


def test_marks_of_two_tabs_are_those_of_both(watched):
    page = watched.open()
    other = watched.context.new_page()
    other.goto(watched.address)
    other.wait_for_selector("#grid .tile")
    for one, place in ((page, 0), (other, 1), (page, 2)):
        one.locator("#grid .tile").nth(place).hover()
        one.locator("#grid .tile .mark").nth(place).click()
        for count in (page, other):
            count.wait_for_timeout(200)
    assert [one.locator("#tray-count").inner_text() for one in (page, other)] == ["3 images marked"] * 2
    page.reload()
    watched.settled()
    assert page.locator("#tray-count").inner_text() == "3 images marked"
    other.locator("#tray [data-do=clear]").click()
    page.wait_for_selector("#tray", state="hidden")


def test_marking_all_twice_says_what_it_does(watched):
    page = watched.open("?label=rare")
    page.locator("#mark-all", has_text="Mark 1 image").click()
    assert page.locator("#tray-count").inner_text() == "1 image marked"
    page.locator("#mark-all", has_text="Unmark 1 image").click()
    assert page.locator("#tray").is_hidden()
    assert page.locator("#mark-all").inner_text() == "Mark 1 image"


def test_names_are_text(watched):
    page = watched.open("?" + "path=*onerror*")
    assert page.locator("#grid .tile").count() == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_selector("#lightbox[open]")
    assert page.locator("#lb-name").inner_text() == HOSTILE
    assert HOSTILE_LABEL in page.locator("#lb-facts").inner_text()
    page.keyboard.press("Escape")
    page.locator("#labels a", has_text="quoted").click()
    watched.settled()
    assert page.evaluate("window.hacked") is None


def test_keyboard_only(watched):
    page = watched.open()
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help:not([open])", state="attached")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    watched.until("location.search.includes('label=red')")
    watched.settled()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    place = "Number(document.activeElement.closest('.tile')?.dataset.place)"
    assert page.evaluate(place) == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == 2
    page.keyboard.press("ArrowDown")
    below = page.evaluate(place)
    assert below > 2
    page.keyboard.press("ArrowUp")
    assert page.evaluate(place) < below
    page.keyboard.press("m")
    assert page.locator("#tray-count").inner_text() == "1 image marked"
    page.keyboard.press("m")
    opened = page.evaluate(place)
    page.keyboard.press("Space")
    page.wait_for_selector("#lightbox[open]")
    name = page.locator("#lb-name").inner_text()
    page.keyboard.press("ArrowRight")
    watched.until("name => document.querySelector('#lb-name').textContent !== name", arg=name)
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    watched.until(f"opened => {place} === opened + 1", arg=opened)  # the focus is on the image that was seen last
    before = watched.rows()
    page.keyboard.press("Enter")
    watched.until("location.search.includes('like=')")
    watched.changed(before)
    assert page.evaluate(place) == 0  # the hits are gone through from the first
    hits = watched.rows()
    page.go_back()
    watched.changed(hits)
    assert page.evaluate(place) == opened + 1
    page.go_forward()
    watched.changed(before)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    watched.until("document.querySelectorAll('#cards .card').length === 2")
    page.keyboard.press("3")
    page.wait_for_selector("#view-duplicates:not([hidden])")
    page.wait_for_selector(".member-image")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    second = page.locator(".member").nth(1)
    assert second.locator(".member-image").evaluate("one => one === document.activeElement")
    page.keyboard.press("k")
    assert second.locator(".keep").inner_text() == "Kept"
    page.keyboard.press("m")
    assert page.locator("#tray-count").inner_text() == "1 image marked"
    assert page.locator(".ticked").count() == 1
    page.keyboard.press("Space")
    page.wait_for_selector("#lightbox[open]")
    page.keyboard.press("Escape")
    page.locator("#tray [data-do=clear]").click()
    assert page.locator(".ticked").count() == 0
    page.locator("#toast button", has_text="Undo").click()
    assert page.locator("#tray-count").inner_text() == "1 image marked"
    assert page.locator("#toast").is_hidden()


def test_keys_of_duplicates_and_health_and_of_an_open_image(watched):
    choosers = []
    watched.page.on("filechooser", lambda one: choosers.append(one))  # early: the browser is asked to tell of them
    watched.page.set_viewport_size({"width": 390, "height": 800})  # where the groups stand in several rows
    for view, images in (("duplicates", ".member-image"), ("health", ".near a")):
        page = watched.open(f"?view={view}")
        page.wait_for_selector(images)
        place = f"[...document.querySelectorAll('{images}')].indexOf(document.activeElement)"
        top = "document.activeElement.getBoundingClientRect().top + scrollY"
        for key in ("Home", "End", "ArrowDown"):  # without a focus, they scroll
            page.keyboard.press(key)
        assert page.evaluate(place) == -1
        page.keyboard.press("ArrowRight")
        assert page.evaluate(place) == 0
        first = page.evaluate(top)
        page.keyboard.press("End")
        assert page.evaluate(place) == page.locator(images).count() - 1
        page.keyboard.press("Home")
        assert page.evaluate(place) == 0
        page.keyboard.press("ArrowDown")
        assert page.evaluate(top) > first
        page.keyboard.press("ArrowUp")
        assert (page.evaluate(top), page.evaluate(place)) == (first, 0)
    page.keyboard.press("u")
    for _ in range(400):
        if choosers:
            break
        page.wait_for_timeout(25)
    assert [one.is_multiple() for one in choosers] == [True]
    page.keyboard.press("Space")
    page.wait_for_selector("#lightbox[open]")
    page.keyboard.press("c")
    watched.until("path => navigator.clipboard.readText().then(text => text === path)",
                  arg=page.locator("#lb-path").text_content())


def test_names_that_are_not_utf8(browser, make_images, workspace, tmp_path):
    folder, root = make_images(tmp_path / "images", 2), tmp_path / "ws"
    odd = os.fsencode(folder) + b"/caf\xe9"
    os.mkdir(odd)
    for name in (b"plain.png", b"\xf0\x9f\x8c\xb7 n\xff\xfe.png"):
        shutil.copy(folder / "red" / "000.png", odd + b"/" + name)
    shutil.copytree(workspace, root)
    embed(folder, root, fresh=True)
    with serving(root) as where:
        one = Watched(browser, where)
        page = one.open("?path=caf*")
        page.locator("#mark-all").click()
        paths = sorted(odd + b"/" + name for name in os.listdir(odd))
        with page.expect_download() as given:
            page.locator("#tray [data-do=csv]").click()
        with open(given.value.path(), encoding="utf-8", errors="surrogateescape", newline="") as text:
            assert sorted(os.fsencode(row["path"]) for row in csv.DictReader(text)) == paths
        page.locator("#tray [data-do=paths]").click()
        page.wait_for_selector("#toast:not([hidden])")
        said = "copied, but the clipboard cannot hold names that are not UTF-8: CSV and JSON can"
        assert page.locator("#toast").inner_text() == f"2 paths {said}"
        page.locator("#grid .view").first.click(force=True)
        page.wait_for_selector("#lightbox[open]")
        page.locator("#lb-copy").click()
        one.until("document.querySelector('#toast').textContent.startsWith('Path copied, but')")
        assert page.evaluate("""() => {
            const { left, top, width, height } = document.querySelector('#toast').getBoundingClientRect();
            return document.elementFromPoint(left + width / 2, top + height / 2).id;
        }""") == "toast"  # in front of the dialog
        page.locator("#lb-folder").click()
        page.wait_for_selector("#lightbox:not([open])", state="attached")
        assert page.url.endswith("?path=caf%3F%2F*")
        one.until("document.querySelectorAll('#grid .tile').length === 2")
        page.locator("#tray [data-do=clear]").click()
        page = one.open("?view=duplicates&threshold=1")
        for keep in page.locator(".keep").all():  # all of the group in turn
            if keep.inner_text() == "Kept":
                keep.click()
        with page.expect_download() as given:
            page.locator(".exports button", has_text="Text").click()
        listed = pathlib.Path(given.value.path()).read_bytes().splitlines()
        assert set(paths) <= set(listed)
        assert all(os.path.exists(path) for path in listed)
        one.context.close()
        assert one.wrong == []


def test_images_gone_and_index_replaced(browser, make_images, workspace, tmp_path):
    folder, root = tmp_path / "images", tmp_path / "ws"

    def embed_and_index(fresh=False):
        embed(folder, root, fresh)
        build_index(IndexConfig(workspace=str(root), fresh=True))

    make_images(folder, 8)
    shutil.copytree(workspace, root)
    embed_and_index(fresh=True)
    with serving(root) as where:
        for path in (folder / "blue").iterdir():
            path.unlink()
        one = Watched(browser, where)
        page = one.open("?label=blue")
        index = "fetch('/api/info').then(answer => answer.json()).then(({ index }) => index.path)"
        assert os.path.basename(page.evaluate(index)) == "embeddings.faiss"
        one.until("document.querySelectorAll('.tile.gone').length === 8")
        page.locator("#grid .tile").first.hover()
        page.locator("#grid .view").first.click()
        page.wait_for_selector("#lb-gone:not([hidden])")
        page.keyboard.press("Escape")
        page = one.open("?label=green")
        page.locator("#grid .mark").nth(3).click(force=True)
        one.search(3)
        make_images(folder, 10, seed=1)
        make_images(tmp_path / "same", 8)
        shutil.copytree(tmp_path / "same" / "green", folder / "green", dirs_exist_ok=True)
        embed_and_index()
        page.wait_for_timeout(1500)  # the server looks each second
        page.evaluate("window.dispatchEvent(new Event('focus'))")
        page.wait_for_selector("#toast:not([hidden])")
        one.settled()
        # The query and the mark are those of the same image, in whatever row it is now.
        assert page.locator("#cards .card").count() == 1
        assert page.locator("#cards canvas").get_attribute("aria-label") == "More like 003.jpg"
        assert len(one.rows()) == 9
        page.locator("#tray [data-do=show]").click()
        one.until("document.querySelectorAll('#grid .tile').length === 1")
        assert one.rows() == ["green, 003.jpg"]
        page = one.open("?label=blue")
        one.until("document.querySelectorAll('#grid .tile').length === 10")
        assert page.locator(".tile.gone").count() == 0
        page.goto("about:blank")  # and those of a page that is opened after another replacement
        for path in (folder / "blue").iterdir():
            path.unlink()
        embed_and_index()
        page.wait_for_timeout(1500)
        page = one.open("?marked=1")
        one.until("document.querySelectorAll('#grid .tile').length === 1")
        assert one.rows() == ["green, 003.jpg"]
        assert page.locator(".tile.gone").count() == 0
        page.locator("#grid .view").first.click(force=True)
        page.wait_for_selector("#lightbox[open]")
        assert page.locator("#lb-path").inner_text().endswith("green/003.jpg")
        one.context.close()
        assert one.wrong == []


def test_a_replacement_that_shows_while_scrolling(browser, make_images, workspace, tmp_path):
    """Thumbnails of the old rows are refused: the page looks what is there now, and calls no image gone."""
    folder, root = make_images(tmp_path / "images", 60), tmp_path / "ws"
    shutil.copytree(workspace, root)
    embed(folder, root, fresh=True)
    with serving(root) as where:
        one = Watched(browser, where, viewport={"width": 390, "height": 400})
        page = one.open("?path=*")
        busy = []

        def answer(route):
            if "thumbnails/70?" in route.request.url and not busy.append(1) and len(busy) < 3:
                route.fulfill(status=429, json={"error": "busy"})
            else:
                route.continue_()

        page.route("**/api/thumbnails/*", answer)
        next((folder / "blue").iterdir()).unlink()
        embed(folder, root)
        page.wait_for_timeout(1500)  # the server looks each second
        one.until("scrollTo(0, document.body.scrollHeight), !document.querySelector('#toast').hidden")
        one.until("scrollTo(0, document.body.scrollHeight), "
                  "document.querySelectorAll('#grid .tile').length === 179")
        page.evaluate("[...document.querySelectorAll('#grid img')].forEach((img) => { img.loading = 'eager'; })")
        one.until("[...document.querySelectorAll('#grid img')].every((img) => img.naturalWidth > 0)")
        assert len(busy) >= 3  # it was asked for again
        assert page.locator(".tile.gone").count() == 0
        one.context.close()
        assert one.wrong == []


def serious(page):
    """Let axe-core look at what the page shows: it must find nothing serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    answer = axe.run(page, options={"resultTypes": ["violations"]}).response
    assert answer["testEngine"]["name"] == "axe-core"
    found = [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in answer["violations"]
             if each["impact"] in ("serious", "critical")]
    assert not found, (page.url, found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS, ids=lambda size: str(size[0]))
def test_widths_and_accessibility(browser, address, mapped, size, scheme):
    one = Watched(browser, address, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    for query in ("", "?like=5&like=50&unlike=90", "?label=red&open=90", "?like=no-id", "?open=no-id",
                  "?view=duplicates", "?view=health", "?view=map", "?view=map&like=5&label=red", "help", "crop"):
        if query == "help":
            page = one.open()
            page.keyboard.press("?")
        elif query == "crop":
            page = one.open("?like=5")
            page.locator("#cards .crop-it").click()
        else:
            page = one.open(query)
        page.wait_for_selector(f"#{query}[open]" if query.isalpha() else "main")
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), query
        serious(page)
    one.context.close()
    assert one.wrong == []


def test_the_map_keeps_query_and_filters(watched, mapped):
    page = watched.open("?like=5&label=red")
    hits = page.locator("#grid .tile").count()
    assert hits < 60
    page.locator(".tabs [data-view=map]").click()
    watched.until("document.querySelector('#view-map .status').textContent.includes('nearest to the query')")
    assert f" · {hits} nearest to the query in red are ringed" in page.locator("#view-map .status").inner_text()
    page.locator(".tabs [data-view=search]").click()
    page.wait_for_selector("#view-search:not([hidden])")
    assert re.search(r"\?like=\d{17,19}&label=red$", page.url)
    assert page.locator("#grid .tile").count() == hits


def test_the_address_holds_how_the_map_is_coloured(watched, mapped):
    page = watched.open("?view=map")
    page.locator(".legend .chip", has_text="green").click()
    assert page.url.endswith("&view=map")
    assert "only=green" in page.url
    assert page.evaluate("document.activeElement.textContent") == "green"
    page.reload()
    watched.settled()
    assert page.locator(".legend [aria-pressed=true]").all_inner_texts() == ["green"]
    page.locator(".legend .chip", has_text="green").click()
    assert "only" not in page.url
    page.locator("#view-map select").select_option("agreement")
    assert page.url.endswith("?view=map&by=agreement")
    page.locator(".tabs [data-view=search]").click()
    page.locator(".tabs [data-view=map]").click()
    page.reload()
    watched.settled()
    assert page.locator("#view-map select").input_value() == "agreement"
    assert "100 %" in page.locator(".legend").inner_text()
    page = watched.open("?view=map&only=&by=nonsense")  # images without a label, of which there are none; a wrong word
    assert page.locator("#view-map select").input_value() == "label"
    assert page.locator(".legend [aria-pressed=true]").count() == 0
    (some,) = ids_of(page, "rows=3")
    page = watched.open(f"?view=map&open={some}")
    page.wait_for_selector("#lightbox[open] #lb-near a")
    assert page.locator(".round:visible").count() == 0  # the map has no order


def test_map(watched, places, mapped):
    mapped.unlink()
    page = watched.open("?view=map")
    page.wait_for_selector("#view-map .empty:not([hidden]) h2")
    assert "There is no map" in page.locator("#view-map .empty p").inner_text()
    final = make_map(MapConfig(workspace=str(places[1]))).path
    made = read_map(final)
    write_map(final, dataclasses.replace(made, method="PCA", places=made.places[:, ::-1], provisional=True))
    look = "window.dispatchEvent(new Event('focus'))"  # the page does it by itself every two seconds
    page.evaluate(look)
    watched.until("document.querySelector('#view-map .status').textContent.includes('by PCA; a better arrangement')")
    told = {"map_progress": "map: 3 of 9 steps"}
    page.route("**/api/info", lambda route: route.fulfill(json={**route.fetch().json(), **told}))
    page.evaluate(look)
    watched.until("document.querySelector('#view-map .status').textContent.includes(' computed (map: 3 of 9 steps) ')")
    page.unroute("**/api/info")
    assert page.locator("#view-map .empty").is_hidden()
    write_map(final, made)
    page.evaluate(look)
    watched.until("document.querySelector('#view-map .status').textContent.endsWith('images, arranged by t-SNE')")
    watched.until("!document.querySelector('.map-stage').hidden")
    page.wait_for_timeout(1000)  # the points glide to their places
    serious(page)
    box = page.locator(".map-canvas").bounding_box()
    assert page.evaluate("""() => {
        const canvas = document.querySelector('.map-canvas');
        return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(one => one > 0);
    }""")
    page.locator("#view-map select").select_option("agreement")
    assert page.locator(".legend").inner_text().split("\n")[-1] == "100 % of the neighbours share the label"
    page.locator("#view-map select").select_option("label")
    assert page.locator(".legend .chip").count() == 5
    page.locator("#view-map button", has_text="Lasso").click()
    left, top = box["x"] + 20, box["y"] + 20  # the corners are round
    right, bottom = box["x"] + box["width"] / 2, box["y"] + box["height"] - 20
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 20)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    watched.until("location.search.includes('rows=')")
    watched.settled()
    chosen = int(re.match(r"\d+", page.locator("#status").inner_text()).group())
    assert 0 < chosen < 3 * PER_CLASS + 4
    assert page.locator("#grid .tile").count() == min(chosen, 60)
    page.go_back()
    page.wait_for_selector("#view-map:not([hidden])")
    page.locator(".map-canvas").focus()
    for key in ("+", "ArrowLeft", "ArrowUp", "0", "Enter"):
        page.keyboard.press(key)
        page.wait_for_timeout(40)
    watched.until("location.search.includes('rows=')")
    rest = {"label_names": ["the only one"], "labels": [1] * len(made.ids)}
    page.route("**/api/map?*", lambda route: route.fulfill(json={**route.fetch().json(), **rest}))
    page = watched.open("?view=map")  # of labels that the map does not name, images tell
    box = page.locator(".map-canvas").bounding_box()
    for step in range(1, 60):
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + step * box["height"] / 60)
        page.mouse.move(box["x"] + box["width"] * step / 60, box["y"] + box["height"] / 2)
        if page.locator(".map-tip").is_visible():
            break
    watched.until("['red', 'green', 'blue'].includes(document.querySelector('.map-tip span').textContent)")
    page.unroute("**/api/map?*")
    page = watched.open("?view=map&like=5")
    watched.until("document.querySelector('#view-map .status').textContent.includes('nearest to the query')")


def test_an_empty_collection_and_a_server_that_ended(watched):
    empty = {"version": "0", "total": 0, "rows": []}
    watched.context.route("**/api/rows*", lambda route: route.fulfill(json=empty))
    page = watched.open()
    assert "no images" in page.locator("#empty h2").inner_text()
    watched.context.route("**/api/rows*", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#empty:not([hidden])")
    assert "does not answer" in page.locator("#empty p").inner_text()
    watched.context.unroute("**/api/rows*")
    page.locator("#empty-again").click()
    page.wait_for_selector("#grid .tile")
