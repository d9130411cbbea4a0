"""What ends or warns of a bad pretraining, agreed on by all ranks before a step changes the weights."""

import collections

import torch

from mocoembed.data.facts import REPLACED, Failure
from mocoembed.data.loader import ViewBatch
from mocoembed.errors import CollectionError, TrainingError

UNREADABLE_SHARE = 0.1  # of the images; more than this stops the run
COLLAPSED_SPREAD, COLLAPSED_STEPS = 0.01, 50
LEAKING_ACCURACY, LEAKING_STEPS = 0.99, 100
SMALLEST_SCALE = 1.0  # of the loss in fp16: it begins at 65,536 and is halved after each step with infinite gradients


class Guard:
    """Judges the numbers of a step (see `training_step`): a row for each rank, the same on all ranks."""

    def __init__(self, training, listing, note):
        """`training` is a `Training`; `note` is called with a line for people."""
        self.training, self.listing, self.note = training, listing, note
        self.unreadable: dict[int, Failure] = {}
        """Images that could not be read, on any rank, by their rows."""
        self.signal_number = 0
        """A signal that any rank got."""
        self._new: list[Failure] = []
        self._collapsed = 0
        self._top1: collections.deque[float] = collections.deque(maxlen=LEAKING_STEPS)

    def told(self, batch: ViewBatch, signal_number: int | None) -> tuple[float, ...]:
        """What this rank has to tell the others at this step: see `check`."""
        self._new = [failure for failure in batch.failures if failure.row not in self.unreadable]
        return len(self._new), signal_number or 0, int(batch.rows.min()) < 0

    def check(self, numbers: torch.Tensor):
        """Raise `TrainingError` or `CollectionError`, the same on all ranks, when the run cannot go on.

        numbers: (W, 8) float64: loss, top1, top5, spread, images newly found unreadable, signal, whether there is
        an unreadable image without a replacement, scale of the loss.
        """
        loss, top1, _, spread = numbers[:, :4].mean(dim=0).tolist()
        self.signal_number = int(numbers[:, 5].max())
        if int(numbers[:, 4].sum()):
            for failures in self.training.ranks.objects(self._new):
                self._add(failures, aloud=self.training.ranks.first)
        in_a_row = bool(numbers[:, 6].any())
        problem = (self._unreadable(in_a_row) or self._not_finite(numbers[:, :4])
                   or self._overflow(float(numbers[:, 7].min())) or self._collapse(spread, loss))
        if problem:
            raise self.training.ranks.agreed(problem)
        self._warn_of_leak(top1)

    def _add(self, failures: list[Failure], aloud: bool):
        for failure in failures:
            if failure.row not in self.unreadable:
                self.unreadable[failure.row] = failure
                if aloud:
                    self.note(failure.told(self.listing.paths[failure.row], REPLACED))

    def _unreadable(self, in_a_row: bool) -> CollectionError | None:
        if not in_a_row and len(self.unreadable) <= UNREADABLE_SHARE * len(self.listing):
            return None
        why = "too many in a row" if in_a_row else f"more than {UNREADABLE_SHARE:.0%}"
        return CollectionError(f"{len(self.unreadable)} of {len(self.listing)} images so far cannot be read, {why}. "
                               "Repair or remove them; they are named above.")

    def _not_finite(self, numbers: torch.Tensor) -> TrainingError | None:
        bad = (~torch.isfinite(numbers).all(dim=1)).nonzero().flatten().tolist()
        if not bad:
            return None
        where = f" on rank{'s' * (len(bad) > 1)} {', '.join(map(str, bad))}" if len(numbers) > 1 else ""
        config = self.training.config
        return TrainingError(f"The loss is {float(numbers[bad[0], 0])} at step {self.training.step + 1}{where} (--lr "
                             f"{config.lr:g}, --precision {config.precision}). No checkpoint contains it: "
                             "start over with a lower --lr, or --precision fp32.")

    def _overflow(self, scale: float) -> TrainingError | None:
        """Steps with infinite gradients are skipped, and every one halves the scale: it cannot go on for ever."""
        if scale >= SMALLEST_SCALE:
            return None
        return TrainingError("Infinite gradients in fp16: one step after another has been skipped, and the loss is "
                             f"scaled by {scale:g} at step {self.training.step + 1} (--lr "
                             f"{self.training.config.lr:g}). The checkpoint holds the last good weights: start over "
                             "with a lower --lr, or --precision bf16.")

    def _collapse(self, spread: float, loss: float) -> TrainingError | None:
        self._collapsed = self._collapsed + 1 if spread < COLLAPSED_SPREAD else 0
        if self._collapsed < COLLAPSED_STEPS:
            return None
        return TrainingError(f"Collapse: for {COLLAPSED_STEPS} steps, all queries have pointed the same way (spread "
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
