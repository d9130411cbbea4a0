"""Vectors that stay in their file: what a tensor of them is for kNN, in memory that does not grow with the file.

In: an embeddings file and the rows that are wanted. Out, where it is indexed by a slice or by numbers: a tensor
(n, D) float32 of length 1 on the device; by a mask: fewer rows that stay in the file.
"""

import pathlib

import numpy as np
import torch
from torch.nn import functional

from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError
from mocoembed.memory import available_memory

AT_A_TIME = 1024  # rows
HALF = 2  # vectors may fill this part of the memory that is free; what is left is for all that is computed


class StoredVectors:
    """(N, D) float32 of length 1, read from the file whenever they are indexed."""

    def __init__(self, path: pathlib.Path, rows: np.ndarray, dimension: int, device: torch.device):
        self.path, self.rows, self.device = path, rows, device
        self.shape = (len(rows), dimension)
        self._file: EmbeddingFile | None = None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, wanted):
        """A tensor for a slice or numbers (n,) int64; for a mask (N,) bool, those rows, still in the file."""
        if isinstance(wanted, torch.Tensor):
            wanted = wanted.cpu().numpy()
            if wanted.dtype == bool:
                return StoredVectors(self.path, self.rows[wanted], self.shape[1], self.device)
        if self._file is None:
            self._file = EmbeddingFile(self.path)
        rows = self.rows[wanted]
        vectors = torch.empty(len(rows), self.shape[1], device=self.device)
        for first in range(0, len(rows), AT_A_TIME):  # rows far apart are read with all that lies between
            vectors[first:first + AT_A_TIME] = unit_rows(self._file, rows[first:first + AT_A_TIME])
        return vectors


def unit_rows(file: EmbeddingFile, rows: np.ndarray | slice) -> torch.Tensor:
    """(n, D) float32 of length 1: these rows of a file; `FormatError` when one is not finite."""
    block = file.embeddings[rows]
    if not np.isfinite(block).all():
        raise FormatError(f"{file.path} holds vectors that are not finite. Embed the folder again with --fresh.")
    return functional.normalize(torch.from_numpy(block), dim=1)


def fits(size: int, device: torch.device) -> bool:
    """Whether vectors of `size` bytes fit into the memory of the device, and of the machine, with room to work."""
    limits = [available_memory()]
    if device.type == "cuda":
        limits = [torch.cuda.mem_get_info(device)[0], available_memory()]
    return all(limit is None or HALF * size <= limit for limit in limits)
