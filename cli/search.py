"""`mocoembed search`: query images -> similar images of the collection."""

import csv
import io
import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, one_line, put, table
from mocoembed.cli.progress import counter
from mocoembed.config import SearchConfig

COLUMNS = ("rank", "score", "path", "label", "row")


def _table(results) -> str:
    parts = []
    for result in results:
        rows = [[str(hit.rank), f"{hit.score:.4f}", one_line(hit.label or "-"), one_line(hit.path)]
                for hit in result.hits]
        parts.append(one_line(result.query) + "\n" + table(["rank", "score", "label", "path"], rows, "rank score"))
    return "\n\n".join(parts)


def _json(results) -> str:
    return json.dumps([result.as_json() for result in results], indent=2)


def _csv(results) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query", *COLUMNS])
    writer.writerows([result.query, *(getattr(hit, name) for name in COLUMNS)]
                     for result in results for hit in result.hits)
    return text.getvalue().rstrip("\n")


def _paths(results) -> str:
    return "\n".join(hit.path for result in results for hit in result.hits)


FORMATS = {"table": _table, "json": _json, "csv": _csv, "paths": _paths}


@click.command()
@click.argument("images", nargs=-1, metavar="IMAGE...")
@options_of(SearchConfig, leave_out=("images",))
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="table", show_default=True,
              help="How to print the hits; paths prints one path per line and nothing else.")
@json_option
@click.option("--sheet", metavar="FILE", help="Also draw queries and hits into this PNG file.")
def search(images, form, as_json, sheet, **values):
    """Find the images of the collection that are most similar to each IMAGE.

    An IMAGE is embedded by the encoder that made the collection's vectors. Scores are cosine similarities (at most 1);
    for vectors that are not of length 1, minus the squared Euclidean distance.

    \b
      mocoembed search cat.jpg
      mocoembed search cat.jpg dog.jpg -k 5 --sheet hits.png
      mocoembed search cat.jpg --format paths
    """
    from mocoembed.search.query import search_images
    from mocoembed.search.sheet import contact_sheet, require_sheet

    require_sheet(sheet)
    with counter("search", "images") as progress:
        results = search_images(SearchConfig(images=images, **values), progress, note)
    put(FORMATS["json" if as_json else form](results))
    if sheet:
        contact_sheet(results, sheet)
        note(f"sheet: {sheet}")
