"""Between the embeddings file and the formats of other tools: embeddings.h5 -> .npy and list, Parquet, CSV; and back.

All of it in blocks of rows, so that a million rows need little memory. Paths are written as full ones, below `root`
where the collection has moved.
"""

import contextlib
import csv
import os
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mocoembed.config import ConvertConfig
from mocoembed.data.images import require_root
from mocoembed.embed.npy import npy_header, read_vectors
from mocoembed.embed.parquet import require_pyarrow, write_parquet
from mocoembed.embed.seal import HDF5, MARK
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import vector_type
from mocoembed.embed.thumbnails import with_thumbnails
from mocoembed.errors import FormatError, UsageError
from mocoembed.files import (
    StopRequest,
    replacing,
    require_file,
    require_place,
    require_space,
    sync_folder,
    through_link,
)
from mocoembed.notes import say_nothing
from mocoembed.workspace import Workspace

BLOCK_BYTES = 1 << 24  # of vectors at a time
WITH_IMAGES = 512  # rows at a time
ROW_BYTES = 400  # what a row takes on the disk beside its vector, about
COLUMNS = ("id", "path", "label", "width", "height", "size", "mtime_ns", "digest")
NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class ConvertResult:
    """What `convert_embeddings` wrote."""

    files: tuple[pathlib.Path, ...]
    """The output, and for `npy` the list of paths beside it."""
    count: int
    dimension: int


@dataclass(frozen=True)
class Block:
    """Some rows of an embeddings file: vectors (n, D) float32 and, for each of `COLUMNS` (and image), n values."""

    vectors: np.ndarray
    columns: dict


def convert_embeddings(config: ConvertConfig, progress: Callable[[int, int], None] = lambda done, total: None,
                       note: Callable[[str], None] = say_nothing) -> ConvertResult:
    """Write an embeddings file in another format, or an embeddings file from vectors (`.npy`) and a list of paths.

    `progress(done, total)` counts rows. Raises `UsageError` for wrong combinations, for outputs that exist and for a
    missing package, `FormatError` for a source that is damaged or none, `Interrupted` after a signal.
    """
    workspace = Workspace(config.workspace)
    source = require_file(config.source or workspace.embeddings, "The source", "mocoembed embed FOLDER")
    with open(source, "rb") as file:
        head = file.read(len(MARK))
    with StopRequest() as stop:
        if head.startswith((MARK, HDF5)):
            return _from_embeddings(config, source, _Watch(progress, stop), note)
        if head.startswith(NPY):
            return _from_npy(config, source, _Watch(progress, stop), note)
    raise FormatError(f"{source} is neither an embeddings file nor a .npy file. Give vectors of other tools as a .npy "
                      "file and a list of their paths: mocoembed convert vectors.npy --paths list.csv")


class _Watch:
    """Called with (done, total) rows after every block: tells, and stops after a signal."""

    def __init__(self, progress, stop: StopRequest):
        self.progress, self.stop = progress, stop

    def __call__(self, done: int, total: int):
        self.progress(done, total)
        self.stop.raise_if_set(f"Stopped after {done} of {total} rows; nothing was written. "
                               "Run the same command again.")


def _require_new(paths: tuple[pathlib.Path, ...], source: pathlib.Path, fresh: bool):
    for path in paths:
        if path.exists() and path.samefile(source):
            raise UsageError(f"--output {path}: is the source itself. Give another name.")
        require_place(path)
        if path.exists() and not fresh:
            raise UsageError(f"{path} exists. Add --fresh to replace it, or give another --output.")


# ------------------------------------------------------------------------------------------------ to others


def _from_embeddings(config: ConvertConfig, source: pathlib.Path, watch: _Watch, note) -> ConvertResult:
    if config.to not in WRITERS:
        given = f"--to {config.to}: " if config.to else ""
        raise UsageError(f"{given}{source} is an embeddings file. Give --to npy, parquet or csv.")
    for name, value in (("--paths", config.paths), ("--made-by", config.made_by)):
        if value:
            raise UsageError(f"{name} {value}: is for a .npy file; {source} is an embeddings file, which says it "
                             "itself.")
    require_root(config.root)
    if config.to == "parquet":
        require_pyarrow()
    output = through_link(config.output or source.with_suffix(f".{config.to}"))
    files = (output, paths_beside(output)) if config.to == "npy" else (output,)
    _require_new(files, source, config.fresh)
    with EmbeddingFile(source) as file:
        file.verify()
        output.parent.mkdir(parents=True, exist_ok=True)
        require_space(output, len(file) * (file.dimension * (14 if config.to == "csv" else 4) + ROW_BYTES))
        with contextlib.ExitStack() as stack:
            temporary = [stack.enter_context(replacing(path)) for path in reversed(files)]  # the list comes last
            rows = blocks(file, config.root, watch, WITH_IMAGES if config.thumbnails else None)
            rows = with_thumbnails(rows, file.value_range, note) if config.thumbnails else rows
            WRITERS[config.to](temporary[::-1], file, _noted(rows, note), config)
            for path in files[1:]:  # so a crash leaves vectors without a list, never with that of others
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
        return ConvertResult(files, len(file), file.dimension)


