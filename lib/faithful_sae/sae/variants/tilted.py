"""Tilted: TopK with a loss in which badly reconstructed tokens weigh more (TERM: Li et al. 2021;
for SAEs of rare subdomains Muhamed et al. 2024, arXiv 2411.00743).

    D / s^2 loss = 1/t log mean over tokens of exp(t l_b)        l_b = |x - x_hat|^2 / s^2

With t -> 0 this is the mean, FVU, and with t -> infinity the largest l_b. The gradient is that of
the sum of w_b l_b with w = softmax(t l), so that weights sum to 1. AuxK is TopK's, and not tilted.
"""

import math

from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.variants.base import Moment, spread
from faithful_sae.sae.variants.topk import OwnDistance


class Tilted(settings.Tilted, OwnDistance):
    """TopK that weighs tokens more the worse they are reconstructed, for what is rare."""

    def distance(self, x: Tensor, error: Tensor, moment: Moment) -> Tensor:
        # a token alone has no spread
        scale = spread(x).clamp(min=1e-12).square()
        tilted = error.square().sum(-1) / scale * self.tilt
        return scale / x.shape[-1] * (tilted.logsumexp(0) - math.log(len(x))) / self.tilt
