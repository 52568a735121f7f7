"""Archetypal and relaxed archetypal SAEs: TopK whose directions cannot leave the data (Fel et al.
2025, arXiv 2502.12892).

    W_dec = rows of W C + V, scaled to unit norm        W_ij >= 0, sum_j W_ij = 1, |V_i| <= delta

C are archetypes: here the centroids of k-means of the first batches, as many as there are latents,
less the mean of these batches and in units of their spread s. W C is in the hull of the centroids
and V, the relaxation, is what may lead out of it; with delta = 0 the SAE is archetypal, otherwise
relaxed. Latent i begins at centroid i. The rest is TopK's (see topk.py).

The paper does not scale rows; it learns a factor of the whole dictionary. Latents may have any
size, so that this takes nothing from what can be reconstructed, and k latents are chosen by what
they contribute. The encoder begins with random directions as in the paper's code: with W_dec^T,
SAEs that share their centroids would be the same from the first step on. What is trained is F W: a
step of Adam, which moves each entry alike, would otherwise move a row of W by F times as much as
other parameters, to near the centroids' mean.

Brzozowski and Chung (2026, arXiv 2606.02061) find that what such SAEs share between seeds is what
they begin with, if all begin with the same centroids. `centroids: own` has each seed's own.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.formats.source import SAEError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment, keep_to_the_sphere, spread
from faithful_sae.sae.variants.topk import TopK

# of k-means where seeds share its centroids
SHARED = 0
ITERATIONS = 20


class Archetypal(settings.Archetypal, TopK):
    """TopK whose directions are those of means of activations, or near them."""

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        sae: Any = super().new(d_model, d_sae, seed, device)
        sae.archetypes = torch.zeros_like(sae.W_dec)
        sae.mixture = d_sae * torch.eye(d_sae, device=device)
        sae.relaxation = torch.zeros_like(sae.W_dec)
        return sae

    def begin(self, sae: Any, x: Tensor) -> None:
        # takes long to import
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        if len(x) < sae.d_sae:
            raise SAEError(
                f"an archetypal SAE of d_sae = {sae.d_sae} latents begins with as many centroids: "
                f"its first {self.beginning} batches have {len(x)} activations"
            )
        seed = SHARED if self.centroids == "shared" else sae.metadata["seed"]
        scaled = (x - x.mean(0)) / spread(x).clamp(min=1e-12)
        means = KMeans(sae.d_sae, max_iter=ITERATIONS, random_state=seed)
        # sums of several threads come in any order
        with threadpool_limits(1):
            found = means.fit(scaled.cpu().numpy()).cluster_centers_
        sae.archetypes.copy_(torch.from_numpy(found))

    def parameters(self, sae: Any) -> dict[str, Tensor]:
        """Archetypes are set before the first step; their gradient is 0."""
        own = {name: getattr(sae, name) for name in ("archetypes", "mixture", "relaxation")}
        return {name: w for name, w in sae.weights.items() if name != "W_dec"} | own

    def constrain(self, sae: Any) -> None:
        sae.mixture.clamp_(min=0)
        sae.mixture.mul_(sae.d_sae / sae.mixture.sum(-1, keepdim=True).clamp(min=1e-12))
        norms = torch.linalg.vector_norm(sae.relaxation, dim=-1, keepdim=True)
        sae.relaxation.mul_((self.delta / norms.clamp(min=1e-12)).clamp(max=1))

    def loss(self, sae: Any, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        sae = copy.copy(sae)
        sae.W_dec = F.normalize(_rows(sae), dim=-1)
        return super().loss(sae, x, moment)

    def loss_and_gradients(
        self, sae: Any, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(sae)
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(1e-12)
        sae.W_dec = rows.div_(norms)
        to_rows = torch.empty_like(sae.W_dec)
        found = super().loss_and_gradients(sae, x, moment, gradients | {"W_dec": to_rows})
        # a row has unit norm whatever is done to its length
        keep_to_the_sphere(to_rows, sae.W_dec)
        to_rows.div_(norms)
        gradients["relaxation"].copy_(to_rows)
        torch.mm(to_rows, sae.archetypes.T, out=gradients["mixture"]).div_(sae.d_sae)
        gradients["archetypes"].zero_()
        return found

    def finish(self, sae: Any, x: Tensor) -> TopKSAE:
        sae.W_dec = F.normalize(_rows(sae), dim=-1)
        for name in ("archetypes", "mixture", "relaxation"):
            delattr(sae, name)
        return sae

    @staticmethod
    def beside(d_model: int, d_sae: int) -> int:
        """The mixture, archetypes and relaxation."""
        return d_sae * (d_sae + 2 * d_model)

    @staticmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """TopK's, and two arrays [F, D]."""
        return TopK.bytes(d_model, d_sae, batch_tokens) + 2 * 4 * d_sae * d_model


def _rows(sae):
    """W C + V, [F, D]."""
    return torch.addmm(sae.relaxation, sae.mixture, sae.archetypes, alpha=1 / sae.d_sae)
