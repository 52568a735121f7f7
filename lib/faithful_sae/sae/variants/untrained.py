"""Baselines that did not learn their dictionary: what a measure gives for them is its floor (Chanin
2026; Korznikov et al. 2026).

A frozen decoder keeps the random directions it began with; all else is trained as in a TopK SAE. A
random dictionary is not trained at all: W_enc is W_dec^T (or what the recipe begins with), b_enc is
0, and b_dec is where the recipe puts it before the first step.
"""

import torch
from torch import Tensor

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment
from faithful_sae.sae.variants.topk import TopK


class FrozenDecoder(TopK):
    """TopK whose W_dec stays as it was initialised."""

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        return {name: w for name, w in sae.weights.items() if name != "W_dec"}


class RandomDictionary(TopK):
    """TopK as it was initialised: a training goes by, which counts how often its latents fire."""

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        """b_dec, which the recipe may set. Its gradient is 0, and Adam leaves it where it is."""
        return {"b_dec": sae.b_dec}

    def loss_and_gradients(
        self, sae: TopKSAE, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = sae.encode_topk(x)
        error = sae.decode_topk(values, indices) - x
        gradients["b_dec"].zero_()
        loss = torch.mean(error.square())
        return loss, error, firing_counts(values, indices, sae.d_sae)
