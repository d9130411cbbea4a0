"""`mocoembed duplicates`: embeddings.h5 -> groups of images that are there more than once."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, one_line, put, table
from mocoembed.cli.progress import counter
from mocoembed.config import DuplicatesConfig
from mocoembed.notes import counted

HEADER = ("group", "similarity", "pixels", "bytes", "same", "path")


def _rows(groups):
    """A line for every image: the one to keep first, with a star; equal letters in a group are equal bytes."""
    for number, group in enumerate(groups, 1):
        for one in group.members:
            keep = "*" if one is group.keeper else " "
            same = "" if one.identical is None else chr(ord("a") + (one.identical - 1) % 26)
            yield [f"{number}{keep}", f"{one.similarity:.4f}", one.pixels or "-", str(one.size or "-"), same,
                   one_line(one.path)]


def _summary(result) -> str:
    found = f"cosine {result.threshold:g} or more, {result.compared}" if result.threshold else "equal bytes"
    if not result.bytes_known:
        found += "; bytes unknown"
    among = f"among {counted(result.count, 'image')} ({found})"
    if not result.groups:
        return f"no duplicates {among}"
    summary = f"{counted(len(result.groups), 'group')} {among}: {result.extra} can go (* keep)"
    if result.bytes_known:
        summary += f", {result.extra_bytes / 1e6:.1f} MB; {counted(result.copies, 'exact copy')} among them"
    return summary


@click.command()
@click.argument("embeddings", required=False)
@options_of(DuplicatesConfig, leave_out=("embeddings",))
@json_option
@click.option("--sheet", metavar="FILE", help="Also draw the groups into this PNG file.")
def duplicates(as_json, sheet, **values):
    """Find groups of near-duplicates among the images of the embeddings file EMBEDDINGS; nothing is deleted.

    Two images are near-duplicates when the cosine similarity of their vectors is --threshold or more; by default it
    is chosen from the similarities in this collection, and printed. A group may be a chain, whose ends are less similar
    to each other; the table shows the similarity to the first image. The largest image of a group is the one suggested
    to keep (*). The same letter marks files that are equal byte for byte.

    Up to 200,000 images all pairs are compared. Of more, each is compared with the images in the nearest cells only,
    and a few groups may be missed; what was compared is printed.

    \b
      mocoembed duplicates
      mocoembed duplicates photos.h5 --threshold 0.95 --sheet groups.png
      mocoembed duplicates --exact-only --json
    """
    from mocoembed.search.duplicates import find_duplicates
    from mocoembed.search.sheet import duplicates_sheet, require_sheet

    require_sheet(sheet)
    with counter("duplicates", "images") as progress:
        result = find_duplicates(DuplicatesConfig(**values), progress)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        if result.groups:
            put(table(list(HEADER), list(_rows(result.groups)), "similarity pixels bytes"))
        if result.threshold_reason:
            put(f"threshold {result.threshold:g} (auto): {result.threshold_reason}")
        put(_summary(result))
    if sheet and result.groups:
        duplicates_sheet(result, sheet)
        note(f"sheet: {sheet}")
    elif sheet:
        note("no sheet drawn: no duplicates")
