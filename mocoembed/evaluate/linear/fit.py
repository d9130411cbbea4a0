"""A fitted linear classifier: features (n, D) -> scores (n, C), and how near to the optimum it is."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

PIECE = 1 << 21  # numbers in a piece of features or of scores: 16 MB in float64


@dataclass(frozen=True)
class Fit:
    """Weights for one penalty, and how near they are to the best ones."""

    penalty: float
    weights: torch.Tensor
    """(D, C) float64: of features as they are stored, centring and scale included."""
    bias: torch.Tensor
    """(C,) float64."""
    start: torch.Tensor
    """(r + 1, C) float64: W as it is fitted, then b; another fit of the same rows can start from it."""
    objective: float
    iterations: int
    gradient_norm: float
    """Of f, by W and b."""
    converged: bool
    """Whether the objective is known to be within `TOLERANCE` (relative) or `FLOOR` of its minimum; see `logistic`."""

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """(n, C) float32 logits of features (n, D)."""
        found = torch.empty(len(features), len(self.bias), device=features.device)
        for piece in slices(len(features), max(self.weights.shape)):
            found[piece] = torch.addmm(self.bias, features[piece].double(), self.weights).float()
        return found

    def as_json(self) -> dict:
        """What is stamped on a result."""
        return {"penalty": self.penalty, "objective": self.objective, "iterations": self.iterations,
                "gradient_norm": self.gradient_norm, "converged": self.converged}


def slices(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows, of about `PIECE` numbers each when a row has `width`."""
    size = max(1, PIECE // max(1, width))
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
