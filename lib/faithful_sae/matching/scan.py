"""The pairs of rows whose product of codes, t~, passes a threshold: what kernels/cosine_tiles.py is
asked, and with what error.

The first pass keeps the likely pairs of every row and column, t~_ij > min(row_i, column_j); a pass
against dual prices finds those not kept that could still beat them, t~_ij > row_i + column_j. Cost:
2 n_A n_B d integer operations and a look at each of the n_A n_B results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from faithful_sae.kernels.backend import int8_product
from faithful_sae.kernels.cosine_tiles import cosine_tiles
from faithful_sae.matching.codes import SLOP, Rows

# rows whose threshold is sampled at once
SAMPLED = 2048

# one number for each row and each column
Terms = tuple[np.ndarray, np.ndarray]


class Codes:
    """The codes of some rows of a dictionary, and the scales that turn their products into t~.

    Args:
        rows: the dictionary.
        chosen: int64, the numbers of the rows; None: all.
    """

    def __init__(self, rows: Rows, chosen: np.ndarray | None = None):
        codes, scale, _, _ = rows.codes
        if chosen is not None:
            # padded with any rows: nobody looks at these products
            padded = np.concatenate([chosen, np.full(-len(chosen) % 32, chosen[0])])
            codes = codes[torch.from_numpy(padded).to(codes.device)]
            scale = scale[chosen]
        self.index = np.arange(rows.n) if chosen is None else chosen
        self.codes = codes
        self.scale = scale.astype(np.float32)


def error_terms(A: Rows, B: Rows) -> Terms:
    """(row, column) float64 terms whose sum bounds |t_ij - t~_ij|: codes.py's bound, with e_j in
    its last product at its largest.
    """
    _, _, error_a, size_a = A.codes
    _, _, error_b, size_b = B.codes
    return error_a * (size_b.max() + error_b.max()) + SLOP, error_b * size_a.max() + SLOP


def sampled_thresholds(A: Rows, B: Rows, keep: int, rng: np.random.Generator) -> np.ndarray:
    """A threshold for each row of A that about `keep` rows of B exceed: the 4th largest product
    with 4 n / keep random rows of B.

    Any threshold is valid: it only decides how many pairs are kept. float32 [A.n].
    """
    chosen = np.sort(rng.choice(B.n, min(B.n, max(4 * B.n // keep, 8)), replace=False))
    a = Codes(A)
    b = Codes(B, chosen)
    out = np.empty(A.n, np.float32)
    scale_b = torch.from_numpy(b.scale).to(A.device)
    for start in range(0, A.n, SAMPLED):
        stop = min(start + SAMPLED, A.n)
        product = int8_product(a.codes[start : start + SAMPLED], b.codes.T)
        product = product[: stop - start, : len(chosen)] * scale_b
        out[start:stop] = (
            product.topk(min(4, len(chosen))).values[:, -1].cpu().numpy() * a.scale[start:stop]
        )
    return out


@dataclass(frozen=True)
class Kept:
    """The first pass's thresholds: float32 [n_A], [n_B]. It keeps a pair when its product is above
    the smaller of the two.

    A row with more pairs than it may keep has a threshold of infinity: what was kept of it is
    unknown.
    """

    row: np.ndarray
    column: np.ndarray


def scan(
    A: Codes,
    B: Codes,
    kept: Kept,
    errors: Terms,
    report: Callable[[int], object],
    cap: int,
    above: Terms | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Find pairs of rows of two `Codes`: those to keep or, with `above`, those not kept whose
    product exceeds a sum.

    Args:
        kept: thresholds of the first pass.
        errors: float (row [n_A], column [n_B]) terms, added to a product to make an upper bound of
            t.
        report: called with the number of products after each tile.
        cap: how many pairs of one row are given at most.
        above: float (row [n_A], column [n_B]) terms of that sum.

    Yields:
        (rows, columns, upper float32, counts) of one band of rows after another, pairs in order of
        rows, as numbers of the dictionaries' rows; counts int64: how many pairs each row of the
        band has, of which at most `cap` are given.
    """
    terms = (kept.row, kept.column), errors, *((above,) if above else ())
    row_terms, column_terms = (
        torch.from_numpy(
            np.stack([side.scale, *(pair[own][side.index] for pair in terms)]).astype(np.float32)
        )
        for own, side in enumerate((A, B))
    )
    cap = min(cap, len(B.index))
    start = 0
    for columns, upper, counts in cosine_tiles(
        A.codes, B.codes, row_terms, column_terms, cap, report
    ):
        rows = A.index[start : start + len(counts)]
        start += len(counts)
        yield np.repeat(rows, np.minimum(counts, cap)), B.index[columns], upper, counts
