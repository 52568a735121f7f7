"""The n-gram yardstick against a second implementation with dictionaries, written from the
equations.
"""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from faithful_sae.lm.ngram import NGram, _discounts


def naive_probability(rows, order, vocab_size, history, token):
    """Interpolated modified Kneser-Ney, recursively and with dictionaries."""
    padded = [
        [vocab_size] * (order - 2) + list(map(int, row)) if order > 1 else list(map(int, row))
        for row in rows
    ]
    start = max(order - 1, 1)
    top = Counter(
        tuple(row[i - order + 1 : i + 1]) for row in padded for i in range(start, len(row))
    )
    tables = {order: top}
    for n in range(order - 1, 0, -1):
        preceding = defaultdict(set)
        for gram in tables[n + 1]:
            preceding[gram[1:]].add(gram[0])
        tables[n] = {gram: len(tokens) for gram, tokens in preceding.items()}

    def p(h, n):
        if n == 0:
            return 1 / vocab_size
        counts = {gram[-1]: c for gram, c in tables[n].items() if gram[:-1] == h}
        lower = p(h[1:], n - 1)
        if not counts:
            return lower
        d = _discounts(np.array(list(tables[n].values())))
        left = sum(d[min(c, 3)] for c in counts.values())
        c = counts.get(token, 0)
        return ((c - d[min(c, 3)] if c else 0) + left * lower) / sum(counts.values())

    return p(tuple(history), order)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    rows = np.minimum(
        rng.geometric(0.2, size=(60, 9)) - 1, 11
    )  # skewed, so that counts of counts are all there
    rows[:, 0] = 0
    return rows


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_agrees_with_naive_implementation(rows, order):
    model = NGram(order, 12).fit(rows)
    rng = np.random.default_rng(1)
    ngrams = np.concatenate([rng.integers(0, 13, size=(40, order)), model._ngrams(rows)[::17]])
    ngrams[:, -1] = np.minimum(ngrams[:, -1], 11)  # padding is never predicted
    expected = [naive_probability(rows, order, 12, gram[:-1], gram[-1]) for gram in ngrams.tolist()]
    np.testing.assert_allclose(model.probability(ngrams), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one(rows, order):
    model = NGram(order, 12).fit(rows)
    seen = model._ngrams(rows)[::20, :-1]
    unseen = np.random.default_rng(2).integers(0, 13, size=(30, order - 1))
    for history in np.concatenate([seen, unseen]):
        grams = np.column_stack([np.tile(history, (12, 1)), np.arange(12)])
        assert model.probability(grams).sum() == pytest.approx(1, abs=1e-12)


def test_bigram_by_hand():
    """Rows 0 1 2 and 0 1 1: discounts fall back to .5, 1, 1.5, as no bigram or unigram count of
    counts is complete.

    Bigrams (0,1) twice, (1,2) once, (1,1) once. Continuations: 1 follows {0, 1}, 2 follows {1}.
    p_1(1) = (2 - 1 + (1 + .5) / 3) / 3 = 1/2      p_1(2) = (1 - .5 + .5) / 3 = 1/3      p_1(0) = .5
    / 3 = 1/6
    p(1|0) = (2 - 1 + 1 * 1/2) / 2 = 3/4           p(2|1) = (1 - .5 + 1 * 1/3) / 2 = 5/12
    """
    model = NGram(2, 3).fit(np.array([[0, 1, 2], [0, 1, 1]]))
    np.testing.assert_allclose(model.probability([[0, 1], [1, 2]]), [3 / 4, 5 / 12])
    assert model.cross_entropy(np.array([[0, 1, 2]])) == pytest.approx(
        -(math.log(3 / 4) + math.log(5 / 12)) / 2
    )


def test_discounts_are_those_of_chen_and_goodman():
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    y = 8 / (8 + 2 * 4)
    np.testing.assert_allclose(
        _discounts(counts), [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    )


def test_histories_do_not_cross_rows():
    a, b = np.array([[0, 1, 2, 3]]), np.array([[0, 3, 1, 1]])
    together = NGram(3, 4).fit(np.concatenate([a, b]))
    swapped = NGram(3, 4).fit(np.concatenate([b, a]))
    assert together.cross_entropy(a) == swapped.cross_entropy(a)
    assert together.cross_entropy(np.tile(a, (5, 1))) == pytest.approx(together.cross_entropy(a))


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, 4), int),
        np.zeros((3, 1), int),
        np.zeros(4, int),
        np.full((2, 3), 7),
        -np.ones((2, 3), int),
    ],
)
def test_bad_rows(rows):
    with pytest.raises(ValueError, match=r"rows must|token ids"):
        NGram(3, 7).fit(rows)


def test_keys_that_do_not_fit():
    with pytest.raises(ValueError, match="64-bit"):
        NGram(5, 50_257)
