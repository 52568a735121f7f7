"""Feature absorption (Chanin et al. 2024, arXiv 2409.14507; the share in SAEBench's form: Karvonen
et al. 2025, arXiv 2503.09532): a latent stands for a property, and is silent on tokens of it that
have a latent of their own, whose row of W_dec holds the property's direction as well.

    w           unit normal of a logistic regression that reads the property from x
    a           (x - b_dec) . w                       what there is to be explained
    g_f         z_f (d_f . w)                         what latent f says of it
    c_f         cos(d_f, w)
    M           the main latents of the property
    m           sum of g_f over M
    q           sum of the 3 largest g_f among f not in M with c_f >= 0.1
    r           min(q, a - m)
    fraction    0 where m >= a or q < 0.4 a; else 1 where m <= 0; else r / (r + m)
    full        all of M silent, and the largest g_f is >= 0.4 a with c_f >= 0.025

Both are means over the tokens that have the property and of which the probe says so. Rows of W_dec
count with the norms they have. Of an SAE that normalises x, a and g are in units of x. What an SAE
does not reconstruct stays in a, so one that is hardly trained scores low.

M: an L1 regression on latents ranks those with a positive weight. Regressions on the first k of
them, k = 1 to 10, give F1(k). M is the first k, for the last k whose F1 is more than 0.03 above
that of every smaller one. Latents are divided by their root mean square where they fire, so that
the scale of a latent, which its row of W_dec undoes, changes nothing.

Tokens are in three parts: probes are fitted on the first, k is chosen on the second, and all that
is reported is of the third. The parts are of positions; the same token may stand in all of them.

In a planted world the truth is known:

    absorbed    share of tokens with the parent on which its latent is silent and a child's fires

N tokens, D model, F latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array, vstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from faithful_sae.matching import match_features
from faithful_sae.metrics.planted import World
from faithful_sae.sae.sae import TopKSAE

# of the formulas above
ABSORBERS, COSINE, FULL_COSINE, EXPLAINED = 3, 0.1, 0.025, 0.4
MOST_LATENTS, RISE = 10, 0.03
# weight of the absolute values beside the mean loss of a token
L1 = 0.01
# a property counts where the probe reads it, and finds so many tokens
GATE, LEAST = 0.6, 20
# shares of the tokens that fit, and that fit or choose
FIT, CHOOSE = 0.6, 0.8
# dense latents in memory at once
AT_ONCE = 2**22


@dataclass(frozen=True)
class Absorption:
    """One property, one SAE.

    Attributes:
        fraction: mean over tokens, 0 to 1; NaN where there are no tokens or no main latents.
        full: share of tokens, 0 to 1; NaN likewise.
        latents: M, the one with the largest weight first. More than one: the property is split.
        latent_f1: of a regression on M.
        probe_f1: of the regression on x.
        positives: tokens that are measured.
    """

    fraction: float
    full: float
    latents: tuple[int, ...]
    latent_f1: float
    probe_f1: float
    positives: int

    @property
    def passes(self) -> bool:
        """Whether the model has the property at all, as far as a probe tells."""
        return self.probe_f1 > GATE and self.positives >= LEAST


@dataclass(frozen=True)
class Mean:
    """Several properties of one SAE.

    Attributes:
        fraction, full: means over the properties that pass and have main latents; NaN where none
            does.
        splits: mean number of main latents, over the properties that pass.
        passed: how many do.
        properties: how many there are.
    """

    fraction: float
    full: float
    splits: float
    passed: int
    properties: int


@dataclass(frozen=True)
class Planted:
    """A world with parents and children.

    Attributes:
        mean: over parents that have a latent, 0 to 1; NaN where none has.
        parents: int64 [P], features that have a child.
        absorbed: [P], of each; NaN where it has no latent or never fires.
    """

    mean: float
    parents: np.ndarray
    absorbed: np.ndarray


@torch.no_grad()
def absorbed(
    sae: TopKSAE, x: Tensor, direction: Tensor, latents: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Absorption of single tokens, by the formulas above.

    Args:
        x: float32 [N, D], tokens that have the property.
        direction: [D], of the property; normalised here.
        latents: M.

    Returns:
        (fraction float32 [N], full bool [N]).
    """
    w = F.normalize(direction.to(sae.W_dec), dim=0)
    says = sae.W_dec @ w
    cosine = says / sae.W_dec.norm(dim=-1).clamp(min=torch.finfo(says.dtype).tiny)
    main = torch.zeros_like(says, dtype=torch.bool)
    main[list(latents)] = True
    parts = [
        _of_block(sae, block.to(w), w, says, cosine, main)
        for block in x.split(max(1, AT_ONCE // sae.d_sae))
    ]
    fractions, full = zip(*parts, strict=True)
    return torch.cat(fractions), torch.cat(full)


def _of_block(sae, x, w, says, cosine, main):
    shift, scale = sae.frame(x) if sae.normalisation != "none" else (0.0, x.new_ones(len(x), 1))
    a = (x - shift - scale * sae.b_dec) @ w
    z = sae.encode(x)
    g = z * says * scale
    m = g[:, main].sum(1)
    others = g.masked_fill(main | (cosine < COSINE), 0.0)
    q = others.topk(min(ABSORBERS, sae.d_sae)).values.sum(1)
    r = torch.minimum(q, a - m)
    share = torch.where(m <= 0, 1.0, r / (r + m))
    fraction = torch.where((m < a) & (q >= EXPLAINED * a) & (a > 0), share, 0.0)
    largest, which = g.max(1)
    explains = (largest >= EXPLAINED * a) & (a > 0) & (cosine[which] >= FULL_COSINE)
    return fraction, explains & ~(z[:, main] > 0).any(1)


def absorption(sae: TopKSAE, x: Tensor, holds: np.ndarray, seed: int = 0) -> Absorption:
    """Absorption of a property of tokens (Chanin et al. 2024).

    Args:
        sae: on any device.
        x: float32 [N, D], activations at the SAE's own hook.
        holds: bool [N], whether a token has the property.
        seed: of the parts.

    Raises:
        ValueError: fewer than 5 tokens with the property or without it; lengths that differ.
    """
    holds = np.asarray(holds, bool)
    if len(x) != len(holds):
        raise ValueError(f"{len(x)} activations and {len(holds)} labels: each token needs one")
    fit, choose, test = _parts(holds, seed)
    probe_input = StandardScaler().fit(x[fit].cpu().numpy())
    probe = _regression().fit(probe_input.transform(x[fit].cpu().numpy()), holds[fit])
    found = probe.predict(probe_input.transform(x[test].cpu().numpy()))
    z = _latents(sae, x)
    ranked = _ranked(z[fit], holds[fit], seed)
    scores = [0.0]
    for k in range(1, len(ranked) + 1):
        scores.append(_f1(z, holds, ranked[:k], fit, choose))
    last = max((k for k in range(1, len(scores)) if scores[k] > max(scores[:k]) + RISE), default=0)
    latents = tuple(int(f) for f in ranked[:last])
    positives = test[found & holds[test]]
    fraction = full = np.nan
    if len(positives) and latents:
        # the probe reads standardised coordinates
        direction = torch.from_numpy(probe.coef_[0] / probe_input.scale_)
        shares, wholly = absorbed(sae, x[positives], direction, latents)
        fraction, full = shares.double().mean().item(), wholly.double().mean().item()
    return Absorption(
        fraction,
        full,
        latents,
        _f1(z, holds, ranked[:last], fit, test) if latents else 0.0,
        float(f1_score(holds[test], found)),
        len(positives),
    )


def _parts(holds, seed):
    """Positions that fit, choose and test, each with its share of both kinds."""
    rng = np.random.default_rng(seed)
    parts = ([], [], [])
    for kind, name in ((True, "with"), (False, "without")):
        where = rng.permutation(np.flatnonzero(holds == kind))
        if len(where) < 5:
            raise ValueError(
                f"{len(where)} tokens {name} the property are too few for three parts: give at "
                "least 5"
            )
        cuts = [int(share * len(where)) for share in (FIT, CHOOSE)]
        for part, chosen in zip(parts, np.split(where, cuts), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def _regression(**options):
    return LogisticRegression(class_weight="balanced", max_iter=1000, **options)


@torch.no_grad()
def _latents(sae, x):
    """Sparse [N, F], each latent in units of its root mean square where it fires."""
    blocks = []
    for block in x.to(sae.W_enc.device).split(max(1, AT_ONCE // sae.d_sae)):
        values, indices = (part.cpu().numpy() for part in sae.encode_topk(block))
        start = np.arange(len(block) + 1) * values.shape[1]
        shape = (len(block), sae.d_sae)
        blocks.append(csr_array((values.ravel(), indices.ravel(), start), shape=shape))
    z = csr_array(vstack(blocks, format="csr"))
    z.eliminate_zeros()
    # scikit-learn's solver knows no longer ones
    z.indices, z.indptr = z.indices.astype(np.int32), z.indptr.astype(np.int32)
    squares = np.bincount(z.indices, z.data.astype(float) ** 2, minlength=sae.d_sae)
    firings = np.bincount(z.indices, minlength=sae.d_sae)
    z.data = z.data / np.sqrt(squares / np.maximum(firings, 1))[z.indices]
    return z


def _ranked(z, holds, seed):
    """Latents with the largest positive weights in an L1 regression, at most MOST_LATENTS."""
    options = {"solver": "liblinear", "C": 1 / (L1 * len(holds)), "random_state": seed}
    weights = _regression(l1_ratio=1.0, **options).fit(z, holds).coef_[0]
    order = np.argsort(-weights, kind="stable")[:MOST_LATENTS]
    return order[weights[order] > 0]


def _f1(z, holds, latents, fit, scored):
    """F1 on some tokens of a regression on some latents."""
    chosen = z[:, latents].toarray()
    predicted = _regression().fit(chosen[fit], holds[fit]).predict(chosen[scored])
    return float(f1_score(holds[scored], predicted))


def absorption_of_all(
    sae: TopKSAE, samples: Mapping[str, tuple[Tensor, np.ndarray]], seed: int = 0
) -> tuple[Mean, pd.DataFrame]:
    """Absorption of several properties, and its mean over those that the model has.

    Args:
        samples: by property, x and holds of `absorption`; those of `token_classes.class_samples`.
        seed: of the parts.

    Returns:
        (the mean, a row per property: name, what Absorption holds, passes).

    Raises:
        ValueError: as absorption.
    """
    found = {name: absorption(sae, *sample, seed) for name, sample in samples.items()}
    table = pd.DataFrame(
        [{"name": name, **vars(one), "passes": one.passes} for name, one in found.items()],
        columns=["name", *Absorption.__dataclass_fields__, "passes"],
    )
    passing = [one for one in found.values() if one.passes]
    fraction, full, splits = (
        np.nanmean(column) if np.isfinite(column).any() else np.nan
        for column in (
            np.array([one.fraction for one in passing]),
            np.array([one.full for one in passing]),
            np.array([len(one.latents) for one in passing]),
        )
    )
    return Mean(float(fraction), float(full), float(splits), len(passing), len(found)), table


@torch.no_grad()
def planted_absorption(sae: TopKSAE, world: World, n_tokens: int, seed: int) -> Planted:
    """Absorption of the parents of a world, by the truth; the latent of a feature is that of the
    optimal matching, as in planted.recovery.

    Args:
        n_tokens: sampled.
        seed: of the tokens.

    Raises:
        ValueError: no feature of the world has a child.
    """
    parents = world.parent[world.parent >= 0].unique()
    if not len(parents):
        raise ValueError("no feature of this world has a child: take one of rung 'hierarchy'")
    matched = torch.from_numpy(match_features(world.directions, sae.W_dec.cpu()).permutation)
    x, a = world.sample(n_tokens, seed)
    active = torch.cat(
        [
            sae.encode(block.to(sae.W_enc.device)).cpu() > 0
            for block in x.split(max(1, AT_ONCE // sae.d_sae))
        ]
    )
    shares = []
    for parent in parents:
        children = matched[world.parent == parent]
        fires = a[:, parent] > 0
        instead = active[:, children[children >= 0]].any(1) & ~active[:, matched[parent]]
        known = matched[parent] >= 0 and fires.any()
        shares.append(instead[fires].double().mean().item() if known else np.nan)
    mean = np.nanmean(shares) if np.isfinite(shares).any() else np.nan
    return Planted(float(mean), parents.numpy(), np.array(shares))
