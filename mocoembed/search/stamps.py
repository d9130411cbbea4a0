"""Stamps: vectors -> 64 bits each, by which an index knows which of its vectors have changed.

A multilinear hash over the words of a vector; two different vectors have the same stamp with a probability of 2^-32.
"""

import numpy as np


def stamps_of(vectors: np.ndarray) -> np.ndarray:
    """(n,) uint64 of vectors (n, D) float32."""
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(1).integers(0, 1 << 64, words.shape[1], np.uint64, endpoint=False) | np.uint64(1)
    return words @ factors
