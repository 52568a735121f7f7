"""Where a loss looks at latents: at all of all tokens, or at those alone that may be active.

A variant says its loss once, of latents z at some places. `Everywhere` they are dense [B, F], and
their gradients are autograd's. A `Chosen` few are in slots [B, K]: decoder and gradients then read
and write the rows of these latents alone, through the kernels of TopK. All other latents are to be
0, and to have no gradient. Both give the same loss but for rounding: float32 sums are taken in
another order.

B tokens, K slots, F latents, D model.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faithful_sae.kernels.backend import compiled, on_triton
from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.kernels.latent_sums import by_latent, latent_sums
from faithful_sae.kernels.sparse_decode import decode, values_gradient
from faithful_sae.sae.sae import TopKSAE

# of all latents, on average of a token: where more are active, dense products are faster on a CPU
FEW = 1 / 16


def most(x: Tensor, d_sae: int) -> float:
    """How many latents of a token, on average, are so few that they are looked at alone: none on a
    device or in a dtype that has no kernels, where each would take a row of D numbers.
    """
    return FEW * d_sae if on_triton(x) or compiled(x) else 0


class Places(ABC):
    """Some latents of some tokens."""

    @abstractmethod
    def affine(self, sae: TopKSAE, x: Tensor, bias: Tensor | None) -> Tensor:
        """z = (x - b_dec) W_enc, and `bias` [F] if there is one: [B, F], or [B, K] of `Chosen`."""

    @abstractmethod
    def each(self, numbers: Tensor) -> Tensor:
        """The number of its latent [F] at each place, to be broadcast or [B, K]."""

    @abstractmethod
    def parts(self, f: Tensor, w_dec: Tensor, ends: Sequence[int]) -> Tensor:
        """f W_dec of the latents up to each end, from the one before on: [len(ends), B, D].

        Args:
            f: at least 0.
            w_dec: [F, D].
            ends: rising; the last is F.
        """

    @abstractmethod
    def decode(self, f: Tensor, w_dec: Tensor) -> Tensor:
        """f W_dec: [B, D]."""

    @abstractmethod
    def counts(self, f: Tensor) -> Tensor:
        """On how many tokens each latent is above 0, int64 [F]."""


class Everywhere(Places):
    """All latents of all tokens."""

    def affine(self, sae: TopKSAE, x: Tensor, bias: Tensor | None) -> Tensor:
        z = (x - sae.b_dec) @ sae.W_enc
        return z if bias is None else z + bias

    def each(self, numbers: Tensor) -> Tensor:
        return numbers

    def parts(self, f: Tensor, w_dec: Tensor, ends: Sequence[int]) -> Tensor:
        pairs = itertools.pairwise([0, *ends])
        return torch.stack([f[:, first:end] @ w_dec[first:end] for first, end in pairs])

    def decode(self, f: Tensor, w_dec: Tensor) -> Tensor:
        return f @ w_dec

    def counts(self, f: Tensor) -> Tensor:
        return (f > 0).sum(0)


EVERYWHERE = Everywhere()


class Chosen(Places):
    """The latents of each token that may be active.

    Args:
        values: z at each slot [B, K], far below 0 where `counts` leaves a slot empty.
        indices: int64 [B, K].
        counts: int64 [B], the slots of each token in use, which come first.
        d_sae: F.
    """

    def __init__(self, values: Tensor, indices: Tensor, counts: Tensor, d_sae: int) -> None:
        slots = torch.arange(values.shape[1], device=values.device)
        # kernels take a slot to be in use where a number is above 0
        self.there = (slots < counts[:, None]).to(values.dtype)
        self.values = values
        self.indices = indices
        self.d_sae = d_sae
        self.start, self.order = by_latent(self.there, indices, d_sae)

    def affine(self, sae: TopKSAE, x: Tensor, bias: Tensor | None) -> Tensor:
        return _Affine.apply(sae.W_enc, bias, sae.b_dec, x, self)

    def each(self, numbers: Tensor) -> Tensor:
        return _Each.apply(numbers, self)

    def parts(self, f: Tensor, w_dec: Tensor, ends: Sequence[int]) -> Tensor:
        """Each part of a token is a token of its own to the kernels."""
        sizes = torch.tensor(ends, device=f.device)
        part = torch.bucketize(self.indices, sizes, right=True)
        of_part = [(part == i) & (self.there > 0) for i in range(len(ends))]
        counts = torch.cat([chosen.sum(1) for chosen in of_part])
        shape = len(counts), max(int(counts.max()), 1)
        # the place behind all of f is 0, for slots that stay empty
        source = torch.full(shape, f.numel(), device=f.device)
        indices = torch.zeros(shape, dtype=torch.int64, device=f.device)
        for i, chosen in enumerate(of_part):
            t, slot = chosen.nonzero(as_tuple=True)
            at = i * len(f) + t, (chosen.cumsum(1) - 1)[t, slot]
            source[at], indices[at] = t * f.shape[1] + slot, self.indices[t, slot]
        padded = torch.cat([f.flatten(), f.new_zeros(1)])
        split = padded.index_select(0, source.flatten()).view(shape)
        parts = Chosen(split.detach(), indices, counts, self.d_sae)
        return parts.decode(split, w_dec).view(len(ends), len(f), -1)

    def decode(self, f: Tensor, w_dec: Tensor) -> Tensor:
        return _Decode.apply(f, w_dec, self)

    def counts(self, f: Tensor) -> Tensor:
        return firing_counts(f, self.indices, self.d_sae)

    def summed(self, to: Tensor) -> Tensor:
        """Sums of numbers [B, K] over the places of each latent, [F]."""
        return latent_sums(to, self.start, self.order, torch.ones_like(to[:, :1]))[:, 0]


class _Affine(torch.autograd.Function):
    """z at the chosen places, which are known already."""

    @staticmethod
    def forward(
        ctx: Any, w_enc: Tensor, bias: Tensor | None, b_dec: Tensor, x: Tensor, at: Chosen
    ) -> Tensor:
        ctx.save_for_backward(w_enc, b_dec, x)
        ctx.at = at
        ctx.biased = bias is not None
        return at.values.clone()

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[Tensor | None, ...]:
        w_enc, b_dec, x = ctx.saved_tensors
        at = ctx.at
        to_w = latent_sums(to[0], at.start, at.order, x - b_dec)
        summed = at.summed(to[0])
        return to_w.T, summed if ctx.biased else None, -(w_enc @ summed), None, None


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, at: Chosen) -> Tensor:
        ctx.at = at
        return numbers[at.indices]

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[Tensor, None]:
        return ctx.at.summed(to[0]), None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, w_dec: Tensor, at: Chosen) -> Tensor:
        ctx.save_for_backward(f, w_dec)
        ctx.at = at
        return decode(f.contiguous(), at.indices, w_dec.contiguous())

    @staticmethod
    def backward(ctx: Any, *to: Tensor) -> tuple[Tensor | None, ...]:
        f, w_dec = ctx.saved_tensors
        at = ctx.at
        to_x_hat = to[0].contiguous()
        to_f = to_w = None
        if ctx.needs_input_grad[0]:
            to_f = values_gradient(to_x_hat, at.there, at.indices, w_dec.contiguous())
        if ctx.needs_input_grad[1]:
            to_w = latent_sums(f, at.start, at.order, to_x_hat)
        return to_f, to_w, None
