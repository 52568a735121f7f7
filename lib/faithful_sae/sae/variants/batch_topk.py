"""BatchTopK: the k B largest latents of a batch of B tokens are active, so that a token has as many
as it needs (Bussmann et al. 2024, arXiv 2412.06410).

    f = p where it is among the k B largest of the batch, else 0        p = ReLU((x - b_dec) W_enc
    loss = mean (x - x_hat)^2 + 1/32 AuxK                                        + b_enc)

Those that are equal to the last of them are active, too. In use no token may depend on others: a
latent is active above one threshold. The paper takes the mean of the smallest active latent over
batches, as training goes on. That mean lags in trainings as short as ours. Here it is found when
the training is over: the threshold that leaves k active per token on the last batches. AuxK is
TopK's (see topk.py).
"""

import torch
from torch import Tensor

from faithful_sae.kernels.above_bound import compact
from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, Moment, threshold_above
from faithful_sae.sae.variants.places import EVERYWHERE, Chosen, Places, most
from faithful_sae.sae.variants.topk import auxk

# tokens that say where the k B largest may begin, and how many times as many they are to leave
SOME = 64
MORE = (1.25, 2.5)


class BatchTopK(settings.BatchTopK, Bounded):
    """The k B largest latents of a batch of B tokens; above one threshold in use."""

    calibration = 4

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        return TopKSAE(d_model, d_sae, self.k, seed, device)

    def chosen(self, sae: TopKSAE, x: Tensor) -> Chosen | None:
        """What is above a bound that some tokens of the batch leave a few too many above; if they
        are too few after all, those above a lower one.
        """
        if self.k * MORE[0] > most(x, sae.d_sae):
            return None
        p = sae.pre_activations(x[:: max(len(x) // SOME, 1)])
        for more in MORE:
            n = min(round(more * self.k * len(p)), p.numel())
            bound = p.flatten().topk(n, sorted=False).values.min()
            found = self.found(sae, x, bound.expand(sae.d_sae)) if bound > 0 else None
            if found is None:
                return None
            z, indices, counts = found
            if int(counts.sum()) >= self.k * len(x):
                values, slots, counts = compact(z, self.choice(z, len(x)))
                return Chosen(values, indices.gather(1, slots), counts, sae.d_sae)
        return None

    def latents(self, sae: TopKSAE, x: Tensor, at: Places = EVERYWHERE) -> Tensor:
        p = super().latents(sae, x, at)
        # at other places they are chosen
        return p if isinstance(at, Chosen) else p * self.choice(p.detach(), len(x))

    def choice(self, p: Tensor, n_tokens: int) -> Tensor:
        """Which are among the k B largest: bool, as p. All of those that are equal to the last."""
        return p >= p.flatten().topk(self.k * n_tokens, sorted=False).values.min()

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment, at: Places
    ) -> Tensor | float:
        return auxk(sae, x, error, moment)

    def finish(self, sae: TopKSAE, x: Tensor) -> TopKSAE:
        n = torch.tensor([self.k * len(x)], device=x.device)
        sae.above(threshold_above(sae.pre_activations(x), n))
        return sae
