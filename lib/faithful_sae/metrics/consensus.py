"""What several seeds of one corpus agree on: the features that many of them find, averaged to one
dictionary.

Latents of several seeds are put together by their decoder rows d, of unit norm. Each begins as a
group of its own. Two groups are joined, the closest first, while

    cos(sum of d in one, sum of d in the other) >= threshold, and no seed has a latent in both

A feature is a group that is left, and it is found by the seeds that it has latents of. No seed is
the base that others are compared with, and their order is of no account. Optimal matchings of two
seeds at a time, as SFR has them, do not do for that: a matching has to give each latent a partner
of its own, so that those of three seeds often disagree, and a feature falls apart into two groups
of the same direction.

The latents of a feature become one. Norms of 1 give the latents of all seeds one unit; so with the
value before TopK p_i(x) = (x - b_dec,i) e_i + b_i,

    p(x) d = (mean over its latents of p_i(x)) (mean of d_i),  |d| = 1
    b_dec  = mean over all seeds

A mean of unit rows is the shorter, the more they differ; the latent is as much smaller. Of copies
of one SAE, in whatever order their latents are, the consensus is that SAE.

Two dictionaries of n and m features, matched so that the sum of cosines is largest, agree to

    SFR = 2 |matched at the threshold or above| / (n + m)

which for n = m is the shared feature ratio (metrics/sfr.py). Ours.

S seeds, F latents, G features, D model.
"""

import copy
import heapq
import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from faithful_sae.matching import match_features
from faithful_sae.sae.sae import TopKSAE


def common_features(saes: Sequence[TopKSAE], threshold: float) -> np.ndarray:
    """The features of some SAEs, each in the order of its first latent.

    Args:
        saes: of S seeds, with decoder rows of unit norm.
        threshold: least cosine of groups that are joined, above 0.

    Returns:
        int [G, S]: the latent of each seed, -1 where a seed does not find the feature.
    """
    directions = [F.normalize(sae.W_dec.cpu().double(), dim=1).numpy() for sae in saes]
    sizes = [len(part) for part in directions]
    starts = np.cumsum([0, *sizes])
    seed = np.repeat(np.arange(len(saes)), sizes)
    # of the group that a latent is in, at the place of the group's first latent
    units = np.concatenate(directions)
    sums = units.copy()
    has = seed[:, None] == np.arange(len(saes))
    group = np.arange(len(units))
    # a pair in the heap is of groups as they are as long as neither has changed since
    changes = np.zeros(len(units), int)
    heap: list[tuple[float, int, int, int, int]] = []

    for i, j in itertools.combinations(range(len(saes)), 2):
        cosine = directions[i] @ directions[j].T
        for a, b in np.argwhere(cosine >= threshold).tolist():
            heap.append((-cosine[a, b], int(starts[i] + a), int(starts[j] + b), 0, 0))
    heapq.heapify(heap)
    while heap:
        _, a, b, *as_it_was = heapq.heappop(heap)
        if as_it_was != [changes[a], changes[b]]:
            continue
        sums[a] += sums[b]
        units[a] = sums[a] / np.linalg.norm(sums[a])
        units[b] = 0
        has[a] |= has[b]
        group[group == b] = a
        changes[[a, b]] += 1
        cosine = units @ units[a]
        for c in np.flatnonzero((cosine >= threshold) & ~(has & has[a]).any(1)).tolist():
            first, second = sorted((a, c))
            heapq.heappush(heap, (-cosine[c], first, second, changes[first], changes[second]))
    _, feature = np.unique(group, return_inverse=True)
    found = np.full((feature.max() + 1, len(saes)), -1)
    found[feature, seed] = np.arange(len(units)) - starts[seed]
    return found


def consensus_sae(saes: Sequence[TopKSAE], features: np.ndarray) -> TopKSAE:
    """The SAE that has a latent for each feature.

    Args:
        saes: of S seeds, TopK with one k, on one device.
        features: int [G, S], as of common_features; each is found by some seed.

    Returns:
        an SAE with G latents, of which k are active, or all where there are fewer.

    Raises:
        ValueError: no features; SAEs that are not TopK, or differ in k.
    """
    if not len(features):
        raise ValueError("no features: there is nothing to make an SAE of")
    if len({sae.k for sae in saes}) > 1 or not all(sae.is_topk for sae in saes):
        raise ValueError("SAEs must be TopK with one k: theirs are averaged as they are")
    rows = torch.zeros(len(features), saes[0].d_model, device=saes[0].W_dec.device)
    columns, biases = torch.zeros_like(rows), torch.zeros_like(rows[:, 0])
    b_dec = torch.stack([sae.b_dec for sae in saes]).mean(0)
    for sae, latents in zip(saes, features.T, strict=True):
        has = torch.from_numpy(np.flatnonzero(latents >= 0)).to(rows.device)
        latent = torch.from_numpy(latents[latents >= 0]).to(rows.device)
        rows[has] += sae.W_dec[latent]
        columns[has] += sae.W_enc.T[latent]
        # of x less the mean b_dec
        biases[has] += (sae.b_enc + (b_dec - sae.b_dec) @ sae.W_enc)[latent]
    count = torch.from_numpy((features >= 0).sum(1)).to(rows)
    length = rows.norm(dim=1) / count
    found = copy.copy(saes[0])
    found.W_dec = F.normalize(rows, dim=1)
    found.W_enc = (columns * (length / count)[:, None]).T.contiguous()
    found.b_enc = biases * length / count
    found.b_dec = b_dec
    found.k = min(saes[0].k or len(features), len(features))
    # those of other latents
    found.firing = None
    found.metadata = {}
    return found


def agreement(a: TopKSAE, b: TopKSAE, threshold: float) -> tuple[float, int]:
    """(SFR, how many features are alike) of two dictionaries, of one size or not."""
    # of the larger one some are matched with none
    alike = int((match_features(a.W_dec, b.W_dec).cosine >= threshold).sum())
    return 2 * alike / (a.d_sae + b.d_sae), alike
