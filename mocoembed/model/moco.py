"""Momentum Contrast: two encoders, the momentum update between them, the queue, shuffled BatchNorm.

Symbols as in He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (2019): query q, key
k, queue size K, momentum m, temperature T, feature length C.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.queue import Queue


class MoCo(nn.Module):
    """encoder_q (trained), encoder_k (its moving average, no gradient) and the queue of K keys."""

    def __init__(self, spec: EncoderSpec, K: int, m: float, T: float, bn_groups: int = 1):
        super().__init__()
        self.m, self.T, self.bn_groups = m, T, bn_groups
        self.encoder_q = Encoder(spec, bn_groups)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)  # the encoders start equal
        self.queue = Queue(spec.dim, K)

    def query(self, x_q: torch.Tensor) -> torch.Tensor:
        """q (N, C) of unit length, in the queue's dtype, from views (N, 3, S, S)."""
        return functional.normalize(self.encoder_q(x_q).to(self.queue.keys.dtype), dim=1)

    @torch.no_grad()
    def momentum_update(self):
        """theta_k <- m theta_k + (1 - m) theta_q (equation 2); running statistics are each encoder's own."""
        theta_q, theta_k = list(self.encoder_q.parameters()), list(self.encoder_k.parameters())
        torch._foreach_lerp_(theta_k, theta_q, 1 - self.m)

    @torch.no_grad()
    def key(self, x_k: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """k (N, C) of unit length. `order` (N,) shuffles the pictures between BatchNorm's groups (section 3.3)."""
        k = self.encoder_k(x_k[order]) if self.bn_groups > 1 else self.encoder_k(x_k)
        k = functional.normalize(k.to(self.queue.keys.dtype), dim=1)
        return k[order.argsort()] if self.bn_groups > 1 else k
