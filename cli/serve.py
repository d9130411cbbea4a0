"""`mocoembed serve`: the collection in the browser, and for services."""

import click

from mocoembed.cli.options import field_help, options_of
from mocoembed.cli.output import note, put
from mocoembed.config import ServeConfig

TOKEN_VARIABLE = "MOCOEMBED_TOKEN"


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

    def answering(address: str):
        put(f"serving on {address} (stop with Ctrl-C)")
        if config.token is not None:
            note("The link works once, in one browser; others are asked for the token.")
        if config.browser:
            click.launch(address)

    serve(config, note, answering)
