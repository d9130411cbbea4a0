"""kNN classification on tensors: neighbours, the weighted vote and its accuracy.

In: vectors of length 1, (N, D), so that an inner product is the cosine similarity. Exact search, in pieces of the
queries that keep the similarities below `ELEMENTS` numbers. Ties go to the lower row and to the lower class.

The vote is InstDisc's (Wu et al. 2018, section 3.4): each of the k nearest neighbours adds exp(s / T) to its class.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from mocoembed.errors import CollectionError

ELEMENTS = 1 << 25  # similarities at a time: 128 MB in float32
BANK_BLOCK = 8192  # rows of a bank that is not in memory, read at a time
GROUP = 1 << 26  # numbers of the queries for which it is read: 256 MB, and as much for what is found
TOP = 5


class Accuracy(NamedTuple):
    """Percent of queries whose class comes first, and whose class is among the first five."""

    top1: float
    top5: float


def nearest(queries: torch.Tensor, bank: torch.Tensor, k: int, leave_one_out: bool = False,
            chunk: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities (Q, k) and rows (Q, k) int64 of the k rows of `bank` (N, D) nearest to `queries` (Q, D).

    The nearest comes first. A k larger than the bank is cut to it. With `leave_one_out`, where queries and bank are
    the same, row i is no neighbour of query i. `chunk` is the number of queries at a time.
    """
    if leave_one_out and len(queries) != len(bank):
        raise ValueError(f"leave-one-out needs the same rows on both sides, not {len(queries)} and {len(bank)}")
    found = [_nearest(queries[piece], bank, k, piece.start if leave_one_out else None)
             for piece in _pieces(len(queries), len(bank), chunk)]
    return torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])


