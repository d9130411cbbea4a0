"""The two dictionaries beside the queue (He et al. 2019, section 3.2 and figure 2), with the calls that `MoCo` has.

end-to-end: the keys are the batch's own (all ranks'), and gradients flow through both encoders.
memory bank: one feature per image of the collection, no key encoder (Wu et al. 2018, "InstDisc").
"""

import copy
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from mocoembed.data.uploads import uploaded
from mocoembed.data.views import PURPOSE_BANK, generator
from mocoembed.model.encoder import Encoder
from mocoembed.model.moco import Keys, MoCo, Views, encode, unshuffled
from mocoembed.model.ranks import ALONE, Ranks


class TwoHeads(nn.Module):
    """f_q and f_k of one backbone: one module, so that processes average the gradients of both together."""

    def __init__(self, encoder: Encoder, head_k: nn.Module):
        super().__init__()
        self.encoder, self.head_k = encoder, head_k

    def forward(self, x: torch.Tensor, of_keys: bool = False) -> torch.Tensor:
        return (self.head_k if of_keys else self.encoder.head)(self.encoder.backbone(x))  # N x 3 x S x S -> N x C


class EndToEnd(nn.Module):
    """Keys are the current batch: the negatives of a query are the keys of the batch's other images.

    The key encoder is the query encoder itself (`shared`), its backbone with a head of its own (`shared-backbone`), or
    one of its own (`separate`); what is its own starts equal and learns as well.
    """

    def __init__(self, encoder_q: Encoder, key_encoder: str, ranks: Ranks = ALONE):
        super().__init__()
        self.ranks = ranks
        self.encoder_q = encoder_q
        self.trained: dict[str, nn.Module] = {"encoder_q": encoder_q}
        self.two_heads = key_encoder == "shared-backbone"
        if self.two_heads:
            self.head_k = copy.deepcopy(encoder_q.head)
            self.trained["encoder_q"] = TwoHeads(encoder_q, self.head_k)
        elif key_encoder == "separate":
            self.encoder_k = copy.deepcopy(encoder_q)
            self.trained["encoder_k"] = self.encoder_k

    def let_heads_be_equal(self):
        """Give the keys' own head, where there is one, the weights of the queries'."""
        if self.two_heads:
            self.head_k.load_state_dict(self.encoder_q.head.state_dict())

    def query(self, x_q: torch.Tensor) -> torch.Tensor:
        """q (N, C) of unit length from views (N, 3, S, S)."""
        return encode(self.trained["encoder_q"], x_q)

    def momentum_update(self):
        """Nothing: the key encoder learns by its own gradient."""

    def key(self, x_k: torch.Tensor, views: Views) -> Keys:
        """The keys of all ranks' batches, with gradients; a query's own image is no negative of its."""
        encoder_k = self.trained.get("encoder_k", self.trained["encoder_q"])
        k = encode(partial(encoder_k, of_keys=True) if self.two_heads else encoder_k, x_k)
        k = unshuffled(self.ranks.gather_with_gradient(k), views.order)  # B x C
        excluded = views.rows.view(-1, 1) == self.ranks.gather(views.rows)  # N x B
        return Keys(self.ranks.own(k), k.T, excluded, None)

    def remember(self, q: list[torch.Tensor], k: list[Keys], views: Views):
        """Nothing: the next batch is the next dictionary."""


class MemoryBank(nn.Module):
    """One feature of unit length for each of M images; the positive of a query is its image's own.

    In each step K negatives are drawn from the images that are not in the batch, the same for all its queries. Then
    the features of the images seen become normalised m_f feature + (1 - m_f) q.
    """

    bank: torch.Tensor

    def __init__(self, encoder_q: Encoder, images: int, K: int, m_f: float, seed: int, ranks: Ranks = ALONE):
        super().__init__()
        self.K, self.m_f, self.seed, self.ranks = K, m_f, seed, ranks
        self.encoder_q = encoder_q
        self.trained: dict[str, nn.Module] = {"encoder_q": encoder_q}
        self.register_buffer("bank", functional.normalize(torch.randn(images, encoder_q.spec.dim), dim=1))

    def query(self, x_q: torch.Tensor) -> torch.Tensor:
        """q (N, C) of unit length from views (N, 3, S, S)."""
        return encode(self.trained["encoder_q"], x_q)

    def momentum_update(self):
        """Nothing: there is no key encoder; the momentum is on the features, see `remember`."""

    @torch.no_grad()
    def key(self, x_k: torch.Tensor, views: Views) -> Keys:
        """The stored features of the batch's images, and K others; x_k is not looked at."""
        batch = self.ranks.gather(views.rows)
        chosen = generator(self.seed, PURPOSE_BANK, views.step).choice(len(self.bank), self.K + len(batch),
                                                                       replace=False)
        drawn = uploaded(torch.from_numpy(chosen), self.bank.device)
        # The first K that are not in the batch: those that are go to the end. `torch.isin` would wait for the device.
        in_batch = torch.zeros(len(self.bank), dtype=torch.bool, device=self.bank.device).index_fill_(0, batch, True)
        others = drawn[in_batch[drawn].int().argsort(stable=True)[:self.K]]
        return Keys(self.bank[views.rows], self.bank[others].T, None, None)

    @torch.no_grad()
    def remember(self, q: list[torch.Tensor], k: list[Keys], views: Views):
        """Move the features of the images seen towards their queries."""
        rows, place = self.ranks.gather(views.rows).sort(stable=True)
        # An image that is there twice, in an unreadable one's place, is updated by the first alone, on every rank.
        seen = self.ranks.gather(q[0])[place][torch.searchsorted(rows, rows)]
        self.bank[rows] = functional.normalize(self.m_f * self.bank[rows] + (1 - self.m_f) * seen, dim=1)


Method = MoCo | EndToEnd | MemoryBank
"""What a step trains: three dictionaries with the same calls."""
