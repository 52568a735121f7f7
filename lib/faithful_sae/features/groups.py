"""What scores of latents say of groups of them: those that seeds share, and those that are found in
one seed alone (after Paulo and Belrose 2025, arXiv 2501.16615, Figure 3 and Table 1).

All are functions of tables; intervals over seeds are the caller's (metrics/uncertainty.py).

    selected pairs      of each bin of alignment, the pair with the largest
                            s_1 + s_2   where alignment is at least 0.7
                            s_1 - s_2   below
                        s_1 and s_2: what the latent and its match score in their seeds
    frequency matched   sum over tenths b of density of  w_b (mean of the group - mean of the rest)
                        w_b = m n / (m + n), of m and n latents there, over the sum of all w
                        (Mantel and Haenszel 1959, as for the difference of two means)

Pairs selected like this look the same where scores are noise. So the selection is made again from
pairs whose second latents are shuffled within the bin. Latents that fire often are shared more, and
score otherwise, which is why groups are compared within tenths.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from faithful_sae.features.index import FeatureError

SHARED = 0.7
BORDERS = (0.2, 0.4, SHARED, 0.85)


def selected_pairs(
    pairs: pd.DataFrame,
    borders: Sequence[float] = BORDERS,
    shared: float = SHARED,
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """The pairs of Table 1, and what the same selection gives of shuffled pairs.

    Args:
        pairs: alignment (a cosine), score_1 and score_2; other columns are kept. Pairs with a NaN
            among the three are left out.
        borders: of the bins, rising; a bin has its lower border.
        shared: alignment from which on a pair is one feature; one of the borders.
        draws: shuffles.
        seed: of the shuffles.

    Returns:
        a row per bin that has a pair: low and high, its borders (-1 and 1 at the ends); n, pairs in
        it; the columns of the selected pair; shuffled_1 and shuffled_2, the mean scores of the
        pairs that are selected from shuffled ones; p, how often these reach what the selected pair
        has.

    Raises:
        FeatureError: `shared` is no border; no pairs.
    """
    if shared not in borders:
        raise FeatureError(f"shared = {shared} must be one of the borders, {list(borders)}")
    pairs = pairs.dropna(subset=["alignment", "score_1", "score_2"])
    if pairs.empty:
        raise FeatureError("no pairs with an alignment and two scores to select from")
    ends = (-1.0, *borders, 1.0)
    rows = []
    bins = np.digitize(pairs.alignment, borders)
    for number, (low, high) in enumerate(itertools.pairwise(ends)):
        part = pairs[bins == number]
        if part.empty:
            continue
        first, second = part.score_1.to_numpy(float), part.score_2.to_numpy(float)
        sign = 1 if low >= shared else -1
        wanted = first + sign * second
        best = int(wanted.argmax())
        rng = np.random.default_rng([seed, number])
        shuffled = rng.permuted(np.tile(second, (draws, 1)), axis=1)
        reached = first + sign * shuffled
        chosen = reached.argmax(1)
        largest, others = reached.max(1), shuffled[np.arange(draws), chosen]
        rows.append(
            {
                "low": low,
                "high": high,
                "n": len(part),
                **part.iloc[best].to_dict(),
                "shuffled_1": first[chosen].mean(),
                "shuffled_2": others.mean(),
                "p": (1 + (largest >= wanted[best]).sum()) / (1 + draws),
            }
        )
    return pd.DataFrame(rows)


def by_sharing(latents: pd.DataFrame, score: str, sharing: str = "seeds_sharing") -> pd.DataFrame:
    """How scores are spread among latents that as many other seeds share (Figure 3).

    Args:
        latents: `sharing`, an int, and `score`; those with a NaN are left out.

    Returns:
        a row per number of seeds: seeds_sharing (or what `sharing` is called), latents, mean,
        lower, median and upper (quartiles).
    """
    grouped = latents.dropna(subset=[sharing, score]).groupby(sharing)[score]
    return pd.DataFrame(
        {
            "latents": grouped.size(),
            "mean": grouped.mean(),
            "lower": grouped.quantile(0.25),
            "median": grouped.median(),
            "upper": grouped.quantile(0.75),
        }
    ).reset_index()


@dataclass(frozen=True)
class FrequencyMatched:
    """A group of latents against the rest.

    Attributes:
        difference: of mean scores, the group's less the rest's, within tenths of density; NaN where
            no tenth has both.
        raw: the same, of all latents at once; NaN where one of the two is empty.
        group, rest: latents with a score.
        compared: of them, how many are in a tenth that has both.
    """

    difference: float
    raw: float
    group: int
    rest: int
    compared: int


def frequency_matched(
    latents: pd.DataFrame, score: str, group: str, density: str = "density", parts: int = 10
) -> FrequencyMatched:
    """Do latents of a group (shared, fake, of one corpus) score otherwise than the rest that fires
    as often? See the module.

    Args:
        latents: `score`, a number, `group`, a bool, and `density`; those without a score are left
            out.
        parts: of equal size by density; equal densities are in the same.

    Raises:
        FeatureError: the group is not a bool, or parts are fewer than one.
    """
    if latents[group].dtype != bool:
        raise FeatureError(
            f"column {group!r} is {latents[group].dtype}: make it a bool, True in the group"
        )
    if parts < 1:
        raise FeatureError(f"parts = {parts} must be at least 1")
    known = latents.dropna(subset=[score, density])
    rank = rankdata(known[density])
    part = np.floor((rank - 0.5) * parts / max(len(known), 1)).astype(int)
    scores, member = known[score].to_numpy(float), known[group].to_numpy()

    def sums(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.bincount(part[which], minlength=parts),
            np.bincount(part[which], scores[which], minlength=parts),
        )

    (m, inside), (n, outside) = sums(member), sums(~member)
    both = (m > 0) & (n > 0)
    m, n, inside, outside = (array[both] for array in (m, n, inside, outside))
    weight = m * n / (m + n)
    with np.errstate(invalid="ignore"):
        difference = (weight * (inside / m - outside / n)).sum() / weight.sum()
    some = member.any() and not member.all()
    raw = scores[member].mean() - scores[~member].mean() if some else np.nan
    counts = (int(member.sum()), int((~member).sum()), int((m + n).sum()))
    return FrequencyMatched(float(difference), float(raw), *counts)
