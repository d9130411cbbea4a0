"""The login: the one-time link, the form, a wrong token, and what the page showed before; also in a browser."""

import httpx
import pytest
from page import WIDTHS, serious
from serving import Running, status_of

TOKEN = "0123456789abcdef0123456789abcdef"
VIEW = "like=5&like=u4f0c&label=daisy%26rose&k=30"


@pytest.fixture(scope="module")
def serving(indexed_workspace):
    running = Running(workspace=str(indexed_workspace), token=TOKEN)
    yield running
    running.stop()


@pytest.fixture
def guarded(serving):
    """The server, asked by a client that has not come in."""
    serving.client.cookies.clear()
    return serving


def test_what_the_page_showed_is_kept(guarded, monkeypatch):
    answer = guarded.get(f"/?{VIEW}", Accept="text/html")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/login?{VIEW}")
    assert guarded.get(f"/login?{VIEW}").status_code == 200
    wrong = guarded.client.post(f"/login?{VIEW}", data={"token": "wrong"})  # the form posts to where it is
    assert 'action="' not in wrong.text
    answer = guarded.client.post(f"/login?{VIEW}", data={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/?{VIEW}")
    monkeypatch.setattr(guarded.server.tokens, "key", "once")
    assert guarded.get(f"/login?key=once&{VIEW}").headers["location"] == f"/?{VIEW}"


@pytest.mark.parametrize("query", [
    "//evil.example", "next=//evil.example", "@evil.example", "\\\\evil.example", "%0d%0aX:y", ".evil.example",
    "https://evil.example", "key=wrong", "", "?", "/../..//evil.example"])
def test_no_login_leads_to_another_host(guarded, monkeypatch, query):
    answer = guarded.client.post(f"/login?{query}", data={"token": TOKEN})
    monkeypatch.setattr(guarded.server.tokens, "key", "once")
    link = guarded.get(f"/login?{query}&key=once" if query != "key=wrong" else "/login?key=once")
    for one in (answer, link):
        assert one.status_code == 303
        assert httpx.URL("http://localhost").join(one.headers["location"]).host == "localhost"
        assert one.headers["location"] == "/" or one.headers["location"].startswith("/?")
        assert "x" not in one.headers
    guarded.client.cookies.clear()
    assert guarded.get(f"/?{query}", Accept="text/html").headers["location"].partition("?")[0] == "/login"


def test_a_path_that_looks_like_a_host_leads_nowhere(guarded):
    for path in ("//evil.example/?like=5", "//evil.example", "/login//evil.example"):
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        assert status_of(guarded.raw(head.encode())) == 401


def test_a_wrong_token_is_told_in_the_form(guarded):
    first = guarded.get("/login").text
    answer = guarded.client.post("/login", data={"token": "wrong"})
    assert answer.status_code == 403
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text == first.replace(" hidden></p>", ">This token is wrong.</p>") != first
    assert "set-cookie" not in answer.headers
    assert guarded.notes[-1].endswith("refused: POST /login from 127.0.0.1: 403 token")
    counted = guarded.get("/metrics", Authorization=f"Bearer {TOKEN}").text
    assert 'mocoembed_refused_total{reason="token"}' in counted


def test_a_preview_of_the_link_does_not_use_it_up(guarded, monkeypatch):
    monkeypatch.setattr(guarded.server.tokens, "key", "once")
    assert "set-cookie" not in guarded.client.head("/login?key=once").headers
    assert "set-cookie" in guarded.get("/login?key=once").headers
    again = guarded.get("/login?key=once")
    assert "set-cookie" not in again.headers
    assert "This link has been used already" in again.text


def test_without_a_token_there_is_no_login(indexed_workspace):
    running = Running(workspace=str(indexed_workspace))
    try:
        assert running.get(f"/login?{VIEW}").headers["location"] == f"/?{VIEW}"
    finally:
        running.stop()


def test_a_person_comes_in_and_comes_in_again_after_a_restart(guarded, browser, monkeypatch):
    page = browser.new_page()
    page.goto(f"{guarded.client.base_url}/?label=red&k=30")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button").click()
    page.locator("#grid .tile").first.wait_for()
    assert page.url == f"{guarded.client.base_url}/?label=red&k=30"
    monkeypatch.setattr(guarded.server.tokens, "session", "another")  # as after a restart
    page.locator("#labels a", has_text="blue").click()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button").click()
    page.locator("#grid .tile").first.wait_for()
    assert "label=blue" in page.url
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_is_accessible_and_fits_the_screen(guarded, browser, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{guarded.client.base_url}/login")
    page.locator("#token:focus").wait_for()
    for is_wrong in (False, True):
        if is_wrong:
            page.get_by_label("Token").fill("wrong")
            page.keyboard.press("Enter")
            page.get_by_role("alert").wait_for()
        for width, height in WIDTHS:
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            serious(page)
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    context.close()
