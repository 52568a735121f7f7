"""The rows of a dictionary: normalised exactly, and as 8-bit codes whose error is known.

    t_ij = (x_i - mean x) . (y_j - mean y)  =  s_ij - a_i - c_j
    s_ij = cosine,   a_i = x_i . mean y,   c_j = (y_j - mean y) . mean x

Leaving out the means changes every row and column of s by a constant, hence no matching's rank, and
leaves smaller numbers to quantise. A centred row z_i is coded as q_i = round(z_i / scale_i), 8
bits, with scale_i = max |z_i| / `levels()`. By Cauchy-Schwarz

    |t_ij - scale_i scale_j q_i . q_j|  <=  e_i |z_j|  +  (|z_i| + e_i) e_j
    e_i = |z_i - scale_i q_i|, measured

The product of codes is exact in 32-bit integers up to 133,000 dimensions.
"""

from collections.abc import Iterator, Sequence
from functools import cache, cached_property

import numpy as np
import torch
from numba import njit
from torch import Tensor

from faithful_sae.kernels.backend import int8_product, on_triton, over_rows

# rows of a memory map that are held at once
BLOCK = 8192
# float32 arithmetic on scaled codes and thresholds, all of size 4 at most; prices, which may be
# larger, pay for theirs
SLOP = 2e-6


@cache
def levels() -> int:
    """The largest code: 127, or 63 where 127 x 127 overflows. x86 CPUs without VNNI add pairs of
    products in 16 bits, and saturate.
    """
    extreme = torch.full((64, 256), 127, dtype=torch.int8)
    exact = all(
        (int8_product(sign * extreme, extreme.T) == sign * 256 * 127**2).all() for sign in (1, -1)
    )
    return 127 if exact else 63


