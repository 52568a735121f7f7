"""Intervals over seeds against the jackknife by hand, against simulated seeds whose truth is known,
and against the bootstrap of scipy.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from faithful_sae.metrics.uncertainty import (
    Estimate,
    bootstrap_error,
    jackknife,
    mean_over_seeds,
)
from faithful_sae.paper.estimates import rise_weights, weighted_values

# of one SFR on the laptop profile's models: SD of a seed and of a pair, over 14 sets of 28 pairs
SEED_SD, PAIR_SD = 0.0085, 0.0145


def pairs_of(values, seeds):
    return dict(zip(itertools.combinations(seeds, 2), values, strict=True))


def simulated(rng, n_seeds, mean=0.0):
    seed = rng.normal(0, SEED_SD, n_seeds)
    return {
        (a, b): mean + seed[a] + seed[b] + rng.normal(0, PAIR_SD)
        for a, b in itertools.combinations(range(n_seeds), 2)
    }


# --- by hand --------------------------------------------------------------------------------------


def test_pairs_of_three_seeds_by_hand():
    # without 1: .2; without 2: .4; without 3: .6. Mean .4; 2/3 (.04 + 0 + .04) = .05333
    found = mean_over_seeds({(1, 2): 0.6, (1, 3): 0.4, (2, 3): 0.2})
    assert found.value == pytest.approx(0.4)
    assert found.seed_error == pytest.approx(math.sqrt(0.16 / 3))
    assert found.seeds == 3


def test_one_number_per_seed_has_the_usual_standard_error():
    values = [0.3, 0.1, 0.4, 0.15, 0.9]
    found = mean_over_seeds({(seed,): value for seed, value in enumerate(values)})
    assert found.error == pytest.approx(stats.sem(values))
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval() == pytest.approx((low, high))


def test_p_is_that_of_a_t_test():
    values = [0.3, -0.1, 0.4, 0.15, 0.2]
    found = mean_over_seeds({(seed,): value for seed, value in enumerate(values)})
    assert found.p_above() == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater")[1])


def test_a_difference_is_paired_by_seed():
    a, b = [0.3, 0.1, 0.4], [0.1, 0.0, 0.1]
    found = mean_over_seeds({(s,): v for s, v in enumerate(a)}, {(s,): v for s, v in enumerate(b)})
    assert found.error == pytest.approx(stats.sem(np.subtract(a, b)))
    assert found.value == pytest.approx(0.2)


def test_any_statistic_of_seeds():
    values = {1: 0.2, 2: 0.5, 3: 0.3, 4: 0.9}
    mean = jackknife(lambda seeds: sum(values[s] for s in seeds) / len(seeds), list(values))
    assert mean.error == pytest.approx(stats.sem(list(values.values())))


def test_one_pair_has_no_interval():
    found = mean_over_seeds({(42, 49): 0.5})
    assert math.isnan(found.error)
    assert found.p_above() == 1
    assert found.seeds_needed() is None
    assert all(math.isnan(bound) for bound in found.interval())


def test_one_seed_has_no_interval():
    assert math.isnan(mean_over_seeds({(42,): 0.5}).error)


def test_texts_add_in_quadrature():
    assert Estimate(0.1, 5, 0.03, 0.04).error == pytest.approx(0.05)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no numbers"):
        mean_over_seeds({})
    with pytest.raises(ValueError, match="different seeds"):
        mean_over_seeds({(1,): 0.5, (2,): 0.5}, {(1,): 0.5, (3,): 0.5})


def test_seeds_needed_by_hand():
    # an error of .01 with 4 seeds; to see .02: .02 >= (t.95 + t.8) .01 sqrt(4 / S)
    needed = Estimate(0.02, 4, 0.01).seeds_needed()
    assert needed is not None
    for seeds, enough in ((needed, True), (needed - 1, False)):
        quantiles = stats.t.ppf(0.95, seeds - 1) + stats.t.ppf(0.8, seeds - 1)
        assert (quantiles * 0.01 * math.sqrt(4 / seeds) <= 0.02) == enough


def test_no_number_of_seeds_mends_too_few_texts():
    assert Estimate(0.01, 8, 0.001, 0.05).seeds_needed() is None


# --- simulated seeds ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [4, 6, 8, 12])
def test_an_interval_holds_the_truth_as_often_as_it_says(n_seeds):
    rng = np.random.default_rng(n_seeds)
    held = []
    for _ in range(1000):
        low, high = mean_over_seeds(simulated(rng, n_seeds), simulated(rng, n_seeds)).interval()
        held.append(low <= 0 <= high)
    assert 0.94 <= np.mean(held) <= 0.985


# how often a difference of SFR is seen (two-sided, 95 %), worked out with other code
POWER = {
    4: {0.015: 0.07, 0.03: 0.17, 0.05: 0.44},
    6: {0.015: 0.14, 0.03: 0.46, 0.05: 0.89},
    8: {0.015: 0.23, 0.03: 0.70, 0.05: 0.98},
    12: {0.015: 0.41, 0.03: 0.94, 0.05: 1.0},
}


@pytest.mark.parametrize("n_seeds", POWER)
def test_power(n_seeds):
    rng = np.random.default_rng(100 + n_seeds)
    found = [mean_over_seeds(simulated(rng, n_seeds), simulated(rng, n_seeds)) for _ in range(800)]
    for difference, power in POWER[n_seeds].items():
        seen = [e.value + difference > e.half_width() for e in found]
        assert np.mean(seen) == pytest.approx(power, abs=0.05), difference


@pytest.mark.parametrize("n_seeds", [4, 6, 8])
def test_a_rise_over_corpora_is_seen_as_often_as_it_says_where_there_is_none(n_seeds):
    """One-sided, 5 %; the bound is three standard errors of the count above."""
    rng = np.random.default_rng(200 + n_seeds)
    weights = rise_weights({corpus: float(corpus) for corpus in range(7)})
    seen = []
    for _ in range(800):
        cells = {corpus: simulated(rng, n_seeds) for corpus in range(7)}
        low, high = mean_over_seeds(weighted_values(cells, weights)).bounds()
        seen.append([low > 0, high < 0])
    assert np.max(np.mean(seen, 0)) <= 0.073


def test_a_rise_is_that_of_the_line_of_least_squares():
    places, values = {"a": 2.0, "b": 1.0, "c": 2.0, "d": 7.5}, [0.3, 0.9, 0.1, 0.4]
    weights = rise_weights(places)
    slope, _ = np.polyfit([*places.values()], values, 1)
    got = sum(weight * value for weight, value in zip(weights.values(), values, strict=True))
    assert got == pytest.approx(slope * 6.5)


# --- rows and texts -------------------------------------------------------------------------------


def test_bootstrap_over_texts_against_scipy():
    values = np.random.default_rng(0).random(80) < 0.7
    ours = bootstrap_error(values, np.ones(80), draws=4000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    )
    assert ours == pytest.approx(theirs.standard_error, rel=0.05)


def test_bootstrap_over_rows_weighs_them_by_their_tokens():
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 50, 60)
    sums = counts * rng.normal(1, 0.2, 60)

    def ratio(index, axis):
        return sums[index].sum(axis) / counts[index].sum(axis)

    theirs = stats.bootstrap(
        (np.arange(60),), ratio, n_resamples=4000, vectorized=True, method="percentile", rng=rng
    )
    assert bootstrap_error(sums, counts, draws=4000) == pytest.approx(
        theirs.standard_error, rel=0.05
    )


def test_bootstrap_of_one_row_is_unknown():
    assert math.isnan(bootstrap_error([3.0], [2]))


def test_bootstrap_is_the_same_every_time():
    values = np.arange(50.0)
    assert bootstrap_error(values, np.ones(50)) == bootstrap_error(values, np.ones(50))


def test_rows_of_tokens_of_one_mean_have_no_error():
    counts = np.array([3, 50, 7, 9])
    assert bootstrap_error(2.0 * counts, counts) == pytest.approx(0, abs=1e-12)
