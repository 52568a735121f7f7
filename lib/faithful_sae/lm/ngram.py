"""Interpolated n-gram language model: the yardstick a small neural language model has to beat.

A network that does no better than counting the last four tokens has nothing in its hidden states
that is worth a sparse autoencoder. This is modified Kneser-Ney smoothing (Chen & Goodman 1998,
section 3), the strongest of the count-based models, fitted on the tokens that the network is
trained on and scored on the same held-out positions.

    p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + gamma(h) p_{n-1}(w | h')
    gamma(h)   = (D_1 N_1(h) + D_2 N_2(h) + D_3 N_3+(h)) / c(h)

    h'         h without its first token
    N_r(h)     number of w with c(hw) = r

At the highest order c counts occurrences, below it the distinct tokens that precede the n-gram; p_0
is uniform. A history that was never seen leaves the prediction to the next lower order.
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike


class NGram:
    """Interpolated modified Kneser-Ney model of token rows.

    Histories do not cross rows: what precedes a row is a padding symbol, `vocab_size`, which is
    never predicted.

    Args:
        order: tokens in the longest n-gram, the predicted one included.
        vocab_size: number of token ids.

    Raises:
        ValueError: an n-gram does not fit a 64-bit key, i.e. (vocab_size + 1) ** order >= 2 ** 63.
    """

    def __init__(self, order: int, vocab_size: int):
        if order < 1 or (vocab_size + 1) ** order >= 2**63:
            raise ValueError(
                f"order {order} over {vocab_size} tokens does not fit a 64-bit key: take a lower "
                "order"
            )
        self.vocab_size = vocab_size
        self.order = order
        self.base = vocab_size + 1

    def fit(self, rows: np.ndarray) -> Self:
        """Count the n-grams that end at every token but the first of each row; returns itself.

        Args:
            rows: int [R, T], ids in 0..vocab_size-1, T >= 2.

        Raises:
            ValueError: no rows, rows too short, ids out of range.
        """
        keys, counts = np.unique(self._ngrams(rows) @ self._powers(self.order), return_counts=True)
        self.levels: list[_Level] = []  # from the highest order to the lowest
        for n in range(self.order, 0, -1):
            self.levels.append(_Level(keys, counts, self.base))
            # an n-gram without its first token is preceded by as many distinct tokens as there are
            # keys that end in it
            keys, counts = np.unique(keys % self.base ** (n - 1), return_counts=True)
        return self

    def probability(self, ngrams: ArrayLike) -> np.ndarray:
        """p(last token | the tokens before it).

        Args:
            ngrams: int [N, order]; `vocab_size` stands for a position before the start of the row.

        Returns:
            float64 [N]; over the vocabulary the probabilities after one history sum to 1.
        """
        keys = np.asarray(ngrams, np.int64) @ self._powers(self.order)
        p = np.full(len(keys), 1 / self.vocab_size)
        for n, level in zip(range(1, self.order + 1), reversed(self.levels), strict=True):
            p = level.interpolate(keys % self.base**n, p)
        return p

    def cross_entropy(self, rows: np.ndarray) -> float:
        """Mean negative log-likelihood in nats per token of every token but the first of each row.

        Args:
            rows: as of fit.
        """
        return float(-np.log(self.probability(self._ngrams(rows))).mean())

    def _powers(self, n):
        return self.base ** np.arange(n - 1, -1, -1, dtype=np.int64)

    def _ngrams(self, rows):
        """int64 [R * (T - 1), order]: the n-gram that ends at each predicted token."""
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.size == 0 or rows.shape[1] < 2:
            raise ValueError(
                f"rows must have shape [R, T] with R >= 1 and T >= 2, got {list(rows.shape)}"
            )
        if rows.min() < 0 or rows.max() >= self.vocab_size:
            raise ValueError(
                f"token ids must be in 0..{self.vocab_size - 1}, got {rows.min()}..{rows.max()}"
            )
        padded = np.pad(
            rows.astype(np.int64),
            ((0, 0), (max(self.order - 2, 0), 0)),
            constant_values=self.vocab_size,
        )
        if self.order == 1:
            padded = padded[:, 1:]
        return np.lib.stride_tricks.sliding_window_view(padded, self.order, axis=1).reshape(
            -1, self.order
        )


class _Level:
    """Counts of one order: sorted n-gram keys, and per history its total and the mass left for the
    lower order.
    """

    def __init__(self, keys, counts, base):
        self.keys = keys
        self.base = base
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        self.discounted = counts - discounts
        self.histories, starts = np.unique(keys // base, return_index=True)
        self.totals = np.add.reduceat(counts, starts)
        self.left = np.add.reduceat(discounts, starts)

    def interpolate(self, keys, lower):
        """p_n from the keys of n-grams (int64 [N]) and p_{n-1} (float64 [N])."""
        at, seen = _find(self.histories, keys // self.base)
        key_at, key_seen = _find(self.keys, keys)
        counted = np.where(key_seen, self.discounted[key_at], 0)
        p = (counted + self.left[at] * lower) / self.totals[at]
        return np.where(seen, p, lower)


def _find(sorted_keys, keys):
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


def _discounts(counts):
    """D for counts 0, 1, 2 and 3 or more (Chen & Goodman 1998, equation 26).

    Where the counts of counts cannot give discounts in 0 < D_r <= r, as in tiny corpora, they are
    0.5, 1 and 1.5.
    """
    n1, n2, n3, n4 = (float((counts == r).sum()) for r in (1, 2, 3, 4))
    if min(n1, n2, n3) > 0:
        y = n1 / (n1 + 2 * n2)
        discounts = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if np.all(discounts[1:] > 0) and np.all(discounts[1:] <= [1, 2, 3]):
            return discounts
    return np.array([0, 0.5, 1.0, 1.5])
