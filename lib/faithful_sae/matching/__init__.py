"""Optimal one-to-one matching of two dictionaries by cosine (Hungarian matching; paper 3.4, after
Paulo and Belrose 2025): assignment problems as large as two dictionaries of 131,072 rows, solved
exactly and with a proof, without the dense matrix.

    codes.py   a dictionary's rows wherever they are, and its 8-bit codes with rigorous error bounds
    scan.py    tiled products of codes; pairs above a threshold
    sparse.py  auction, shortest augmenting paths and centred dual prices on a sparse graph
    search.py  the loop: solve on the graph of likely pairs, look for pairs that the dual prices do
               not rule out, repeat
    dense.py   small problems: scipy, and dual prices for its answer
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from faithful_sae.matching.codes import Rows, cosines
from faithful_sae.matching.search import Search

# rows of the smaller side: scipy is as fast there
DENSE_BELOW = 640
# up to so many rows of both sides, scipy's three float64 matrices, 3.6 GB here, are what is left
# where the search does not end
DENSE_ROWS = 12_288
# of the search where scipy is left, and edges per pair: about as long as scipy takes
ROUNDS = 30
LIMIT = 8
# of the search where it is not
ROUNDS_ALONE = 200
# pairs, some seconds
BAR_FROM = 4e8
# bytes a row of a dictionary takes while it is matched, beside a copy of it; 5,200 measured
MATCHING_ROW = 5_500


@dataclass(frozen=True)
class Matching:
    """Row i of A is matched with row permutation[i] of B, so that the sum of cosines is the largest
    possible.

    Attributes:
        permutation: int64 [n_A]; -1 for rows that stay alone where A has more rows than B.
        cosine: float64 [n_A], of each matched pair; NaN for rows that stay alone.
        objective: their sum.
        certified: whether optimality is proven: every pair was compared with dual prices, whose sum
            `bound` no matching can exceed, and gap = bound - objective <= 1e-9 n.
        gap: where that is not so, the matching is the best found, and the optimum at most so much
            better; infinite if some pair was never covered.
        rounds: of column generation.
        scanned: pairs looked at after the first pass, in units of n_A n_B.
    """

    permutation: np.ndarray
    cosine: np.ndarray
    objective: float
    certified: bool
    gap: float
    rounds: int
    scanned: float


def match_features(
    A: Tensor | np.ndarray, B: Tensor | np.ndarray, progress: bool | None = None
) -> Matching:
    """Match the rows of A [n_A, d] with those of B [n_B, d] (normalised inside) so that their total
    cosine is largest.

    The smaller side is matched in full. A row of zeros has cosine 0 with everything. Exact for the
    values given, in float64 arithmetic, and proven: see `Matching.certified`. Where several
    matchings are optimal, it is one of them.

    Args:
        A, B: tensors or arrays of real numbers, or numpy memory maps, which are read in blocks.
            Products of tensors on a GPU are computed there by Triton, in 8-bit integers, if it
            takes that GPU; the rest on the host.
        progress: whether to show a bar; None: where it takes more than some seconds.

    Cost: 2 n_A n_B d integer operations once, and again for the few percent of pairs that prices
    alone do not rule out. Memory: about 2.5 kB a row beside the matrices; an n x n matrix only
    below 640 rows, and up to 12288 rows where pairs that tie are too many for the search, as with
    thousands of equal rows. Beyond, such dictionaries may come back uncertified.

    Raises:
        ValueError: NaN or infinity, naming the row; no matrix of real numbers; different widths or
            devices.
    """
    return _match(Rows(A, "A"), Rows(B, "B"), progress)


def match_pairs(
    dictionaries: Mapping[Any, Tensor | np.ndarray], progress: bool | None = None
) -> dict[tuple[Any, Any], Matching]:
    """Match every two of several dictionaries, each prepared once.

    Args:
        dictionaries: {name: [n, d]}, as for match_features.
        progress: as for match_features.

    Returns:
        {(a, b): Matching of a's rows to b's}, in the order of itertools.combinations of the names.

    Raises:
        ValueError: as match_features; the name stands for A and B.
    """
    prepared = {name: Rows(matrix, str(name)) for name, matrix in dictionaries.items()}
    return {
        (a, b): _match(prepared[a], prepared[b], progress)
        for a, b in itertools.combinations(prepared, 2)
    }


def matching_bytes(d_model: int, d_sae: int, n_seeds: int) -> int:
    """Memory of matching the seeds of one corpus: each prepared once, and scipy's matrices where
    the search might not end.
    """
    return n_seeds * d_sae * (MATCHING_ROW + 4 * d_model) + (
        3 * 8 * d_sae**2 if d_sae <= DENSE_ROWS else 0
    )


def _match(A, B, progress):
    if A.d != B.d:
        raise ValueError(
            f"A is [{A.n}, {A.d}] and B is [{B.n}, {B.d}]: rows of different width have no cosine"
        )
    if A.device != B.device:
        raise ValueError(f"A is on {A.device} and B on {B.device}: move one of them")
    if A.n > B.n:
        swapped = _match(B, A, progress)
        permutation = np.full(A.n, -1)
        permutation[swapped.permutation] = np.arange(B.n)
        cosine = np.full(A.n, np.nan)
        cosine[swapped.permutation] = swapped.cosine
        return replace(swapped, permutation=permutation, cosine=cosine)
    quiet = A.n * B.n < BAR_FROM if progress is None else not progress
    small = A.n * B.n <= DENSE_ROWS**2
    with tqdm(
        total=A.n * B.n,
        unit="pair",
        unit_scale=True,
        desc=f"matching {A.n:,} x {B.n:,}",
        disable=quiet,
    ) as bar:
        found = None
        if not small:
            found = Search(A, B, bar, limit=np.inf).run(ROUNDS_ALONE)
        elif A.n >= DENSE_BELOW:
            found = Search(A, B, bar, limit=LIMIT).run(ROUNDS)
        if found is None or (small and not np.isfinite(found.bound)):
            found = Search(A, B, bar, dense=True).run(ROUNDS_ALONE)
    cosine = cosines(A, B, np.arange(A.n), found.match)
    objective = float(cosine.sum())
    gap = found.bound - objective
    return Matching(
        found.match, cosine, objective, bool(gap <= 1e-9 * A.n), gap, found.rounds, found.scanned
    )
