"""Stamps: vectors -> 64 bits each, by which an index knows which of its vectors have changed.

A multilinear hash over the words of a vector; two different vectors have the same stamp with a probability of 2^-32.
"""

import numpy as np

from mocoembed.embed.store import EmbeddingFile

AT_ONCE = 1 << 18  # words, so that they stay in the processor's cache


def stamps_of(vectors: np.ndarray) -> np.ndarray:
    """(n,) uint64 of vectors (n, D) float32."""
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    factors = np.random.default_rng(1).integers(0, 1 << 64, words.shape[1], np.uint64, endpoint=False) | np.uint64(1)
    stamps, step = np.empty(len(words), np.uint64), max(1, AT_ONCE // words.shape[1])
    for first in range(0, len(words), step):
        stamps[first:first + step] = np.einsum("ij,j->i", words[first:first + step].astype(np.uint64), factors)
    return stamps


def verified_stamps(file: EmbeddingFile) -> np.ndarray:
    """(N,) uint64 of all vectors of a file, in the same pass that checks its rows' SHA-256; raises as `verify` does."""
    stamps = np.empty(len(file), np.uint64)

    def see(name: str, first: int, rows: np.ndarray):
        if name == "embeddings":
            stamps[first:first + len(rows)] = stamps_of(rows)

    file.verify(see)
    return stamps
