"""BatchTopK: the k B largest latents of a batch of B tokens are active, so that a token has as many
as it needs (Bussmann et al. 2024, arXiv 2412.06410).

    f = p where it is among the k B largest of the batch, else 0        p = ReLU((x - b_dec) W_enc
    loss = mean (x - x_hat)^2 + 1/32 AuxK                                        + b_enc)

In use no token may depend on others: a latent is active above one threshold. The paper takes the
mean of the smallest active latent over batches, as training goes on. That mean lags in trainings as
short as ours. Here it is found when the training is over: the threshold that leaves k active per
token on the last batches. AuxK is TopK's (see topk.py).
"""

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Dense, Moment, threshold_above
from faithful_sae.sae.variants.topk import auxk


class BatchTopK(settings.BatchTopK, Dense):
    """The k B largest latents of a batch of B tokens; above one threshold in use."""

    calibration = 4

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        return TopKSAE(d_model, d_sae, self.k, seed, device)

    def latents(self, sae: TopKSAE, x: Tensor) -> Tensor:
        p = sae.pre_activations(x)
        values, places = p.flatten().topk(self.k * len(x), sorted=False)
        return torch.zeros_like(p).flatten().scatter(0, places, values).view_as(p)

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment
    ) -> Tensor | float:
        return auxk(sae, x, error, moment)

    def finish(self, sae: TopKSAE, x: Tensor) -> TopKSAE:
        n = torch.tensor([self.k * len(x)], device=x.device)
        sae.above(threshold_above(sae.pre_activations(x), n))
        return sae
