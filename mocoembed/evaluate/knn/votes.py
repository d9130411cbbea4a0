"""The vote of the nearest neighbours for several k and temperatures at once: vectors -> what each query is taken for.

Neighbours are searched once, for the largest k, and forgotten piece by piece, so that the memory is that of the vectors
and of the answers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from mocoembed.knn import best_classes, neighbours, weighted_vote

SHOWN = 8  # neighbours of each query that are remembered
KEPT = 1 << 26  # shares that are kept: 256 MB
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
    rows: torch.Tensor
    """(Q, up to 8) int64 on the CPU: rows of the nearest neighbours in the bank, the nearest first."""
    scores: torch.Tensor
    """(Q, up to 8) float32 on the CPU: their cosines."""
    doubt: torch.Tensor
    """(Q, 2) float32 on the CPU: the share of the vote for the best class and for the query's own, for the first
    setting; 0 for an own class that the bank does not have."""

    @property
    def nearest(self) -> torch.Tensor:
        """(Q,) float32: cosine of the nearest neighbour."""
        return self.scores[:, 0]


def count_votes(queries: torch.Tensor, bank: torch.Tensor, labels: tuple[torch.Tensor, torch.Tensor],
                settings: Sequence[tuple[int, float]], leave_one_out: bool = False,
                progress: Callable[[int, int], None] = lambda done, total: None,
                find: Callable[..., Iterator[tuple[torch.Tensor, torch.Tensor]]] = neighbours) -> Votes:
    """The votes of the rows of `bank` (N, D) on `queries` (Q, D).

    labels: numbers of the classes of the queries (Q,) and of the bank (N,) int64; those of the bank count from 0, and
    a higher one is a class that the bank does not have. settings: (k, T) of each vote. `progress(done, total)` counts
    queries; `find` is called as `neighbours`.
    """
    truth, bank_labels = labels
    classes, most = int(bank_labels.max()) + 1, max(k for k, _ in settings)
    kept = min(len(settings), KEPT // (len(queries) * classes))
    predicted: list[list[torch.Tensor]] = [[] for _ in settings]
    majority: list[list[torch.Tensor]] = [[] for _ in settings]
    shares: list[list[torch.Tensor]] = [[] for _ in range(kept)]
    nearest: list[tuple[torch.Tensor, ...]] = []
    first = 0
    for similarities, rows in find(queries, bank, most, leave_one_out, progress):
        neighbour_labels = bank_labels[rows]  # Q x k
        own = truth[first:first + len(rows)]
        first += len(rows)
        for place, (k, temperature) in enumerate(settings):
            voters = similarities[:, :k], neighbour_labels[:, :k], classes
            predicted[place].append(best_classes(*voters, temperature))
            majority[place].append(best_classes(*voters, UNWEIGHTED)[:, 0])
            if place < max(1, kept):
                votes = weighted_vote(*voters, temperature)
                votes = (votes / votes.sum(dim=1, keepdim=True)).float()
                if place == 0:
                    nearest.append((rows[:, :SHOWN].cpu(), similarities[:, :SHOWN].cpu(), doubt(votes, own).cpu()))
                if place < kept:
                    shares[place].append(votes.cpu())
    joined = [[torch.cat(pieces) for pieces in one] for one in (predicted, majority, shares)]
    return Votes(joined[0], joined[1], joined[2], *(torch.cat(pieces) for pieces in zip(*nearest)))


def doubt(shares: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(q, 2) the largest share of the vote, and that of the query's own class; 0 where the bank has no such class."""
    classes = shares.shape[1]
    mine = shares.gather(1, own.clamp(max=classes - 1)[:, None]).squeeze(1)
    return torch.stack([shares.amax(dim=1), torch.where(own < classes, mine, 0)], dim=1)
