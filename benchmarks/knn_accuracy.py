"""How well do several encoders do at kNN, by every protocol that people quote?

In: embeddings files, alone (leave-one-out) or in pairs (bank and queries). Out: one table, Markdown or JSON, with a
row for each encoder, k and temperature, and all that the numbers depend on.

    python benchmarks/knn_accuracy.py --pair r50 train.h5 val.h5 --pair r18 train18.h5 val18.h5 --preset dino
    python benchmarks/knn_accuracy.py --alone photos embeddings.h5 -k 1,5,20,200 --temperature 0.07,0.1 --format json

The numbers are exact and depend on the files alone, so one run is enough; the seconds are of that run.
"""

import json
import sys
import time

import click
import torch

from mocoembed import __version__
from mocoembed.cli.options import NumberList
from mocoembed.cli.output import note
from mocoembed.config import KnnConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import MocoembedError
from mocoembed.evaluate.accuracy import knn_accuracy
from mocoembed.recipes import KNN_PRESETS

COLUMNS = ("name", "preset", "features", "k", "T", "top1", "top5", "bank", "queries", "classes", "encoder", "seconds")


def presets_for(bank: str, asked: tuple[str, ...]) -> list[str | None]:
    """Those of the presets asked for that are defined on the file's features; `[None]` when none was asked for."""
    if not asked:
        return [None]
    with EmbeddingFile(bank) as file:
        features = file.features
    for preset in asked:
        if KNN_PRESETS[preset][0] != features:
            note(f"{bank}: --preset {preset} is left out; it is not defined on {features} features")
    return [preset for preset in asked if KNN_PRESETS[preset][0] == features]


def rows_of(name: str, config: KnnConfig) -> list[dict]:
    """One row for each k and temperature of one encoder."""
    begun = time.perf_counter()
    result = knn_accuracy(config)
    seconds = round(time.perf_counter() - begun, 2)
    for line in result.notes():
        note(f"{name}: {line}")
    return [{"name": name, "preset": result.preset or "-", "features": result.features, "k": one.k,
             "T": one.temperature, "top1": round(one.top1, 2), "top5": round(one.top5, 2) if one.top5 else "-",
             "bank": len(result.bank.names), "queries": "leave-one-out" if result.leave_one_out
             else len(result.queries.names), "classes": len(set(result.bank.names)),
             "encoder": result.encoder["fingerprint"][:12], "seconds": seconds} for one in result.scores]


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def machine() -> str:
    """What the seconds were measured with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{device}; torch {torch.__version__}; mocoembed {__version__}"


@click.command()
@click.option("--pair", "pairs", nargs=3, multiple=True, metavar="NAME BANK QUERIES", help="A name and two files.")
@click.option("--alone", nargs=2, multiple=True, metavar="NAME BANK", help="A name and one file: leave-one-out.")
@click.option("--preset", "presets", multiple=True, type=click.Choice(list(KNN_PRESETS)), help="Repeat for several.")
@click.option("-k", type=NumberList(int, None), default=(), help="Numbers of neighbours; by default the presets'.")
@click.option("--temperature", type=NumberList(float, None), default=(), help="Temperatures; the same.")
@click.option("--format", "form", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True)
def main(pairs, alone, presets, k, temperature, form):
    """Compare encoders by kNN accuracy, in percent."""
    files = [*pairs, *((name, bank, None) for name, bank in alone)]
    if not files:
        raise click.UsageError("Nothing to measure. Give --pair NAME BANK QUERIES or --alone NAME BANK.")
    try:
        rows = [row for name, bank, queries in files for preset in presets_for(bank, presets)
                for row in rows_of(name, KnnConfig(bank, queries, preset=preset, k=k, temperature=temperature,
                                              baselines=False))]
    except MocoembedError as error:
        click.echo(f"knn_accuracy: {error}", err=True)
        sys.exit(error.status)
    click.echo(json.dumps({"machine": machine(), "rows": rows}, indent=2) if form == "json"
               else f"{markdown(rows)}\n\n{machine()}")


if __name__ == "__main__":
    main()
