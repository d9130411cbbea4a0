"""Do our measures equal those of other people's code, on the same features and labels?

In: an embeddings file with labels, alone (each image against all the others) or with queries. Out: a Markdown table,
one line for each measure and peer: our value, theirs, the largest difference of any query where they tell it.

    pip install pytorch-metric-learning scikit-learn lightly
    git clone https://github.com/facebookresearch/dino && git clone https://github.com/filipradenovic/revisitop
    git clone --branch colab-notebook https://github.com/facebookresearch/moco
    python -m benchmarks.evaluation_peers train.h5 test.h5 --dino dino --revisitop revisitop --moco moco

DINO's, revisitop's and the MoCo authors' functions are taken from their own files, whose other imports are not needed.
Peers that are not installed or not given are left out. Where a peer fails on the data, its error is the result.
"""

import argparse
import ast
import json
import pathlib

import numpy as np
import torch
from torch.nn import functional

from mocoembed.embed.store import EmbeddingFile
from mocoembed.evaluate.retrieval import ranked
from mocoembed.evaluate.sides import Side, read_side, require_same_vectors
from mocoembed.knn import accuracy, classify

KS, TEMPERATURE = (10, 20, 200), 0.07


def function_of(path: pathlib.Path, *names: str) -> dict:
    """The functions of a peer's file, without what else it imports."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = ["".join(one["source"]) for one in json.loads(text)["cells"] if one["cell_type"] == "code"]
        text = "\n".join(cell for cell in cells if any(f"def {name}" in cell for name in names))
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"torch": torch, "np": np, "F": functional}
    if not hasattr(np, "in1d"):  # which NumPy 2.4 dropped
        np.in1d = np.isin
    exec(compile(tree, str(path), "exec"), space)
    return space


def told(value) -> str:
    """A number with all digits that may differ, or an error's text."""
    return f"{value:.10f}" if isinstance(value, float) else str(value)


