"""Switch: a router sends each token to one of E experts, a TopK SAE each (Mudide et al. 2024, arXiv
2410.08201).

    p = softmax((x - b_router) router)        j = argmax p
    f = p_j TopK_k(ReLU((x - b_dec) W_enc^j))        x_hat = f W_dec^j + b_dec
    D / s^2 loss = FVU + balance E sum_j F_j P_j

Expert j has the j-th block of F / E latents; b_dec is shared and there is no b_enc. F_j is the
share of the batch's tokens with that expert, which has no derivative, and P_j the mean of p_j.
Their term is 1 where all experts are used alike, and E where one has all tokens. The router learns
from x_hat through p_j. All experts are encoded, and then all but one are left out: the equation is
Switch's, its saving of time is not. The paper has no AuxK.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae import settings
from faithful_sae.sae.formats.source import SAEError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Dense, Moment, spread


class Switch(settings.Switch, Dense):
    """TopK in the one of several experts that a router picks for the token."""

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        if problem := self.problem(d_sae):
            raise SAEError(problem)
        sae = TopKSAE(d_model, d_sae, self.k, seed, device)
        # another stream than that of the directions
        own = int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(own)
        sae.router = torch.randn(d_model, self.experts, generator=generator).to(device)
        sae.b_router = torch.zeros_like(sae.b_dec)
        return sae

    def begin(self, sae: Any, x: Tensor) -> None:
        """The router's logits have a variance of about 1."""
        sae.b_router.copy_(x.mean(0))
        sae.router.div_(spread(x).clamp(min=1e-12))

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        return {name: w for name, w in sae.tensors.items() if name != "b_enc"}

    def loss(self, sae: TopKSAE, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = sae.encode_topk(x)
        error = sae.decode_topk(values, indices) - x
        weight = self.balance * spread(x).square() / sae.d_model
        loss = error.square().mean() + weight * imbalance(sae.experts(x))
        return loss, error, firing_counts(values, indices, sae.d_sae)


def imbalance(p: Tensor) -> Tensor:
    """E sum_j F_j P_j of the router's probabilities [B, E]."""
    experts = p.shape[-1]
    share = p.argmax(-1).bincount(minlength=experts).to(p.dtype) / len(p)
    return experts * (share * p.mean(0)).sum()
