"""Choosing k and T of the vote on a held-out part of the bank, which the queries have no part in.

A fifth of the bank, stratified and with copies of an image kept together, is classified by the rest with every setting
of the grid. The best top-1 is chosen; among equals the first, with the fewest neighbours and the lowest temperature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed.errors import CollectionError
from mocoembed.evaluate.folds import held_out, same_image
from mocoembed.evaluate.sides import Side
from mocoembed.knn import accuracy, classify

SHARE, SEED = 0.2, 0
K_GRID, T_GRID = (1, 5, 10, 20, 50, 100, 200), (0.02, 0.05, 0.07, 0.1, 0.2)
HOW = f"a held-out fifth of the bank, stratified, copies together, seed {SEED}, by top-1; among equals the first"


@dataclass(frozen=True)
class Tuned:
    """What was chosen, and why."""

    setting: tuple[int, float]
    """(k, T)."""
    scores: list[dict]
    """k, T and top1 on the held-out part, for each setting of the grid."""
    at_edge: bool
    """Whether k is the largest of the grid, or T the lowest or highest, so that a wider grid may do better."""
    held_out: int
    """Images that the choice was made on."""

    def chosen(self) -> dict:
        """The choice as plain JSON types."""
        return {"k": self.setting[0], "T": self.setting[1], "on": HOW, "held_out": self.held_out}


def tune(bank: Side, labels: torch.Tensor, grid: Sequence[tuple[int, float]],
         progress: Callable[[int, int], None] = lambda done, total: None) -> Tuned:
    """The best (k, T) of `grid` on a held-out part of the bank, whose labels (N,) int64 are numbers from 0.

    Raises `CollectionError` when every class has a single image, or the bank too few of them.
    """
    if len(bank.names) < 2:
        raise CollectionError(f"{bank.path} has {len(bank.names)} labelled images, too few to choose k and T on.")
    out = torch.from_numpy(held_out(bank.names, same_image(bank.digests), SHARE, SEED)).to(labels.device)
    predicted = classify(bank.vectors[out], bank.vectors[~out], labels[~out], grid, progress=progress)
    top1 = np.array([accuracy(one, labels[out]).top1 for one in predicted])
    k, temperature = grid[int(top1.argmax())]
    ks, temperatures = ({setting[i] for setting in grid} for i in (0, 1))
    at_edge = (len(ks) > 1 and k == max(ks)) or (
        len(temperatures) > 1 and temperature in (min(temperatures), max(temperatures)))
    scores = [{"k": one[0], "T": one[1], "top1": float(score)} for one, score in zip(grid, top1)]
    return Tuned((k, temperature), scores, at_edge, int(out.sum()))
