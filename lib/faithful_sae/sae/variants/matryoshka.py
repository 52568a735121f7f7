"""Matryoshka BatchTopK: nested dictionaries, whose first w_g latents reconstruct the tokens alone
(Bussmann et al. 2025, arXiv 2503.17547).

    f as in BatchTopK, over all latents; widths w_1 < .. < w_G = F
    x_hat_g = f_[:w_g] W_dec_[:w_g] + b_dec
    loss = sum over g of mean (x - x_hat_g)^2 + 1/32 AuxK

So general features cannot be split over special ones: the first latents have to do without those.
AuxK explains the residual of the whole, x_hat_G.
"""

import itertools

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.formats.source import SAEError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment
from faithful_sae.sae.variants.batch_topk import BatchTopK
from faithful_sae.sae.variants.topk import auxk


class Matryoshka(settings.Matryoshka, BatchTopK):
    """BatchTopK whose first latents reconstruct the tokens alone, too."""

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        if problem := self.problem(d_sae):
            raise SAEError(problem)
        return super().new(d_model, d_sae, seed, device)

    def loss(self, sae: TopKSAE, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        f = self.latents(sae, x)
        error = sae.b_dec - x
        loss = x.new_zeros(())
        # each dictionary adds to the one before
        for first, end in itertools.pairwise([0, *self.widths(sae.d_sae)]):
            error = error + f[:, first:end] @ sae.W_dec[first:end]
            loss = loss + error.square().mean()
        return loss + auxk(sae, x, error, moment), error, (f > 0).sum(0)
