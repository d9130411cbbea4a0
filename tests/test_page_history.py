"""The page's addresses, in a real browser: back, reload, links, and a collection that is replaced meanwhile."""

import os
import re
import shutil

from page import MANY, PER_CLASS, Watched, embed, ids_of, serving

from mocoembed.config import IndexConfig
from mocoembed.search.build import build_index


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
    page = watched.open("?seed=abc&crop=1,2&like=" + "&like=".join(str(10**17 + i) for i in range(300)))
    assert page.locator("#empty p").inner_text().startswith("A query image of this link is not in this collection.")
    page = watched.open("?label=red&open=1234567890123456789")
    page.wait_for_selector("#lightbox[open] #lb-gone")
    assert "no such image in this collection" in page.locator("#lb-gone").inner_text()
    assert page.locator("#lb-mark").is_hidden()
    for key in ("m", "ArrowRight", "Enter"):  # which do nothing here
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert page.url.endswith("?label=red")


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


def test_more_hits_come_after_going_back(browser, address_of_many):
    one = Watched(browser, address_of_many, viewport={"width": 390, "height": 600})  # asks for no more by itself
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
