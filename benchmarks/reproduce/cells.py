"""The cells of `ablations.py`, what they are compared with in the papers, and what may be claimed of them.

Everything here was written before any of these cells had run, but for two things. `v1-mlp-T0.07` was added last, as the
other cells of study d change the head and T together. And K 4, 64, 1024 and 4096 had been
tried with such settings (30.4, 36.4, 35.4, 33.7 % kNN after 4 epochs; 30.8, 36.1, 35.3 with a second seed; memory bank
of 64: 27.8; K 64 and 1024 after 24 epochs: 44.2, 43.2), so the claims of study `a` repeat what one or two seeds showed.
"""

from dataclasses import dataclass

BATCH = 128
BASE = ["--recipe", "cifar10", "--width", "0.25", "--stem", "3x3s2", "--limit", "10000", "--batch-size", str(BATCH),
        "--bn-groups", "4", "--lr", "0.04", "--warmup-epochs", "1", "--no-mask-same-image", "--precision", "fp32",
        "--cache", "ram", "--workers", "1", "--device", "cpu", "--processes", "1", "--val-every", "1000000"]
V1_VIEWS = ["--crop-scale", "0.2,1.0", "--jitter", "0.4,0.4,0.4,0.4", "--jitter-probability", "1", "--grey-first"]
V2_VIEWS = ["--crop-scale", "0.2,1.0", "--jitter", "0.4,0.4,0.4,0.1", "--blur-probability", "0.5"]
V1 = ["--head", "linear", *V1_VIEWS, "--schedule", "step", "--temperature", "0.07"]
V2 = ["--head", "mlp", *V2_VIEWS, "--schedule", "cosine"]


@dataclass(frozen=True)
class Cell:
    """One pretraining: its options beside `BASE`, and its place in a table."""

    label: str
    epochs: int
    options: tuple[str, ...] = ()
    published: str = ""
    """The figure of the papers: a linear classifier on ImageNet, or, of the symmetric loss, kNN after 200 epochs."""
    place: float | None = None
    """On the plot's axis, such as K."""
    line: str = ""
    """Of the plot."""


def _cell(label: str, epochs: int, options: list[str], published: str = "", place: float | None = None,
          line: str = "") -> Cell:
    return Cell(label, epochs, tuple(options), published, place, line)


def _queue(K: int) -> Cell:
    return _cell(f"queue, K {K}", 4, ["--queue-size", str(K)], "60.6 (K 65,536)" if K == 4096 else "", K, "queue")


def _bank(K: int) -> Cell:
    options = ["--dictionary", "memory-bank", "--queue-size", str(K)]
    return _cell(f"memory bank, K {K}", 4, options, "58.0 (K 65,536)" if K == 4096 else "", K, "memory bank")


