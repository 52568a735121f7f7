"""TopK: the k largest latents of each token are active (paper 2.5; Gao et al. 2024).

    z = TopK_k(ReLU((x - b_dec) W_enc + b_enc))        x_hat = z W_dec + b_dec
    loss = mean over tokens and dimensions of (x - x_hat)^2 + 1/32 AuxK
    AuxK = mean over tokens and dimensions of (z_dead W_dec - (x - x_hat))^2

z_dead are the aux_k largest latents among the dead. AuxK (Gao et al. 2024, A.2) lets them explain
the residual, so that they come back to life.

`loss` says this in PyTorch, with the encoder that also measures. `loss_and_gradients` is the same
by hand and by kernels, which read and write the rows of active latents alone: they choose the same
latents, whose values differ by rounding, since float32 sums are taken in another order.
"""

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.kernels.latent_sums import by_latent, latent_sums
from faithful_sae.kernels.sparse_decode import decode, values_gradient
from faithful_sae.kernels.topk_encode import encode
from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Moment, Variant, spread

AUX_COEFFICIENT = 1 / 32


class TopK(settings.TopK, Variant):
    """The k largest latents of each token, with AuxK."""

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        return TopKSAE(d_model, d_sae, self.k, seed, device)

    def distance(self, x: Tensor, error: Tensor, moment: Moment) -> Tensor:
        """Of x_hat from tokens x [B, D] with x_hat - x = `error`: the mean of error^2, unless a
        variant differs.
        """
        return error.square().mean()

    def distance_and_gradient(
        self, x: Tensor, error: Tensor, moment: Moment
    ) -> tuple[Tensor, Tensor]:
        """`distance`, and its derivative for the error [B, D]."""
        return error.square().mean(), error * (2 / x.numel())

    def loss(self, sae: TopKSAE, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = sae.encode_topk(x)
        error = sae.decode_topk(values, indices) - x
        loss = self.distance(x, error, moment) + auxk(sae, x, error, moment)
        return loss, error, firing_counts(values, indices, sae.d_sae)

    def loss_and_gradients(
        self, sae: TopKSAE, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        encoder = sae.W_enc.T
        by_row = gradients | {"W_enc": gradients["W_enc"].T}
        values, indices = encode(x, encoder, sae.b_enc, sae.b_dec, self.k)
        error = decode(values, indices, sae.W_dec).add_(sae.b_dec).sub_(x)
        centred = x - sae.b_dec
        loss, to_x_hat = self.distance_and_gradient(x, error, moment)
        dead = moment.dead
        of_dead = {}
        if len(dead):
            aux_loss, to_explained, to_w_dec, to_w_enc, to_b_enc = _auxk_gradients(
                sae, centred, error, moment
            )
            loss += aux_loss
            of_dead = {"W_dec": to_w_dec, "W_enc": to_w_enc, "b_enc": to_b_enc}
            # then AuxK moves x_hat as well
            if not moment.recipe.detach_residual:
                to_x_hat += to_explained
        start, order = by_latent(values, indices, sae.d_sae)
        # not where it is frozen
        if "W_dec" in gradients:
            latent_sums(values, start, order, to_x_hat, gradients["W_dec"])
        to_values = values_gradient(to_x_hat, values, indices, sae.W_dec)
        latent_sums(to_values, start, order, centred, by_row["W_enc"])
        ones = torch.ones_like(x[:, :1])
        latent_sums(to_values, start, order, ones, gradients["b_enc"][:, None])
        for name, part in of_dead.items():
            if name in by_row:
                by_row[name].index_add_(0, dead, part)
        # b_dec is also taken off before the encoder
        torch.sum(to_x_hat, 0, out=gradients["b_dec"]).sub_(gradients["b_enc"] @ encoder)
        return loss, error, start.diff()

    @staticmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """A bfloat16 copy of W_enc; AuxK with all latents dead: copies of both weights, both
        gradients, three arrays [B, F]; and four arrays [B, D].
        """
        weights = 2 * d_sae * d_model + 4 * 4 * d_sae * d_model
        return weights + 3 * 4 * batch_tokens * d_sae + 4 * 4 * batch_tokens * d_model


class OwnDistance(TopK):
    """TopK with another distance, whose derivative is autograd's."""

    @abstractmethod
    def distance(self, x: Tensor, error: Tensor, moment: Moment) -> Tensor: ...

    def distance_and_gradient(
        self, x: Tensor, error: Tensor, moment: Moment
    ) -> tuple[Tensor, Tensor]:
        leaf = error.detach().requires_grad_()
        # of means they are small, and would vanish inside a language model of float16; a power of
        # two, so that no digit changes
        scale = 2.0 ** round(math.log2(x.numel() / (spread(x).item() ** 2 or 1.0)))
        with torch.enable_grad():
            loss = self.distance(x, leaf, moment)
            (gradient,) = torch.autograd.grad(loss * scale, leaf)
        return loss.detach(), gradient / scale


def auxk(sae: TopKSAE, x: Tensor, error: Tensor, moment: Moment) -> Tensor | float:
    """1/32 AuxK of tokens x [B, D] with x_hat - x = `error`; 0 where no latent is dead."""
    if not len(moment.dead):
        return 0.0
    residual = error.detach() if moment.recipe.detach_residual else error
    *_, difference = _explain(sae, x - sae.b_dec, residual, moment)
    return AUX_COEFFICIENT * difference.square().mean()


def _explain(
    sae: TopKSAE, centred: Tensor, error: Tensor, moment: Moment
) -> tuple[Tensor, Tensor, Tensor]:
    """(z_dead [B, dead], W_dec of the dead, z_dead W_dec - (x - x_hat) [B, D]).

    Up to half of d_model latents are active for each token, often all that are dead: products of
    those columns alone are several times as fast as gathers.
    """
    dead = moment.dead
    aux_k = moment.recipe.aux_k or max(sae.d_model // 2, 1)
    z = F.relu(torch.addmm(sae.b_enc[dead], centred, sae.W_enc.T[dead].T))
    if len(dead) > aux_k:
        values, indices = z.topk(aux_k, dim=-1, sorted=False)
        z = torch.zeros_like(z).scatter_(-1, indices, values)
    w_dec = sae.W_dec[dead]
    return z, w_dec, torch.addmm(error, z, w_dec)


def _auxk_gradients(
    sae: TopKSAE, centred: Tensor, error: Tensor, moment: Moment
) -> tuple[Tensor, ...]:
    """AuxK's loss, and its gradients: for what the dead latents explain [B, D], and for their
    W_dec, W_enc^T and b_enc.
    """
    z, w_dec, difference = _explain(sae, centred, error, moment)
    to_explained = difference * (AUX_COEFFICIENT * 2 / difference.numel())
    to_z = (to_explained @ w_dec.T).mul_(z > 0)
    return (
        AUX_COEFFICIENT * difference.square().mean(),
        to_explained,
        z.T @ to_explained,
        to_z.T @ centred,
        to_z.sum(0),
    )
