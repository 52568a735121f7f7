"""Groups of latents: the selection of pairs under noise, quartiles, and differences within tenths
of density.
"""

import numpy as np
import pandas as pd
import pytest

from faithful_sae.features.groups import by_sharing, frequency_matched, selected_pairs
from faithful_sae.features.index import FeatureError


def noise(seed, n=60):
    rng = np.random.default_rng(seed)
    alignment, one, two = rng.random((3, n))
    return pd.DataFrame({"alignment": alignment, "score_1": one, "score_2": two})


def test_pairs_selected_by_hand():
    pairs = pd.DataFrame(
        {
            "alignment": [-0.1, 0.1, 0.1, 0.69, 0.7, 0.8, 0.8, 1.0, 0.9, 0.3],
            "score_1": [0.5, 0.9, 1.0, 0.6, 0.9, 1.0, 0.8, 0.7, 0.6, np.nan],
            "score_2": [0.5, 0.5, 0.8, 0.6, 0.9, 0.5, 0.8, 0.7, 0.6, 0.5],
            "latent_1": range(10),
        }
    )
    found = selected_pairs(pairs, draws=20)
    # the second bin has but a pair without a score
    assert found.low.tolist() == [-1, 0.4, 0.7, 0.85]
    assert found.high.tolist() == [0.2, 0.7, 0.85, 1]
    assert found.n.tolist() == [3, 1, 3, 2]
    assert found.latent_1.tolist() == [1, 3, 4, 7]
    # a pair alone is what is selected however it is shuffled
    assert found.loc[1, ["shuffled_1", "shuffled_2", "p"]].tolist() == pytest.approx([0.6, 0.6, 1])


def test_shuffled_pairs_of_two():
    """Either as they are, with sums 1.5 and 0.5, or exchanged, with 1 and 1."""
    pairs = pd.DataFrame({"alignment": [0.9] * 2, "score_1": [0.9, 0.4], "score_2": [0.6, 0.1]})
    found = selected_pairs(pairs, draws=4000).iloc[0]
    assert found.p == pytest.approx(0.5, abs=0.03)
    assert (found.score_1, found.score_2) == (0.9, 0.6)
    # exchanged, 0.9 + 0.1 comes first
    assert found.shuffled_1 == pytest.approx(0.9)
    assert found.shuffled_2 == pytest.approx(0.35, abs=0.02)


def test_of_noise_the_selected_pairs_are_as_the_shuffled():
    tables = [selected_pairs(noise(seed), draws=99, seed=seed) for seed in range(200)]
    found = pd.concat(tables)
    for _, part in found.groupby("low"):
        for seed in (1, 2):
            apart = part[f"score_{seed}"] - part[f"shuffled_{seed}"]
            assert abs(apart.mean()) < 4 * apart.std() / len(part) ** 0.5
        # p is uniform: its mean has an error of 0.29 / sqrt(n)
        assert part.p.mean() == pytest.approx(0.5, abs=4 * 0.29 / len(part) ** 0.5)


def test_pairs_that_agree_are_told_from_noise():
    pairs = noise(0, 2000)
    pairs["score_2"] = np.where(pairs.alignment < 0.7, 1 - pairs.score_1, pairs.score_1)
    found = selected_pairs(pairs, draws=99)
    # one that is best in both seeds is a single pair of all
    assert (found.p <= 0.05).all()


def test_selection_is_of_a_seed_and_refuses():
    pairs = noise(1)
    one, again = (selected_pairs(pairs, seed=2) for _ in range(2))
    pd.testing.assert_frame_equal(one, again, check_exact=True)
    assert not one.equals(selected_pairs(pairs, seed=3))
    with pytest.raises(FeatureError, match="shared = 0.6 must be one of the borders"):
        selected_pairs(pairs, shared=0.6)
    with pytest.raises(FeatureError, match="no pairs"):
        selected_pairs(pairs[:0])


def test_scores_by_sharing():
    latents = noise(2, 100).assign(seeds_sharing=lambda t: (4 * t.alignment).astype(int))
    latents.loc[3, "score_1"] = np.nan
    found = by_sharing(latents, "score_1")
    assert found.seeds_sharing.tolist() == [0, 1, 2, 3]
    assert found.latents.sum() == 99
    for row in found.itertuples():
        scores = latents.score_1[latents.seeds_sharing == row.seeds_sharing].dropna()
        quartiles = np.percentile(scores, [25, 50, 75])
        assert [row.lower, row.median, row.upper] == pytest.approx(quartiles)
        assert row.mean == pytest.approx(scores.mean())


def test_differences_within_tenths_are_a_regressions():
    """Least squares with an intercept for each tenth weighs tenths by m n / (m + n), too."""
    rng = np.random.default_rng(0)
    density = rng.random(203)
    latents = pd.DataFrame({"density": density, "shared": rng.random(203) < density})
    latents["score"] = density**2 + 0.1 * latents.shared + 0.05 * rng.normal(size=203)
    found = frequency_matched(latents, "score", "shared")
    order = density.argsort().argsort()
    tenth = (order + 0.5) * 10 // 203
    design = np.column_stack([latents.shared, *(tenth == t for t in range(10))]).astype(float)
    slope = np.linalg.lstsq(design, latents.score, rcond=None)[0][0]
    assert found.difference == pytest.approx(slope, abs=1e-12)
    means = latents.groupby("shared").score.mean()
    assert found.raw == pytest.approx(means[True] - means[False])
    assert found.raw > found.difference + 0.1
    assert (found.group, found.rest) == (latents.shared.sum(), (~latents.shared).sum())


def test_what_frequency_alone_explains_is_no_difference():
    tenth = np.repeat(np.arange(10), 8)
    latents = pd.DataFrame({"density": tenth / 10, "score": tenth**2 / 100})
    latents["shared"] = np.arange(80) % 8 < tenth
    found = frequency_matched(latents, "score", "shared")
    assert found.difference == pytest.approx(0, abs=1e-12)
    assert found.raw > 0.2
    # none of the first tenth is shared, all of the last two are
    assert found.compared == 7 * 8


def test_without_both_there_is_no_difference():
    latents = pd.DataFrame({"density": [0.1, 0.2], "score": [0.5, 0.6], "shared": [True, False]})
    apart = frequency_matched(latents, "score", "shared")
    assert np.isnan(apart.difference)
    assert apart.raw == pytest.approx(-0.1)
    assert frequency_matched(latents, "score", "shared", parts=1).difference == apart.raw
    assert np.isnan(frequency_matched(latents[:1], "score", "shared").raw)
    nothing = frequency_matched(latents[:0], "score", "shared")
    assert np.isnan(nothing.difference)
    with pytest.raises(FeatureError, match="column 'shared' is int64: make it a bool"):
        frequency_matched(latents.astype({"shared": int}), "score", "shared")
    with pytest.raises(FeatureError, match="parts = 0"):
        frequency_matched(latents, "score", "shared", parts=0)
