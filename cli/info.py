"""`mocoembed info`: what a file is, and everything that it knows about itself."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.config import InfoConfig


@click.command()
@click.argument("path")
@options_of(InfoConfig, leave_out=("path",))
@json_option
def info(as_json, **values):
    """Say what PATH is: a checkpoint, run folder, encoder, embeddings or index file, or unfinished work.

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
    for name, value in description.items():
        click.echo(f"{name:22} {_shown(value)}")


def _shown(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        shown = ", ".join(_shown(one) for one in value[:12])
        return shown + (f" ... ({len(value)} in all)" if len(value) > 12 else "") if value else "-"
    return "-" if value is None else str(value)
