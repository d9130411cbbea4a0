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


def write_parquet(path, dimension: int, about: dict, blocks, text_ids: bool = False, with_images: bool = False):
    """Write `blocks` (of `convert.Block`) to `path`; `about` becomes the metadata `mocoembed`, as JSON.

    `embedding` is a list of fixed size of float32. `path` is text, in which bytes that are not UTF-8 are escaped
    (`\\xff`); `path_bytes` is exact. With `text_ids`, the numbers of 64 bits are texts. With images, the blocks have a
    column `image` of dicts: `bytes` and `path`.
    """
    arrow = require_pyarrow()
    number = arrow.string() if text_ids else arrow.int64()
    image = [("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))] if with_images else []
    schema = arrow.schema([
        ("id", number), ("path", arrow.string()), ("path_bytes", arrow.binary()), ("label", arrow.string()),
        ("width", arrow.int32()), ("height", arrow.int32()), ("size", arrow.int64()), ("mtime_ns", number),
        ("digest", arrow.string()), *image, ("embedding", arrow.list_(arrow.float32(), dimension))],
        {"mocoembed": json.dumps(about, sort_keys=True)})
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for block in blocks:
            columns = {**block.columns, "path_bytes": block.columns["path"],
                       "path": [name.decode("utf-8", "backslashreplace") for name in block.columns["path"]]}
            if text_ids:
                columns |= {name: list(map(str, columns[name])) for name in ("id", "mtime_ns")}
            arrays = [arrow.array(columns[field.name], field.type) for field in schema if field.name != "embedding"]
            arrays.append(arrow.FixedSizeListArray.from_arrays(arrow.array(block.vectors.reshape(-1)), dimension))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema), row_group_size=len(block.vectors))
