"""Feature Choice: each latent is active on its own largest of a batch, so that none is dead
(Ayonrinde 2024, arXiv 2411.02124).

    f_bi = p_bi where it is among the m_i largest of column i, else 0
    sum_i m_i = k B        m_i falls as i^-exponent, 0: uniform        p = ReLU((x - b_dec) W_enc
    loss = mean (x - x_hat)^2                                                        + b_enc)

Which latent is the i-th is its place in the SAE. The paper fits Zipf's law to a run of Mutual
Choice and goes on from there; here the exponent is a setting, and training starts with the choice.
In use a latent is active above a threshold of its own, that of m_i tokens of the last batches.
"""

import torch
from torch import Tensor

from faithful_sae.kernels.above_bound import few
from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, threshold_above
from faithful_sae.sae.variants.places import EVERYWHERE, Chosen, Places, most


class FeatureChoice(settings.FeatureChoice, Bounded):
    """Each latent is active on its own largest of a batch; above thresholds of its own in use."""

    calibration = 4

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        return TopKSAE(d_model, d_sae, self.k, seed, device)

    def tokens(self, n_tokens: int, d_sae: int, device: torch.device | str) -> Tensor:
        """m int64 [F] of a batch of so many: whole numbers up to n_tokens, whose sum is k n_tokens
        unless the first of them are cut.
        """
        share = torch.arange(1, d_sae + 1, dtype=torch.float64, device=device) ** -self.exponent
        reached = (share.cumsum(0) / share.sum() * (self.k * n_tokens)).round()
        return reached.diff(prepend=reached.new_zeros(1)).long().clamp(max=n_tokens)

    def chosen(self, sae: TopKSAE, x: Tensor) -> Chosen | None:
        if self.k > most(x, sae.d_sae):
            return None
        p = sae.pre_activations(x)
        found = few(p, self.choice(p), most(x, sae.d_sae))
        return Chosen(*found, sae.d_sae) if found else None

    def latents(self, sae: TopKSAE, x: Tensor, at: Places = EVERYWHERE) -> Tensor:
        p = super().latents(sae, x, at)
        # at other places they are chosen
        return p if isinstance(at, Chosen) else p * self.choice(p.detach())

    def choice(self, p: Tensor) -> Tensor:
        """Which of p [B, F] are among the largest of their column: bool [B, F]."""
        m = self.tokens(len(p), p.shape[1], p.device)
        _, tokens = p.topk(int(m.max()), dim=0)
        chosen = torch.arange(len(tokens), device=p.device)[:, None] < m
        return torch.zeros_like(p, dtype=torch.bool).scatter(0, tokens, chosen)

    def finish(self, sae: TopKSAE, x: Tensor) -> TopKSAE:
        m = self.tokens(len(x), sae.d_sae, x.device)
        sae.above(threshold_above(sae.pre_activations(x), m))
        return sae
