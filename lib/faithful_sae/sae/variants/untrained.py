"""Baselines that did not learn their dictionary: what a measure gives for them is its floor (Chanin
2026; Korznikov et al. 2026).

A frozen decoder keeps the random directions it began with; all else is trained as in a TopK SAE. A
random dictionary is not trained at all: W_enc is W_dec^T (or what the recipe begins with), b_enc is
0, and b_dec is where the recipe puts it before the first step. PCA's is not trained either: its
directions are the principal components of the first batch around b_dec, each with both signs, since
a latent has but one: v_1, -v_1, v_2, -v_2, .. Latents beyond these 2 D never fire.
"""

import torch
from torch import Tensor

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae import settings
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
        for gradient in gradients.values():
            gradient.zero_()
        loss = torch.mean(error.square())
        return loss, error, firing_counts(values, indices, sae.d_sae)


class PCA(settings.PCA, RandomDictionary):
    """TopK of the principal components of the first batch."""

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        """What lies beyond the components is the same for all seeds, too."""
        sae = super().new(d_model, d_sae, 0, device)
        sae.metadata["seed"] = seed
        return sae

    def begin(self, sae: TopKSAE, x: Tensor) -> None:
        *_, components = torch.linalg.svd(x - sae.b_dec, full_matrices=False)
        rows = torch.stack([components, -components], 1).flatten(0, 1)[: sae.d_sae]
        sae.W_dec[: len(rows)] = rows
        sae.W_enc.zero_()
        sae.W_enc[:, : len(rows)] = rows.T

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        """What is set before the first step; gradients are 0."""
        return {name: w for name, w in sae.weights.items() if name != "b_enc"}