class Peers:
    """The two sides, and a line of the table for each comparison."""

    def __init__(self, bank: Side, queries: Side):
        self.bank, self.queries, self.alone = bank, queries, bank is queries
        number = {name: place for place, name in enumerate(sorted({*bank.names, *queries.names}))}
        self.labels, self.truth = (torch.tensor([number[name] for name in side.names]) for side in (bank, queries))
        self.lines = [("measure", "peer", "ours", "theirs", "largest difference")]

    def line(self, measure: str, peer: str, ours: float, theirs, largest: float | None = None):
        """One line; `theirs` may be the error that they ended with."""
        apart = largest if largest is not None else abs(ours - theirs) if isinstance(theirs, float) else None
        self.lines.append((measure, peer, told(ours), told(theirs), "" if apart is None else f"{apart:.1e}"))

    def ours(self, k: int) -> float:
        """Our top-1 in percent."""
        predicted, = classify(self.queries.vectors, self.bank.vectors, self.labels, [(k, TEMPERATURE)], self.alone)
        return accuracy(predicted, self.truth).top1

    def knn(self, name: str, theirs):
        """The weighted vote; `theirs(bank, bank_labels, queries, labels, k)` is percent right, for two sides."""
        for k in KS:
            try:
                value = float(theirs(self.bank.vectors, self.labels, self.queries.vectors, self.truth, k))
            except Exception as error:
                value = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            self.line(f"kNN top-1, k {k}, T {TEMPERATURE}", name, self.ours(k), value)

    def similarities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q, N) float32 and what is relevant (Q, N); a query is not compared with itself."""
        similarities = self.queries.vectors @ self.bank.vectors.T
        relevant = self.truth[:, None] == self.labels[None, :]
        if self.alone:
            similarities.fill_diagonal_(-torch.inf)
            relevant.fill_diagonal_(False)
        some = relevant.any(dim=1)
        return similarities[some], relevant[some]


def scikit(peers: Peers):
    """AP of every query."""
    from sklearn.metrics import average_precision_score

    similarities, relevant = peers.similarities()
    ours = ranked.measures_of(ranked.places_of(similarities.numpy(), relevant.numpy()), (1,), "steps")["map"]
    keep = torch.isfinite(similarities).numpy()
    theirs = np.array([average_precision_score(one[kept], row[kept]) for one, row, kept in zip(
        relevant.numpy(), similarities.double().numpy(), keep)])
    peers.line("AP", "scikit-learn", 100 * float(ours.mean()), 100 * float(theirs.mean()),
               float(np.abs(ours - theirs).max()))


def metric_learning(peers: Peers):
    """mAP@R, R-precision and precision at 1."""
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    similarities, relevant = peers.similarities()
    ours = ranked.measures_of(ranked.places_of(similarities.numpy(), relevant.numpy()), (1,), "steps")
    names = {"map_at_r": "mean_average_precision_at_r", "r_precision": "r_precision",
             "precision_at_1_over_k": "precision_at_1"}
    calculator = AccuracyCalculator(include=tuple(names.values()), k="max_bin_count",
                                    knn_func=CustomKNN(CosineSimilarity()), device=torch.device("cpu"))
    given = (peers.queries.vectors, peers.truth) if peers.alone else (
        peers.queries.vectors, peers.truth, peers.bank.vectors, peers.labels)
    theirs = calculator.get_accuracy(*given)
    for mine, name in names.items():
        peers.line(mine, "pytorch-metric-learning", 100 * float(ours[mine].mean()), 100 * float(theirs[name]))


def revisitop(peers: Peers, folder: pathlib.Path):
    """mAP by trapezoids and P@k; the query itself is junk, as they say."""
    compute_map = function_of(folder / "python" / "evaluate.py", "compute_ap", "compute_map")["compute_map"]
    similarities, relevant = peers.similarities()
    ours = ranked.measures_of(ranked.places_of(similarities.numpy(), relevant.numpy()), KS, "revisitop")
    ranks = similarities.sort(dim=1, descending=True, stable=True).indices.T.numpy()
    truth = [{"ok": np.flatnonzero(one), "junk": np.flatnonzero(~np.isfinite(row))}
             for one, row in zip(relevant.numpy(), similarities.numpy())]
    mean, each, precision, _ = compute_map(ranks, truth, list(KS))
    peers.line("AP, revisitop", "revisitop", 100 * float(ours["map"].mean()), 100 * float(mean),
               float(np.abs(ours["map"] - each).max()))
    for k, value in zip(KS, precision):
        peers.line(f"P@{k}, revisitop", "revisitop", 100 * float(ours[ranked.precision_name(k, "revisitop")].mean()),
                   100 * float(value))


def run(peers: Peers, options):
    """Every peer that is there."""
    scikit(peers)
    metric_learning(peers)
    if options.revisitop:
        revisitop(peers, options.revisitop)
    if peers.alone:
        return  # theirs know no leave-one-out
    if options.dino:
        theirs = function_of(options.dino / "eval_knn.py", "knn_classifier")["knn_classifier"]
        peers.knn("DINO", lambda bank, labels, queries, truth, k: theirs(bank, labels, queries, truth, k, TEMPERATURE,
                                                                         int(labels.max()) + 1)[0])
    if options.moco:
        predict = function_of(options.moco / "colab" / "moco_cifar10_demo.ipynb", "knn_predict")["knn_predict"]
        peers.knn("the MoCo authors' notebook", lambda bank, labels, queries, truth, k: 100 * (predict(
            queries, bank.T, labels, int(labels.max()) + 1, k, TEMPERATURE)[:, 0] == truth).double().mean())
    try:
        from lightly.utils.benchmarking.knn import knn_predict
    except ImportError:
        return
    peers.knn("lightly", lambda bank, labels, queries, truth, k: 100 * (knn_predict(
        queries, bank.T, labels, int(labels.max()) + 1, k, TEMPERATURE)[:, 0] == truth).double().mean())


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank")
    parser.add_argument("queries", nargs="?")
    parser.add_argument("--dino", type=pathlib.Path, help="Checkout of facebookresearch/dino.")
    parser.add_argument("--revisitop", type=pathlib.Path, help="Checkout of filipradenovic/revisitop.")
    parser.add_argument("--moco", type=pathlib.Path, help="Checkout of facebookresearch/moco, branch colab-notebook.")
    options = parser.parse_args()
    cpu = torch.device("cpu")
    with EmbeddingFile(options.bank) as file:
        bank = queries = read_side(file, cpu)
        if options.queries:
            with EmbeddingFile(options.queries) as other:
                require_same_vectors(file, other)
                queries = read_side(other, cpu)
    peers = Peers(bank, queries)
    run(peers, options)
    for place, cells in enumerate(peers.lines):
        print("| " + " | ".join(cells) + " |" + ("\n|" + " --- |" * len(cells) if place == 0 else ""))


if __name__ == "__main__":
    main()
