"""HTML as a tree of elements, never as text put together: so a name is text, whatever characters it has.

In: strings and elements. Out: elements of `xml.etree`, which escapes them when the page is written, and the whole page
with a policy that forbids scripts and every other host.
"""

import base64
import hashlib
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from mocoembed.search.sheet import readable

SHOWN_VALUES = 8  # of a list
GENERATOR = "mocoembed report"  # in the page, so that a report may replace a report and nothing else
STYLE = pathlib.Path(__file__).parent / "style.css"
Child = Element | str | None


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element. Attributes: `class_` is class, `aria_label` is aria-label; those that are `None` are left out."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): readable(f"{value:g}" if isinstance(value, float)
                                                                      else str(value))
                         for name, value in attributes.items() if value is not None})
    return add(made, *children)


def add(parent: Element, *children: Child) -> Element:
    """The element, with more children; `None` is none."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif child:
            text = readable(child)
            if len(parent):
                parent[-1].tail = (parent[-1].tail or "") + text
            else:
                parent.text = (parent.text or "") + text
    return parent


def facts(rows: Iterable[tuple[str, Child]]) -> Element:
    """A list of names and what they are; those without a value are left out."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in rows
                           if value is not None and value != ""), class_="facts")


def table(header: list[str], rows: list[list[Child]], caption: str, numbers: Iterable[int] = ()) -> Element:
    """A table that scrolls by itself where it is wider than the page; `numbers` are columns aligned right."""
    right = set(numbers)

    def cell(tag: str, column: int, content: Child, scope: str | None = None) -> Element:
        return element(tag, content, class_="number" if column in right else None, scope=scope)

    head = element("tr", *(cell("th", i, name, scope="col") for i, name in enumerate(header)))
    body = [element("tr", cell("th", 0, row[0], scope="row"), *(cell("td", i, one) for i, one in enumerate(row[1:], 1)))
            for row in rows]
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", made, class_="scrolls", tabindex="0", role="region", aria_label=caption)


def section(title: str, *children: Child, level: int = 2, anchor: str | None = None) -> Element:
    """A part of the page under a heading."""
    return element("section", element(f"h{level}", title), *children, id=anchor)


def command(line: str | None) -> Child:
    """A command line to repeat; nothing for `None`."""
    return line and element("pre", element("code", line), tabindex="0", aria_label="Command")


def jpeg_uri(data: bytes) -> str:
    """A JPEG file as the address of an image in the page itself."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def percent(value: float | None, digits: int = 2) -> str:
    """A number with two decimals; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def settings(told: dict[str, Any]) -> Element:
    """All settings that have a value."""
    return facts((name.replace("_", " "), short(value)) for name, value in flat(told)
                 if value is not None and value != [])


def flat(told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, those of a part under its name and theirs."""
    for name, value in told.items():
        yield from ((f"{name} {inner}", one) for inner, one in value.items()) if isinstance(value, dict) \
            else [(name, value)]


def short(value) -> str:
    """A value as text; of a list of many, such as the loss of every epoch, the first and the last."""
    if isinstance(value, list):
        texts = [short(one) for one in value]
        return ", ".join(texts) if len(texts) <= SHOWN_VALUES else f"{texts[0]} ... {texts[-1]} ({len(texts)} values)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def page(title: str, *body: Child) -> bytes:
    """The page, UTF-8. Its policy allows its own style, images in the page, and nothing else."""
    style = STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element("head", element("meta", charset="utf-8"), element("meta", name="generator", content=GENERATOR),
                   element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                   element("meta", http_equiv="Content-Security-Policy", content=policy),
                   element("meta", name="referrer", content="no-referrer"), element("title", title))
    sheet = Element("style")
    sheet.text = style  # not through `readable`, for its lines; the writer leaves it as it is
    head.append(sheet)
    root = element("html", head, element("body", *body), lang="en")
    return b"<!doctype html>\n" + ElementTree.tostring(root, encoding="utf-8", method="html")
