"""Tiles of products of codes, and the pairs in them that pass a threshold. Never more than one tile is held.

Two thresholds are needed. The first pass keeps the likely pairs of every row and column,

    t~_ij > min(row_i, column_j),

a pass against dual prices those not kept that could still beat them, t~_ij > row_i + column_j. Cost: 2 n_A n_B d integer operations and a look at
each of the n_A n_B results.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from faithful_sae.assignment.rows import SLOP
from faithful_sae.kernels.backend import over_rows

TILE = 2048


class Codes:
    """The codes of some rows of a dictionary, and the scales that turn their products into t~."""

    def __init__(self, rows, chosen=None):
        codes, scale, _, _ = rows.codes
        if chosen is not None:
            padded = np.concatenate([chosen, np.full(-len(chosen) % 32, chosen[0])])    # any rows: nobody looks at these products
            codes = codes[torch.from_numpy(padded).to(codes.device)]
            scale = scale[chosen]
        self.index = np.arange(rows.n) if chosen is None else chosen
        self.codes, self.scale = codes, scale.astype(np.float32)


def error_terms(A, B):
    """(row, column) float64 terms whose sum bounds |t_ij - t~_ij|: rows.py's bound, with e_j in its last product at its largest."""
    _, _, error_a, size_a = A.codes
    _, _, error_b, size_b = B.codes
    return error_a * (size_b.max() + error_b.max()) + SLOP, error_b * size_a.max() + SLOP


