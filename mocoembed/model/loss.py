"""InfoNCE: which of K + 1 keys belongs to the query?"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional


class Contrast(NamedTuple):
    """The loss and the pretext task's accuracy, as tensors without shape."""

    loss: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor


def info_nce(q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor, temperature: float) -> Contrast:
    """InfoNCE of queries q (N, C), their positives k (N, C) and negatives `queue` (C, K); all of unit length.

    L_q = -log(exp(q.k+ / T) / sum over i = 0..K of exp(q.k_i / T)), the mean over queries (He et al. 2019,
    equation 1): a (K+1)-way softmax whose right class is the positive. `top1` and `top5` are the shares of queries
    whose positive is among the 1 or 5 most similar keys.
    """
    positive = (q * k).sum(dim=1, keepdim=True)  # N x 1
    negatives = q @ queue.to(q.dtype)  # N x K
    logits = torch.cat([positive, negatives], dim=1) / temperature  # N x (K+1)
    target = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    loss = functional.cross_entropy(logits, target)
    with torch.no_grad():
        rank = (negatives >= positive).sum(dim=1)
        return Contrast(loss, (rank < 1).float().mean(), (rank < 5).float().mean())


def chance_loss(queue_size: int) -> float:
    """ln(K+1): the loss of a query encoder that cannot tell the positive from the negatives."""
    return math.log(queue_size + 1)
