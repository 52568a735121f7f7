"""The pairs of rows of two dictionaries whose product passes a threshold, tile by tile: the matrix
of all products is never made.

Rows are 8-bit codes q. Every row, of either side, has a scale s, a threshold h, an error e, and
perhaps a price v:

    p_ij = q_i . q_j s_j s_i        upper_ij = p_ij + e_i + e_j

    without prices   { (i, j) : p_ij > min(h_i, h_j) }
    with prices      { (i, j) : p_ij > v_i + v_j  and  (p_ij <= min(h_i, h_j)  or  h_i = infinity) }

Codes are multiplied exactly, in integers. What follows is float32 arithmetic in the order written,
no multiplication and addition made one: so the loop, the Triton kernels and the reference give the
same bits, and one allowance for rounding holds for all.

A [n, D], B [m, D]. Of a row's pairs the first `cap` are given, in order of columns, as one band of
rows after another.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numba import njit
from torch import Tensor

from faithful_sae.kernels.backend import int8_product, jit, on_triton, over_rows, tl, triton

# of the loop, whose tile stays in the cache; the rows of a band
TILE = 2048
# pairs of a band
ROOM = 2**22
# of the Triton kernels' tiles: what _write does with larger ones no longer fits in registers
BLOCK = 64
BLOCK_D = 64


def reference(
    a: Tensor,
    b: Tensor,
    row_terms: Tensor,
    column_terms: Tensor,
    cap: int,
) -> tuple[Tensor, Tensor, Tensor]:
    row = row_terms[:, :, None]
    column = column_terms
    product = a[: row.shape[1]].double() @ b[: column.shape[1]].double().T  # exact
    p = product.float() * column[0] * row[0]
    passes = p > torch.minimum(row[1], column[1])
    if len(row) == 4:
        passes = (p > row[3] + column[3]) & (~passes | row[1].isposinf())
    i, j = (passes & (passes.cumsum(1) <= cap)).nonzero(as_tuple=True)
    return j, p[i, j] + row_terms[2, i] + column[2, j], passes.sum(1)


@njit(nogil=True, cache=True, error_model="numpy")  # and no `fastmath`
def _collect(start, stop, product, row_terms, column_terms, first_column, counts, columns, upper):
    width = column_terms.shape[1]
    cap = columns.shape[1]
    passed = np.zeros(-(-width // 8) * 8, np.uint8)
    eights = passed.view(np.uint64)
    scale_column = column_terms[0]
    limit_column = column_terms[1]
    error_column = column_terms[2]
    price_column = column_terms[-1]
    for i in range(start, stop):
        scale = row_terms[0, i]
        limit = row_terms[1, i]
        error = row_terms[2, i]
        price = row_terms[-1, i]
        count = counts[i]
        products = product[i]
        if len(row_terms) == 3:  # plain loops, which the compiler turns into vector instructions
            for j in range(width):
                threshold = limit_column[j] if limit_column[j] < limit else limit
                passed[j] = np.float32(products[j]) * scale_column[j] * scale > threshold
        else:
            unknown = limit == np.inf
            for j in range(width):
                threshold = limit_column[j] if limit_column[j] < limit else limit
                value = np.float32(products[j]) * scale_column[j] * scale
                passed[j] = (value > price + price_column[j]) & ((value <= threshold) | unknown)
        for eight in range(len(eights)):
            if eights[eight]:
                for j in range(8 * eight, min(8 * eight + 8, width)):
                    if passed[j]:
                        if count < cap:
                            columns[i, count] = first_column + j
                            upper[i, count] = (
                                np.float32(products[j]) * scale_column[j] * scale
                                + error
                                + error_column[j]
                            )
                        count += 1
        counts[i] = count


def by_loop(
    a: Tensor,
    b: Tensor,
    row_terms: Tensor,
    column_terms: Tensor,
    cap: int,
    report: Callable[[int], object],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    n = row_terms.shape[1]
    m = column_terms.shape[1]
    height = _height(cap)
    columns, upper = np.empty((height, cap), np.int32), np.empty((height, cap), np.float32)
    # one for all tiles: fresh pages cost more than the product
    workspace = torch.empty(height * TILE, dtype=torch.int32)
    for start in range(0, n, height):
        own = a[start : start + height]
        mine = row_terms[:, start : start + height]
        counts = np.zeros(mine.shape[1], np.int64)
        for first in range(0, m, TILE):
            other = b[first : first + TILE]
            theirs = column_terms[:, first : first + TILE]
            product = int8_product(
                own, other.T, out=workspace[: len(own) * len(other)].view(len(own), len(other))
            )
            over_rows(_collect, len(counts), product, mine, theirs, first, counts, columns, upper)
            report(len(counts) * theirs.shape[1])
        given = np.arange(cap) < np.minimum(counts, cap)[:, None]
        yield columns[: len(counts)][given], upper[: len(counts)][given], counts


@jit
def _pairs(
    a,
    b,
    row_terms,
    column_terms,
    i,
    j,
    N,
    M,
    D,
    PRICES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(p, whether it passes) of the rows i and columns j of one tile."""
    product = tl.zeros([BLOCK, BLOCK], tl.int32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        own = tl.load(
            a + i[:, None].to(tl.int64) * D + d[None, :],
            mask=(i[:, None] < N) & (d[None, :] < D),
            other=0,
        )
        other = tl.load(
            b + j[:, None].to(tl.int64) * D + d[None, :],
            mask=(j[:, None] < M) & (d[None, :] < D),
            other=0,
        )
        product = tl.dot(own, tl.trans(other), product, out_dtype=tl.int32)
    scale_column = tl.load(column_terms + j, mask=j < M, other=0)
    p = (
        product.to(tl.float32)
        * scale_column[None, :]
        * tl.load(row_terms + i, mask=i < N, other=0)[:, None]
    )
    limit = tl.load(row_terms + N + i, mask=i < N, other=0)
    passes = p > tl.minimum(
        limit[:, None], tl.load(column_terms + M + j, mask=j < M, other=0)[None, :]
    )
    if PRICES:
        price = tl.load(row_terms + 3 * N + i, mask=i < N, other=0)
        price_column = tl.load(column_terms + 3 * M + j, mask=j < M, other=0)
        passes = (p > price[:, None] + price_column[None, :]) & (
            (passes == 0) | (limit == float("inf"))[:, None]
        )
    return p, passes & (i[:, None] < N) & (j[None, :] < M)


@jit
def _count(
    a,
    b,
    row_terms,
    column_terms,
    counts,
    N,
    M,
    D,
    PRICES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program makes one tile and counts what passes in each of its rows."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    _, passes = _pairs(a, b, row_terms, column_terms, i, j, N, M, D, PRICES, BLOCK, BLOCK_D)
    tl.store(counts + tl.program_id(1) * N + i, tl.sum(passes.to(tl.int32), 1), mask=i < N)


@jit
def _write(
    a,
    b,
    row_terms,
    column_terms,
    before,
    place,
    columns,
    upper,
    cap,
    N,
    M,
    D,
    PRICES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program makes one tile again and writes what passes, row i's from place[i] on, behind
    what earlier tiles hold of the row.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p, passes = _pairs(a, b, row_terms, column_terms, i, j, N, M, D, PRICES, BLOCK, BLOCK_D)
    rank = (
        tl.load(before + tl.program_id(1) * N + i, mask=i < N, other=0)[:, None]
        + tl.cumsum(passes.to(tl.int32), 1)
        - 1
    )
    upper_bound = p + tl.load(row_terms + 2 * N + i, mask=i < N, other=0)[:, None]
    upper_bound += tl.load(column_terms + 2 * M + j, mask=j < M, other=0)[None, :]
    at = tl.load(place + i, mask=i < N, other=0)[:, None] + rank
    given = passes & (rank < cap)
    tl.store(columns + at, tl.broadcast_to(j[None, :], [BLOCK, BLOCK]), mask=given)
    tl.store(upper + at, upper_bound, mask=given)


def by_triton(
    a: Tensor,
    b: Tensor,
    row_terms: Tensor,
    column_terms: Tensor,
    cap: int,
    report: Callable[[int], object],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every product is made twice, first to count: so there is room for just what passes, each in
    its place whatever runs first.
    """
    m = column_terms.shape[1]
    height = _height(cap)
    row_terms = row_terms.to(a.device)
    column_terms = column_terms.to(a.device).contiguous()
    for start in range(0, row_terms.shape[1], height):
        mine = row_terms[:, start : start + height].contiguous()
        n = mine.shape[1]
        grid = (triton.cdiv(mine.shape[1], BLOCK), triton.cdiv(m, BLOCK))
        tiles = (a[start : start + n], b, mine, column_terms)
        sizes = (n, m, a.shape[1], len(mine) == 4, BLOCK, BLOCK_D)
        counts = torch.empty(grid[1], n, dtype=torch.int32, device=a.device)
        _count[grid](*tiles, counts, *sizes, enable_fp_fusion=False)
        until = counts.cumsum(0, dtype=torch.int32)
        end = until[-1].clamp(max=cap).cumsum(0, dtype=torch.int32)
        columns = torch.empty(int(end[-1]), dtype=torch.int32, device=a.device)
        upper = torch.empty(int(end[-1]), dtype=torch.float32, device=a.device)
        _write[grid](
            *tiles,
            until - counts,
            end - until[-1].clamp(max=cap),
            columns,
            upper,
            cap,
            *sizes,
            enable_fp_fusion=False,
        )
        report(n * m)
        yield columns.cpu().numpy(), upper.cpu().numpy(), until[-1].long().cpu().numpy()


def _height(cap: int) -> int:
    """Rows of a band: a multiple of 32."""
    return max(32, min(TILE, ROOM // cap // 32 * 32))


def cosine_tiles(
    a: Tensor,
    b: Tensor,
    row_terms: Tensor,
    column_terms: Tensor,
    cap: int,
    report: Callable[[int], object],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs of the equation above.

    Args:
        a: int8 [n or more, D], contiguous, D a multiple of 32 up to 133,000; rows from n on are
            ignored.
        b: int8 [m or more, D], likewise.
        row_terms: float32 [3, n], scale, threshold and error of every row, or [4, n] with prices.
        column_terms: float32 [3, m] or [4, m], likewise.
        cap: how many pairs of one row are given, 1 to m.
        report: called with the number of products that have been looked at since.

    Yields:
        (columns int32 [pairs], upper float32 [pairs], counts int64 [rows]) of one band of rows
        after another, NumPy arrays: pairs by row and then column; `counts` says how many each row
        has, of which at most `cap` are given. Memory: 2^22 pairs and a tile.
    """
    return (by_triton if on_triton(a) else by_loop)(a, b, row_terms, column_terms, cap, report)
