"""The group of commands, loaded one at a time, and the one place where errors become exit statuses."""

import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings

import click

from mocoembed.checks import size_of_variable
from mocoembed.cli.output import note
from mocoembed.errors import MocoembedError
from mocoembed.memory import IMAGE_MEMORY, is_out_of_memory
from mocoembed.version import __version__

# Before torch is loaded: its threads must sleep, not spin, while they wait for each other. Beside one busy process
# on two cores, spinning cut pretraining from 400 images/s to 17.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = ("demo", "pretrain", "export", "embed", "index", "search", "serve", "map", "push", "knn", "linear",
            "retrieval", "rankme", "compare", "report", "finetune", "classify", "duplicates", "convert", "info")

# What the loader of libraries says under a limit of memory; for other reasons it goes on, with a colon.
UNMAPPED = ("failed to map segment from shared object", "shared object: Cannot allocate memory")


class LazyGroup(click.Group):
    """Imports a command's module only when that command or its help is asked for."""

    def list_commands(self, context):
        return list(COMMANDS)

    def get_command(self, context, name):
        if name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"mocoembed.cli.{name}"), name)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mocoembed")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def cli(debug):
    """Pretrain image encoders with Momentum Contrast, and put them to work.

    All results go to one workspace folder, where each command finds those of the previous one:

    \b
      mocoembed pretrain IMAGES       learn an encoder from unlabelled images
      mocoembed embed IMAGES          compute one vector per image
      mocoembed index                 make the vectors searchable
      mocoembed search IMAGE          find similar images
      mocoembed serve                 search, map and duplicates in the browser
      mocoembed push --to URI         put the vectors into a Milvus collection
      mocoembed knn                   measure how often nearest neighbours share a label
      mocoembed linear                measure how well a linear classifier predicts the labels
      mocoembed retrieval             measure how well searching ranks what belongs together
      mocoembed rankme                measure without labels how many directions the vectors use
      mocoembed finetune IMAGES       learn a classifier from labelled images
      mocoembed classify IMAGE        predict the label of an image
      mocoembed compare A B           compare results of these two, image by image
      mocoembed report                write a page of runs and results, to read and to print
      mocoembed duplicates            find exact copies and near-duplicates
      mocoembed convert --to parquet  write the vectors for other tools

    Start with `mocoembed demo`: the whole pipeline on generated images, in minutes on two CPU cores.
    """
    size_of_variable(IMAGE_MEMORY)  # what is no size fails here, and not at every image


def main(arguments: list[str] | None = None):
    """Run the command line and exit: 0 done, 1 failed, 2 wrong call, 130 or 143 after a signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments[:1]
    warnings.showwarning = warnings.showwarning if debug else _show_warning
    try:
        with _interrupts():
            status = cli.main(list(arguments), prog_name="mocoembed", standalone_mode=False, obj=tuple(arguments))
            sys.stdout.flush()
    except MocoembedError as error:
        if debug:
            raise
        if not error.quiet:
            note(f"mocoembed: {error}")
        status = error.status
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("mocoembed: stopped", err=True)
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if debug:
            raise
        where = f": {error.filename!r}" if error.filename is not None else ""
        click.echo(f"mocoembed: {error.strerror or error}{where}", err=True)
        status = 1
    except Exception as error:
        if debug:
            raise
        click.echo(f"mocoembed: {_unexpected(error)}", err=True)
        status = 1
    sys.exit(status or 0)


@contextlib.contextmanager
def _interrupts():
    """Errors after a SIGINT are KeyboardInterrupts: libraries may take one for an error of their own.

    torch does while it makes a tensor: "could not determine the shape of object type".
    """
    came = False

    def interrupt(number, frame):
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    usual = (threading.current_thread() is threading.main_thread()
             and signal.getsignal(signal.SIGINT) is signal.default_int_handler)  # not ignored, as behind `nohup ... &`
    if usual:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _unexpected(error: Exception) -> str:
    """What to say of an error that is none of ours."""
    if is_out_of_memory(error):
        return ("out of memory, or out of shared memory. Give a smaller --batch-size or --queue-size, or fewer "
                "--workers.\nWhat was saved is kept.")
    if isinstance(error, ImportError) and str(error).endswith(UNMAPPED):
        return f"not enough memory to load the libraries ({error}). Allow more: `ulimit -v` shows the limit."
    if isinstance(error, ModuleNotFoundError):  # on a machine that only searches, most often torch
        package = (error.name or str(error)).partition(".")[0]
        return f"this needs the package {package}, which is not installed. Install it with: pip install {package}"
    return (f"unexpected {type(error).__name__}: {' '.join(str(error).split())}\n"
            "This is a bug; `mocoembed --debug ...` shows where it happened.")


def _show_warning(message, *place):
    """A warning is a line for people, without the place in the code."""
    note(f"mocoembed: {message}")