def _end_to_end(K: int) -> Cell:
    groups = max(1, (K + 1) // 32)  # of 32 images, as the others have; one group of 8 where the batch is 8
    # K is the batch less one, so it cannot change alone: the learning rate goes with the batch, the steps against it.
    return _cell(f"end-to-end, K {K} (batch {K + 1})", 4,
                 ["--dictionary", "end-to-end", "--batch-size", str(K + 1), "--bn-groups", str(groups), "--lr",
                  f"{0.04 * (K + 1) / BATCH:g}"], "", K, "end-to-end")


def _momentum(m: str, epochs: int, published: str) -> Cell:
    return _cell(f"m {m}, {epochs} epochs", epochs, ["--momentum", m], published if epochs == 60 else "",
                 list(MOMENTA).index(m), f"{epochs} epochs")


MOMENTA = {"0": "fails", "0.9": "55.2", "0.99": "57.8", "0.999": "59.0", "0.9999": "58.9"}
CELLS: dict[str, Cell] = {
    **{f"queue-{K}": _queue(K) for K in (1, 4, 16, 64, 256, 1024, 4096)},
    **{f"bank-{K}": _bank(K) for K in (4, 64, 1024, 4096)},
    **{f"end-to-end-{K}": _end_to_end(K) for K in (7, 31, 127)},
    **{f"m-{m}-{epochs}": _momentum(m, epochs, published) for epochs in (12, 60) for m, published in MOMENTA.items()},
    "shuffled": _cell("8 groups of 16, keys shuffled", 12, ["--bn-groups", "8"]),
    "unshuffled": _cell("8 groups of 16, not shuffled", 12, ["--bn-groups", "8", "--batchnorm", "none"]),
    "one-group": _cell("one group of 128", 12, ["--bn-groups", "1"]),
    "v1": _cell("v1", 12, V1, "60.6"),
    "v1-mlp-T0.07": _cell("v1 + MLP (T 0.07)", 12, [*V1, "--head", "mlp"]),
    "v1-mlp": _cell("v1 + MLP (T 0.2)", 12, [*V1, "--head", "mlp", "--temperature", "0.2"], "66.2"),
    "v1-views": _cell("v1 + views of v2", 12,
                      [*V1, *V2_VIEWS, "--no-grey-first", "--jitter-probability", "0.8"], "63.4"),
    "v1-cosine": _cell("v1 + cosine", 12, [*V1, "--schedule", "cosine"]),
    "mlp-views": _cell("v1 + MLP + views (T 0.2)", 12, [*V2, "--schedule", "step", "--temperature", "0.2"], "67.3"),
    "v2": _cell("v2: all of them (T 0.2)", 12, [*V2, "--temperature", "0.2"], "67.5", 0.2, "v2"),
    **{f"v2-T{T:g}": _cell(f"v2 with T {T:g}", 12, [*V2, "--temperature", f"{T:g}"], "", T, "v2")
       for T in (0.07, 0.1, 0.3)},
    "symmetric": _cell("symmetric, 12 epochs (equal epochs, twice the work)", 12, ["--symmetric"],
                       "kNN 85.3 (asymmetric 82.6)"),
    "symmetric-half": _cell("symmetric, 6 epochs (half the epochs, equal work)", 6, ["--symmetric"]),
    "two-heads": _cell("end-to-end, one backbone and two heads", 4, [*_end_to_end(127).options, "--key-encoder",
                                                                     "shared-backbone"]),
    "separate": _cell("end-to-end, two encoders", 4, [*_end_to_end(127).options, "--key-encoder", "separate"]),
    "key-patches": _cell("keys see patches (--key-crop-scale 0.08,0.4)", 12, ["--key-crop-scale", "0.08,0.4"]),
    "key-size": _cell("keys of 24 pixels (--key-image-size 24)", 12, ["--key-image-size", "24"]),
}
STUDIES: dict[str, list[str]] = {
    "a-dictionary": [name for name in CELLS if name.startswith(("queue-", "bank-", "end-to-end-"))],
    "b-momentum": [name for name in CELLS if name.startswith("m-")],
    "c-batchnorm": ["shuffled", "unshuffled", "one-group"],
    "d-v1-to-v2": [name for name in CELLS if name.startswith(("v1", "v2", "mlp-"))],
    "e-symmetric": ["m-0.99-12", "symmetric", "symmetric-half"],
    "keys": ["end-to-end-127", "two-heads", "separate", "m-0.99-12", "key-patches", "key-size"],
}
"""Study -> its cells. Study f is the linear accuracy of all of them against their kNN accuracy."""


@dataclass(frozen=True)
class Claim:
    """That the mean of (one - other), paired by seed, is above `above`; and whether it is expected to show."""

    study: str
    text: str
    one: str
    other: str
    above: float = 0.0
    figure: str = "knn_top1"
    expected: str = "shows"


CLAIMS = [
    Claim("a-dictionary", "More negatives help below the knee: K 64 is more than 3 points above K 4", "queue-64",
          "queue-4", 3.0),
    Claim("a-dictionary", "The queue is above the memory bank at K 64", "queue-64", "bank-64"),
    Claim("a-dictionary", "More negatives help up to 4096: K 4096 is above K 64", "queue-4096", "queue-64",
          expected="does not show: a queue of 32 steps holds the keys of encoders that have moved on"),
    Claim("b-momentum", "A slow key encoder is needed: m 0.99 is above m 0", "m-0.99-60", "m-0-60"),
    Claim("b-momentum", "m 0.99 is above m 0.9", "m-0.99-60", "m-0.9-60"),
    Claim("b-momentum", "m 0.999 is above m 0.99 after 60 epochs", "m-0.999-60", "m-0.99-60",
          expected="open: 4,680 steps leave 1 % of the start at 0.999, and the paper's gain is 1.2 points"),
    Claim("b-momentum", "m 0.9999 is below m 0.99 after 60 epochs, because 63 % of the key encoder is its start",
          "m-0.99-60", "m-0.9999-60"),
    Claim("c-batchnorm", "Without shuffling the pretext task is easier (top-1)", "unshuffled", "shuffled",
          figure="pretext_top1"),
    Claim("c-batchnorm", "Without shuffling kNN is worse", "shuffled", "unshuffled",
          expected="open: after 936 steps no leak had reached kNN"),
    Claim("d-v1-to-v2", "v2 is above v1", "v2", "v1"),
    Claim("d-v1-to-v2", "The MLP head with T 0.2 alone is above v1", "v1-mlp", "v1"),
    Claim("d-v1-to-v2", "The MLP head alone, at v1's T, is above v1", "v1-mlp-T0.07", "v1",
          expected="open: with T 0.2 it is not"),
    Claim("d-v1-to-v2", "v2's views alone are above v1", "v1-views", "v1",
          expected="open: blur may hurt at 32 pixels"),
    Claim("e-symmetric", "At equal epochs the symmetric loss is above", "symmetric", "m-0.99-12"),
    Claim("e-symmetric", "At equal work, half the epochs, the symmetric loss is above", "symmetric-half", "m-0.99-12",
          expected="does not show: half the epochs"),
    Claim("keys", "Two heads on one backbone are above one head", "two-heads", "end-to-end-127", expected="open"),
]
