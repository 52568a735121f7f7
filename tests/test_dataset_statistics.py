"""Table 1 on a dataset small enough to work out on paper, and its KL against scipy."""

import numpy as np
import pytest
from scipy.stats import entropy

from conftest import make_tokenizer
from faithful_sae.metrics.coverage import dataset_statistics, first_token_kl, first_token_table

DOCUMENTS = [np.array(d, np.int32) for d in ([2, 3, 3, 1], [2, 2], [4, 0], [2], [3, 1])]
MODEL = np.array([0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.0])


def test_by_hand():
    """11 tokens; ids 0-4 of 8 occur (62.5 %), 2, 3, 4 come first (37.5 %), with counts 3, 1, 1.

    On those three the model is uniform, so KL = sum 1/3 ln((1/3) / q) with q = 3/5, 1/5, 1/5; 0.4
    of its mass lies elsewhere.
    """
    record, first = dataset_statistics(iter(DOCUMENTS), MODEL)
    assert (record["documents"], record["tokens"], record["vocab_size"]) == (5, 11, 8)
    assert record["all_token_coverage"] == 62.5
    assert record["first_token_coverage"] == 37.5
    assert first.tolist() == [0, 0, 3, 1, 1, 0, 0, 0]
    assert record["kl"] == pytest.approx((np.log(5 / 9) + 2 * np.log(5 / 3)) / 3, abs=1e-12)
    assert record["missing_mass"] == pytest.approx(0.4, abs=1e-12)


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
    _, first = dataset_statistics(DOCUMENTS, MODEL)
    table = first_token_table(MODEL, first, make_tokenizer(8))
    assert table.token_id.tolist() == list(range(8))
    assert table.token.tolist()[2:5] == [
        "w2",
        "w3",
        "w4",
    ]
    assert table.dataset.tolist() == [0, 0, 0.6, 0.2, 0.2, 0, 0, 0]
    assert table.model.tolist() == MODEL.tolist()
