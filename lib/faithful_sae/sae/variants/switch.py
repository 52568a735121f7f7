"""Switch: a router sends each token to one of E experts, a TopK SAE each (Mudide et al. 2024, arXiv
2410.08201).

    p = softmax((x - b_router) router)        j = argmax p
    f = p_j TopK_k(ReLU((x - b_dec) W_enc^j))        x_hat = f W_dec^j + b_dec
    D / s^2 loss = FVU + balance E sum_j F_j P_j

Expert j has the j-th block of F / E latents; b_dec is shared and there is no b_enc. F_j is the
share of the batch's tokens with that expert, which has no derivative, and P_j the mean of p_j.
Their term is 1 where all experts are used alike, and E where one has all tokens. The router learns
from x_hat through p_j. In training a token is encoded by its own expert alone; in use all are, and
then all but one are left out. The paper has no AuxK.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from faithful_sae.kernels.above_bound import BELOW
from faithful_sae.kernels.topk_encode import encode
from faithful_sae.sae import settings
from faithful_sae.sae.formats.source import SAEError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, Moment, spread
from faithful_sae.sae.variants.places import EVERYWHERE, Chosen, Places


class Switch(settings.Switch, Bounded):
    """TopK in the one of several experts that a router picks for the token."""

    in_units: ClassVar = {"router": -1, "b_router": 1, "b_dec": 1}

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

    def bias(self, sae: TopKSAE) -> None:
        """There is none."""

    def chosen(self, sae: Any, x: Tensor) -> Chosen:
        """The k largest of each token, of its expert alone."""
        expert = sae.experts(x).argmax(-1)
        own = sae.d_sae // sae.router.shape[1]
        values = x.new_zeros(len(x), self.k)
        indices = torch.zeros(len(x), self.k, dtype=torch.int64, device=x.device)
        for i, encoder in enumerate(sae.W_enc.T.contiguous().split(own)):
            tokens = (expert == i).nonzero()[:, 0]
            if len(tokens):
                none = torch.zeros_like(encoder[:, 0])
                found, places = encode(x[tokens], encoder, none, sae.b_dec, self.k)
                values[tokens], indices[tokens] = found, places + i * own
        counts = (values > 0).sum(1)
        first = (values > 0).int().argsort(dim=1, descending=True, stable=True)
        values, indices = values.gather(1, first), indices.gather(1, first)
        return Chosen(torch.where(values > 0, values, BELOW), indices, counts, sae.d_sae)

    def latents(self, sae: TopKSAE, x: Tensor, at: Places = EVERYWHERE) -> Tensor:
        if not isinstance(at, Chosen):
            return sae.encode(x)
        return super().latents(sae, x, at) * sae.experts(x).max(-1, keepdim=True).values

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment, at: Places
    ) -> Tensor:
        return self.balance * spread(x).square() / sae.d_model * imbalance(sae.experts(x))


def imbalance(p: Tensor) -> Tensor:
    """E sum_j F_j P_j of the router's probabilities [B, E]."""
    experts = p.shape[-1]
    share = p.argmax(-1).bincount(minlength=experts).to(p.dtype) / len(p)
    return experts * (share * p.mean(0)).sum()
