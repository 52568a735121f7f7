"""Matryoshka BatchTopK: nested dictionaries, whose first w_g latents reconstruct the tokens alone
(Bussmann et al. 2025, arXiv 2503.17547).

    f as in BatchTopK, over all latents; widths w_1 < .. < w_G = F
    x_hat_g = f_[:w_g] W_dec_[:w_g] + b_dec
    loss = sum over g of mean (x - x_hat_g)^2 + 1/32 AuxK

So general features cannot be split over special ones: the first latents have to do without those.
AuxK explains the residual of the whole, x_hat_G.
"""

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.formats.source import SAEError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment
from faithful_sae.sae.variants.batch_topk import BatchTopK
from faithful_sae.sae.variants.places import Places
from faithful_sae.sae.variants.topk import auxk


class Matryoshka(settings.Matryoshka, BatchTopK):
    """BatchTopK whose first latents reconstruct the tokens alone, too."""

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        if problem := self.problem(d_sae):
            raise SAEError(problem)
        return super().new(d_model, d_sae, seed, device)

    def loss_at(
        self, sae: TopKSAE, x: Tensor, moment: Moment, at: Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        f = self.latents(sae, x, at)
        # each dictionary adds to the one before
        parts = at.parts(f, sae.W_dec, self.widths(sae.d_sae))
        errors = parts.cumsum(0) + (sae.b_dec - x)
        loss = errors.square().mean((1, 2)).sum()
        return loss + auxk(sae, x, errors[-1], moment), errors[-1], at.counts(f)

    @staticmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """BatchTopK's, and four arrays [B, D] for each of eight widths."""
        return BatchTopK.bytes(d_model, d_sae, batch_tokens) + 8 * 4 * 4 * batch_tokens * d_model
