"""Small problems: all cosines at once, and scipy's answer to start from."""

import numpy as np
from numba import njit
from scipy.optimize import linear_sum_assignment

from faithful_sae.matching.codes import Rows


def dense_start(A: Rows, B: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(upper bounds float32 [n_A, n_B] of the cosines, prices float64 [n_A], [n_B] of their optimal
    assignment), A.n <= B.n.

    The cosines are float32 products, wrong by (d + 8) 2^-24 at most; twice that is added. Memory:
    that matrix, and two of float64 inside scipy. Time: scipy's, of the order of n^3, and some n_A
    n_B.
    """
    cosine = _unit_rows(A) @ _unit_rows(B).T
    _, match = linear_sum_assignment(cosine, maximize=True)
    prices = np.zeros(B.n)
    _raise_prices(cosine, match, prices, 100 * A.n)
    paired = cosine[np.arange(A.n), match] - prices[match]
    cosine += np.float32((A.d + 8) * 2.0**-23)
    return cosine, paired, prices


def _unit_rows(rows):
    out = np.empty((rows.n, rows.d), np.float32)
    for start, block in rows.blocks():
        _scale(block, rows.inverse_norm[start:], out[start:])
    return out


@njit(cache=True)
def _scale(rows, by, out):
    for i in range(len(rows)):
        factor = by[i]
        row = rows[i]
        target = out[i]
        for q in range(len(row)):
            target[q] = row[q] * factor


@njit(cache=True)
def _raise_prices(cosine, match, prices, limit):
    """Raise V from 0 until V_j >= V_match(i) + s_ij - s_i,match(i) for all pairs, or `limit` rows
    have been looked at.

    The longest path problem of the optimality conditions: an optimal matching has no cycle that
    gains, and no gaining path to a column that stays free, so that it ends with free columns at 0.
    Only rows whose column has risen are looked at again.
    """
    n = len(match)
    waiting = np.ones(n, np.bool_)
    queue = np.arange(n)
    head = 0
    count = n
    owner = np.full(len(prices), -1)
    owner[match] = np.arange(n)
    while count and limit:
        i = queue[head]
        head = (head + 1) % n
        count = count - 1
        limit = limit - 1
        waiting[i] = False
        base = prices[match[i]] - cosine[i, match[i]]
        row = cosine[i]
        for j in range(len(row)):
            if base + row[j] > prices[j] + 1e-7:
                prices[j] = base + row[j]
                if owner[j] >= 0 and not waiting[owner[j]]:
                    queue[(head + count) % n] = owner[j]
                    waiting[owner[j]] = True
                    count += 1
