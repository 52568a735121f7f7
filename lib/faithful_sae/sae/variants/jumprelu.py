"""JumpReLU: a latent is active above a threshold of its own, which is trained (Rajamanoharan et al.
2024b, arXiv 2407.14435; Gemma Scope, Lieberum et al. 2024, arXiv 2408.05147).

    z = (x - b_dec) W_enc + b_enc        f = z H(z - t)        t > 0, one per latent
    L0 = mean over tokens of sum_i H(z_i - t_i)
    D / s^2 loss = FVU + weight (L0 / k - 1)^2        "quadratic"
                   FVU + weight L0                    "step", the paper's

H is 0 to 0 and 1 above. Almost everywhere it does not change with t, so t is given the derivatives
of what the mean over tokens would be, by a kernel of width e around the threshold
(straight-through estimators; the paper's equations 11 and 12):

    df/dt := -(t / e) K((z - t) / e)        dH/dt := -(1 / e) K((z - t) / e)        K(u) = |u| < 1/2

z has no derivative through H. The kernel has the unit of z: e is the `bandwidth` times s, which is
measured on each batch. K is taken of z, since of ReLU(z) all inactive latents would be in it where
t < e / 2. Adam moves t itself, not its logarithm, whose steps are too small while t is. Thresholds
begin where k latents per token are active on the first batch.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, Moment, spread, threshold_above
from faithful_sae.sae.variants.places import Places


class JumpReLU(settings.JumpReLU, Bounded):
    """Latents above thresholds that are trained to leave k active per token on average."""

    in_units: ClassVar = {"b_enc": 1, "threshold": 1, "b_dec": 1}

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        sae = TopKSAE(d_model, d_sae, self.k, seed, device)
        sae.above(0)
        return sae

    def begin(self, sae: TopKSAE, x: Tensor) -> None:
        n = torch.tensor([self.k * len(x)], device=x.device)
        thresholds(sae).fill_(threshold_above(sae.pre_activations(x), n).item())

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        return sae.weights | {"threshold": thresholds(sae)}

    def width(self, x: Tensor) -> Tensor:
        """Of the kernel, for tokens x [B, D]."""
        return (self.bandwidth * spread(x)).clamp(min=1e-12)

    def bound(self, sae: TopKSAE, x: Tensor) -> Tensor:
        """Where the kernel begins, and a little less, so that no rounding cuts it."""
        return thresholds(sae) - 0.51 * self.width(x)

    def loss_at(
        self, sae: TopKSAE, x: Tensor, moment: Moment, at: Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        z = at.affine(sae, x, self.bias(sae))
        width = self.width(x)
        t = at.each(thresholds(sae))
        f: Tensor = Jump.apply(z, t, width)
        l0 = Step.apply(z, t, width).sum(-1).mean()
        error = at.decode(f, sae.W_dec) + sae.b_dec - x
        penalty = (l0 / self.k - 1).square() if self.sparsity == "quadratic" else l0
        weight = self.weight * moment.ramp(self.warmup) * spread(x).square() / sae.d_model
        return error.square().mean() + weight * penalty, error, at.counts(f)


class Jump(torch.autograd.Function):
    """f = ReLU(z) H(z - t) of z [B, ..], t, which may be one for each latent, and the kernel's
    width.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(z, t, width)
        return torch.relu(z) * (z > t)

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[Tensor, Tensor, None]:
        z, t, width = ctx.saved_tensors
        (to_f,) = to
        active = (z > t) & (z > 0)
        # where t < 0, ReLU alone says what is active
        near = (to_f * _kernel(z, t, width)).sum_to_size(t.shape)
        return to_f * active, -torch.relu(t) / width * near, None


class Step(torch.autograd.Function):
    """H(z - t) of the same."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(z, t, width)
        return (z > t).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[None, Tensor, None]:
        z, t, width = ctx.saved_tensors
        (to_h,) = to
        return None, -(to_h * _kernel(z, t, width)).sum_to_size(t.shape) / width, None


def _kernel(z, t, width):
    """K((z - t) / width)."""
    return ((z - t).abs() < width / 2).to(z.dtype)


def thresholds(sae: TopKSAE) -> Tensor:
    """Those of an SAE that has them."""
    assert sae.threshold is not None
    return sae.threshold
