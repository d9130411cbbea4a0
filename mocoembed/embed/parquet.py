"""Parquet: blocks of rows -> one file, a row group each. The only module that imports pyarrow, an optional extra."""

import json

from mocoembed.errors import UsageError


def require_pyarrow():
    """The package; `UsageError` when it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("--to parquet needs the package pyarrow. "
                         "Install it with: pip install 'mocoembed[parquet]'") from error
    return pyarrow


def write_parquet(path, dimension: int, about: dict, blocks):
    """Write `blocks` (of `convert.Block`) to `path`; `about` becomes the metadata `mocoembed`, as JSON.

    `embedding` is a list of fixed size of float32. `path` is text, in which bytes that are not UTF-8 are escaped
    (`\\xff`); `path_bytes` is exact.
    """
    arrow = require_pyarrow()
    vector = arrow.list_(arrow.float32(), dimension)
    schema = arrow.schema([
        ("id", arrow.int64()), ("path", arrow.string()), ("path_bytes", arrow.binary()), ("label", arrow.string()),
        ("width", arrow.int32()), ("height", arrow.int32()), ("size", arrow.int64()), ("mtime_ns", arrow.int64()),
        ("digest", arrow.string()), ("embedding", vector)], {"mocoembed": json.dumps(about, sort_keys=True)})
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for block in blocks:
            columns = {**block.columns, "path_bytes": block.columns["path"],
                       "path": [name.decode("utf-8", "backslashreplace") for name in block.columns["path"]]}
            arrays = [arrow.array(columns[field.name], field.type) for field in schema if field.name != "embedding"]
            arrays.append(arrow.FixedSizeListArray.from_arrays(arrow.array(block.vectors.reshape(-1)), dimension))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema), row_group_size=len(block.vectors))
