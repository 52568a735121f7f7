"""Optimal one-to-one matching of two dictionaries by cosine (Hungarian matching; paper 3.4, after
Paulo and Belrose 2025).
"""

import itertools
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from faithful_sae.matching.codes import Rows, cosines
from faithful_sae.matching.search import Search

DENSE_BELOW = 640  # rows of the smaller side: scipy is as fast there
DENSE_PAIRS = (
    12288**2
)  # its float64 matrices, 3.6 GB here, are what is left where the search does not end
ROUNDS, LIMIT = (
    30,
    8,
)  # of the search where scipy is left, and edges per pair: about as long as scipy takes
ROUNDS_ALONE = 200  # where it is not
BAR_FROM = 4e8  # pairs, some seconds


@dataclass(frozen=True)
class Matching:
    """Row i of A is matched with row permutation[i] of B, so that the sum of cosines is the largest
    possible.

    Attributes:
        permutation: int64 [n_A]; -1 for rows that stay alone where A has more rows than B.
        cosine: float64 [n_A], of each matched pair; NaN for rows that stay alone. objective: their
            sum.
        certified: whether optimality is proven: every pair was compared with dual prices, whose sum
            `bound` no matching can exceed, and gap = bound - objective <= 1e-9 n. If not, the
            matching is the best found and `gap` how much better the optimum could be, infinite if
            some pair was never covered.
        rounds, scanned: of column generation; pairs looked at after the first pass, in units of n_A
            n_B.
    """

    permutation: np.ndarray
    cosine: np.ndarray
    objective: float
    certified: bool
    gap: float
    rounds: int
    scanned: float


def match_features(A, B, progress=None) -> Matching:
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


def match_pairs(dictionaries, progress=None) -> dict[tuple, Matching]:
    """Match every two of several dictionaries, each prepared once: {(a, b): Matching of a's rows to
    b's}.

    Args:
        dictionaries: {name: [n, d]}, pairs in the order of itertools.combinations over the names.
            Otherwise as match_features.
    """
    prepared = {name: Rows(matrix, str(name)) for name, matrix in dictionaries.items()}
    return {
        (a, b): _match(prepared[a], prepared[b], progress)
        for a, b in itertools.combinations(prepared, 2)
    }


def _match(A, B, progress):
    if A.d != B.d:
        raise ValueError(
            f"A is [{A.n}, {A.d}] and B is [{B.n}, {B.d}]: rows of different width have no cosine"
        )
    if A.device != B.device:
        raise ValueError(f"A is on {A.device} and B on {B.device}: move one of them")
    if A.n > B.n:
        swapped = _match(B, A, progress)
        permutation, cosine = np.full(A.n, -1), np.full(A.n, np.nan)
        permutation[swapped.permutation], cosine[swapped.permutation] = (
            np.arange(B.n),
            swapped.cosine,
        )
        return Matching(
            permutation,
            cosine,
            swapped.objective,
            swapped.certified,
            swapped.gap,
            swapped.rounds,
            swapped.scanned,
        )
    quiet = A.n * B.n < BAR_FROM if progress is None else not progress
    small = A.n * B.n <= DENSE_PAIRS
    with tqdm(
        total=A.n * B.n,
        unit="pair",
        unit_scale=True,
        desc=f"matching {A.n:,} x {B.n:,}",
        disable=quiet,
    ) as bar:
        dense = small and A.n < DENSE_BELOW
        if not dense:
            found = Search(A, B, bar, limit=LIMIT if small else np.inf).run(
                ROUNDS if small else ROUNDS_ALONE
            )
        if dense or small and not np.isfinite(found.bound):
            found = Search(A, B, bar, dense=True).run(ROUNDS_ALONE)
    cosine = cosines(A, B, np.arange(A.n), found.match)
    objective = float(cosine.sum())
    gap = found.bound - objective
    return Matching(
        found.match, cosine, objective, bool(gap <= 1e-9 * A.n), gap, found.rounds, found.scanned
    )
