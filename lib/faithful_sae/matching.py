"""Optimal one-to-one matching of two dictionaries by cosine (Hungarian matching; paper 3.4, after Paulo and Belrose 2025)."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Matching:
    """Row i of A is matched with row permutation[i] of B, so that the sum of cosines is the largest possible.

    Attributes:
        permutation: int64 [n]. cosine: float64 [n], of each matched pair. objective: their sum.
        certified: whether optimality was proven by a dual bound; `gap`: that bound minus the objective. scipy's solver is
            exact but gives no bound, so here they are False and NaN.
    """
    permutation: np.ndarray
    cosine: np.ndarray
    objective: float
    certified: bool = False
    gap: float = float("nan")


def unit_rows(matrix, name="matrix"):
    """Rows scaled to norm 1, float32 [n, d]; a row of zeros stays zero and has cosine 0 with everything.

    Raises:
        ValueError: a NaN or infinity, naming the row; not a matrix.
    """
    matrix = torch.as_tensor(matrix).detach().float().cpu()
    if matrix.ndim != 2 or not len(matrix):
        raise ValueError(f"{name} must be a matrix with at least one row, not of shape {list(matrix.shape)}")
    if len(bad := (~matrix.isfinite().all(-1)).nonzero()):
        raise ValueError(f"{name}: row {bad[0].item()} holds NaN or infinity")
    return torch.nn.functional.normalize(matrix, dim=-1).numpy()


def match_features(A, B) -> Matching:
    """Match the rows of A [n, d] with those of B [n, d] (normalised inside) so that their total cosine is largest.

    Memory: one n x n float32 matrix, and scipy's float64 copy of it. Time grows as n^3 at worst.

    Raises:
        ValueError: different shapes; NaN or infinity in a row.
    """
    A, B = unit_rows(A, "A"), unit_rows(B, "B")
    if A.shape != B.shape:
        raise ValueError(f"A is {list(A.shape)} and B is {list(B.shape)}: the two dictionaries must have one size")
    rows, permutation = linear_sum_assignment(A @ B.T, maximize=True)
    cosine = np.einsum("nd,nd->n", A[rows], B[permutation], dtype=np.float64)
    return Matching(permutation.astype(np.int64), cosine, float(cosine.sum()))


def match_pairs(dictionaries) -> dict:
    """Match all pairs of several dictionaries: {(a, b): Matching of the rows of a with those of b}.

    Args:
        dictionaries: {name: [n, d]}, of one size; pairs come in the order of itertools.combinations(names, 2).

    Raises:
        ValueError: as match_features.
    """
    return {(a, b): match_features(dictionaries[a], dictionaries[b]) for a, b in itertools.combinations(dictionaries, 2)}
