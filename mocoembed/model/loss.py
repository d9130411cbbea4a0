"""InfoNCE: which of the keys belongs to the query?"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional

WHY_IT_RISES = {
    "queue": "The loss starts below ln(K+1) = {:.3f} (chance), rises towards it while the queue fills with real keys, "
             "and falls from there.",
    "memory-bank": "The loss rises above ln(K+1) = {:.3f} (chance) at first: until an image has been seen once, its "
                   "feature in the bank is a random direction. It falls from the second epoch on.",
    "end-to-end": "The loss starts near the logarithm of the batch size, {:.3f} (chance), and falls from there.",
}


class Contrast(NamedTuple):
    """The loss and the pretext task's accuracy, as tensors without shape."""

    loss: torch.Tensor
    top1: torch.Tensor
    top5: torch.Tensor


def info_nce(q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor, temperature: float,
             excluded: torch.Tensor | None = None) -> Contrast:
    """InfoNCE of queries q (N, C), their positives k (N, C) and `negatives` (C, K); all of unit length.

    L_q = -log(exp(q.k+ / T) / sum over i = 0..K of exp(q.k_i / T)), the mean over queries (He et al. 2019,
    equation 1): a (K+1)-way softmax whose right class is the positive. `excluded` (N, K) bool leaves negatives out of
    a query's sum. `top1` and `top5` are the shares of queries whose positive is among the 1 or 5 most similar keys.
    """
    positive = (q * k).sum(dim=1, keepdim=True)  # N x 1
    similarities = q @ negatives.to(q.dtype)  # N x K
    if excluded is not None:
        similarities = similarities.masked_fill(excluded, -math.inf)
    logits = torch.cat([positive, similarities], dim=1) / temperature  # N x (K+1)
    target = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    loss = functional.cross_entropy(logits, target)
    with torch.no_grad():
        rank = (similarities >= positive).sum(dim=1)
        return Contrast(loss, (rank < 1).float().mean(), (rank < 5).float().mean())


def chance_loss(config) -> float:
    """ln(K+1): the loss of a query encoder that cannot tell the positive from the K negatives of a `PretrainConfig`.

    In the end-to-end dictionary the negatives are the rest of the batch.
    """
    keys = config.batch_size if config.dictionary == "end-to-end" else config.queue_size + 1
    return math.log(keys)


def course_of_loss(config) -> str:
    """What the loss of a `PretrainConfig` does at first, for people: it may rise."""
    return WHY_IT_RISES[config.dictionary].format(chance_loss(config))
