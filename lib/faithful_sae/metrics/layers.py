"""How alike the residual stream is at different layers, and groups of layers for one SAE each
(Ghilardi et al. 2024, arXiv 2410.21508).

    d(p, q) = mean over tokens of arccos(cos(x^p, x^q)) / pi        0 alike, 1/2 orthogonal
    AMAD    = mean over groups of the largest d within one, 0 for a layer alone

Groups are neighbouring layers. Those two are joined whose union has the smallest largest distance
(complete linkage), as long as AMAD stays below a limit. The paper leaves the linkage open.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


def angular_distances(
    lm: "LanguageModel", batches: Iterator[Tensor], layers: Sequence[int]
) -> np.ndarray:
    """d of every two layers over the tokens of some ids int64 [B, T] that are not BOS: float64
    [L, L], symmetric, 0 on the diagonal.
    """
    from faithful_sae.lm.streams import streams

    total = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    count = 0
    for ids in batches:
        x = streams(lm, ids, layers)[:, (ids != lm.bos_id).to(lm.device)]
        unit = torch.nn.functional.normalize(x.double(), dim=-1)
        for p, q in itertools.combinations(range(len(layers)), 2):
            cosine = torch.linalg.vecdot(unit[p], unit[q]).clamp(-1, 1)
            total[p, q] += cosine.arccos().sum().cpu() / math.pi
        count += x.shape[1]
    mean = (total / count).numpy()
    return mean + mean.T


def groups_of(distances: np.ndarray, limit: float) -> list[list[int]]:
    """Groups of neighbouring layers, by their places 0 to L - 1: as few as AMAD allows.

    Args:
        distances: [L, L].
        limit: of AMAD.
    """
    groups = [[i] for i in range(len(distances))]
    while len(groups) > 1:
        joined = [a + b for a, b in itertools.pairwise(groups)]
        at = int(np.argmin([widest(distances, group) for group in joined]))
        after = [*groups[:at], joined[at], *groups[at + 2 :]]
        if amad(distances, after) > limit:
            break
        groups = after
    return groups


def widest(distances: np.ndarray, group: Sequence[int]) -> float:
    """The largest distance within a group."""
    return float(distances[np.ix_(group, group)].max())


def amad(distances: np.ndarray, groups: Sequence[Sequence[int]]) -> float:
    """Mean over groups of the largest distance within one."""
    return float(np.mean([widest(distances, group) for group in groups]))
