"""Gated: one path decides whether a latent is active, the other how much, so that the penalty on
the first does not shrink the second (Rajamanoharan et al. 2024a, arXiv 2404.16014).

    u = (x - b_dec) W_enc        gate = u + b_gate        f = H(gate) ReLU(e^r u + b_enc)
    D / s^2 loss = FVU + l1 mean over tokens of sum_i ReLU(gate_i) / s
                   + mean |x - sg(W_dec, b_dec)(ReLU(gate))|^2 / s^2

sg: the last term, which keeps the gates about the tokens, does not train the decoder; the b_dec
before the encoder it does. H has no derivative. r, b_gate and b_enc are vectors [F]; at first 0. In
use it is the JumpReLU SAE that it equals: W_enc e^r, b_enc, and a threshold of b_enc - e^r b_gate.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from faithful_sae.sae import settings
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.base import Bounded, Moment
from faithful_sae.sae.variants.places import Places
from faithful_sae.sae.variants.relu import l1


class Gated(settings.Gated, Bounded):
    """Gates that an L1 penalty closes, and magnitudes that it does not shrink."""

    in_units: ClassVar = {"b_enc": 1, "b_gate": 1, "b_dec": 1}

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        sae: Any = super().new(d_model, d_sae, seed, device)
        sae.r_mag = torch.zeros_like(sae.b_enc)
        sae.b_gate = torch.zeros_like(sae.b_enc)
        return sae

    def parameters(self, sae: Any) -> dict[str, Tensor]:
        return sae.weights | {"r_mag": sae.r_mag, "b_gate": sae.b_gate}

    def bias(self, sae: TopKSAE) -> None:
        """Both paths add their own."""

    def bound(self, sae: Any, x: Tensor) -> Tensor:
        return -sae.b_gate

    def loss_at(
        self, sae: Any, x: Tensor, moment: Moment, at: Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        u = at.affine(sae, x, self.bias(sae))
        gate = torch.relu(u + at.each(sae.b_gate))
        f = (gate > 0) * torch.relu(at.each(sae.r_mag).exp() * u + at.each(sae.b_enc))
        error = at.decode(f, sae.W_dec) + sae.b_dec - x
        by_gates = at.decode(gate, sae.W_dec.detach()) + sae.b_dec.detach() - x
        loss = error.square().mean() + by_gates.square().mean()
        loss = loss + moment.ramp(self.warmup) * self.l1 * l1(x, gate)
        return loss, error, at.counts(f)

    def finish(self, sae: Any, x: Tensor) -> TopKSAE:
        sae.gate(sae.r_mag, sae.b_gate, sae.b_enc)
        return sae
