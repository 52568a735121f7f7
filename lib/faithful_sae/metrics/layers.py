"""How alike the residual stream is at different layers, and groups of layers for one SAE each
(Ghilardi et al. 2024, arXiv 2410.21508).

    d(p, q) = mean over tokens of arccos(cos(x^p, x^q)) / pi        0 alike, 1/2 orthogonal
    AMAD    = mean over groups of the largest d within one, 0 for a layer alone

Groups are neighbouring layers. Those two are joined whose union has the smallest largest distance
(complete linkage), down to one group; of all these partitions the coarsest is taken whose AMAD is
below a limit. The paper leaves the linkage open.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def angular_distances(streams: Iterable[Tensor]) -> np.ndarray:
    """d of every two layers over all tokens [L, N, D]: float64 [L, L], symmetric, 0 on the
    diagonal.
    """
    total: np.ndarray | float = 0.0
    count = 0
    for x in streams:
        norms = x.norm(dim=-1, dtype=torch.float64)
        angles = torch.zeros(len(x), len(x), dtype=torch.float64)
        for p, q in itertools.combinations(range(len(x)), 2):
            product = torch.linalg.vecdot(x[p].double(), x[q].double())
            angles[p, q] = (product / (norms[p] * norms[q])).clamp(-1, 1).arccos().sum()
        total = total + angles.numpy() / math.pi
        count += x.shape[1]
    mean = np.asarray(total) / count
    return mean + mean.T


def groups_of(distances: np.ndarray, limit: float) -> list[list[int]]:
    """Groups of neighbouring layers, by their places 0 to L - 1.

    Args:
        distances: [L, L].
        limit: of AMAD, above 0.
    """
    groups = found = [[i] for i in range(len(distances))]
    while len(groups) > 1:
        joined = [a + b for a, b in itertools.pairwise(groups)]
        at = int(np.argmin([widest(distances, group) for group in joined]))
        groups = [*groups[:at], joined[at], *groups[at + 2 :]]
        # AMAD may fall again: it is a mean over fewer groups, and over larger ones
        if amad(distances, groups) <= limit:
            found = groups
    return found


def widest(distances: np.ndarray, group: Sequence[int]) -> float:
    """The largest distance within a group."""
    return float(distances[np.ix_(group, group)].max())


def amad(distances: np.ndarray, groups: Sequence[Sequence[int]]) -> float:
    """Mean over groups of the largest distance within one."""
    return float(np.mean([widest(distances, group) for group in groups]))
