"""How long the path of penalties of `mocoembed linear` takes, beside scikit-learn's lbfgs, and how much memory.

    python -m benchmarks.linear_speed --rows 50000 --dimension 512 --classes 10 [--theirs]

Made-up rows of length 1 in overlapping classes, the variance of axis i falling as 1/i. Seconds are of the processor, so
that other programs on the machine count little; memory is what the path adds to the peak with the features. In
benchmarks/README.md stand machine, versions and numbers.
"""

import argparse
import resource
import time

import torch
from torch.nn import functional

from mocoembed.evaluate.linear.logistic import PENALTIES, Problem


def made_up(rows: int, dimension: int, classes: int, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, D) float32 of length 1 and their classes (n,) int64; made in pieces, to leave the memory alone."""
    random = torch.Generator().manual_seed(0)
    spread = torch.arange(1, dimension + 1) ** -0.5
    turned = torch.linalg.qr(torch.randn(dimension, dimension, generator=random))[0] * spread[:, None]
    centres = apart * torch.randn(classes, dimension, generator=random)
    labels = torch.randint(classes, (rows,), generator=random)
    features = torch.empty(rows, dimension)
    for first in range(0, rows, 1000):
        piece = slice(first, min(first + 1000, rows))
        noise = torch.randn(piece.stop - first, dimension, generator=random)
        features[piece] = functional.normalize((centres[labels[piece]] + noise) @ turned, dim=1)
    return features, labels


def peak() -> float:
    """MB of memory at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Fit the path and print a line for each penalty."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--apart", type=float, default=0.15)
    parser.add_argument("--theirs", action="store_true", help="also scikit-learn's lbfgs, with a tolerance of 1e-6")
    given = parser.parse_args()
    features, labels = made_up(given.rows, given.dimension, given.classes, given.apart)
    before, begun = peak(), time.process_time()
    problem = Problem(features, labels, given.classes)
    for fit in problem.path():
        right = (fit.scores(features).argmax(dim=1) == labels).double().mean().item()
        print(f"{fit.penalty:g}: {fit.iterations} steps, gradient {fit.gradient_norm:.1e}, converged {fit.converged}, "
              f"{100 * right:.2f} % of the training rows right, {time.process_time() - begun:.1f} s")
    print(f"processor {time.process_time() - begun:.1f} s, memory above the features {peak() - before:.0f} MB")
    if given.theirs:
        from sklearn.linear_model import LogisticRegression

        rows, begun, model = ((features - problem.mean) / problem.scale).float().numpy(), time.process_time(), None
        for penalty in PENALTIES:
            model = LogisticRegression(C=1 / (given.rows * penalty), tol=1e-6, max_iter=1000, warm_start=True) \
                if model is None else model.set_params(C=1 / (given.rows * penalty))
            model.fit(rows, labels.numpy())
        print(f"scikit-learn's lbfgs: processor {time.process_time() - begun:.1f} s, memory {peak() - before:.0f} MB")


if __name__ == "__main__":
    main()
