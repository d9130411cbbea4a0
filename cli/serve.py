"""`mocoembed serve`: the collection in the browser, and for services."""

import os
import sys

import click

from mocoembed.cli.options import field_help, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import counter
from mocoembed.config import MapConfig, ServeConfig

TOKEN_VARIABLE = "MOCOEMBED_TOKEN"


def has_screen() -> bool:
    """Whether a browser can be seen; without a screen, the browsers of a terminal would take it over."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


@click.command()
@click.argument("embeddings", required=False)
@options_of(ServeConfig, leave_out=("embeddings", "token"), repeated={"allow_host": "NAME"})
@click.option("--token", envvar=TOKEN_VARIABLE, show_envvar=True, help=field_help(ServeConfig)["token"])
def serve(**values):
    """Show and search a collection in the browser, and answer services under /api.

    The images of EMBEDDINGS are shown only on this machine, unless --host and --token are given. Press Ctrl-C to stop.

    \b
      mocoembed serve
      mocoembed serve photos.h5 --port 9000 --no-browser
      MOCOEMBED_TOKEN=$(openssl rand -hex 16) mocoembed serve --host 0.0.0.0
    """
    from mocoembed.serve.app import serve

    config = ServeConfig(**values)
    if config.map:
        from mocoembed.search.map import make_map

        with counter("map", "steps") as progress:
            make_map(MapConfig(config.embeddings, config.workspace), progress)

    def answering(address: str):
        put(f"serving on {address} (stop with Ctrl-C)")
        if config.token is not None:
            note("The link works once, in one browser; others are asked for the token.")
        if config.browser and has_screen():
            click.launch(address)

    serve(config, note, answering)
