"""Searching on the page, in a real browser: scrolling, uploads, likes, crops, filters and options."""

import re
import shutil

import pytest
from page import PER_CLASS, RARE, Watched, embed, serving
from PIL import Image

from mocoembed.config import MapConfig
from mocoembed.search.map import make_map


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
    assert page.locator("#empty p").inner_text() == "There is no image with “nothing-like-it” in the path."
    page.reload()
    page.wait_for_selector("#empty:not([hidden])")
    assert page.locator("#filter").input_value() == "nothing-like-it"  # without the stars of the address
    page.locator("#empty-clear").click()
    page.wait_for_selector("#grid .tile")
    assert (page.locator("#cards .card").count(), "path=" in page.url) == (1, False)


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


@pytest.mark.parametrize("name", ["photo.tiff", "photo.heic"])  # which browsers do not decode
def test_an_upload_that_the_browser_cannot_decode_is_shown_and_cropped(watched, places, tmp_path, name):
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    with Image.open(places[0] / "red" / "007.jpg") as image:
        image.resize((64, 48)).save(tmp_path / name)
    page = watched.open()
    page.locator("#files").set_input_files(str(tmp_path / name))
    page.wait_for_selector("#grid .score")
    watched.until("document.querySelector('#cards canvas').width === 64")
    assert page.locator("#cards .undrawn").count() == 0
    assert page.locator("#cards canvas").get_attribute("aria-label") == f"More like {name}"
    before = watched.rows()
    page.locator("#cards .crop-it").click()
    page.wait_for_selector("#crop[open]")
    page.locator("#crop-go").click()
    watched.until("document.querySelector('#cards canvas').width === 32")
    watched.settled()
    assert re.search(r"\?like=u\w+$", page.url)
    assert len(before) == len(watched.rows())


def test_options_of_hits_say_nothing_without_a_query(watched):
    page = watched.open("?k=20&min=0.9&fold=1")
    assert page.locator("#grid .tile").count() >= 60
    assert page.locator("#options-button").get_attribute("title") == "Options"
    page.locator("#options-button").click()
    for name in ("k", "min", "fold"):
        assert page.locator(f"#{name}").is_disabled()
    assert page.locator("#side").is_enabled()
    watched.search(0)
    assert page.locator("#k").is_enabled()
    assert page.locator("#options-button").get_attribute("title") == "Options (3 set)"
    text = "ab" * 400  # with capitals or not, it would be longer than the server takes
    page = watched.open(f"?path=*{text}*")
    assert page.locator("#empty p").inner_text() == f"There is no image with “{text}” in the path."


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
