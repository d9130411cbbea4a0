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
    """Write the embeddings file SOURCE for other tools, or make one from vectors of other tools.

    npy gives the vectors (N x D, in the type of the file) and, in NAME-paths.csv beside them, id, path and label of
    every row; parquet (one column of vectors of fixed size) and csv hold all in one file. Paths are full ones. A
    SOURCE that is a .npy file becomes an embeddings file, which can be indexed, measured by knn and searched for
    duplicates; to search by image, the encoder itself is needed.

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
    put(f"{' and '.join(map(str, result.files))}: {result.count} vectors of {result.dimension} numbers")
