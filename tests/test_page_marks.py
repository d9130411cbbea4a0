"""Marks, exports and the lightbox of the page, in a real browser."""

import csv
import io
import json
import os
import pathlib
import re
import shutil

import numpy as np
from page import MANY, PER_CLASS, RARE, Watched, embed, ids_of, serving
from PIL import Image


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


def test_more_like_more_marked_images_than_a_query_takes(browser, address_of_many):
    one = Watched(browser, address_of_many)
    page = one.open("?path=*")
    one.until("scrollTo(0, document.body.scrollHeight), "
              f"document.querySelector('#mark-all').textContent === 'Mark {MANY} images'")
    page.locator("#mark-all").click()
    page.locator("#tray [data-do=like]").click()
    page.wait_for_selector("#grid .score")
    one.settled()
    assert f"similar images to 256 of the {MANY} marked images" in page.locator("#status").inner_text()
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


def test_the_lightbox_goes_on_to_images_that_were_not_loaded(browser, address_of_many):
    one = Watched(browser, address_of_many, viewport={"width": 390, "height": 600})  # asks for no more by itself
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
