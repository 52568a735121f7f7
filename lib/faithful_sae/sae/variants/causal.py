"""Causal loss: TopK SAEs whose latents the rest of the model reads as if it were linear in them
(Menon et al. 2024, arXiv 2410.11767).

    D / s^2 loss = FVU + weight mean of |a g(z) + (1 - a) g(z') - g(a z + (1 - a) z')|^2 / s_g^2

z and z' are the latents of two rows of the batch, g the rest of the model from the decoder to the
logits, and s_g^2 the mean squared distance of the model's own logits from their mean. Decoders are
linear, so that the mixture of latents is that of reconstructions. AuxK is TopK's.

The paper mixes single tokens, of texts of a formal language. Here the rest of the model attends to
earlier positions, so two rows are mixed as wholes, each with the one before it in the batch; a
batch's pairs take their a evenly from 0 to 1. What is compared is at positions measured in both.
A large weight makes x_hat the same for all tokens, which any g is linear in: see CE beside it.
"""

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.variants.base import Moment, spread
from faithful_sae.sae.variants.topk import OwnDistance


class Causal(settings.Causal, OwnDistance):
    """TopK SAEs whose latents the rest of the model reads as if it were linear in them."""

    def distance(self, x: Tensor, error: Tensor, moment: Moment) -> Tensor:
        loss = error.square().mean()
        weight = self.weight * moment.ramp(self.warmup)
        if not weight:
            return loss
        batch = moment.batch
        rows = batch.rows(x + error)
        n = len(rows)
        a = ((torch.arange(n, device=rows.device) + 0.5) / n)[:, None, None].to(rows)
        one = batch.run(rows).logits
        # the rest of the model does not look at other rows
        mixed = batch.run(a * rows + (1 - a) * rows.roll(1, 0)).logits
        both = batch.measured & batch.measured.roll(1, 0)
        off = (a * one + (1 - a) * one.roll(1, 0) - mixed)[both]
        own = batch.original.logits[batch.measured]
        nonlinear = off.square().sum(-1).mean() / spread(own).square()
        return loss + weight * spread(x).square() / x.shape[-1] * nonlinear
