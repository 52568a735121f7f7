"""The n-gram yardstick against a second implementation with dictionaries, written from the
equations.
"""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from faithful_sae.lm.ngram import _discounts, best_order, probabilities


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


def of_histories(rows, histories, vocab_size):
    """{order: p float64 [histories, vocab_size]} of every token after histories int [n, h]."""
    n = len(histories)
    scored = np.column_stack(
        [np.repeat(histories, vocab_size, axis=0), np.tile(np.arange(vocab_size), n)]
    )
    models = probabilities(rows, scored, vocab_size, 8)
    return {order: p[:, -1].reshape(n, vocab_size) for order, p in enumerate(models, 1)}


@pytest.fixture
def histories(rows):
    """Random ones and parts of rows; with the longest, order 8 looks at seven tokens."""
    random = np.random.default_rng(1).integers(0, 12, size=(12, 7))
    return np.concatenate([random, rows[::6, :7], rows[::6, 1:8]])


@pytest.mark.parametrize("order", range(1, 9))
def test_agrees_with_naive_implementation(rows, histories, order):
    found = of_histories(rows, histories, 12)[order]
    tokens = np.arange(len(histories)) % 12
    expected = [
        naive_probability(rows, order, 12, history[8 - order :], token)
        for history, token in zip(histories.tolist(), tokens.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found[np.arange(len(tokens)), tokens], expected, rtol=1e-12)


@pytest.mark.parametrize("order", [2, 5, 7])
def test_agrees_with_naive_implementation_at_the_start_of_a_row(rows, order):
    found = probabilities(rows, rows[:10, :4], 12, order)[-1]
    padded = np.pad(rows[:10, :4], ((0, 0), (order, 0)), constant_values=12).tolist()
    expected = [
        [
            naive_probability(rows, order, 12, row[i - order + 1 : i], row[i])
            for i in range(order + 1, order + 4)
        ]
        for row in padded
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_probabilities_sum_to_one(rows, histories):
    for p in of_histories(rows, histories, 12).values():
        np.testing.assert_allclose(p.sum(1), 1, rtol=0, atol=1e-12)


def test_a_large_vocabulary(rows):
    """An n-gram as one number would not fit 64 bits."""
    size = 250_000
    assert size**5 > 2**63
    names = np.sort(np.random.default_rng(3).choice(size, 12, replace=False))
    found = probabilities(names[rows], names[rows[:10]], size, 7)
    for order in (5, 7):
        expected = [
            naive_probability(names[rows], order, size, history, token)
            for row in names[rows[:10]].tolist()
            for history, token in [(row[9 - order : 8], row[8])]
        ]
        np.testing.assert_allclose(found[order - 1][:, -1], expected, rtol=1e-12)


def test_bigram_by_hand():
    """Rows 0 1 2 and 0 1 1: discounts fall back to .5, 1, 1.5, as no bigram or unigram count of
    counts is complete.

    Bigrams (0,1) twice, (1,2) once, (1,1) once. Continuations: 1 follows {0, 1}, 2 follows {1}.
    q_1(1) = (2 - 1 + (1 + .5) / 3) / 3 = 1/2      q_1(2) = (1 - .5 + .5) / 3 = 1/3
    p_2(1|0) = (2 - 1 + 1 * 1/2) / 2 = 3/4         p_2(2|1) = (1 - .5 + 1 * 1/3) / 2 = 5/12
    Occurrences: 1 thrice, 2 once.
    p_1(1) = (3 - 1.5 + (1.5 + .5) / 3) / 4 = 13/24
    """
    unigram, bigram = probabilities(np.array([[0, 1, 2], [0, 1, 1]]), np.array([[0, 1, 2]]), 3, 2)
    np.testing.assert_allclose(bigram, [[3 / 4, 5 / 12]])
    assert unigram[0, 0] == pytest.approx(13 / 24)


def test_the_best_order_is_that_of_the_lowest_cross_entropy(rows):
    train, heldout = rows[:45], rows[45:]
    order, entropy = best_order(train, heldout, 12)
    entropies = [-np.log(p).mean() for p in probabilities(train, heldout, 12, 8)]
    assert order == 1 + entropies.index(min(entropies))
    assert entropy == min(entropies)


def test_tokens_that_follow_from_the_last_two_take_trigrams():
    rng = np.random.default_rng(4)
    rows = np.zeros((300, 40), int)
    rows[:, :2] = rng.integers(0, 6, size=(300, 2))
    for i in range(2, 40):
        noise = rng.random(300) < 0.1
        rows[:, i] = np.where(
            noise, rng.integers(0, 6, 300), (rows[:, i - 1] + 2 * rows[:, i - 2]) % 6
        )
    order, entropy = best_order(rows[:200], rows[200:], 6)
    assert order == 3
    # ten per cent of tokens are uniform, so 11/12 of all follow the rule; a row's second has none
    p = np.array([11 / 12, *[1 / 60] * 5])
    least = (-38 * (p * np.log(p)).sum() + math.log(6)) / 39
    assert least < entropy < least + 0.06


def test_discounts_are_those_of_chen_and_goodman():
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    y = 8 / (8 + 2 * 4)
    np.testing.assert_allclose(
        _discounts(counts), [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    )


def test_histories_do_not_cross_rows():
    a, b = np.array([[0, 1, 2, 3]]), np.array([[0, 3, 1, 1]])
    together = probabilities(np.concatenate([a, b]), a, 4, 3)[-1]
    swapped = probabilities(np.concatenate([b, a]), np.tile(a, (5, 1)), 4, 3)[-1]
    np.testing.assert_array_equal(np.tile(together, (5, 1)), swapped)


def test_rows_shorter_than_the_order():
    rows = np.array([[0, 1], [0, 2], [0, 1]])
    found = probabilities(rows, np.array([[0, 1], [0, 0]]), 3, 8)[-1]
    expected = [naive_probability(rows, 8, 3, [3] * 6 + [0], token) for token in (1, 0)]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-12)


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
    good = np.zeros((2, 3), int)
    for train, scored in ((rows, good), (good, rows)):
        with pytest.raises(ValueError, match=r"rows must|token ids"):
            probabilities(train, scored, 7, 3)


def test_no_order():
    with pytest.raises(ValueError, match="longest = 0"):
        probabilities(np.zeros((2, 3), int), np.zeros((2, 3), int), 7, 0)
