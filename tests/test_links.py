"""Every link of the documentation leads to a file that is there, and to a heading that is in it."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(path for folder in (".", "docs", "benchmarks") for path in (ROOT / folder).glob("*.md"))


def anchors(page: pathlib.Path) -> set[str]:
    """The headings as GitHub makes anchors of them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_a_heading_as_an_anchor(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# The papers' `a` (study 1): b-c\n\n```bash\n# no heading\n```\n")
    assert anchors(page) == {"the-papers-a-study-1-b-c"}
