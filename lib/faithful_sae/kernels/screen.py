"""Products that are only a screen: p = x . w for all latents at once, in bfloat16 where the CPU has
instructions for it, with a bound on the error of each.

A product in bfloat16 takes a tenth of the time of one in float32. Whoever looks for large p sees by
p~ and its bound e which cannot be, and computes the others again, one by one in float32 and always
in the same order of summation. So what is found is that of the float32 dot products, whatever made
the screen. Nothing has to fall back: loose bounds leave more to compute. Rows may have norms of
1e-22 to 1e18, whose squares float32 holds. With x~, w~ rounded to bfloat16 (Cauchy-Schwarz):

    |p~ - p|  <=  |x - x~| |w| + |x~| |w - w~|     what goes in is rounded
               +  2^-8 |p~|                        p~ is rounded too
               +  D 2^-22 |x| |w|                  float32 sums, both products

B tokens, F latents, D model.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from faithful_sae.kernels.backend import loop, over_rows

# screened at a time: they stay in the cache, and malloc keeps them (from 32 MB on it does not)
SCREEN_BYTES = 2**24
# float32's relative error per addition, 2^-24, for the screen and for the dot product, doubled
SUM_ERROR = np.float32(2**-22)
BFLOAT16_ERROR = np.float32(2**-8)
# the norms are float32 themselves
NORM_MARGIN = 1.001


def _as_float(element) -> Any:
    """A float32 from an element of the screen: float32, or the bits of a bfloat16."""


@overload(_as_float)
def _as_float_loop(element):
    if isinstance(element, types.Integer):
        return lambda element: np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)
    return lambda element: element


@loop
def _round_loop(first, last, rows, bits, rounded, norm, error):
    """bfloat16 bits (to nearest, ties to even) of each row, the norm of the row, and the norm of
    what rounding changed.
    """
    for r in range(first, last):
        square, square_error = np.float32(0), np.float32(0)
        for d in range(rows.shape[1]):
            b = bits[r, d]
            upper = np.uint32(
                (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            )
            rounded[r, d] = upper
            lost = rows[r, d] - np.uint32(upper << np.uint32(16)).view(np.float32)
            square += rows[r, d] * rows[r, d]
            square_error += lost * lost
        norm[r], error[r] = np.sqrt(square), np.sqrt(square_error)


@loop
def screened(element, b, error, norm, column_norm, column_error, rounding):
    """(p~, e) of one latent."""
    p = _as_float(element)
    e = error * column_norm + norm * column_error + abs(p) * rounding
    p += b
    return p, e + abs(p) * SUM_ERROR


@cache
def bfloat16_is_fast() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than of float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows in bfloat16, norm of each row, norm of what rounding changed in it), or the rows as
    they are where that is not faster.
    """
    norm = torch.empty(len(rows))
    error = torch.zeros(len(rows))
    if not bfloat16_is_fast():
        return rows, torch.linalg.vector_norm(rows, dim=1), error
    rounded = torch.empty_like(rows, dtype=torch.bfloat16)
    over_rows(
        _round_loop,
        len(rows),
        rows,
        rows.view(torch.uint32),
        rounded.view(torch.uint16),
        norm,
        error,
    )
    return rounded, norm, error


class Screen:
    """The products of x [B, D] with `weight` [F, D], both float32 on the CPU.

    Attributes:
        columns: (norm, norm of what rounding changed) of each row of `weight`, [F] each.
    """

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self._x, x_norm, x_error = _rounded(x)
        self._weight, norm, changed = _rounded(weight)
        # NumPy's stubs do not know that its numbers multiply tensors
        error = x.shape[1] * SUM_ERROR * x_norm  # pyright: ignore[reportOperatorIssue]
        self._rows = (x_error + error) * NORM_MARGIN, (x_norm + x_error) * NORM_MARGIN
        self.columns = norm * NORM_MARGIN, changed * NORM_MARGIN

    def parts(self) -> Iterator[tuple[slice, tuple[Tensor, np.float32], tuple[Tensor, Tensor]]]:
        """Some rows at a time: (which, (products as bits or numbers [.., F], how far one is rounded
        as a share of it), (error, norm) of each row).
        """
        each = max(SCREEN_BYTES // (len(self._weight) * self._x.itemsize), 64)
        for first in range(0, len(self._x), each):
            part = slice(first, min(first + each, len(self._x)))
            products = self._x[part] @ self._weight.T
            rounding = SUM_ERROR
            if products.dtype == torch.bfloat16:
                rounding = BFLOAT16_ERROR
                products = products.view(torch.uint16)
            error, norm = self._rows
            yield part, (products, rounding), (error[part], norm[part])
