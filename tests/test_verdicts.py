"""The rule of verdicts on differences planted in both directions, on none, and on each way of not
being testable.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from faithful_sae.metrics.uncertainty import Estimate, mean_over_seeds
from faithful_sae.paper.verdicts import (
    AGREES,
    DISAGREES,
    NO_DIFFERENCE,
    NOT_MEASURED,
    NOT_TESTABLE,
    UNDECIDED,
    Case,
    Difference,
    judge,
    table_of,
)


def case(*differences, error=0.01, seeds=8, **more):
    """A case with differences of these sizes."""
    estimates = (Estimate(value, seeds, error) for value in differences)
    return Case("m", tuple(Difference("above x", e) for e in estimates), **more)


# t.95 with 7 degrees of freedom is 1.895
@pytest.mark.parametrize(
    "differences, verdict",
    [
        ((0.02,), AGREES),
        ((0.018,), UNDECIDED),
        ((-0.02,), DISAGREES),
        ((-0.018,), UNDECIDED),
        ((0.05, 0.02), AGREES),
        ((0.05, 0.018), UNDECIDED),
        # below 0 by one of two bounds, which share the 5 %: t.975 is 2.365
        ((0.05, -0.02), UNDECIDED),
        ((0.05, -0.024), DISAGREES),
    ],
)
def test_differences_of_one_case(differences, verdict):
    assert judge([case(*differences)])["verdict"] == verdict


def test_no_difference_needs_the_interval_inside_the_margin():
    small = case(0.002, error=0.005)
    assert judge([small], margin=0.02)["verdict"] == NO_DIFFERENCE
    assert judge([small], margin=0.01)["verdict"] == UNDECIDED
    assert judge([case(0.002, error=0.02)], margin=0.02)["verdict"] == UNDECIDED


def by_one_latent(sign):
    """Shares of 64 latents with three seeds, all one latent above, or below, the others."""
    ratios = {(1,): 10 / 64, (2,): 14 / 64, (3,): 13 / 64}
    moved = {seed: ratio + sign / 64 for seed, ratio in ratios.items()}
    return Case("m", (Difference("above x", mean_over_seeds(moved, ratios)),))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_same_difference_with_each_seed_decides_nothing(sign):
    row = judge([by_one_latent(sign)], margin=0.05)
    assert row["verdict"] == UNDECIDED
    assert row["p"] == 1
    assert row["seeds_needed"] is pd.NA
    assert math.isnan(row["low"])
    assert "the same with each of 3 seeds" in row["measured"]


def test_one_of_many_differences_is_below_0_by_chance():
    alone = case(-0.02)
    assert judge([alone])["verdict"] == DISAGREES
    assert judge([alone, case(0.001)])["verdict"] == UNDECIDED
    assert judge([alone], missing=["n"])["verdict"] == UNDECIDED


FOR, AGAINST, OPEN = case(0.05), case(-0.05), case(0.001)


@pytest.mark.parametrize(
    "cases, all_of_them, most",
    [
        ([FOR, FOR], AGREES, AGREES),
        ([FOR, AGAINST], DISAGREES, DISAGREES),
        ([FOR, OPEN], UNDECIDED, UNDECIDED),
        ([FOR, FOR, OPEN], UNDECIDED, AGREES),
        ([FOR, FOR, AGAINST], DISAGREES, AGREES),
        ([FOR, AGAINST, OPEN], DISAGREES, UNDECIDED),
        ([AGAINST, AGAINST, OPEN], DISAGREES, DISAGREES),
        ([OPEN, OPEN, AGAINST], DISAGREES, UNDECIDED),
    ],
)
def test_all_and_most(cases, all_of_them, most):
    assert judge(cases)["verdict"] == all_of_them
    assert judge(cases, most=True)["verdict"] == most


@pytest.mark.parametrize(
    "cases, missing, most, verdict",
    [
        ([FOR], ["b"], False, UNDECIDED),
        ([AGAINST], ["b"], False, DISAGREES),
        ([FOR, FOR], ["b"], True, AGREES),
        ([FOR], ["b"], True, UNDECIDED),
        ([AGAINST], ["b"], True, DISAGREES),
        ([], ["b"], True, NOT_MEASURED),
    ],
)
def test_what_is_not_measured_may_change_it(cases, missing, most, verdict):
    row = judge(cases, missing, most)
    assert row["verdict"] == verdict
    assert row["measured"].endswith("not measured: b")


def test_excluded_cases_do_not_count():
    chance = case(0.05, excluded="its baseline is at chance")
    assert judge([chance])["verdict"] == NOT_TESTABLE
    assert judge([chance, AGAINST], most=True)["verdict"] == DISAGREES
    assert "at chance" in judge([chance, FOR])["measured"]


def test_a_case_of_nothing_is_refused():
    with pytest.raises(ValueError, match="m: no difference"):
        Case("m")


def test_nothing_to_compare_is_not_testable():
    assert judge([])["verdict"] == NOT_TESTABLE


@pytest.mark.parametrize("fact, verdict", [(True, AGREES), (False, DISAGREES)])
def test_a_statement_without_noise(fact, verdict):
    row = judge([Case("m", fact=fact, words="95 %")])
    assert row["verdict"] == verdict
    assert "p" not in row or math.isnan(row["p"])


def test_one_pair_of_seeds_decides_nothing():
    pair = mean_over_seeds({(42, 49): 0.9}, {(42, 49): 0.1})
    row = judge([Case("m", (Difference("above x", pair),))])
    assert row["verdict"] == UNDECIDED
    assert "no interval: 2 seeds" in row["measured"]
    assert row["p"] == 1


def test_the_weakest_difference_stands_in_the_table():
    row = judge([case(0.05, 0.03), case(0.04)])
    assert row["effect"] == 0.03
    assert row["low"] == pytest.approx(0.03 - 2.364624 * 0.01)
    assert row["seeds"] == 8


def test_seeds_that_it_would_take():
    undecided = Estimate(0.015, 8, 0.01)
    row = judge([case(0.015), FOR])
    assert row["seeds_needed"] == undecided.seeds_needed()
    assert row["seeds_needed"] > 8
    assert "seeds_needed" not in judge([FOR])


def test_p_of_all_and_of_most():
    p = [d.differences[0].estimate.p_above() for d in (FOR, OPEN, AGAINST)]
    # twice the smaller side: that all hold, or that one of three fails
    assert judge([FOR, OPEN, AGAINST])["p"] == pytest.approx(2 * 3 * (1 - p[2]))
    assert judge([FOR, FOR, OPEN])["p"] == pytest.approx(2 * p[1])
    # two of three must hold: the second smallest, twice
    assert judge([FOR, FOR, OPEN], most=True)["p"] == pytest.approx(2 * 2 * p[0])


def test_holm_over_the_statements_of_a_table():
    rows = [{"claim": name, **judge([c])} for name, c in (("a", FOR), ("b", OPEN))]
    rows.append({"claim": "c", **judge([Case("m", fact=True)])})
    table = table_of(rows)
    assert table.p_holm[0] == pytest.approx(2 * table.p[0])
    assert math.isnan(table.p_holm[2])
    assert list(table.columns[:2]) == ["claim", "measured"]


@pytest.mark.parametrize("effect, expected", [(0.05, AGREES), (-0.05, DISAGREES), (0.0, UNDECIDED)])
def test_planted_effects_are_found(effect, expected):
    """Eight seeds, and the noise that SFR has: at most one of twenty worlds says otherwise in the
    first two, and of none the share of verdicts is what the bounds allow.
    """
    rng = np.random.default_rng(int(100 * effect) + 7)
    verdicts = []
    for _ in range(200):
        own, other = (
            {
                (a, b): mean + s[a] + s[b] + rng.normal(0, 0.0145)
                for a, b in itertools.combinations(range(8), 2)
            }
            for mean, s in (
                (0.5 + effect, rng.normal(0, 0.0085, 8)),
                (0.5, rng.normal(0, 0.0085, 8)),
            )
        )
        difference = Difference("above x", mean_over_seeds(own, other))
        verdicts.append(judge([Case("m", (difference,))])["verdict"])
    assert verdicts.count(expected) >= (180 if effect == 0 else 190)
    opposite = {AGREES: DISAGREES, DISAGREES: AGREES}.get(expected)
    assert verdicts.count(opposite) == 0