def _pieces(count: int, width: int, chunk: int | None = None):
    """Slices of `count` rows, each with at most `ELEMENTS` numbers when a row has `width`."""
    chunk = chunk or max(1, ELEMENTS // max(1, width))
    return [slice(first, min(first + chunk, count)) for first in range(0, max(1, count), chunk)]


def _nearest(queries: torch.Tensor, bank: torch.Tensor, k: int, own: int | None):
    """`nearest` for one piece; `own` is the row of its first query in the bank, which is left out."""
    similarities = queries @ bank.T  # Q x N
    if own is not None:
        itself = torch.arange(len(queries), device=bank.device)
        similarities[itself, own + itself] = -torch.inf
    return _largest(similarities, min(k, bank_size(len(bank), own is not None)))


def bank_size(count: int, leave_one_out: bool) -> int:
    """How many rows can vote on a query."""
    return count - 1 if leave_one_out else count


def _largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of `values` (Q, N) and their columns; among equals the lower column comes first."""
    top, columns = values.topk(k, dim=1)
    if k == 0:
        return top, columns
    columns, order = columns.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # topk chooses freely among the columns that equal the k-th value: where there are more of them, choose again
    crowded = ((values >= top[:, -1:]).sum(dim=1) > k).nonzero().squeeze(1)
    for rows in crowded.split(max(1, ELEMENTS // 4 // values.shape[1])):
        columns[rows] = values[rows].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return top, columns


def weighted_vote(similarities: torch.Tensor, neighbour_labels: torch.Tensor, classes: int,
                  temperature: float) -> torch.Tensor:
    """Scores (Q, classes) float64: the sum of exp(s / T) over each class's neighbours, up to a factor per query.

    `similarities` (Q, k) and `neighbour_labels` (Q, k) int64, each 0 to classes - 1. The factor is that of the nearest
    neighbour, so that no temperature overflows.
    """
    similarities = similarities.double()
    if similarities.shape[1]:
        similarities = similarities - similarities.amax(dim=1, keepdim=True)
    scores = similarities.new_zeros(len(similarities), classes)
    return scores.scatter_add_(1, neighbour_labels, (similarities / temperature).exp())


def best_classes(similarities: torch.Tensor, neighbour_labels: torch.Tensor, classes: int,
                 temperature: float) -> torch.Tensor:
    """(Q, min(5, classes)) int64: the classes with the highest scores, the highest first.

    As in the published protocols, classes without a vote fill the places that are left.
    """
    best = [_largest(weighted_vote(similarities[piece], neighbour_labels[piece], classes, temperature),
                     min(TOP, classes))[1] for piece in _pieces(len(similarities), classes)]
    return torch.cat(best)


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> Accuracy:
    """Top-1 and top-5 in percent, from `predicted` (Q, up to 5), the best class first, and `labels` (Q,).

    A label that is not in the bank is predicted by nobody, so it counts as wrong.
    """
    right = (predicted == labels.to(predicted.device)[:, None]).double()
    return Accuracy(100 * right[:, :1].sum(dim=1).mean().item(), 100 * right.sum(dim=1).mean().item())


def classify(queries: torch.Tensor, bank: torch.Tensor, bank_labels: torch.Tensor,
             settings: Sequence[tuple[int, float]], leave_one_out: bool = False,
             progress: Callable[[int, int], None] = lambda done, total: None) -> list[torch.Tensor]:
    """For each (k, T) of `settings`, the best classes (Q, up to 5) of every query.

    `bank_labels` (N,) int64 count from 0. Neighbours are searched once, for the largest k, and forgotten piece by
    piece; so the memory needed is that of the vectors and a little more.
    """
    classes, most = int(bank_labels.max()) + 1, max(k for k, _ in settings)
    found: list[list[torch.Tensor]] = [[] for _ in settings]
    for similarities, rows in neighbours(queries, bank, most, leave_one_out, progress):
        labels = bank_labels[rows]  # Q x k
        for (k, temperature), pieces in zip(settings, found):
            pieces.append(best_classes(similarities[:, :k], labels[:, :k], classes, temperature))
    return [torch.cat(pieces) for pieces in found]


def neighbours(queries: torch.Tensor, bank: torch.Tensor, k: int, leave_one_out: bool = False,
               progress: Callable[[int, int], None] = lambda done, total: None,
               ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`nearest` piece by piece: similarities (q, k) and rows (q, k) of the next q queries."""
    if not isinstance(bank, torch.Tensor):
        yield from _streamed(queries, bank, k, leave_one_out, progress)
        return
    for piece in _pieces(len(queries), len(bank)):
        yield _nearest(queries[piece], bank, k, piece.start if leave_one_out else None)
        progress(piece.stop, len(queries))


def _streamed(queries, bank, k: int, leave_one_out: bool, progress: Callable[[int, int], None]):
    """`neighbours` where the bank is no tensor, but gives tensors of its rows: it is read once for many queries."""
    k = min(k, bank_size(len(bank), leave_one_out))
    for group in _pieces(len(queries), queries.shape[1] + 4 * k, GROUP // (queries.shape[1] + 4 * k)):
        rows_of_group = queries[group]
        pieces = _pieces(len(rows_of_group), BANK_BLOCK)
        best: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(pieces)
        for start in range(0, len(bank), BANK_BLOCK):
            block = bank[start:start + BANK_BLOCK]
            for place, piece in enumerate(pieces):
                own = group.start + piece.start - start if leave_one_out else None
                best[place] = _merged(best[place], _block_best(rows_of_group[piece], block, k, own), start, k)
            progress(group.start + (group.stop - group.start) * min(start + BANK_BLOCK, len(bank)) // len(bank),
                     len(queries))
        yield from (one for one in best if one is not None)


def _block_best(queries: torch.Tensor, block: torch.Tensor, k: int, own: int | None):
    """Similarities and rows of the nearest in a block; `own` is the row of the first query in it, maybe outside."""
    similarities = queries @ block.T
    if own is not None:
        itself = torch.arange(len(queries), device=block.device)
        inside = (own + itself >= 0) & (own + itself < len(block))
        similarities[itself[inside], (own + itself)[inside]] = -torch.inf
    return _largest(similarities, min(k, len(block)))


def _merged(before: tuple[torch.Tensor, torch.Tensor] | None, found: tuple[torch.Tensor, torch.Tensor], start: int,
            k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of those before and those found in a block that starts at `start`; among equals the lower row."""
    similarities, rows = found[0], found[1] + start
    if before is not None:
        similarities, rows = torch.cat([before[0], similarities], dim=1), torch.cat([before[1], rows], dim=1)
    similarities, order = similarities.sort(dim=1, descending=True, stable=True)
    return similarities[:, :k].clone(), rows.gather(1, order[:, :k])


def knn_accuracy_of(features: torch.Tensor, labels: torch.Tensor, k: int, temperature: float) -> float:
    """Leave-one-out top-1 accuracy in percent: see `leave_one_out`."""
    right, count = leave_one_out(features, labels, k, temperature)
    return 100 * right / count


def leave_one_out(features: torch.Tensor, labels: torch.Tensor, k: int, temperature: float,
                  rank: int = 0, size: int = 1) -> tuple[int, int]:
    """How many of a share of the labelled rows are classified rightly by all the others, and how many are labelled.

    features (N, D), which need not have length 1; labels (N,) int64 on the CPU, -1 for unlabelled rows, which are left
    out. The share is the one of `rank` among `size`. Raises `CollectionError` for fewer than two labelled rows.
    """
    known = labels >= 0
    if (count := int(known.sum())) < 2:
        raise CollectionError(f"{count} labelled images are too few for a kNN accuracy; it takes two or more.")
    classes, numbers = labels[known].unique(return_inverse=True)
    features = functional.normalize(features[known.to(features.device)].float(), dim=1)
    numbers = numbers.to(features.device)
    first, end, right = rank * count // size, (rank + 1) * count // size, 0
    for piece in _pieces(end - first, count):
        rows = slice(first + piece.start, first + piece.stop)
        similarities, neighbours = _nearest(features[rows], features, k, rows.start)
        predicted = best_classes(similarities, numbers[neighbours], len(classes), temperature)
        right += int((predicted[:, 0] == numbers[rows]).sum())
    return right, count
