"""Mutual feature regularisation: TopK SAEs that are trained together, and drawn to find the same
directions (Marks et al. 2024, arXiv 2411.01220).

    D / s^2 loss = FVU + weight (1 - mean over the others of (MMCS(W, V) + MMCS(V, W)) / 2)
    MMCS(A, B) = mean over rows a of A of max over rows b of B of a . b

W are the rows of the SAE's W_dec and V those of another SAE of its group, which training keeps to
unit norm; AuxK is TopK's (see topk.py). All SAEs of a group take a step on a batch, one after the
other, each with what the others have then. The gradient of each is that of the sum over all pairs.
The paper ties the encoder to the decoder and starts inactive latents anew; here the encoder is free
and AuxK revives them. Its weight is not comparable, since its error is not a share of the variance.

What SAEs of a group share has been asked of them. Whether features are found more often by chance
can be seen between groups alone. An SAE without others is a TopK SAE.
"""

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment, spread
from faithful_sae.sae.variants.topk import TopK


class Mutual(settings.Mutual, TopK):
    """TopK SAEs that are trained together, and drawn to find the same directions."""

    def loss(self, sae: TopKSAE, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        loss, error, counts = super().loss(sae, x, moment)
        if moment.peers:
            penalties = [1 - _cosines(sae.W_dec, peer)[0] for peer in moment.peers]
            loss = loss + self._weight(x, moment) * torch.stack(penalties).mean()
        return loss, error, counts

    def loss_and_gradients(
        self, sae: TopKSAE, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, error, counts = super().loss_and_gradients(sae, x, moment, gradients)
        weight = self._weight(x, moment)
        for peer in moment.peers:
            mean, nearest, nearest_to = _cosines(sae.W_dec, peer)
            share = weight / len(moment.peers)
            loss = loss + share * (1 - mean)
            # each row is drawn to its nearest, and to those that it is the nearest of
            share = -share / (2 * sae.d_sae)
            gradients["W_dec"].add_(peer[nearest] * share)
            gradients["W_dec"].index_add_(0, nearest_to, peer * share)
        return loss, error, counts

    def _weight(self, x, moment):
        scale = spread(x).square() / x.shape[-1]
        return scale * self.weight * moment.ramp(self.warmup)

    @staticmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """TopK's; or all cosines, and two arrays [F, D]."""
        own = 4 * d_sae * d_sae + 2 * 4 * d_sae * d_model
        return max(TopK.bytes(d_model, d_sae, batch_tokens), own)


def _cosines(rows, others):
    """((MMCS(rows, others) + MMCS(others, rows)) / 2, the nearest of the others to each row, the
    nearest row to each of the others).
    """
    cosine = rows @ others.T
    best, nearest = cosine.max(1)
    best_to, nearest_to = cosine.max(0)
    return (best.mean() + best_to.mean()) / 2, nearest, nearest_to
