"""ProLU: the bias decides whether a latent is active and is not added to it (Taggart 2024,
"ProLU: A Nonlinearity for Sparse Autoencoders").

    m = (x - b_dec) W_enc        f = m where m > 0 and m + b_enc > 0, else 0
    D / s^2 loss = FVU + l1 mean over tokens of sum_i f_i / s                "l1"
                   FVU + l1 mean over tokens of sum_i (f_i / s)^1/2          "sqrt"

The derivative for b_enc is 0 almost everywhere, so one is made up. With G = 1 where f > 0:

    "relu"    df/dm := G               df/db := G
    "ste"     df/dm := G (1 + m / s)   df/db := G m / s

"ste" is that of ReLU(m) H(m + b) if H' = H, for m in units of s. A bias above 0 does nothing. In
use it is the JumpReLU SAE that it equals: without b_enc, and a threshold of -b_enc.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, Moment, spread
from faithful_sae.sae.variants.places import EVERYWHERE, Places
from faithful_sae.sae.variants.relu import l1


class ProLU(settings.ProLU, Bounded):
    """Latents whose bias decides whether they are active, and is not added."""

    in_units: ClassVar = {"b_enc": 1, "b_dec": 1}

    def bias(self, sae: TopKSAE) -> None:
        """It is not added."""

    def bound(self, sae: TopKSAE, x: Tensor) -> Tensor:
        return torch.relu(-sae.b_enc)

    def latents(self, sae: TopKSAE, x: Tensor, at: Places = EVERYWHERE) -> Tensor:
        m = at.affine(sae, x, self.bias(sae))
        return Gate.apply(m, at.each(sae.b_enc), self.gradient, spread(x).clamp(min=1e-12))

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment, at: Places
    ) -> Tensor:
        if self.sparsity == "sqrt":
            # no root of 0, which has no derivative; a token alone has no spread
            s = spread(x).clamp(min=1e-12)
            f = torch.zeros_like(f).masked_scatter(f > 0, (f[f > 0] * s).sqrt())
        return moment.ramp(self.warmup) * self.l1 * l1(x, f)

    def finish(self, sae: TopKSAE, x: Tensor) -> TopKSAE:
        sae.above(-sae.b_enc)
        sae.b_enc = torch.zeros_like(sae.b_enc)
        return sae


class Gate(torch.autograd.Function):
    """f of m [B, ..] and b, which may be one for each latent, with one of the made-up
    derivatives.
    """

    @staticmethod
    def forward(ctx: Any, m: Tensor, b: Tensor, gradient: str, s: Tensor) -> Tensor:
        f = m * ((m > 0) & (m + b > 0))
        ctx.save_for_backward(f, s)
        ctx.gradient = gradient
        ctx.shape = b.shape
        return f

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[Tensor, Tensor, None, None]:
        f, s = ctx.saved_tensors
        to_m = to[0] * (f > 0)
        if ctx.gradient == "relu":
            return to_m, to_m.sum_to_size(ctx.shape), None, None
        to_b = to_m * f / s
        return to_m + to_b, to_b.sum_to_size(ctx.shape), None, None
