"""`mocoembed serve`: the collection in the browser, and for services."""

import os
import sys

import click

from mocoembed.cli.options import field_help, options_of
from mocoembed.cli.output import note, put
from mocoembed.config import ServeConfig

# NumPy reads it when it is loaded. Requests run side by side, each on one core: with two threads, which wait for each
# other by spinning, an exact search of 800 vectors took three times the processor's time.
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
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
    os.environ.setdefault(BLAS_THREADS, "1")
    from mocoembed.serve.app import serve

    config = ServeConfig(**values)
    if config.map:
        from mocoembed.search.map import require_library

        require_library()

    def answering(address: str):
        put(f"serving on {address} (stop with Ctrl-C)")
        if config.token is not None:
            note("The link works once, in one browser; others are asked for the token.")
        if config.browser and has_screen():
            click.launch(address)

    serve(config, note, answering)
