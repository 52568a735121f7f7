"""RAVEL: whether what an SAE has of one attribute of an entity can be changed without the others
(Huang et al. 2024, arXiv 2402.17700; in SAEBench: Karvonen et al. 2025, arXiv 2503.09532).

    s               of each latent, 1 if it is one of attribute i, else 0
    z'              z_base + s (z_source - z_base)
    x'              what z' decodes to
    cause_i         share of pairs where attribute i reads from x' as the source's
    isolation_i     share of pairs where attribute j reads as the base's, mean over j != i
    disentanglement mean over i of (cause_i + isolation_i) / 2

Only pairs that differ in an attribute count for it: where base and source agree, any mask would be
right. The error of the SAE is not added, as in SAEBench, so a poor reconstruction costs isolation.

Latents are selected by a multi-task differential binary mask: s = sigmoid(m / T), with m from 0 on
trained by Adam on the sum of the cross-entropies of cause and isolation. At test s = 1 where m > 0;
a latent that moves nothing keeps m = 0. The pairs that train it do not measure.

A readout is any function from x to logits, such as the rest of a language model (ravel_prompts.py).
In a world whose truth is known it is linear, and x is the sum of a direction per attribute:

    x = sum over attributes i of v_i,answer_i        logits_i = 10 v_i . x

N pairs, A attributes, D model, F latents, B pairs at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.sae.sae import TopKSAE

# x [B, D] and which pairs they are, int64 [B] -> logits [B, answers]
Readout = Callable[[Tensor, Tensor], Tensor]
TEMPERATURE, LR, BATCH = 0.1, 0.02, 64
# of the world: nats between a right answer and a wrong one
SHARPNESS = 10.0


@dataclass(frozen=True)
class Pairs:
    """Bases and sources.

    Attributes:
        base: float32 [N, D], activations; so is source.
        base_answers: int64 [N, A], where each answer stands among its readout's logits; so is
            source_answers.
        n_train: the first so many pairs select latents, and the others measure.
    """

    base: Tensor
    source: Tensor
    base_answers: Tensor
    source_answers: Tensor
    n_train: int


@dataclass(frozen=True)
class Ravel:
    """One SAE. Shares, 0 to 1; NaN where no pair counts, and of a mean, where it is for any part.

    Attributes:
        disentanglement: mean of the next two.
        cause: mean over attributes; so is isolation.
        causes: [A], of each; so are isolations.
        latents: of each attribute.
    """

    disentanglement: float
    cause: float
    isolation: float
    causes: np.ndarray
    isolations: np.ndarray
    latents: tuple[tuple[int, ...], ...]


def swapped(sae: TopKSAE, base: Tensor, source: Tensor, share: Tensor) -> Tensor:
    """The base's reconstruction with some latents of the source: float32 [B, D].

    Args:
        base: float32 [B, D]; so is source.
        share: float32 [F], how much of each latent is the source's.
    """
    z = sae.encode(base)
    x = sae.decode(z + share * (sae.encode(source) - z))
    if sae.normalisation != "none":
        shift, scale = sae.frame(base)
        x = x * scale + shift
    return x


@torch.no_grad()
def disentanglement(
    sae: TopKSAE, pairs: Pairs, readouts: Sequence[Readout], latents: Sequence[Sequence[int]]
) -> Ravel:
    """What some latents of each attribute do, on the pairs that measure.

    Args:
        sae: on the device of the pairs.
        readouts: A of them.
        latents: of each attribute.

    Raises:
        ValueError: fewer than two attributes; readouts, answers or latents of another number; no
            pairs that measure.
    """
    _check(pairs, readouts)
    if len(latents) != len(readouts):
        raise ValueError(f"{len(latents)} sets of latents for {len(readouts)} attributes")
    rows = torch.arange(pairs.n_train, len(pairs.base), device=pairs.base.device)
    differ = (pairs.base_answers != pairs.source_answers)[rows]
    causes, isolations = [], []
    for i, chosen in enumerate(latents):
        share = torch.zeros(sae.d_sae, device=pairs.base.device)
        share[list(chosen)] = 1
        answers = []
        for some in rows.split(BATCH):
            x = swapped(sae, pairs.base[some], pairs.source[some], share)
            answers.append(torch.stack([readout(x, some).argmax(-1) for readout in readouts], 1))
        answer = torch.cat(answers)
        goal = pairs.base_answers[rows].clone()
        goal[:, i] = pairs.source_answers[rows, i]
        right = (answer == goal).double().masked_fill(~differ, torch.nan).nanmean(0)
        causes.append(right[i].item())
        isolations.append(torch.cat([right[:i], right[i + 1 :]]).nanmean().item())
    cause, isolation = (float(np.mean(shares)) for shares in (causes, isolations))
    return Ravel(
        (cause + isolation) / 2,
        cause,
        isolation,
        np.array(causes),
        np.array(isolations),
        tuple(tuple(chosen) for chosen in latents),
    )


def select(
    sae: TopKSAE,
    pairs: Pairs,
    readouts: Sequence[Readout],
    attribute: int,
    epochs: int = 10,
    seed: int = 0,
) -> tuple[int, ...]:
    """Latents of an attribute, by the mask trained on the pairs that select.

    Args:
        readouts: that can be differentiated.
        attribute: its number.
        epochs: over the pairs that select.
        seed: of the order of the pairs.

    Raises:
        ValueError: as disentanglement, of the pairs that select.
    """
    _check(pairs, readouts)
    m = torch.zeros(sae.d_sae, device=pairs.base.device, requires_grad=True)
    adam = torch.optim.Adam([m], LR)
    generator = torch.Generator().manual_seed(seed)
    goal = pairs.base_answers.clone()
    goal[:, attribute] = pairs.source_answers[:, attribute]
    others = len(readouts) - 1
    for _ in range(epochs):
        order = torch.randperm(pairs.n_train, generator=generator).to(m.device)
        for some in order.split(BATCH):
            x = swapped(sae, pairs.base[some], pairs.source[some], torch.sigmoid(m / TEMPERATURE))
            losses = [
                F.cross_entropy(readout(x, some).float(), goal[some, j])
                / (1 if j == attribute else others)
                for j, readout in enumerate(readouts)
            ]
            # of the mask alone: a readout may be a model with parameters
            (m.grad,) = torch.autograd.grad(torch.stack(losses).sum(), m)
            adam.step()
    return tuple((m > 0).nonzero().squeeze(-1).tolist())


def ravel(
    sae: TopKSAE, pairs: Pairs, readouts: Sequence[Readout], epochs: int = 10, seed: int = 0
) -> Ravel:
    """Cause, isolation and disentanglement of an SAE (Huang et al. 2024).

    Args:
        sae: on the device of the pairs.
        pairs: with answers that the readouts give; where a model is wrong without any change, a
            pair says nothing.
        readouts: one per attribute. Each of them runs forward and back for each attribute, epoch
            and pair that selects.
        epochs: over these pairs.
        seed: of the order of the pairs that select.

    Raises:
        ValueError: as disentanglement.
    """
    latents = [select(sae, pairs, readouts, i, epochs, seed) for i in range(len(readouts))]
    return disentanglement(sae, pairs, readouts, latents)


def _check(pairs, readouts):
    n, attributes = pairs.base_answers.shape
    if len(readouts) < 2 or attributes != len(readouts):
        raise ValueError(
            f"{len(readouts)} readouts and answers to {attributes}: at least two attributes are "
            "needed, with a readout each"
        )
    if not 0 < pairs.n_train < n:
        raise ValueError(
            f"n_train = {pairs.n_train} of {n} pairs: some must select, and some must measure"
        )


@dataclass(frozen=True)
class Entities:
    """A world of entities: one direction for each answer of each attribute.

    Attributes:
        directions: of each attribute, float32 [answers, D], orthonormal, those of others included.
    """

    directions: tuple[Tensor, ...]

    @property
    def readouts(self) -> list[Readout]:
        """Of each attribute."""
        return [lambda x, _, rows=rows: SHARPNESS * x @ rows.to(x).T for rows in self.directions]

    def pairs(self, n: int, seed: int, train: float = 0.7) -> Pairs:
        """n pairs of entities, each attribute drawn by itself; a share of them selects."""
        g = torch.Generator().manual_seed(seed)

        def drawn() -> tuple[Tensor, Tensor]:
            answers = [torch.randint(len(rows), (n,), generator=g) for rows in self.directions]
            x = [rows[one] for rows, one in zip(self.directions, answers, strict=True)]
            return torch.stack(x).sum(0), torch.stack(answers, 1)

        (base, base_answers), (source, source_answers) = drawn(), drawn()
        return Pairs(base, source, base_answers, source_answers, int(train * n))


def entities(d_model: int, answers: Sequence[int], seed: int) -> Entities:
    """A world of entities.

    Args:
        answers: how many each attribute has.
        seed: of the directions.

    Raises:
        ValueError: more answers than dimensions.
    """
    if sum(answers) > d_model:
        raise ValueError(f"{sum(answers)} answers do not fit {d_model} orthogonal dimensions")
    g = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(d_model, d_model, generator=g)).Q
    return Entities(rows[: sum(answers)].split(list(answers)))
