"""The page: what it is made of, what it shows first, the keyboard, widths and accessibility; in a real browser."""

import pathlib
import re

import pytest
from page import HOSTILE, HOSTILE_LABEL, PER_CLASS, WIDTHS, Watched, serious

STATIC = pathlib.Path(__file__).parent.parent / "mocoembed" / "serve" / "static"


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
