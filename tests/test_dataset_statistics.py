"""Table 1 on a dataset small enough to work out on paper, and its KL against scipy."""

import numpy as np
import pytest
from scipy.stats import chisquare, entropy, kstest

from conftest import make_tokenizer
from faithful_sae.metrics.coverage import (
    dataset_statistics,
    first_token_fit,
    first_token_kl,
    first_token_table,
    perfect_sampling,
)

DOCUMENTS = [np.array(d, np.int32) for d in ([2, 3, 3, 1], [2, 2], [4, 0], [2], [3, 1])]
MODEL = np.array([0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.0])


def test_by_hand():
    """11 tokens; ids 0-4 of 8 occur (62.5 %), 2, 3, 4 come first (37.5 %), with counts 3, 1, 1.

    On those three the model is uniform, so KL = sum 1/3 ln((1/3) / q) with q = 3/5, 1/5, 1/5; 0.4
    of its mass lies elsewhere.
    """
    record, first, counts = dataset_statistics(iter(DOCUMENTS), MODEL)
    assert (record["documents"], record["tokens"], record["vocab_size"]) == (5, 11, 8)
    assert record["all_token_coverage"] == 62.5
    assert record["first_token_coverage"] == 37.5
    assert first.tolist() == [0, 0, 3, 1, 1, 0, 0, 0]
    assert counts.tolist() == [1, 2, 4, 3, 1, 0, 0, 0]
    assert record["kl"] == pytest.approx((np.log(5 / 9) + 2 * np.log(5 / 3)) / 3, abs=1e-12)
    assert record["missing_mass"] == pytest.approx(0.4, abs=1e-12)


def test_coverage_beside_that_of_the_pretraining_text():
    """It has ids 0, 1, 2, 5 (50 %), of which the documents have three."""
    record, *_ = dataset_statistics(DOCUMENTS, MODEL, np.array([9, 1, 1, 0, 0, 4, 0, 0]))
    assert record["pretraining_coverage"] == 50
    assert record["relative_coverage"] == 75


def test_coverage_where_the_pretraining_text_is_not_known():
    record, *_ = dataset_statistics(DOCUMENTS, MODEL)
    assert np.isnan(record["pretraining_coverage"])
    assert np.isnan(record["relative_coverage"])


def test_perfect_sampling_against_the_theory_of_many_documents():
    """With every token seen, 2 n KL is nearly chi-square with V - 1 degrees of freedom."""
    p = np.random.default_rng(0).dirichlet(np.full(20, 5.0))
    found = perfect_sampling(p, 4000)
    assert found["expected_kl"] == pytest.approx(19 / 8000, rel=0.1)
    assert found["expected_kl_sd"] == pytest.approx(np.sqrt(2 * 19) / 8000, rel=0.2)
    assert found["expected_missing_mass"] == pytest.approx(0, abs=1e-12)
    assert found["expected_first_token_coverage"] == pytest.approx(100)


def test_perfect_sampling_misses_rare_tokens_as_often_as_it_must():
    p = np.array([0.9, *[0.1 / 100] * 100])
    found = perfect_sampling(p, 200)
    seen = 1 - (1 - p) ** 200
    assert found["expected_first_token_coverage"] == pytest.approx(100 * seen.mean(), rel=0.02)
    assert found["expected_missing_mass"] == pytest.approx((p * (1 - seen)).sum(), rel=0.02)


def test_kl_is_scipys_and_points_from_the_model_to_the_data():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.dirichlet(np.full(30, 0.5))
        counts = rng.integers(0, 4, 30)
        kl, missing = first_token_kl(p, counts)
        seen = counts > 0
        assert kl == pytest.approx(entropy(p[seen], counts[seen]), abs=1e-12)
        assert kl >= -1e-12
        assert missing == pytest.approx(p[~seen].sum(), abs=1e-12)
        assert (
            abs(kl - entropy(counts[seen], p[seen])) > 1e-3
        )  # the other direction is another number


def test_a_perfect_dataset_and_a_model_with_zeros():
    assert first_token_kl(np.array([0.25, 0.75]), np.array([1, 3])) == (
        pytest.approx(0, abs=1e-15),
        pytest.approx(0, abs=1e-15),
    )
    kl, missing = first_token_kl(np.array([1.0, 0.0]), np.array([1, 1]))
    assert kl == pytest.approx(np.log(2))
    assert missing == 0


def test_an_empty_dataset():
    with pytest.raises(ValueError, match="empty dataset"):
        dataset_statistics([], MODEL)


def test_panels():
    _, first, counts = dataset_statistics(DOCUMENTS, MODEL)
    table = first_token_table(MODEL, first, counts, make_tokenizer(8))
    assert table.token_id.tolist() == list(range(8))
    assert table.token.tolist()[2:5] == [
        "w2",
        "w3",
        "w4",
    ]
    assert table.dataset.tolist() == [0, 0, 0.6, 0.2, 0.2, 0, 0, 0]
    assert table.model.tolist() == MODEL.tolist()


# --- are the first tokens draws of the model's? ---------------------------------------------------


def draws(n, p, seed):
    return np.random.default_rng(seed).multinomial(n, p)


def test_fit_is_scipys_chi_square_of_the_same_cells():
    """100 draws: cells end where 10, 20, .. of them are expected; the rest, 4 and 1, joins the
    last.
    """
    p = np.array([0.04, 0.5, 0.01, 0.3, 0.15])
    counts = np.array([2, 60, 0, 25, 13])
    found, cells = first_token_fit(p, counts, 0.0)
    assert cells == 3
    assert found == pytest.approx(chisquare([60, 25, 15], [50, 30, 20]).pvalue, rel=1e-9)


def test_fit_of_true_draws_is_uniform():
    p = np.random.default_rng(0).dirichlet(np.full(50, 0.5))
    fits = [first_token_fit(p, draws(2000, p, seed), 1.2e-7)[0] for seed in range(300)]
    assert kstest(fits, "uniform").pvalue > 1e-3


def test_fit_sees_a_wrong_distribution_over_many_rare_tokens():
    """None of 50,000 tokens is expected even once."""
    p = np.full(50_000, 1 / 50_000)
    wrong = np.repeat([1.2, 0.8], 25_000) / 50_000
    assert first_token_fit(p, draws(4000, wrong, 0), 1.2e-7)[0] < 1e-4
    assert first_token_fit(p, draws(4000, p, 0), 1.2e-7)[0] > 1e-4


def test_fit_allows_what_a_narrow_dtype_rounds_away():
    """Probabilities off by 3 %, as from logits of bfloat16, show in a million draws."""
    p = np.full(200, 1 / 200)
    rounded = p * np.tile([1.03, 0.97], 100)
    counts = draws(1_000_000, rounded, 0)
    assert first_token_fit(p, counts, 2**-23)[0] < 1e-4
    assert first_token_fit(p, counts, 2**-7)[0] > 1e-4
    twice = draws(1_000_000, p * np.tile([1.2, 0.8], 100), 0)
    assert first_token_fit(p, twice, 2**-7)[0] < 1e-4


@pytest.mark.parametrize("n", [1, 9])
def test_few_draws_are_one_cell_and_fit(n):
    assert first_token_fit(MODEL, draws(n, MODEL, 0), 0.0) == (1.0, 1)
