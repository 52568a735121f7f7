"""Interpolated n-gram language models: the yardstick a small neural language model has to beat.

A network that does no better than counting the last few tokens has nothing in its hidden states
that is worth a sparse autoencoder. This is modified Kneser-Ney smoothing (Chen & Goodman 1998,
section 3), the strongest of the count-based models, fitted on the tokens that the network is
trained on and scored on the same held-out positions.

    p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + gamma(h) q_{n-1}(w | h')
    gamma(h)   = (D_1 N_1(h) + D_2 N_2(h) + D_3 N_3+(h)) / c(h)

    h'         h without its first token
    N_r(h)     number of w with c(hw) = r

p_n is the model of order n; its c counts occurrences. q_n, to which higher orders fall back, is the
same with c the number of distinct tokens that precede the n-gram; q_0 is uniform. A history that
was never seen leaves the prediction to q_{n-1}.

The q_n are the same for all orders, so one way up from order 1 gives every model. Histories of one
length are numbered in the order of their keys, and a key is a number times (vocab_size + 1) plus a
token: whatever the order, it is below (n-grams seen) x (vocab_size + 1), which 64 bits hold.
"""

import numpy as np

# the longest n-grams that best_order tries
LONGEST = 8


def best_order(
    train: np.ndarray, heldout: np.ndarray, vocab_size: int, longest: int = LONGEST
) -> tuple[int, float]:
    """(order, cross-entropy in nats per token) of the model that is best on the held-out text.

    The order is chosen on the text that is scored: no other choice up to `longest` gives a lower
    cross-entropy, and over none is a network's margin smaller.

    Args:
        train, heldout, vocab_size, longest: as probabilities; `heldout` is what is scored.

    Raises:
        ValueError: as probabilities.
    """
    models = probabilities(train, heldout, vocab_size, longest)
    entropies = [float(-np.log(p).mean()) for p in models]
    best = int(np.argmin(entropies))
    return best + 1, entropies[best]


def probabilities(
    train: np.ndarray, scored: np.ndarray, vocab_size: int, longest: int
) -> list[np.ndarray]:
    """p(token | the tokens before it) of every token but the first of each row, by the models of
    order 1 to `longest`.

    Histories do not cross rows: what precedes a row is a padding symbol, `vocab_size`, which is
    never predicted.

    Args:
        train: int [R, T] rows whose n-grams are counted, ids in 0..vocab_size-1, T >= 2.
        scored: int [S, U], of the same kind.
        vocab_size: number of token ids.
        longest: tokens in the longest n-gram, the predicted one included.

    Returns:
        `longest` arrays float64 [S, U - 1]; over the vocabulary the probabilities after one history
        sum to 1.

    Raises:
        ValueError: longest < 1; no rows, rows too short, ids out of range.
    """
    if longest < 1:
        raise ValueError(f"longest = {longest} must be at least 1: tokens in an n-gram")
    base = vocab_size + 1
    token = _before(train, 0, vocab_size)
    asked = _before(scored, 0, vocab_size)
    # numbers of the histories; -1 for one that was not seen
    history = np.zeros_like(token)
    asked_history = np.zeros_like(asked)
    q = np.full(len(asked), 1 / vocab_size)
    found = []
    for n in range(1, longest + 1):
        # the n-grams seen, sorted by history, and the number of each position's
        ngrams, ngram, occurrences = np.unique(
            history * base + token, return_inverse=True, return_counts=True
        )
        histories = ngrams // base
        at = _find(ngrams, asked_history * base + asked)
        p = _interpolated(histories, occurrences, asked_history, at, q)
        found.append(p.reshape(len(scored), -1))
        if n == longest:
            break
        older = _before(train, n, vocab_size)
        preceding = np.bincount(np.unique(ngram * base + older) // base)
        q = _interpolated(histories, preceding, asked_history, at, q)
        longer, history = np.unique(history * base + older, return_inverse=True)
        asked_history = _find(longer, asked_history * base + _before(scored, n, vocab_size))
    return found


def _before(rows, back, vocab_size):
    """int64 [R * (T - 1)]: the token `back` places before each predicted one, or padding."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.size == 0 or rows.shape[1] < 2:
        raise ValueError(
            f"rows must have shape [R, T] with R >= 1 and T >= 2, got {list(rows.shape)}"
        )
    if rows.min() < 0 or rows.max() >= vocab_size:
        raise ValueError(
            f"token ids must be in 0..{vocab_size - 1}, got {rows.min()}..{rows.max()}"
        )
    predicted = rows.shape[1] - 1
    tokens = np.full((len(rows), predicted), vocab_size, np.int64)
    first = min(max(back - 1, 0), predicted)
    begin = first + 1 - back
    tokens[:, first:] = rows[:, begin : begin + predicted - first]
    return tokens.ravel()


def _interpolated(histories, counts, asked_history, at, lower):
    """p_n or q_n of what is asked, float64.

    Args:
        histories: int [n-grams], sorted: the number of each one's history.
        counts: int [n-grams].
        asked_history, at: int [asked], the history and the n-gram of each, -1 if not seen.
        lower: float64 [asked], q_{n-1}.
    """
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(histories, counts)
    left = np.bincount(histories, discounts)
    counted = np.where(at >= 0, (counts - discounts)[at], 0)
    p = (counted + left[asked_history] * lower) / totals[asked_history]
    return np.where(asked_history >= 0, p, lower)


def _find(sorted_keys, keys):
    """Where each key is, -1 if nowhere; a key of a history that was not seen is negative."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == keys, at, -1)


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
