"""`mocoembed convert`: embeddings.h5 <-> the files of other tools."""

import json

import click

from mocoembed.cli.options import json_option, options_of
from mocoembed.cli.output import note, put
from mocoembed.cli.progress import counter
from mocoembed.config import ConvertConfig


@click.command()
@click.argument("source", required=False)
@options_of(ConvertConfig, leave_out=("source",))
@json_option
def convert(as_json, **values):
    """Convert the embeddings file SOURCE for other tools, or make one from vectors of other tools.

    npy writes the vectors (N x D, in the dtype of the file) and, beside them, NAME-paths.csv with the id, path and
    label of every row. parquet (vectors in one fixed-size column) and csv hold everything in one file. Paths are
    absolute. A SOURCE that is a .npy file becomes an embeddings file: index, knn and duplicates work on it; searching
    by image needs the encoder itself.

    \b
      mocoembed convert --to npy
      mocoembed convert photos.h5 --to parquet --output photos.parquet
      mocoembed convert vectors.npy --paths images.csv --made-by clip-vit-b-32
    """
    from mocoembed.embed.convert import convert_embeddings

    with counter("convert", "rows") as progress:
        result = convert_embeddings(ConvertConfig(**values), progress, note)
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in result.files], "count": result.count,
                               "dimension": result.dimension}))
        return
    put(f"{' and '.join(map(str, result.files))}: {result.count} vectors of dimension {result.dimension}")
