"""Duplicates, health and map of the page, in a real browser."""

import dataclasses
import os
import pathlib
import re

from page import PER_CLASS, Watched, ids_of, serious

from mocoembed.config import MapConfig
from mocoembed.search.map import make_map
from mocoembed.search.map_file import read_map, write_map


def test_duplicates_slider(watched):
    page = watched.open("?view=duplicates&threshold=1")
    assert page.locator(".group").count() == 1  # the copy to the byte
    page.locator("#threshold").evaluate(
        "one => { one.value = one.min; one.dispatchEvent(new Event('input')); }")
    watched.until("document.querySelectorAll('.member').length > 2")
    watched.until("/threshold=0/.test(location.search)")
    assert page.locator(".member-facts", has_text="same bytes a").count() == 2
    page.locator("#threshold").focus()
    page.keyboard.press("End")  # which is 1
    watched.until("/threshold=1$/.test(location.search) && document.querySelectorAll('.group').length === 1")
    page.keyboard.press("Home")
    watched.until("document.querySelectorAll('.member').length > 2 && !document.querySelector('.waiting')")
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
    assert re.search(r"^40 × 40 · \d\.\d kB · red · same bytes a$", first.locator(".member-facts").first.inner_text())
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
    assert "similarity 0.9710, linked through other images" in page.locator(".member").last.inner_text()
    assert page.locator(".exports").inner_text().startswith("2 images to remove:")
    page.locator(".keep").last.click()
    assert page.locator(".exports").inner_text().startswith("3 images to remove:")


def test_health_explains_its_lists_and_marks_them(watched):
    page = watched.open("?view=health")
    outliers = page.locator(".card-panel", has=page.locator("h2", has_text="Outliers"))
    assert "least like their 10 nearest" in outliers.inner_text()
    count = outliers.locator(".near li").count()
    outliers.locator("button", has_text=f"Mark {count} images").click()
    assert page.locator("#tray-count").inner_text() == f"{count} images marked"
    page.locator("#tray [data-do=show]").click()
    watched.until(f"document.querySelectorAll('#grid .tile').length === {count}")


def test_the_map_keeps_query_and_filters(watched, mapped):
    page = watched.open("?like=5&label=red")
    hits = page.locator("#grid .tile").count()
    assert hits < 60
    page.locator(".tabs [data-view=map]").click()
    watched.until("document.querySelector('#view-map .status').textContent.includes('nearest to the query')")
    status = page.locator("#view-map .status").inner_text()
    assert f" · the {hits} images nearest to the query, labelled red, are ringed" in status
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


def test_the_address_holds_what_is_seen_of_the_map(watched, mapped):
    page = watched.open("?view=map")
    watched.until("!document.querySelector('.map-stage').hidden")
    box = page.locator(".map-canvas").bounding_box()
    for x in range(int(box["x"]) + 30, int(box["x"] + box["width"]) - 30, 9):
        page.mouse.move(x, box["y"] + box["height"] / 2)
        if page.locator(".map-tip").is_visible():
            break
    page.mouse.down()  # on a point, by a hand that is not quite still
    page.mouse.move(x + 1, box["y"] + box["height"] / 2 + 1)
    page.mouse.up()
    page.wait_for_selector("#lightbox[open]")
    page.wait_for_timeout(400)  # what is seen of the map comes into the address
    assert "open=" in page.url
    page.go_back()
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert "open=" not in page.url
    page = watched.open("?view=map&at=0.4_0.6_3")
    page.locator(".tabs [data-view=search]").click()
    page.locator("#grid .tile-link").first.click()
    page.wait_for_selector("#grid .score")
    assert "at=" not in page.url
    page.locator(".tabs [data-view=map]").click()
    watched.until("location.search.includes('at=0.4_0.6_3')")  # the place is that of before
    page.go_back()
    page.wait_for_selector("#view-search:not([hidden])")
    page = watched.open("?view=map&at=x_y_0")
    watched.until("document.querySelector('#view-map .status').textContent.endsWith('t-SNE')")
    page = watched.open("?lasso=" + "_".join(["0123456789abcdef", *["1"] * 97]))
    assert "is not whole" in page.locator("#empty p").inner_text()


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
    watched.until("location.search.includes('lasso=')")
    watched.settled()
    chosen = int(re.match(r"\d+", page.locator("#status").inner_text()).group())
    assert 0 < chosen < 3 * PER_CLASS + 4
    assert page.locator("#grid .tile").count() == min(chosen, 60)
    rows = watched.rows()
    other = Watched(watched.context.browser, watched.address)  # a shared link
    other.open("?" + page.url.partition("?")[2])
    assert (other.rows(), other.wrong) == (rows, [])
    assert other.page.locator("#status").inner_text() == f"{chosen} images chosen on the map"
    other.context.close()
    page.go_back()
    page.wait_for_selector("#view-map:not([hidden])")
    page.locator(".map-canvas").focus()
    for key in ("+", "+", "+", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        page.wait_for_timeout(40)
    watched.until("location.search.includes('at=')")  # what is seen of the map
    in_view = page.locator("#view-map button", has_text="in view").inner_text()
    at = page.url
    page.reload()
    watched.settled()
    watched.until("text => [...document.querySelectorAll('#view-map button')].some((one) => one.textContent === text)",
                  in_view)
    assert page.url == at
    page.locator(".map-canvas").focus()
    page.keyboard.press("Enter")
    watched.until("location.search.includes('lasso=')")
    watched.settled()
    count = re.search(r"\d+", in_view).group()
    assert page.locator("#status").inner_text() == f"{count} image{'s' * (count != '1')} chosen on the map"
    page.go_back()
    page.wait_for_selector("#view-map:not([hidden])")
    assert page.url == at
    page.locator(".map-canvas").focus()
    page.keyboard.press("0")
    watched.until("!location.search.includes('at=')")
    page = watched.open("?lasso=0123456789abcdef_0_0_9_0_9_9")
    assert "arranged anew" in page.locator("#empty p").inner_text()
    page.locator("#empty-way", has_text="Open the map").click()
    page.wait_for_selector("#view-map:not([hidden])")
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