class Rows:
    """One dictionary, prepared once for any number of matchings.

    Args:
        matrix: [n, d], a torch tensor or an array, of real numbers. Products of a tensor on a GPU
            that Triton takes are computed there. A numpy.memmap is read in blocks and never held
            whole; of anything else a copy on the host is held, float64 of float64 and integers and
            else float32, unless it is just that.
        name: for error messages.

    Attributes:
        n, d: shape.
        device: where products are computed.
        inverse_norm: float64 [n], 0 for a row of zeros, which thus has cosine 0 with everything.

    Raises:
        ValueError: not a matrix, no row, NaN or infinity (naming the row).
    """

    def __init__(self, matrix: Tensor | np.ndarray, name: str = "matrix"):
        self.device = torch.device("cpu")
        if isinstance(matrix, Tensor) and on_triton(matrix):
            self.device = matrix.device
        self.source = matrix if isinstance(matrix, np.memmap) else _on_host(matrix)
        if self.source.ndim != 2 or not self.source.size:
            raise ValueError(
                f"{name} must be a matrix with at least one row and column, not of shape "
                f"{list(self.source.shape)}"
            )
        self.n, self.d = self.source.shape
        self.inverse_norm = np.empty(self.n)
        self._cache = None
        for start, block in self.blocks():
            norm = np.empty(len(block))
            over_rows(_norms, len(block), block, norm)
            if not np.isfinite(norm).all():
                bad = start + int(np.flatnonzero(~np.isfinite(norm))[0])
                raise ValueError(f"{name}: row {bad} holds NaN or infinity")
            self.inverse_norm[start : start + len(block)] = np.divide(
                1, norm, out=np.zeros_like(norm), where=norm > 0
            )

    def block(self, start: int) -> np.ndarray:
        """Rows start to start + BLOCK of a memory map, or all rows of an array: float32 or float64
        [<= BLOCK, d].
        """
        if not isinstance(self.source, np.memmap):
            return self.source
        if self._cache is None or self._cache[0] != start:
            part = self.source[start : start + BLOCK]
            self._cache = start, _tame(np.array(part, dtype=_precision(part.dtype), order="C"))
        return self._cache[1]

    @property
    def starts(self) -> Sequence[int]:
        """First row of every block."""
        return range(0, self.n, BLOCK) if isinstance(self.source, np.memmap) else (0,)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of every block."""
        return ((start, self.block(start)) for start in self.starts)

    @cached_property
    def mean(self) -> np.ndarray:
        """float64 [d], of the unit rows."""
        return (
            sum(
                self.inverse_norm[start:][part] @ block[part].astype(np.float64)
                for start, block in self.blocks()
                for part in _slices(len(block))
            )
            / self.n
        )

    @cached_property
    def codes(self) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
        """(q int8 [n, d] padded with zeros to multiples of 32, on `device`; scale, error, size:
        float64 [n]).
        """
        padded = np.zeros((-(-self.n // 32) * 32, -(-self.d // 32) * 32), np.int8)
        scale, error, size = np.empty((3, self.n))
        for start, block in self.blocks():
            part = slice(start, start + len(block))
            over_rows(
                _quantise,
                len(block),
                block,
                self.inverse_norm[part],
                self.mean,
                levels(),
                padded[part],
                scale[part],
                error[part],
                size[part],
            )
        return torch.from_numpy(padded).to(self.device), scale, error, size

    def times(self, vector: np.ndarray) -> np.ndarray:
        """Unit rows times a vector: float64 [n]."""
        return (
            np.concatenate(
                [
                    block[part].astype(np.float64) @ vector
                    for _, block in self.blocks()
                    for part in _slices(len(block))
                ]
            )
            * self.inverse_norm
        )


def _slices(n, size=4096):
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _on_host(matrix):
    """float32 or float64 [.., ..] in C order, writable, without a copy where it is that already."""
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().cpu()
        if matrix.dtype in (torch.float16, torch.bfloat16):
            matrix = matrix.float()
    matrix = np.asarray(matrix)
    return _tame(np.require(matrix, _precision(matrix.dtype), ["C", "W"]))


def _precision(dtype):
    """float32 where that holds every value, otherwise float64."""
    if dtype.kind not in "fiub":
        raise ValueError(f"a dictionary of {dtype} has no cosines: real numbers are needed")
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64


def _tame(rows):
    """Rows so long or short that products of them leave float64, times a power of two: the cosines
    stay the same to the last bit.
    """
    if rows.dtype == np.float64 and rows.ndim == 2 and rows.size:
        largest = np.abs(rows).max(1)
        wild = (largest > 1e100) | (largest > 0) & (largest < 1e-100)
        if wild.any():
            rows = rows.copy()
            rows[wild] = np.ldexp(rows[wild], -np.frexp(largest[wild])[1][:, None])
    return rows


def cosines(A: Rows, B: Rows, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float64 cosines of row rows[e] of A with row columns[e] of B, in float64 arithmetic; reads
    each pair of blocks once.
    """
    out = np.empty(len(rows))
    for a in A.starts:
        mine = _inside(rows, A, a)
        for b in B.starts:
            edges = mine[_inside(columns[mine], B, b)]
            part = np.empty(len(edges))
            over_rows(
                _dots, len(edges), A.block(a), B.block(b), rows[edges], columns[edges], a, b, part
            )
            out[edges] = part
    return out * A.inverse_norm[rows] * B.inverse_norm[columns]


def _inside(index, dictionary, start):
    """Positions of the entries of `index` that lie in the block at `start`."""
    if len(dictionary.starts) == 1:
        return np.arange(len(index))
    return np.flatnonzero((index >= start) & (index < start + BLOCK))


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _norms(start, stop, rows, out):
    for i in range(start, stop):
        total = 0.0
        for x in rows[i]:
            total += np.float64(x) * np.float64(x)
        out[i] = np.sqrt(total)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def _quantise(start, stop, rows, inverse_norm, mean, levels, codes, scale, error, size):
    d = rows.shape[1]
    z = np.empty(d)
    for i in range(start, stop):
        largest, total = 0.0, 0.0
        for q in range(d):
            z[q] = rows[i, q] * inverse_norm[i] - mean[q]
            largest = max(largest, abs(z[q]))
            total += z[q] * z[q]
        scale[i], size[i] = largest / levels, np.sqrt(total)
        step = levels / largest if largest > 0 else 0.0
        total = 0.0
        for q in range(d):
            code = np.rint(z[q] * step)
            codes[i, q] = np.int8(code)
            total += (z[q] - code * scale[i]) ** 2
        error[i] = np.sqrt(total)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _dots(start, stop, A, B, rows, columns, first_row, first_column, out):
    for e in range(start, stop):
        a = A[rows[e] - first_row]
        b = B[columns[e] - first_column]
        total = 0.0
        for q in range(len(a)):
            total += np.float64(a[q]) * np.float64(b[q])
        out[e] = total
