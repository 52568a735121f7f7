"""Mutual Choice: BatchTopK's latents, and AuxK for those that are seldom active, not for dead ones
alone (Ayonrinde 2024, arXiv 2411.02124).

    f as in BatchTopK
    loss = mean (x - x_hat)^2 + 1/32 AuxK
    n(r) = e^(a + b log r)        seldom: n_i < seldom n(r_i)

n_i is on how many tokens of the batch the i-th latent is active, and r_i its rank by that, the most
frequent being 1. a and b are fitted by least squares to log n_i of those that are active. AuxK (see
topk.py) is over the dead and the seldom. The paper has no code and leaves the weights of its
`aux_zipf_loss` open; that they are AuxK's is our reading. With seldom = 0 this is BatchTopK.
"""

from dataclasses import replace

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment
from faithful_sae.sae.variants.batch_topk import BatchTopK
from faithful_sae.sae.variants.places import Places
from faithful_sae.sae.variants.topk import auxk


class MutualChoice(settings.MutualChoice, BatchTopK):
    """BatchTopK that revives seldom latents, too, not dead ones alone."""

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment, at: Places
    ) -> Tensor | float:
        counts = at.counts(f)
        weak = counts < self.seldom * zipf(counts)
        weak[moment.dead] = True
        return auxk(sae, x, error, replace(moment, dead=weak.nonzero().squeeze(-1)))


def zipf(counts: Tensor) -> Tensor:
    """What Zipf's law, fitted to the counts [F], expects at each latent's rank, float64 [F]; 0
    where fewer than two latents are there to fit it to.
    """
    ranks = torch.empty(len(counts), dtype=torch.float64, device=counts.device)
    ranks[counts.argsort(descending=True, stable=True)] = torch.arange(
        1, len(counts) + 1, dtype=torch.float64, device=counts.device
    )
    there = counts > 0
    if there.sum() < 2:
        return torch.zeros_like(ranks)
    x, y = ranks[there].log(), counts[there].double().log()
    slope = (x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum()
    return torch.exp(y.mean() + slope * (ranks.log() - x.mean()))
