"""Images in a report: embeddings files -> nearest neighbours of a few images, and the map if there is one.

In: the embeddings that results are of, found by path and recognised by their identity. Out: sections of the page, with
thumbnails in it, of images that are still there with the bytes that were embedded; notes on what is missing.
"""

import contextlib
import os
import pathlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mocoembed.data.images import NO_LABEL
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.thumbnails import thumbnail
from mocoembed.errors import FormatError
from mocoembed.report.charts import COLOURS, MOST_ON_MAP, legend, scatter
from mocoembed.report.html import Element, element, jpeg_uri, section
from mocoembed.search.exact import ExactRows
from mocoembed.search.map_file import map_file_of, read_map

HITS = 8  # neighbours of each query
SIDE = 160  # of a thumbnail, in pixels
SEED = 0


@dataclass(frozen=True)
class Pair:
    """Embeddings that are searched, and those of the queries: the same in leave-one-out."""

    bank: pathlib.Path
    queries: pathlib.Path

    @property
    def one(self) -> bool:
        """Whether queries and bank are the same file."""
        return self.bank == self.queries


def pairs_of(results: dict[str, dict], workspaces: list[pathlib.Path], note: Callable[[str], None]) -> list[Pair]:
    """The embeddings of the results and of the workspaces, each once, as far as they are still there."""
    found: dict[tuple[str, str], Pair] = {}
    for path, result in results.items():
        bank, queries = (_located(path, result["data"][side]) for side in ("bank", "queries"))
        if bank is None or queries is None:
            note(_why_none(path, result))
        else:
            identities = [result["data"][side]["identity"] for side in ("bank", "queries")]
            found.setdefault((identities[0], identities[1]), Pair(bank, queries))
    for own in workspaces:
        with EmbeddingFile(own) as file:
            found.setdefault((file.identity, file.identity), Pair(own, own))
    return list(found.values())


def _why_none(path: str, result: dict) -> str:
    """Why nothing is shown of the images of a result."""
    of = result["data"]["bank"]["path"]
    if of.endswith(".h5"):
        return f"{path}: its embeddings ({of}) are not there or have changed, so their images are not shown"
    return f"{path}: it was measured on images ({of}), not on embeddings, so no nearest neighbours are shown"


def _located(result: str, side: dict) -> pathlib.Path | None:
    """The embeddings file of a side: where the result says, from here or from where the result lies."""
    beside = pathlib.Path(result).parent
    for path in (pathlib.Path(side["path"]), beside / side["path"], beside / pathlib.Path(side["path"]).name):
        with contextlib.suppress(OSError, FormatError), EmbeddingFile(path) as file:
            if file.identity == side["identity"]:
                return path
    return None


def neighbours_section(pair: Pair, count: int, note: Callable[[str], None]) -> Element | None:
    """The nearest neighbours of some queries, drawn at random by a fixed seed; nothing for none."""
    with EmbeddingFile(pair.bank) as bank, EmbeddingFile(pair.queries) as queries:
        count = min(count, len(queries))
        if not count or len(bank) < 1 + pair.one:
            return None
        rows = np.sort(np.random.default_rng(SEED).choice(len(queries), count, replace=False))
        scores, found = ExactRows(bank).nearest(queries.embeddings[rows], HITS + pair.one)
        lines = []
        for row, near, its in zip(rows.tolist(), scores, found):
            others = [(one, float(score)) for one, score in zip(its.tolist(), near) if not (pair.one and one == row)]
            lines.append(_line(queries, row, bank, others[:HITS], note))
        measure = "cosine similarity" if bank.normalized else "minus the squared distance"
        words = (f"{count} images of {pair.queries.name}, drawn at random (seed {SEED}), each followed by the most "
                 f"similar {'others' if pair.one else f'of {pair.bank.name}'}; under each its {measure} and label. "
                 "A filled dot: the label of the query.")
    return section(f"Nearest neighbours: {pair.queries.name}", element("p", words, class_="pale"), *lines)


def _line(queries: EmbeddingFile, row: int, bank: EmbeddingFile, hits: list[tuple[int, float]], note) -> Element:
    own = _image(queries, row, None, None, note)
    label = queries.full_names([row])[1][0]
    return element("ol", own, *(_image(bank, hit, score, label, note) for hit, score in hits), class_="hits")


def _image(file: EmbeddingFile, row: int, score: float | None, wanted: str | None, note) -> Element:
    """An image with what stands under it; the query has no score."""
    (path,), (label,) = file.full_names([row])
    data = thumbnail(path, bytes(file.digest[row]).hex(), file.value_range, SIDE)
    name = os.path.basename(os.fsdecode(path))
    if data is None:
        note(f"no thumbnail of {os.fsdecode(path)}: it is gone, cannot be read or has changed")
        shown = element("span", "not there", class_="gone")
    else:
        shown = element("img", src=jpeg_uri(data), alt=f"{label or 'no label'}, {name}", title=os.fsdecode(path))
    if score is None:
        return element("li", shown, element("span", "query", class_="role"), element("span", label or name),
                       class_="query")
    same = label is not None and label == wanted
    return element("li", shown, element("span", f"{score:.3f}", element(
        "span", "●" if same else "○", role="img", aria_label="same label" if same else "another label",
        class_="same" if same else "other-label"), class_="role"), element("span", label or name))


def map_section(path: pathlib.Path, note: Callable[[str], None]) -> Element | None:
    """The map of an embeddings file; nothing where there is none of these rows."""
    at = map_file_of(path)
    if not at.is_file():
        return None
    with EmbeddingFile(path) as file:
        made = read_map(at)
        if made.identity != file.identity:
            note(f"{at} is of other embeddings than {path} has now, and is not shown. Make it again: mocoembed map")
            return None
        labels, names = file.labels[:], file.label_names
    rows = np.arange(len(made))
    if len(rows) > MOST_ON_MAP:
        rows = np.sort(np.random.default_rng(SEED).choice(len(made), MOST_ON_MAP, replace=False))
    common = [number for number, _ in Counter(labels[labels != NO_LABEL].tolist()).most_common(COLOURS)]
    common.sort(key=lambda number: names[number])
    kinds = np.full(len(labels), -1)
    for colour, number in enumerate(common):
        kinds[labels == number] = colour
    entries = [(names[number], f"c{colour}") for colour, number in enumerate(common)]
    if (kinds < 0).any():
        entries.append(("others" if common else "images", "other"))
    known = made.agreement[np.isfinite(made.agreement)]
    agreeing = f" {100 * known.mean():.1f} % of the ten nearest neighbours share the label." if len(known) else ""
    words = f"{len(rows):,} of {len(made):,} images" if len(rows) < len(made) else f"{len(made):,} images"
    described = f"{words} by {made.method}: near each other are images that are alike.{agreeing}"
    return section(f"Map: {path.name}", element("p", described, class_="pale"), element(
        "figure", element("figcaption", legend(entries)), scatter(made.places[rows], kinds[rows], described),
        class_="map-figure"))
