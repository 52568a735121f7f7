"""The rows of a dictionary: normalised exactly, and as 8-bit codes whose error is known.

    t_ij = (x_i - mean x) . (y_j - mean y)  =  s_ij - a_i - c_j          s_ij = cosine, a_i = x_i . mean y, c_j = (y_j - mean y) . mean x

Leaving out the means changes every row and column of s by a constant, hence no matching's rank, and leaves smaller numbers to
quantise. A centred row z_i is coded as q_i = round(z_i / scale_i), 8 bits, with scale_i = max |z_i| / 127. By Cauchy-Schwarz

    |t_ij - scale_i scale_j q_i . q_j|  <=  e_i |z_j|  +  (|z_i| + e_i) e_j          e_i = |z_i - scale_i q_i|, measured

and the product of codes is exact in 32-bit integers up to 133,000 dimensions.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from numba import njit

BLOCK = 8192        # rows of a memory map that are held at once
SLOP = 2e-6         # float32 arithmetic on scaled codes and thresholds, all of size 1 at most


def in_threads(function, n, *args):
    """Call function(start, stop, *args), which must release the GIL, on parts of range(n), one per torch thread.

    Each index is handled by itself, so that the number of threads changes no result.
    """
    parts = min(torch.get_num_threads(), max(n // 256, 1))
    edges = [n * part // parts for part in range(parts + 1)]
    if parts == 1:
        function(0, n, *args)
    else:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(lambda start, stop: function(start, stop, *args), edges[:-1], edges[1:]))


class Rows:
    """One dictionary, prepared once for any number of matchings.

    Args:
        matrix: [n, d], a torch tensor on any device (its products are then computed there) or an array. A numpy.memmap is read
            in blocks and never held whole; of anything else a float32 (or float64) copy on the host is held unless it is one.
        name: for error messages.

    Attributes:
        n, d: shape. inverse_norm: float64 [n], 0 for a row of zeros, which thus has cosine 0 with everything.

    Raises:
        ValueError: not a matrix, no row, NaN or infinity (naming the row).
    """

    def __init__(self, matrix, name="matrix"):
        self.device = matrix.device if isinstance(matrix, torch.Tensor) else torch.device("cpu")
        self.source = matrix if isinstance(matrix, np.memmap) else _on_host(matrix)
        if self.source.ndim != 2 or not self.source.size:
            raise ValueError(f"{name} must be a matrix with at least one row and column, not of shape {list(self.source.shape)}")
        self.n, self.d = self.source.shape
        self.inverse_norm, self._cache = np.empty(self.n), None
        for start, block in self.blocks():
            norm = np.empty(len(block))
            in_threads(_norms, len(block), block, norm)
            if not np.isfinite(norm).all():
                bad = start + int(np.flatnonzero(~np.isfinite(norm))[0])
                raise ValueError(f"{name}: row {bad} holds NaN or infinity")
            self.inverse_norm[start:start + len(block)] = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)

    def block(self, start):
        """Rows start to start + BLOCK of a memory map, or all rows of an array: float32 or float64 [<= BLOCK, d]."""
        if not isinstance(self.source, np.memmap):
            return self.source
        if self._cache is None or self._cache[0] != start:
            part = self.source[start:start + BLOCK]
            self._cache = start, np.array(part, dtype=np.float64 if part.dtype == np.float64 else np.float32, order="C")
        return self._cache[1]

    @property
    def starts(self):
        """First row of every block."""
        return range(0, self.n, BLOCK) if isinstance(self.source, np.memmap) else (0,)

    def blocks(self):
        """(first row, rows) of every block."""
        return ((start, self.block(start)) for start in self.starts)

    @cached_property
    def mean(self):
        """float64 [d], of the unit rows."""
        return sum(self.inverse_norm[start:][part] @ block[part].astype(np.float64) for start, block in self.blocks()
                   for part in _slices(len(block))) / self.n

    @cached_property
    def codes(self):
        """(q int8 [n, d] padded with zeros to multiples of 32, on the tensor's device; scale, error, size: float64 [n])."""
        padded = np.zeros((-(-self.n // 32) * 32, -(-self.d // 32) * 32), np.int8)
        scale, error, size = np.empty((3, self.n))
        for start, block in self.blocks():
            part = slice(start, start + len(block))
            in_threads(_quantise, len(block), block, self.inverse_norm[part], self.mean, padded[part], scale[part], error[part], size[part])
        return torch.from_numpy(padded).to(self.device), scale, error, size

    def times(self, vector):
        """Unit rows times a vector: float64 [n]."""
        return np.concatenate([block[part].astype(np.float64) @ vector for _, block in self.blocks()
                               for part in _slices(len(block))]) * self.inverse_norm


def _slices(n, size=4096):
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _on_host(matrix):
    """float32 or float64 [.., ..] in C order, writable, without a copy where it is that already."""
    if isinstance(matrix, torch.Tensor):
        matrix = matrix.detach().cpu()
        matrix = (matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()).numpy()
    else:
        matrix = np.asarray(matrix)
        if matrix.dtype not in (np.float32, np.float64):
            matrix = matrix.astype(np.float32)
    return np.require(matrix, requirements=["C", "W"])


def cosines(A, B, rows, columns):
    """float64 cosines of row rows[e] of A with row columns[e] of B, in float64 arithmetic; reads each pair of blocks once."""
    out = np.empty(len(rows))
    for a in A.starts:
        mine = _inside(rows, A, a)
        for b in B.starts:
            edges = mine[_inside(columns[mine], B, b)]
            part = np.empty(len(edges))
            in_threads(_dots, len(edges), A.block(a), B.block(b), rows[edges], columns[edges], a, b, part)
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
def _quantise(start, stop, rows, inverse_norm, mean, codes, scale, error, size):
    d = rows.shape[1]
    z = np.empty(d)
    for i in range(start, stop):
        largest, total = 0.0, 0.0
        for q in range(d):
            z[q] = rows[i, q] * inverse_norm[i] - mean[q]
            largest = max(largest, abs(z[q]))
            total += z[q] * z[q]
        scale[i], size[i] = largest / 127, np.sqrt(total)
        step = 127 / largest if largest > 0 else 0.0
        total = 0.0
        for q in range(d):
            code = np.rint(z[q] * step)
            codes[i, q] = np.int8(code)
            total += (z[q] - code * scale[i]) ** 2
        error[i] = np.sqrt(total)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _dots(start, stop, A, B, rows, columns, first_row, first_column, out):
    for e in range(start, stop):
        a, b, total = A[rows[e] - first_row], B[columns[e] - first_column], 0.0
        for q in range(len(a)):
            total += np.float64(a[q]) * np.float64(b[q])
        out[e] = total
