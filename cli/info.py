"""`mocoembed info`: what a file is, and everything that it knows about itself."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import one_line, put
from mocoembed.config import InfoConfig

SHOWN_ITEMS = 12


@click.command()
@click.argument("path")
@options_of(InfoConfig, leave_out=("path",))
@json_option
def info(as_json, **values):
    """Say what PATH is: a checkpoint, run folder, encoder, classifier, embeddings, index, unfinished file, or a local
    file of Milvus Lite.

    \b
      mocoembed info mocoembed-workspace/embeddings.h5
      mocoembed info mocoembed-workspace/encoder.safetensors --json
      mocoembed info mocoembed-workspace/embeddings.faiss --verify
    """
    from mocoembed.info import describe

    description = describe(InfoConfig(**values))
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    lines = list(_flat(description))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        put(f"{name:{width}}  {one_line(value)}")


def _flat(values: dict, before: str = ""):
    """Pairs of a dotted name and its value as text, for a dict of dicts."""
    from mocoembed.data.facts import reason_for_people

    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        elif name == "curve":
            for place, point in enumerate(value):
                yield f"{before}{name}.{place}", ", ".join(f"{key} {number:.4g}" for key, number in point.items())
        elif name == "failed" and value and isinstance(value, list):
            yield before + name, f"{len(value)}" + (f", the first {SHOWN_ITEMS}:" if len(value) > SHOWN_ITEMS else "")
            for place, one in enumerate(value[:SHOWN_ITEMS]):
                yield f"{before}{name}.{place}", f"{one['path']}: {reason_for_people(one['error'], one['reason'])}"
        elif isinstance(value, list):
            shown = ", ".join(map(_text, value[:SHOWN_ITEMS]))
            more = f" ... ({len(value)} in total)" if len(value) > SHOWN_ITEMS else ""
            yield before + name, shown + more if value else "-"
        else:
            yield before + name, "-" if value in (None, {}) else str(value)


def _text(item) -> str:
    return ": ".join(map(str, item.values())) if isinstance(item, dict) else str(item)
