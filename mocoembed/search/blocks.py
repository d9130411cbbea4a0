"""The vectors of an embeddings file block by block, and refused where a number is not finite."""

import os
from collections.abc import Iterator

import numpy as np

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError

BLOCK_BYTES = 1 << 25  # of vectors at a time


def blocks(file: EmbeddingFile) -> Iterator[tuple[slice, np.ndarray]]:
    """The vectors of a file in slices of rows."""
    step = max(1, BLOCK_BYTES // (4 * file.dimension))
    for first in range(0, len(file), step):
        rows = slice(first, min(first + step, len(file)))
        yield rows, file.embeddings(rows)


def finite(file: EmbeddingFile, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The vectors (n, D) of these rows; `FormatError` where a number is not finite."""
    good = np.isfinite(vectors).all(axis=1)
    if not good.all():
        row = int(rows[np.argmin(good)])
        raise FormatError(f"{file.path}: row {row} ({os.fsdecode(file.paths[row])!r}) holds a number that is not "
                          "finite. Embed the folder again with --fresh.")
    return vectors
