"""What ends or warns of a bad pretraining, agreed on by all ranks before a step changes the weights."""

import collections

import torch

from mocoembed.data.loader import Failure, ViewBatch
from mocoembed.errors import CollectionError, TrainingError

UNREADABLE_SHARE = 0.1  # of the pictures; more than this stops the run
COLLAPSED_SPREAD, COLLAPSED_STEPS = 0.01, 50
LEAKING_ACCURACY, LEAKING_STEPS = 0.99, 100


class Guard:
    """Judges the numbers of a step (see `training_step`): a row for each rank, the same on all ranks."""

    def __init__(self, training, listing, note):
        """`training` is a `Training`; `note` is called with a line for people."""
        self.training, self.listing, self.note = training, listing, note
        self.unreadable: dict[int, Failure] = {}
        self.signal_number = 0
        """A signal that this rank got; after `check`, one that any rank got."""
        self.failed = 0
        """Unreadable pictures on all ranks."""
        self._collapsed = 0
        self._top1 = collections.deque(maxlen=LEAKING_STEPS)

    def told(self, batch: ViewBatch, signal_number: int | None) -> tuple[float, ...]:
        """What this rank has to tell the others at this step; names the unreadable pictures that are new.

        Raises `CollectionError` when for one of them no replacement was found.
        """
        for failure in batch.failures:
            if failure.row not in self.unreadable:
                self.unreadable[failure.row] = failure
                self.note(f"unreadable, replaced by the next picture: {self.listing.paths[failure.row]!r}: "
                          f"{failure.error}: {failure.reason}")
        if int(batch.rows.min()) < 0:
            raise self._too_many(len(self.unreadable))
        return len(self.unreadable), signal_number or 0

    def check(self, numbers: torch.Tensor):
        """Raise `TrainingError` or `CollectionError`, the same on all ranks, when the run cannot go on.

        numbers: (W, 6) float64: loss, top1, top5, spread, unreadable pictures, signal.
        """
        loss, top1, _, spread = numbers[:, :4].mean(dim=0).tolist()
        self.failed, self.signal_number = int(numbers[:, 4].sum()), int(numbers[:, 5].max())
        problem = self._unreadable() or self._not_finite(numbers[:, :4]) or self._collapse(spread, loss)
        if problem:
            raise self.training.ranks.agreed(problem)
        self._warn_of_leak(top1)

    def _unreadable(self) -> CollectionError | None:
        return self._too_many(self.failed) if self.failed > UNREADABLE_SHARE * len(self.listing) else None

    def _too_many(self, failed: int) -> CollectionError:
        return CollectionError(f"{failed} of {len(self.listing)} pictures so far cannot be read, more than "
                               f"{UNREADABLE_SHARE:.0%} or too many in a row. Mend or remove them; they are named "
                               "above.")

    def _not_finite(self, numbers: torch.Tensor) -> TrainingError | None:
        bad = (~torch.isfinite(numbers).all(dim=1)).nonzero().flatten().tolist()
        if not bad:
            return None
        where = f" on rank{'s' * (len(bad) > 1)} {', '.join(map(str, bad))}" if len(numbers) > 1 else ""
        config = self.training.config
        return TrainingError(f"The loss is {float(numbers[bad[0], 0])} at step {self.training.step + 1}{where} (--lr "
                             f"{config.lr:g}, --precision {config.precision}). No checkpoint holds it: start over with "
                             "a lower --lr, or --precision fp32.")

    def _collapse(self, spread: float, loss: float) -> TrainingError | None:
        self._collapsed = self._collapsed + 1 if spread < COLLAPSED_SPREAD else 0
        if self._collapsed < COLLAPSED_STEPS:
            return None
        return TrainingError(f"Collapse: for {COLLAPSED_STEPS} steps all queries have pointed the same way (spread "
                             f"{spread:.4f} of 1, loss {loss:.3f}) at step {self.training.step + 1}. Start over with a "
                             "lower --lr, some --warmup-epochs, or a --momentum nearer to 1.")

    def _warn_of_leak(self, top1: float):
        self._top1.append(top1)
        accuracy = sum(self._top1) / LEAKING_STEPS
        if len(self._top1) == LEAKING_STEPS and accuracy >= LEAKING_ACCURACY:
            if self.training.ranks.first:
                self.note(f"Over {LEAKING_STEPS} steps the pretext accuracy has been {accuracy:.1%}. That is too easy: "
                          "BatchNorm may give the answer away. Watch the kNN accuracy (--val), and try --batchnorm "
                          "shuffled with more --bn-groups.")
            self._top1 = collections.deque(maxlen=0)  # said once
