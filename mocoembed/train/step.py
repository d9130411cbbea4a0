"""One step of contrastive learning, in the order of the paper (He et al. 2019, algorithm 1)."""

import contextlib
from collections.abc import Callable

import torch

from mocoembed.data.loader import ViewBatch
from mocoembed.data.resident import ResidentImages
from mocoembed.data.views import ViewParameters, apply_views
from mocoembed.model.loss import Contrast, info_nce
from mocoembed.model.moco import Keys, Views, batch_statistics, gradients_summed_up
from mocoembed.model.pieces import OneUpdate, cut
from mocoembed.model.precision import to_host
from mocoembed.train.run import Training

NUMBERS = ("loss", "top1", "top5", "spread")
Learnt = tuple[list[torch.Tensor], list[Keys], Callable[[], torch.Tensor]]
"""q (N, C) and keys for each of the queries' views, and what gives the gathered numbers."""


def training_step(training: Training, views: Views, told: tuple[float, ...],
                  check: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """Learn from one batch. Three dictionaries have the same calls: see `MoCo`, `EndToEnd` and `MemoryBank`.

    Each rank's `NUMBERS`, what it has been `told` and the scale of the loss (of fp16, else 1) are gathered, (W, 5 + n)
    float64 on the CPU, and given to `check` on all ranks before the weights change; what it raises ends the step. On a
    GPU the backward pass runs meanwhile, and nothing else waits for it (in fp16 the scaler does: is there an infinite
    gradient? And with several ranks every layer of torch's SyncBatchNorm). They are returned.

    With a symmetric loss the sum of both losses is minimised, as the authors' CIFAR-10 demo does, and their mean
    reported, to be held against ln(K+1). With `views.pieces`, forward and backward see one piece after another.
    """
    method = training.method
    training.optimizer.zero_grad(set_to_none=True)
    q, k, gathered = (in_pieces if views.pieces else at_once)(training, views, told)
    numbers = gathered()
    check(numbers)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    method.remember(q, k, views)  # after backward, which still needs the old queue: so no copy of it is made
    training.ranks.average(batch_statistics(method))
    return numbers


def at_once(training: Training, views: Views, told: tuple[float, ...]) -> Learnt:
    """Forward and backward of the whole batch."""
    method, compute, T = training.method, training.compute, training.config.temperature
    with compute.autocast():
        q = [method.query(x_q) for x_q in views.queries]  # N x C each
        method.momentum_update()
        k = [method.key(x_k, views) for x_k in views.keys]  # positive: N x C, negatives: C x K
    contrasts = [info_nce(one, keys.positive, keys.negatives, T, keys.excluded) for one, keys in zip(q, k)]
    gathered = to_host(training.ranks.gather(summary(contrasts, q, told, training.scaler)))
    training.scaler.scale(torch.stack([contrast.loss for contrast in contrasts]).sum()).backward()
    return q, k, gathered


def in_pieces(training: Training, views: Views, told: tuple[float, ...]) -> Learnt:
    """As `at_once`, with the memory of one piece: gradients are summed up, and averaged over the ranks at the last."""
    method, compute, T = training.method, training.compute, training.config.temperature
    with compute.autocast():
        method.momentum_update()
        k = [method.key(x_k, views) for x_k in views.keys]
    q, contrasts = [], []
    for x_q, keys in zip(views.queries, k):
        update, done = OneUpdate(method.encoder_q), []
        for piece in views.pieces:
            own, last = piece.images, piece is views.pieces[-1] and x_q is views.queries[-1]
            with contextlib.nullcontext() if last else gradients_summed_up(method.trained), update.of(piece):
                with compute.autocast():
                    part = method.query(x_q[own])  # n x C
                excluded = None if keys.excluded is None else keys.excluded[own]
                contrast = info_nce(part, keys.positive[own], keys.negatives, T, excluded)
                share = len(part) / len(x_q)
                training.scaler.scale(contrast.loss * share).backward()
            done.append((part.detach(), [share * number.detach() for number in contrast]))
        q.append(torch.cat([part for part, _ in done]))
        contrasts.append(Contrast(*(torch.stack(numbers).sum() for numbers in zip(*(some for _, some in done)))))
    return q, k, to_host(training.ranks.gather(summary(contrasts, q, told, training.scaler)))


@torch.no_grad()
def summary(contrasts: list[Contrast], q: list[torch.Tensor], told: tuple[float, ...],
            scaler: torch.amp.GradScaler) -> torch.Tensor:
    """(1, 5 + n) float64: `NUMBERS`, what else is told, and the scale of the loss.

    spread: the standard deviation of q over the batch, times the square root of C: 1 for directions that are evenly
    spread, 0 when all queries are the same (collapse).
    """
    spread = torch.stack([one.std(dim=0).mean() * one.shape[1] ** 0.5 for one in q]).mean()
    means = [*(torch.stack(values).mean() for values in zip(*contrasts)), spread]
    numbers = torch.stack([number.double() for number in means])
    more = [numbers.new_full((1,), value) for value in told]  # filled on the device: a copy would wait for it
    return torch.cat([numbers, *more, scaler.scale(numbers.new_ones(1))]).view(1, -1)


def make_views(batch: ViewBatch, training: Training, images: ResidentImages | None = None) -> Views:
    """The normalised views of a batch, made on the device; with `images`, the batch has the boxes of their crops.

    Crops whose keys another rank encodes go there as they are, bytes; how to change them is known everywhere.
    """
    compute, ranks = training.compute, training.ranks
    if images is not None:
        batch = batch._replace(crops=tuple(images.crops(batch.rows, boxes, number)
                                           for number, boxes in enumerate(batch.crops)))

    def view(number: int, parameters: ViewParameters, order: torch.Tensor | None) -> torch.Tensor:
        crops = batch.crops[number].to(compute.device, non_blocking=True)
        if order is not None:
            crops = ranks.exchange(crops.permute(0, 2, 3, 1), order).permute(0, 3, 1, 2)
        return apply_views(crops, parameters, training.views, compute.dtype)

    queries = [view(i, parameters, None) for i, parameters in enumerate(batch.queries)]
    keys = [view(1 - i, parameters, batch.order) for i, parameters in enumerate(batch.keys)]
    pieces = cut(len(batch.rows), training.groups, training.groups_at_once)
    rows = batch.rows.to(compute.device, non_blocking=True)
    return Views(queries, keys or queries, rows, batch.order, batch.step, pieces)
