"""Whether SAEs agree because they have learnt the same, or because they began alike (ours; what is
told apart is Brzozowski and Chung's distinction, 2026, arXiv 2606.02061: agreement and
convergence).

w_i is row i of W_dec, pi the optimal matching of two dictionaries.

    SFR                share of latents with cos(w_i, w'_pi(i)) >= threshold
    cosine             mean of cos(w_i, w'_pi(i))
    SFR by number      share of latents with cos(w_i, w'_i) >= threshold
    cosine by number   mean of cos(w_i, w'_i)
    kept               share of latents with pi(i) = i

Two SAEs with the same initialisation that have not moved are equal by number. Where the optimal
matching finds no more than numbers do, what they share is where they began. Two that share no
initialisation have nothing by number, and what the matching finds beyond untrained dictionaries
they have both come to.

A corpus may share more features only because SAEs have learnt more of it by then. y is SFR, x is
FVU, each a curve over numbers of training tokens: between two of them y(x) is the straight line.

    difference at equal x = y(x*) - y'(x*),  x* = the least x that both curves reach

F latents, D model, P points.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as nn
from numpy.typing import ArrayLike
from torch import Tensor

from faithful_sae.matching import Matching


@dataclass(frozen=True)
class Agreement:
    """Two dictionaries of one size; see the module for the formulas.

    Attributes:
        sfr, sfr_by_number, kept: shares of latents, 0 to 1.
        cosine, cosine_by_number: -1 to 1.
    """

    sfr: float
    cosine: float
    sfr_by_number: float
    cosine_by_number: float
    kept: float


def cosines_by_number(a: Tensor, b: Tensor) -> np.ndarray:
    """cos of row i of one dictionary with row i of another, float64 [F]; 0 with a row of zeros.

    Args:
        a, b: float [F, D].

    Raises:
        ValueError: different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"dictionaries [{a.shape[0]}, ..] and [{b.shape[0]}, ..] have other rows")
    return nn.cosine_similarity(a.double(), b.double(), dim=-1).cpu().numpy()


def agreement(a: Tensor, b: Tensor, matching: Matching, threshold: float) -> Agreement:
    """What two dictionaries share, by their optimal matching and by number.

    Args:
        a, b: W_dec, float [F, D].
        matching: of a's rows to b's.
        threshold: least cosine of a shared latent.

    Raises:
        ValueError: as cosines_by_number.
    """
    by_number = cosines_by_number(a, b)
    return Agreement(
        sfr=float((matching.cosine >= threshold).mean()),
        cosine=float(matching.cosine.mean()),
        sfr_by_number=float((by_number >= threshold).mean()),
        cosine_by_number=float(by_number.mean()),
        kept=float((matching.permutation == np.arange(len(by_number))).mean()),
    )


def difference_at_equal(
    x: ArrayLike, y: ArrayLike, other_x: ArrayLike, other_y: ArrayLike
) -> tuple[float, float]:
    """What one curve is above another at equal x.

    Args:
        x, y: of one, float [P], x falling: FVU and SFR with ever more training tokens.
        other_x, other_y: of the other, float [P'].

    Returns:
        (at the least x that both reach, mean over all x that both reach); NaN where there is no
        such x, or where an x does not fall, and there may be several y to one x.
    """
    curves = [np.array([x, y], float), np.array([other_x, other_y], float)]
    if any(curve.shape[1] < 2 or not (np.diff(curve[0]) < 0).all() for curve in curves):
        return np.nan, np.nan
    # rising, as np.interp takes them
    (x1, y1), (x2, y2) = (curve[:, ::-1] for curve in curves)
    low, high = max(x1[0], x2[0]), min(x1[-1], x2[-1])
    if low >= high:
        return np.nan, np.nan
    # both are straight between these, and so is what lies between them
    knots = np.unique(np.clip(np.concatenate([x1, x2]), low, high))
    above = np.interp(knots, x1, y1) - np.interp(knots, x2, y2)
    return float(above[0]), float(np.trapezoid(above, knots) / (high - low))
