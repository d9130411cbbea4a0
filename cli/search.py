"""`mocoembed search`: query images -> similar images of the collection."""

import functools
from collections.abc import Iterator

import click
from click.core import ParameterSource

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import csv_pieces, json_pieces, note, one_line, put, table
from mocoembed.cli.progress import counter
from mocoembed.config import MilvusConfig, SearchConfig
from mocoembed.errors import CollectionError, UsageError
from mocoembed.notes import counted

COLUMNS = ("rank", "score", "path", "label", "row")
REPEATED = {"label": "NAME", "not_label": "NAME", "path": "GLOB", "row": "ROW", "unlike": "FILE"}


def _table(results, unique: bool) -> Iterator[str]:
    before = ""
    for result in results:
        rows = [[str(hit.rank), f"{hit.score:.4f}", one_line(hit.label or "-"),
                 one_line(hit.path) + (f" (+{counted(hit.folded, 'near-duplicate')})" if hit.folded else "")]
                for hit in result.hits]
        hits = table(["rank", "score", "label", "path"], rows, "rank score") if rows else "no hits"
        yield f"{before}{one_line(result.query)}\n{hits}"
        before = "\n\n"
    if before:
        yield "\n"


def _json(results, unique: bool) -> Iterator[str]:
    return json_pieces(results)


def _csv(results, unique: bool) -> Iterator[str]:
    columns = (*COLUMNS, "folded") if unique else COLUMNS
    return csv_pieces(("query", *columns), ([[result.query, *(getattr(hit, name) for name in columns)]
                                             for hit in result.hits] for result in results))


def _paths(results, unique: bool) -> Iterator[str]:
    for result in results:
        yield "".join(f"{hit.path}\n" for hit in result.hits)


FORMATS = {"table": _table, "json": _json, "csv": _csv, "paths": _paths}


def _form(form: str, as_json: bool) -> str:
    """The format that is asked for; `UsageError` when --json and --format ask for two."""
    source = click.get_current_context().get_parameter_source("form")
    if as_json and form != "json" and source is not ParameterSource.DEFAULT:
        raise UsageError(f"--json and --format {form} exclude each other. Leave one of them out.")
    return "json" if as_json else form


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@options_of(SearchConfig, leave_out=("images",), repeated=REPEATED)
@options_of(MilvusConfig, repeated={"search_param": "KEY=VALUE"})
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="table", show_default=True,
              help="How to print the hits; paths prints one path per line and nothing else.")
@json_option
@click.option("--sheet", metavar="FILE", help="Also draw queries and hits into this PNG file.")
def search(images, form, as_json, sheet, to, collection, search_param, **values):
    """Find the images of the collection that are most similar to each IMAGE.

    An IMAGE is a file, a folder of query images, or - for one on standard input. It is embedded by the encoder that
    made the collection's vectors. Scores are cosine similarities (at most 1); for vectors that are not of length 1,
    minus the squared Euclidean distance. Of several images, one that cannot be read is named and left
    out, and the exit status is 1.

    With --server, the local options (--index, --embeddings, --encoder, --root, --device, --torch) and --recall are not
    available; with --to, --row, --unique, --diverse and --recall are not available.

    \b
      mocoembed search cat.jpg
      mocoembed search cat.jpg dog.jpg -k 5 --sheet hits.png
      mocoembed search cat.jpg --format paths
      mocoembed search cat.jpg --label cats --path '2024/*' --min-score 0.8
      mocoembed search --row 12 --exclude-self --unique
      mocoembed search queries/ --format json
      mocoembed search cat.jpg --server http://127.0.0.1:8765
      mocoembed search cat.jpg --to http://host:19530 --collection photos
    """
    form = _form(form, as_json)
    config, where = SearchConfig(images=images, **values), MilvusConfig(to, collection, search_param)
    if to is None:
        from mocoembed.search.query import iterate_search as iterate
    else:
        from mocoembed.search.milvus_search import iterate_milvus_search

        iterate = functools.partial(iterate_milvus_search, where=where)
    if sheet is not None:
        from mocoembed.search.sheet import contact_sheet, require_sheet  # with what else can be drawn: 17 ms

        require_sheet(sheet)
    drawn, failed = [], []

    def kept(results):
        try:
            for result in results:
                if sheet:
                    drawn.append(result)
                yield result
        except CollectionError as error:  # some queries cannot be read: what is printed of the others is whole
            failed.append(error)

    with counter("search", "images") as progress:
        results = iterate(config, progress=progress, note=note)
        texts = FORMATS[form](kept(results), values["unique"])
        for text in texts:
            put(text, newline=False)
    if drawn:
        if config.server:
            from mocoembed.search.remote import thumbnails

            contact_sheet(drawn, sheet, read=thumbnails(config.server))
        else:
            contact_sheet(drawn, sheet)
        note(f"sheet: {sheet}")
    if failed:
        raise failed[0]
