"""Matching against brute force over all permutations, and against scipy on float64 cosines."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from faithful_sae import match_features


def cosines(A, B):
    A, B = (
        m / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-300)
        for m in (np.float64(A), np.float64(B))
    )
    return A @ B.T


def random_case(rng, i, n=None):
    """Gaussian, with small integers (many ties), with duplicated rows, or with rows of zeros."""
    n = n or rng.integers(1, 7)
    d = rng.integers(1, 9)
    draw = [
        lambda: rng.normal(size=(n, d)),
        lambda: rng.integers(-1, 2, (n, d)).astype(float),
        lambda: rng.normal(size=(n, d))[rng.integers(0, n, n)],
        lambda: rng.normal(size=(n, d)) * (rng.random((n, 1)) < 0.7),
    ][i % 4]
    return draw(), draw()


def test_total_cosine_is_the_largest_of_all_permutations():
    rng = np.random.default_rng(0)
    for i in range(300):
        A, B = random_case(rng, i)
        c = cosines(A, B)
        n = len(A)
        best = max(
            sum(c[r, p] for r, p in enumerate(order)) for order in itertools.permutations(range(n))
        )
        found = match_features(torch.tensor(A), torch.tensor(B))
        assert sorted(found.permutation) == list(range(n))
        assert found.permutation.dtype == np.int64
        np.testing.assert_allclose(found.cosine, c[np.arange(n), found.permutation], atol=1e-12)
        assert found.certified
        assert abs(found.objective - best) < 1e-9
        assert abs(found.objective - found.cosine.sum()) < 1e-9


def test_against_scipy_on_larger_dictionaries():
    rng = np.random.default_rng(1)
    for i in range(40):
        A, B = random_case(rng, i, n=60)
        c = cosines(A, B)
        rows, columns = linear_sum_assignment(-c)
        found = match_features(A, B)
        assert abs(found.objective - c[rows, columns].sum()) < 1e-9
        if i % 4 == 0 and A.shape[1] > 2:  # no ties: the best matching is the only one
            assert np.array_equal(found.permutation, columns)


def test_a_shuffle_is_recovered_whatever_the_lengths_of_rows():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(200, 16))
    shuffle = rng.permutation(200)
    found = match_features(A, (A * rng.uniform(0.1, 9, (200, 1)))[shuffle])
    assert np.array_equal(shuffle[found.permutation], np.arange(200))
    assert found.cosine.min() > 1 - 1e-6
    # a direction and its opposite are different features
    assert match_features(A, -A).cosine.max() < 0.95


def test_swapping_the_two_gives_the_inverse():
    rng = np.random.default_rng(3)
    A, B = rng.normal(size=(2, 50, 8))
    there, back = match_features(A, B), match_features(B, A)
    assert np.array_equal(there.permutation[back.permutation], np.arange(50))
    assert abs(there.objective - back.objective) < 1e-9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_named(bad):
    A, B = torch.randn(5, 4), torch.randn(5, 4)
    B[3, 1] = bad
    with pytest.raises(ValueError, match="B: row 3 "):
        match_features(A, B)
    with pytest.raises(ValueError, match="A: row 3 "):
        match_features(B, A)


@pytest.mark.parametrize(
    "a, b", [((5, 4), (5, 3)), ((5,), (5,)), ((0, 4), (0, 4)), ((4, 0), (4, 0))]
)
def test_shapes(a, b):
    with pytest.raises(ValueError):
        match_features(torch.randn(a), torch.randn(b))
