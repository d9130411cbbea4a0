"""How vectors lie, without labels: RankMe, uniformity and alignment, on tensors.

In: vectors (N, D) of any length, which are scaled to length 1 first, so that stored and fresh vectors give the same
numbers; a vector of zeros stays one. Out: floats; NaN where a vector is not finite or a number is not defined.

All three depend on the images, and RankMe on their number too: compare them for the same images only. None of them is
used to choose anything here.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

MOST = 25_600  # images: what RankMe's authors found enough (Garrido et al. 2023, section 3 and appendix G)
EPSILON = 1e-7  # theirs, for float32
HEAT = 2.0  # t of the uniformity and, as exponent, alpha of the alignment: the values of Wang and Isola's experiments
ELEMENTS = 1 << 22  # similarities at a time
BLOCK = 4096  # rows at a time


def sample(count: int, wanted: int = MOST, seed: int = 0) -> np.ndarray:
    """(n,) int64, rising: which of `count` rows are looked at; all of them where there are no more than `wanted`."""
    if count <= wanted:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))


def rankme(vectors: torch.Tensor) -> float:
    """The effective number of directions that the rows of `vectors` (N, D) use: 1 to min(N, D); 0 for zeros alone.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by
    Their Rank", ICML 2023, equations (1) and (2): exp(-sum p log p) with p = s / sum(s) + 1e-7 for the singular values
    s of the matrix, which is not centred. The authors do not scale the rows; here they have length 1. The singular
    values are the roots of the eigenvalues of the smaller Gram matrix, in float64.
    """
    count, dimension = vectors.shape
    if not count or not bool(vectors.isfinite().all()):
        return math.nan
    gram = vectors.new_zeros(min(count, dimension), min(count, dimension), dtype=torch.float64)
    if count < dimension:
        rows = functional.normalize(vectors.double(), dim=1)
        gram = rows @ rows.T
    else:
        for block in vectors.split(BLOCK):
            rows = functional.normalize(block.double(), dim=1)
            gram += rows.T @ rows
    values = torch.linalg.eigvalsh(gram.cpu())
    values[values < values[-1] * len(values) * torch.finfo(torch.float64).eps] = 0  # rounding
    singular = values.sqrt()
    if not singular[-1]:
        return 0.0
    p = singular / singular.sum() + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))


def uniformity(vectors: torch.Tensor) -> float:
    """How evenly the directions of `vectors` (N, D) are spread: 0 when all are the same, and lower is more even.

    Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, section 4.1: log E exp(-t ||x - y||^2) over pairs of different images, t = 2. Evenly
    spread in many dimensions it is about -4 + 8 / D. NaN for fewer than two vectors.
    """
    return math.log(float(kernel_means(vectors).mean())) if _are_pairs(vectors) else math.nan


def _are_pairs(vectors: torch.Tensor) -> bool:
    return len(vectors) > 1 and bool(vectors.isfinite().all())


def kernel_means(vectors: torch.Tensor, progress: Callable[[int, int], None] = lambda done, total: None,
                 ) -> torch.Tensor:
    """(N,) float64 on the CPU: for each row, the mean over all others of exp(-2 ||x - y||^2)."""
    unit, count = functional.normalize(vectors.float(), dim=1), len(vectors)
    squares = unit.square().sum(dim=1)  # 1, or 0 of zeros
    step, means = max(1, ELEMENTS // max(1, count)), torch.empty(count, dtype=torch.float64)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        distances = (squares[rows, None] + squares - 2 * (unit[rows] @ unit.T)).clamp_(min=0)  # q x N, squared
        kernel = distances.double().mul_(-HEAT).exp_()
        itself = torch.arange(kernel.shape[0], device=kernel.device)
        kernel[itself, itself + first] = 0
        means[rows] = (kernel.sum(dim=1) / max(1, count - 1)).cpu()
        progress(rows.stop, count)
    return means


def alignment(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart two views of an image are, on average: row i of both (N, D) is the same image. 0 to 4.

    Wang and Isola 2020, section 4.1: E ||x - y||^alpha, alpha = 2. It means something beside the uniformity alone: it
    is 0 where all vectors are the same. NaN for no rows.
    """
    if not len(one):
        return math.nan
    distance = functional.normalize(one.double(), dim=1) - functional.normalize(other.double(), dim=1)
    return float(distance.norm(dim=1).pow(HEAT).mean())
