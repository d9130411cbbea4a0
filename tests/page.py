"""The page in a real browser, for its tests: Debian's chromium, driven by Playwright; skipped where there is none."""

import contextlib
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

from mocoembed.config import EmbedConfig, MapConfig
from mocoembed.embed.extract import embed_images
from mocoembed.search.map import make_map

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PER_CLASS = 40
RARE, HOSTILE_LABEL = "rare", "it's \"quoted\" & <b>odd"
HOSTILE = "<img src=x onerror=window.hacked=1>.png"
WIDTHS = ((390, 844), (1024, 768), (1920, 1080))
MANY = 270  # images: more than a page of answers holds, and more than a query takes


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


@pytest.fixture(scope="module")
def address_of_many(tmp_path_factory, make_images, workspace, browser):
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


def ids_of(page, query="rows=3,50"):
    """The ids of some rows."""
    return page.evaluate("query => fetch(`/api/rows?${query}`).then(answer => answer.json())"
                         ".then(({ rows }) => rows.map(({ id }) => id))", query)


def serious(page):
    """Let axe-core look at what the page shows: it must find nothing serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    answer = axe.run(page, options={"resultTypes": ["violations"]}).response
    assert answer["testEngine"]["name"] == "axe-core"
    found = [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in answer["violations"]
             if each["impact"] in ("serious", "critical")]
    assert not found, (page.url, found)
