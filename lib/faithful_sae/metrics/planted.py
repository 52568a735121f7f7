"""Worlds whose features are known, and how well an SAE finds them (after SynthSAEBench: Chanin and
Garriga-Alonso 2026, arXiv 2602.14687; theirs is far larger, and its firing is correlated).

    x = sum_i a_i v_i        a_i = 0, or uniform from 1/2 to 3/2 where feature i fires
    MCC = mean over features of cos(v_i, d_m(i))        m: the optimal one-to-one matching
    F1 = mean over features of that of latent m(i), as a detector of whether feature i fires

Features fire independently, with probabilities that fall as the root of their rank, L0 on average.
A child fires only where its parent does. G features, F latents, D model.

The ladder is every variant on every rung: same worlds, tokens, batches and learning rate for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.matching import match_features
from faithful_sae.metrics.geometry import geometry
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.train import train_saes
from faithful_sae.sae.variants import Variant

RUNGS = ("orthogonal", "superposition", "hierarchy", "dense")
L0 = 4.0
# of the ladder: D, tokens in a step, Adam's learning rate, tokens that are scored
D_MODEL = 32
BATCH, LR = 256, 1e-2
SCORED = 20_000


@dataclass(frozen=True)
class World:
    """What there is to be found.

    Attributes:
        directions: float32 [G, D], unit rows v_i.
        probability: float32 [G], of firing; of a child, where its parent fires.
        parent: int64 [G], an earlier feature, or -1.
    """

    directions: Tensor
    probability: Tensor
    parent: Tensor

    def sample(self, n_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
        """(x float32 [N, D], a float32 [N, G])."""
        g = torch.Generator().manual_seed(seed)
        shape = (n_tokens, len(self.probability))
        fires = torch.rand(shape, generator=g) < self.probability
        for child in (self.parent >= 0).nonzero().squeeze(-1):
            fires[:, child] &= fires[:, self.parent[child]]
        a = fires * (0.5 + torch.rand(shape, generator=g))
        return a @ self.directions, a


def planted(rung: str, d_model: int, seed: int) -> World:
    """The world of a rung of the ladder.

    Args:
        rung: "orthogonal": D features. "superposition": 2 D in random directions. "hierarchy":
            orthogonal, the third feature a child of the first and the fourth of the second.
            "dense": orthogonal, the first fires on 9 of 10 tokens.
        seed: of the directions.

    Raises:
        ValueError: no such rung.
    """
    if rung not in RUNGS:
        raise ValueError(f"rung {rung!r} must be one of {', '.join(RUNGS)}")
    n = 2 * d_model if rung == "superposition" else d_model
    directions = torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))
    if rung != "superposition":
        directions = torch.linalg.qr(directions).Q
    law = torch.arange(1, n + 1) ** -0.5
    probability = law * (L0 / law.sum())
    parent = torch.full((n,), -1)
    if rung == "dense":
        probability[0] = 0.9
    if rung == "hierarchy":
        parent[2:4] = torch.tensor([0, 1])
        probability[2:4] = 0.5
    return World(F.normalize(directions, dim=-1), probability, parent)


@dataclass(frozen=True)
class Recovery:
    """What an SAE finds of a world.

    Attributes:
        mcc: mean cosine of the features to their latents, over the pairs there are.
        f1: mean over features, 0 to 1; of one that has no latent, 0.
        recall: [G], share of the tokens on which a feature fires where its latent does. Of a
            parent, it falls where a child's latent fires in its place (absorption).
        l0: mean active latents per token.
        explained_variance: 1 - sum |x - x_hat|^2 / sum |x - mean x|^2.
    """

    mcc: float
    f1: float
    recall: np.ndarray
    l0: float
    explained_variance: float


def recovery(sae: TopKSAE, world: World, n_tokens: int, seed: int) -> Recovery:
    """Score an SAE on tokens of the world (MCC, F1 and L0 as in SynthSAEBench; a cosine keeps its
    sign, since a latent is never negative).
    """
    matching = match_features(world.directions, sae.W_dec)
    x, a = world.sample(n_tokens, seed)
    z = sae.encode(x)
    active = z > 0
    unexplained = (sae.decode(z) - x).square().sum() / (x - x.mean(0)).square().sum()
    matched = torch.from_numpy(matching.permutation)
    # of a feature without a latent, nothing
    found = active[:, matched] & (matched >= 0)
    fires = a > 0
    hits = (found & fires).sum(0)
    f1 = 2 * hits / (found.sum(0) + fires.sum(0)).clamp(min=1)
    recall = hits / fires.sum(0).clamp(min=1)
    return Recovery(
        float(np.nanmean(matching.cosine)),
        f1.mean().item(),
        recall.numpy(),
        active.sum(-1).float().mean().item(),
        1 - unexplained.item(),
    )


def ladder(
    variants: Mapping[str, Variant],
    seeds: Sequence[int],
    d_sae: int,
    n_tokens: int,
    recipe: str = "default",
) -> pd.DataFrame:
    """Train every variant on every rung, and score it on tokens that it has not seen.

    Args:
        variants: by name.
        seeds: of SAEs; the worlds and their tokens are the same for all.
        d_sae: F of each.
        n_tokens: that each is trained on.
        recipe: of the trainings.

    Returns:
        a row per variant, rung and seed: mcc, f1, explained_variance, l0; dead and duplicates, as
        shares of the latents; parent_recall, the mean recall of features that have a child, NaN
        where none has.
    """
    rows = []
    for rung in RUNGS:
        world = planted(rung, D_MODEL, 0)
        batches = world.sample(n_tokens, 1)[0].split(BATCH)
        parents = world.parent[world.parent >= 0].numpy()
        for name, variant in variants.items():
            sizes = (D_MODEL, d_sae, variant, seeds, LR, n_tokens, BATCH)
            saes = train_saes(batches, *sizes, recipe, description=f"{rung}: {name}")
            for seed, sae in zip(seeds, saes, strict=True):
                found = recovery(sae, world, SCORED, 2)
                assert sae.firing is not None, "train_saes counts"
                rows.append(
                    {
                        "variant": name,
                        "rung": rung,
                        "seed": seed,
                        "mcc": found.mcc,
                        "f1": found.f1,
                        "explained_variance": found.explained_variance,
                        "l0": found.l0,
                        "dead": (sae.firing == 0).double().mean().item(),
                        "duplicates": geometry(sae.W_dec)[0].duplicates,
                        "parent_recall": found.recall[parents].mean() if len(parents) else np.nan,
                    }
                )
    return pd.DataFrame(rows)
