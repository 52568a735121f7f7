"""ReLU with an L1 penalty, which does not depend on the norms of the decoder's rows (Bricken et al.
2023; Conerly et al. 2024; "RI-L1" in Rajamanoharan et al. 2024b, arXiv 2407.14435).

    f = ReLU((x - b_dec) W_enc + b_enc)        x_hat = f W_dec + b_dec
    D / s^2 loss = FVU + l1 mean over tokens of sum_i f_i |d_i| / s

d_i are the rows of W_dec, which are free: without |d_i| the penalty would vanish as W_enc shrinks
and W_dec grows. In use the norms are in the encoder, and rows have unit norm. A lone feature of
size a is found as a - l1 s / 2.
"""

from typing import ClassVar

from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, Moment, spread
from faithful_sae.sae.variants.places import Places


class ReLU(settings.ReLU, Bounded):
    """All positive latents, and an L1 penalty."""

    unit_rows = False
    in_units: ClassVar = {"b_enc": 1, "b_dec": 1}

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment, at: Places
    ) -> Tensor:
        norms = at.each(sae.W_dec.norm(dim=-1))
        return moment.ramp(self.warmup) * self.l1 * l1(x, f * norms)

    def finish(self, sae: TopKSAE, x: Tensor) -> TopKSAE:
        sae.to_unit_decoder()
        return sae


def l1(x: Tensor, f: Tensor) -> Tensor:
    """s / D times the mean over tokens of sum_i f_i, of tokens x [B, D] with latents f [B, ..]."""
    return f.sum(-1).mean() * spread(x) / x.shape[-1]
