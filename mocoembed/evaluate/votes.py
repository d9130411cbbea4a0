"""The vote of the nearest neighbours for several k and temperatures at once: vectors -> what each query is taken for.

Neighbours are searched once, for the largest k, and forgotten piece by piece, so that the memory is that of the vectors
and of the answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mocoembed.knn import ELEMENTS, best_classes, neighbours, weighted_vote

UNWEIGHTED = float("inf")  # the temperature at which every neighbour counts the same


@dataclass(frozen=True)
class Votes:
    """What `count_votes` counted; lists have an entry for each setting."""

    predicted: list[torch.Tensor]
    """(Q, up to 5) int64: the best classes by the weighted vote, the best first."""
    majority: list[torch.Tensor]
    """(Q,) int64: the best class when every neighbour counts the same."""
    shares: list[torch.Tensor]
    """(Q, C) float32: each class's share of the weighted vote; of as many settings as fit the memory."""
    nearest: torch.Tensor
    """(Q,) float32 on the CPU: cosine of the nearest neighbour."""


def count_votes(queries: torch.Tensor, bank: torch.Tensor, bank_labels: torch.Tensor,
                settings: Sequence[tuple[int, float]], leave_one_out: bool = False,
                progress: Callable[[int, int], None] = lambda done, total: None) -> Votes:
    """The votes of the rows of `bank` (N, D), of the classes `bank_labels` (N,) int64, on `queries` (Q, D).

    settings: (k, T) of each vote. `progress(done, total)` counts queries.
    """
    classes, most = int(bank_labels.max()) + 1, max(k for k, _ in settings)
    kept = min(len(settings), ELEMENTS // (len(queries) * classes))
    predicted: list[list[torch.Tensor]] = [[] for _ in settings]
    majority: list[list[torch.Tensor]] = [[] for _ in settings]
    shares: list[list[torch.Tensor]] = [[] for _ in range(kept)]
    nearest: list[torch.Tensor] = []
    for similarities, rows in neighbours(queries, bank, most, leave_one_out, progress):
        labels = bank_labels[rows]  # Q x k
        nearest.append(similarities[:, 0].cpu())
        for place, (k, temperature) in enumerate(settings):
            voters = similarities[:, :k], labels[:, :k], classes
            predicted[place].append(best_classes(*voters, temperature))
            majority[place].append(best_classes(*voters, UNWEIGHTED)[:, 0])
            if place < kept:
                votes = weighted_vote(*voters, temperature)
                shares[place].append((votes / votes.sum(dim=1, keepdim=True)).float().cpu())
    joined = [[torch.cat(pieces) for pieces in one] for one in (predicted, majority, shares)]
    return Votes(joined[0], joined[1], joined[2], torch.cat(nearest))