def sampled_thresholds(A, B, keep, rng):
    """A threshold for each row of A that about `keep` rows of B exceed: the 4th largest product with 4 n / keep random rows of B.

    Any threshold is valid: it only decides how many pairs are kept. float32 [A.n].
    """
    chosen = np.sort(rng.choice(B.n, min(B.n, max(4 * B.n // keep, 8)), replace=False))
    a, b, out = Codes(A), Codes(B, chosen), np.empty(A.n, np.float32)
    scale_b = torch.from_numpy(b.scale).to(A.device)
    for start in range(0, A.n, TILE):
        stop = min(start + TILE, A.n)
        product = torch._int_mm(a.codes[start:start + TILE], b.codes.T)
        product = product[:stop - start, :len(chosen)] * scale_b
        out[start:stop] = product.topk(min(4, len(chosen))).values[:, -1].cpu().numpy() * a.scale[start:stop]
    return out


@dataclass(frozen=True)
class Kept:
    """The first pass's thresholds: float32 [n_A], [n_B]. It keeps a pair when its product is above the smaller of the two.

    A row with more pairs than it may keep has a threshold of infinity: what was kept of it is unknown.
    """
    row: np.ndarray
    column: np.ndarray


def scan(A, B, kept, errors, report, cap, above=None):
    """Find pairs of rows of two `Codes`: those to keep or, with `above`, those not kept whose product exceeds a sum.

    Args:
        kept: thresholds of the first pass. above: float (row [n_A], column [n_B]) terms of that sum.
        errors: float (row [n_A], column [n_B]) terms, added to a product to make an upper bound of t.
        report: called with the number of products after each tile. cap: how many pairs of one row are given at most.

    Yields:
        (rows, columns int32, upper float32, counts) of one band of rows after another, pairs in order of rows, as numbers of the
        dictionaries' rows; counts int64: how many pairs each row of the band has, of which at most `cap` are given.
    """
    step = _host_tile if A.codes.device.type == "cpu" else _device_tile
    row_terms = np.stack([x[A.index] for x in (kept.row, errors[0], *(above[:1] if above else ()))]).astype(np.float32)
    column_terms = np.stack([x[B.index] for x in (kept.column, errors[1], *(above[1:] if above else ()))]).astype(np.float32)
    cap = min(cap, len(B.index))
    height = max(32, min(TILE, 2 ** 22 // cap // 32 * 32))    # codes are padded to multiples of 32, which GPUs ask for
    columns, upper = np.empty((height, cap), np.int32), np.empty((height, cap), np.float32)
    workspace = torch.empty(height * TILE, dtype=torch.int32)    # one for all tiles: fresh pages cost more than the product
    for start in range(0, len(A.index), height):
        band = slice(start, min(start + height, len(A.index)))
        counts = np.zeros(band.stop - start, np.int64)
        for first in range(0, len(B.index), TILE):
            part = slice(first, min(first + TILE, len(B.index)))
            step(A, B, band, part, row_terms[:, band], column_terms[:, part], counts, columns, upper, workspace, height)
            report((band.stop - start) * (part.stop - first))
        given = np.minimum(counts, cap)
        chosen = np.arange(cap) < given[:, None]
        yield np.repeat(A.index[band], given), B.index[columns[:len(given)][chosen]], upper[:len(given)][chosen], counts


def _host_tile(A, B, band, part, row_terms, column_terms, counts, columns, upper, workspace, height):
    a, b = A.codes[band.start:band.start + height], B.codes[part.start:part.start + TILE]
    product = torch._int_mm(a, b.T, out=workspace[:len(a) * len(b)].view(len(a), len(b))).numpy()
    over_rows(_collect, len(counts), product, A.scale[band], B.scale[part], row_terms, column_terms, part.start, counts, columns, upper)


def _device_tile(A, B, band, part, row_terms, column_terms, counts, columns, upper, _, height):
    """The same where the codes are: product and threshold on the device, and only the few pairs that pass come to the host."""
    def there(x):
        return torch.from_numpy(np.ascontiguousarray(x)).to(A.codes.device)
    product = torch._int_mm(A.codes[band.start:band.start + height], B.codes[part.start:part.start + TILE].T)
    value = product[:band.stop - band.start, :part.stop - part.start] * there(B.scale[part]) * there(A.scale[band])[:, None]
    row, column = there(row_terms)[:, :, None], there(column_terms)
    keep = value > torch.minimum(row[0], column[0])
    if len(row) == 3:
        keep = (value > row[2] + column[2]) & (~keep | row[0].isposinf())
    i, j = keep.nonzero(as_tuple=True)
    value, i, j = value[i, j].cpu().numpy(), i.cpu().numpy(), j.cpu().numpy()
    found = np.bincount(i, minlength=len(counts))
    place = counts[i] + np.arange(len(i)) - (np.cumsum(found) - found)[i]
    fits = place < columns.shape[1]
    columns[i[fits], place[fits]] = j[fits] + part.start
    upper[i[fits], place[fits]] = (value + row_terms[1][i] + column_terms[1][j])[fits]
    counts += found


@njit(nogil=True, cache=True, error_model="numpy")
def _collect(start, stop, product, scale_row, scale_column, row_terms, column_terms, first_column, counts, columns, upper):
    width, cap = len(scale_column), columns.shape[1]
    passed = np.zeros(-(-width // 8) * 8, np.uint8)
    eights = passed.view(np.uint64)
    kept_column, error_column, above_column = column_terms[0], column_terms[1], column_terms[-1]
    for i in range(start, stop):
        scale, count, products = scale_row[i], counts[i], product[i]
        kept, above = row_terms[0, i], row_terms[-1, i]
        if len(row_terms) == 2:    # plain loops, which the compiler turns into vector instructions
            for j in range(width):
                threshold = kept_column[j] if kept_column[j] < kept else kept
                passed[j] = np.float32(products[j]) * scale_column[j] * scale > threshold
        else:
            unknown = kept == np.inf
            for j in range(width):
                threshold = kept_column[j] if kept_column[j] < kept else kept
                value = np.float32(products[j]) * scale_column[j] * scale
                passed[j] = (value > above + above_column[j]) & ((value <= threshold) | unknown)
        for eight in range(len(eights)):
            if eights[eight]:
                for j in range(8 * eight, min(8 * eight + 8, width)):
                    if passed[j]:
                        if count < cap:
                            columns[i, count] = first_column + j
                            upper[i, count] = np.float32(products[j]) * scale_column[j] * scale + row_terms[1, i] + error_column[j]
                        count += 1
        counts[i] = count
