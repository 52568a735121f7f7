"""How many bits an SAE's latents take to describe a token's activation (Ayonrinde et al. 2024,
"Interpretability as compression", arXiv 2410.11179).

A sender and a receiver share the dictionary, which many tokens pay for together, so that its own
bits do not count. Of each token the sender says the latents, rounded to whole steps. Latents are
described one by one, since they are to be understood one by one ("independent additivity"). So a
token takes, on average,

    DL(step) = sum over latents f of H(q_f)            bits per token
    q_f      = round(z_f |d_f| / (step s))             0: not active
    H(q_f)   = H(q_f > 0) + p_f H(q_f where q_f > 0)   which are active, and how much
    FVU(step) = sum |x - x_hat(q)|^2 / sum |x - mean x|^2

H is the entropy over tokens, d_f the latent's row of the decoder, s the spread of x (the root of
the mean squared distance from the mean), p_f the share of tokens with q_f > 0. One step serves all
latents: what rounding adds to the error of a latent of length z_f |d_f| is the same for all, and
where the rows are orthogonal no other choice of steps is shorter at a small error.

A coarser step takes fewer bits and leaves a larger FVU. So dictionaries are compared at one FVU.
H is that of what was counted, which is too low by about (kinds of q_f - 1) / (2 N ln 2) of N tokens
(Miller 1955): count tokens enough that this is little beside a difference.

N tokens, F latents, D model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from faithful_sae.sae.sae import TopKSAE

# the finest first: to the coarsest, at which hardly a latent is left
STEPS = tuple(2.0 ** (i / 2) for i in range(-12, 3))


@dataclass(frozen=True)
class Description:
    """Of the tokens of one text at one step.

    Attributes:
        step: in units of the spread of x.
        which_bits: per token, for which latents are active.
        value_bits: per token, for how much they are.
        fvu: share of the variance that the rounded latents leave unexplained.
    """

    step: float
    which_bits: float
    value_bits: float
    fvu: float

    @property
    def bits(self) -> float:
        """DL, per token."""
        return self.which_bits + self.value_bits


def descriptions(sae: TopKSAE, x: Tensor, steps: Sequence[float] = STEPS) -> list[Description]:
    """What an SAE's latents of some tokens take at each step.

    Args:
        sae: that normalises nothing.
        x: [N, D] activations, on the SAE's device.
        steps: in units of the spread of x, each above 0.

    Raises:
        ValueError: fewer than two tokens; tokens that are all alike; an SAE that normalises, where
            each token's scale would have to be described as well.
    """
    if sae.normalisation != "none":
        raise ValueError(
            f"an SAE that normalises each token ({sae.normalisation}) has no description length "
            "here: the scale that it divides by is no latent"
        )
    n = len(x)
    exact = x.double()
    variance = (exact - exact.mean(0)).square().sum().item() if n > 1 else 0.0
    if not variance:
        raise ValueError(f"{n} tokens without variance: give at least two that differ")
    values, indices = sae.encode_topk(x)
    length = sae.W_dec.norm(dim=-1)[indices]
    found = []
    for step in steps:
        width = step * (variance / n) ** 0.5
        symbols = (values * length / width).round()
        rounded = torch.where(length > 0, symbols * width / length, 0.0)
        error = (exact - sae.decode_topk(rounded, indices)).square().sum().item()
        which, value = _entropies(symbols.long(), indices, n)
        found.append(Description(step, which, value, error / variance))
    return found


def _entropies(symbols: Tensor, indices: Tensor, n: int) -> tuple[float, float]:
    """(bits of which are active, bits of their values) per token, of symbols int64 [N, K]."""
    active = symbols > 0
    largest = int(symbols.max()) + 1
    # numbered by latent, then symbol
    kinds = torch.bincount(indices[active] * largest + symbols[active]).cpu().numpy()
    kind = np.flatnonzero(kinds)
    count, latent = kinds[kind], kind // largest
    firings = np.bincount(latent, count)
    p = firings[firings > 0] / n
    silent = 1 - p[p < 1]
    # the logarithms turned, so that no bits are 0 and not -0
    which = (p * np.log2(1 / p)).sum() + (silent * np.log2(1 / silent)).sum()
    value = (count * np.log2(firings[latent] / count)).sum() / n
    return float(which), float(value)


def bits_at(fvu: ArrayLike, bits: ArrayLike, level: float) -> float:
    """Bits per token of the description whose FVU is `level`: linear in the logarithm of FVU
    between steps.

    Args:
        fvu: [S], of some steps, from the finest on; where it falls again, the coarser step counts.
        bits: [S].

    Returns:
        NaN where all steps are coarser or finer than that.
    """
    fvu = np.maximum.accumulate(np.asarray(fvu, float))
    if not fvu[0] <= level <= fvu[-1]:
        return float("nan")
    return float(np.interp(np.log(level), np.log(fvu), np.asarray(bits, float)))
