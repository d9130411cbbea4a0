"""`mocoembed report`: runs and results -> one HTML page."""

import click

from mocoembed.cli.options import options_of
from mocoembed.cli.output import note, put
from mocoembed.config import ReportConfig
from mocoembed.notes import counted


@click.command()
@click.argument("sources", nargs=-1, metavar="[RUN|RESULT]...")
@options_of(ReportConfig, leave_out=("sources",))
def report(**values):
    """Write a report of pretraining runs and results: one HTML page, complete in itself, to read, print and keep.

    RUN is a run folder or a workspace (its newest run, its embeddings and its map); by default, the workspace. RESULT
    is what an evaluation or compare printed with --json. The page has what was run, the curves, tables with intervals
    and baselines, the confusion matrix, nearest neighbours, the map, and the commands to repeat it all. Images are put
    into the page if they are still there with the bytes that were embedded. It loads nothing from elsewhere.

    \b
      mocoembed report
      mocoembed report mocoembed-workspace knn.json linear.json --html report.html
    """
    config = ReportConfig(**values)
    from mocoembed.report.make import make_report

    result = make_report(config, note)
    put(f"{result.path}: {counted(result.runs, 'run')}, {counted(result.results, 'result')}, "
        f"{result.size / 1e6:.1f} MB")