def paths_beside(output: pathlib.Path) -> pathlib.Path:
    """The list that belongs to a `.npy` file: `vectors.npy` -> `vectors-paths.csv`."""
    return output.with_name(f"{output.stem}-paths.csv")


def _noted(rows: Iterator[Block], note) -> Iterator[Block]:
    """The blocks; after the last one a note of how many names are not UTF-8."""
    odd = 0
    for block in rows:
        odd += sum(not _is_utf8(path) for path in block.columns["path"])
        yield block
    if odd:
        note(f"names that are not UTF-8: {odd}; docs/format.md says how they are written")


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def blocks(file: EmbeddingFile, root: str | None, watch: Callable[[int, int], None],
           most: int | None = None) -> Iterator[Block]:
    """All rows in order, at most `most` at a time; `watch(done, total)` is called after each block."""
    step = max(1, min(BLOCK_BYTES // (4 * file.dimension + ROW_BYTES), most or len(file)))
    for first in range(0, len(file), step):
        rows = slice(first, min(first + step, len(file)))
        paths, labels = file.full_names(rows, root)
        columns = {"id": file.ids[rows].tolist(), "path": paths, "label": labels,
                   **{name: getattr(file, name)[rows].tolist() for name in ("width", "height", "size", "mtime_ns")},
                   "digest": [digest.hex() for digest in file.digest[rows]]}
        yield Block(file.embeddings[rows], columns)
        watch(rows.stop, len(file))


def _write_npy(files, file: EmbeddingFile, rows: Iterator[Block], config: ConvertConfig):
    with open(files[0], "wb") as vectors, _csv(files[1]) as table:
        dtype = vector_type(file.dtype)
        np.lib.format.write_array_header_1_0(vectors, npy_header(len(file), file.dimension, dtype))
        table.writerow(["id", "path", "label"])
        for block in rows:
            vectors.write(block.vectors.astype(dtype).tobytes())
            names = map(os.fsdecode, block.columns["path"])
            table.writerows(zip(block.columns["id"], names, block.columns["label"]))


def _write_csv(files, file: EmbeddingFile, rows: Iterator[Block], config: ConvertConfig):
    numbers = "\t%.9g" * file.dimension  # nine digits give a float32 back exactly
    with _csv(files[0]) as table:
        table.writerow([*COLUMNS, *(f"v{i}" for i in range(file.dimension))])
        for block in rows:
            facts = {**block.columns, "path": map(os.fsdecode, block.columns["path"])}
            for fact, vector in zip(zip(*(facts[name] for name in COLUMNS)), block.vectors.tolist()):
                table.writerow([*fact, *(numbers % tuple(vector)).split()])


@contextlib.contextmanager
def _csv(path):
    """A CSV writer; a name that is not UTF-8 is written as the bytes it has on the disk."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as text:
        yield csv.writer(text, lineterminator="\n")


def _write_parquet(files, file: EmbeddingFile, rows: Iterator[Block], config: ConvertConfig):
    about = {"root": os.fsdecode(file.root), "features": file.features, "normalized": file.normalized,
             "rows_sha256": file.identity, "encoder": file.encoder}
    write_parquet(files[0], file.dimension, about, rows, config.text_ids, config.thumbnails)


WRITERS = {"npy": _write_npy, "parquet": _write_parquet, "csv": _write_csv}


# ------------------------------------------------------------------------------------------------ from others


def _from_npy(config: ConvertConfig, source: pathlib.Path, watch: _Watch, note) -> ConvertResult:
    if config.to not in (None, "h5"):
        raise UsageError(f"--to {config.to}: {source} is a .npy file, which can only become an embeddings file. "
                         "Give --to h5, or leave it out.")
    output = through_link(config.output or source.with_suffix(".h5"))
    list_file = pathlib.Path(config.paths) if config.paths else paths_beside(source)
    if not list_file.is_file():
        raise UsageError(f"The list {str(list_file)!r} does not exist. Give a .txt, .csv or .jsonl file with the path, "
                         "and optionally the label, of every vector in order: --paths FILE")
    _require_new((output,), source, config.fresh)
    count, dimension = read_vectors(config, source, list_file, output, watch)
    note("searching by image needs the encoder that made these vectors, which mocoembed does not have; "
         "index, knn and duplicates work")
    return ConvertResult((output,), count, dimension)
