"""A linear classifier on an embeddings file: accuracy on the half of its images that it was not fitted to.

    python -m benchmarks.reproduce.probe embeddings.h5         prints one JSON object

Multinomial logistic regression on standardised features with weight decay, by L-BFGS to its end. Which images are in
which half depends on their number alone, so all encoders of the same images are measured alike.
"""

import json
import sys

import numpy as np
import torch
from torch.nn import functional

from mocoembed.embed.store import EmbeddingFile

DECAY = 1e-3


def linear_accuracy(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of the second half (of a random order) of features (N, D) that a classifier fitted to the first gets."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(features)))
    fitted, other = order[:len(order) // 2], order[len(order) // 2:]
    x = features.double()
    x = (x - x[fitted].mean(dim=0)) / x[fitted].std(dim=0).clamp_min(1e-6)
    weight = torch.zeros(int(labels.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(weight), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(x[fitted] @ weight.T + bias, labels[fitted]) + DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        found = (x[other] @ weight.T + bias).argmax(dim=1)
    return 100 * (found == labels[other]).double().mean().item()


def main():
    """Print the accuracy for the file on the command line."""
    with EmbeddingFile(sys.argv[1]) as file:
        features, labels = torch.from_numpy(file.embeddings[:]), torch.from_numpy(file.labels[:]).long()
    known = labels >= 0
    print(json.dumps({"linear_top1": linear_accuracy(features[known], labels[known]), "images": int(known.sum())}))


if __name__ == "__main__":
    main()
