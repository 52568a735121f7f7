"""Verdicts follow from the rows: planted findings agree, their opposites disagree, and what seeds
could turn is undecided.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from faithful_sae.metrics.uncertainty import mean_over_seeds
from faithful_sae.paper.seed_claims import NEARLY, SAME, findings
from faithful_sae.paper.verdicts import (
    AGREES,
    COLUMNS,
    DISAGREES,
    NOT_TESTABLE,
    UNDECIDED,
)

SEEDS = tuple(range(8))
SPREAD = 0.01  # of a pair


@pytest.fixture
def run(make_run):
    return make_run(
        {
            "seed_dependence": {
                "corpus": "text",
                "sweep_seeds": 3,
                "d_sae": [12, 48],
                "k": [2, 8],
                "tokens": [200, 800],
                "layers": [0, 2],
            },
            "sae.seeds": list(SEEDS),
        }
    )


def pairs(sweep, value, seeds, rng, shared, **others):
    numbers = {
        "shared": shared,
        "shared_maximum": shared,
        "alignment_agree": 0.8,
        "alignment_disagree": 0.4,
        "correlation": 0.9,
        "at_maximum": 0.8,
    } | others
    return [
        {"sweep": sweep, "value": value, "seed_a": a, "seed_b": b}
        | {key: level + SPREAD * rng.normal() for key, level in numbers.items()}
        for a, b in itertools.combinations(seeds, 2)
    ]


def rows(
    shared=0.3,
    sweeps=None,
    rejected=28,
    remaining=0.4,
    gain=0.01,
    most=0.1,
    least=0.1,
    rank=-0.3,
    error=0.002,
    **others,
):
    rng = np.random.default_rng(0)
    table = pairs("seeds", 8, SEEDS, rng, shared, **others)
    for sweep, values in (sweeps or {}).items():
        for value, level in values.items():
            table += pairs(sweep, value, SEEDS[:3], rng, level)
    modes = [
        {"seed_a": a, "seed_b": b, "modes": 2, "p": 0.0 if i < rejected else 0.5}
        for i, (a, b) in enumerate(itertools.combinations(SEEDS, 2))
    ]
    curve = [
        {"base": base, "seeds": n, "only_in_base": remaining + (7 - n) / 20}
        for base in SEEDS
        for n in range(2, 9)
    ]
    estimates = {
        "only_in_base": remaining,
        "c": 0.13,
        "loo_gain": gain,
        "most_excess": most,
        "least_excess": least,
        "rank": rank,
    }
    fits = {
        "law": ["power law", "with offset", "beta-binomial"],
        "c": [0.0, 0.13, 0.0],
        "c_low": [math.nan, 0.05, math.nan],
        "c_high": [math.nan, 0.21, math.nan],
        "loo": [0.02, 0.01, math.nan],
        "at_100": [0.05, 0.15, 0.09],
    }
    who = {
        "base": SEEDS,
        "alive": 400,
        "size": 20,
        "most": 8,
        "all": 100,
        "most_p": [0.01] * 6 + [0.06, 0.07],
        "least": 9,
        "none": 110,
        "least_p": 0.02,
        "rank": rank,
        "rank_p": 0.001,
    }
    return {
        "seed_pairs": pd.DataFrame(table),
        "seed_modes": pd.DataFrame(modes),
        "seed_curve": pd.DataFrame(curve),
        "seed_fits": pd.DataFrame(fits),
        "seed_who": pd.DataFrame(who),
        "seed_estimates": pd.DataFrame(
            {"number": name, "value": value, "seeds": len(SEEDS), "error": error}
            for name, value in estimates.items()
        ),
    }


def row(run, word, **given):
    table = findings(run, rows(**given))
    found = table[table.finding.str.contains(word, regex=False)]
    assert len(found) == 1, word
    return found.iloc[0]


def swept(**values):
    return {"sweeps": values}


LAYERS = {0: 0.2, 1: 0.5, 2: 0.5, 3: 0.2}


@pytest.mark.parametrize(
    "word, given, expected",
    [
        ("Fewer than half", {"shared": 0.3}, AGREES),
        ("Fewer than half", {"shared": 0.7}, DISAGREES),
        ("Fewer than half", {"shared": 0.5}, UNDECIDED),
        ("two kinds", {"rejected": 28}, AGREES),
        ("two kinds", {"rejected": 0}, DISAGREES),
        ("two kinds", {"rejected": 14}, UNDECIDED),
        ("strongly correlated", {"correlation": 0.9}, AGREES),
        ("strongly correlated", {"correlation": 0.3}, DISAGREES),
        ("both matchings agree", {}, AGREES),
        ("both matchings agree", {"alignment_agree": 0.2}, DISAGREES),
        ("both matchings agree", {"alignment_agree": 0.4}, UNDECIDED),
        ("both matchings agree", {"alignment_agree": math.nan}, NOT_TESTABLE),
        ("over a third", {"remaining": 0.4}, AGREES),
        ("over a third", {"remaining": 0.3}, DISAGREES),
        ("over a third", {"remaining": 0.335}, UNDECIDED),
        ("power law", {"gain": 0.01}, AGREES),
        ("power law", {"gain": -0.01}, DISAGREES),
        ("power law", {"gain": 0.003}, UNDECIDED),
        ("power law", {"gain": math.nan}, NOT_TESTABLE),
        ("with their nearest", {"at_maximum": 0.9}, AGREES),
        ("with their nearest", {"at_maximum": 0.2}, DISAGREES),
        ("nearest instead of matched", {}, AGREES),
        ("nearest instead of matched", {"shared_maximum": 0.3 + SAME}, UNDECIDED),
        ("nearest instead of matched", {"shared_maximum": 0.35}, DISAGREES),
        ("nearest instead of matched", {"shared_maximum": 0.25}, DISAGREES),
        ("fire most", {}, AGREES),
        ("fire most", {"most": -0.1}, DISAGREES),
        ("fire most", {"most": 0.003}, UNDECIDED),
        ("fire least", {}, AGREES),
        ("fire least", {"least": -0.1}, DISAGREES),
        ("fire least", {"least": math.nan}, NOT_TESTABLE),
        ("similar latents fire less", {}, AGREES),
        ("similar latents fire less", {"rank": 0.2}, DISAGREES),
        ("similar latents fire less", {"rank": -0.003}, UNDECIDED),
        ("More latents", swept(d_sae={12: 0.6, 24: 0.4, 48: 0.2}), AGREES),
        ("More latents", {}, NOT_TESTABLE),
        ("More latents", swept(d_sae={12: 0.2, 24: 0.4, 48: 0.6}), DISAGREES),
        ("More latents", swept(d_sae={12: 0.4, 24: 0.4, 48: 0.4}), UNDECIDED),
        # down in all, but up on the way
        ("More latents", swept(d_sae={12: 0.5, 24: 0.8, 48: 0.1}), DISAGREES),
        # up on the way by less than three seeds tell
        ("More latents", swept(d_sae={12: 0.6, 24: 0.61, 48: 0.1}), AGREES),
        ("More active", swept(k={2: 0.6, 4: 0.3}), AGREES),
        ("Longer training", swept(tokens={200: 0.2, 400: 0.6}), AGREES),
        ("Longer training", swept(tokens={200: 0.6, 400: 0.2}), DISAGREES),
        ("nearly constant", swept(layer=LAYERS), AGREES),
        ("nearly constant", swept(layer=LAYERS | {2: 0.8}), DISAGREES),
        ("nearly constant", swept(layer=LAYERS | {2: 0.5 + NEARLY}), UNDECIDED),
        ("nearly constant", swept(layer={0: 0.2, 1: 0.5, 2: 0.5}), NOT_TESTABLE),
        ("first layer", swept(layer=LAYERS), AGREES),
        ("first layer", swept(layer=LAYERS | {0: 0.8}), DISAGREES),
        ("first layer", swept(layer=LAYERS | {0: 0.5}), UNDECIDED),
        ("last layer", swept(layer=LAYERS), AGREES),
        ("last layer", swept(layer={0: 0.2, 1: 0.5}), NOT_TESTABLE),
        ("ReLU", {}, NOT_TESTABLE),
    ],
)
def test_a_verdict_is_what_its_rows_say(run, word, given, expected):
    assert row(run, word, **given).verdict == expected


def test_the_table_has_the_columns_of_every_verdict(run):
    table = findings(run, rows())
    assert list(table) == ["finding", "theirs", *COLUMNS]
    assert not table.measured.str.contains("nan|1 of 1|run:").any()


def test_an_effect_is_a_mean_over_pairs_with_its_interval(run):
    found = row(run, "Fewer than half", shared=0.45)
    plain = rows(shared=0.45)["seed_pairs"]
    values = {(p.seed_a, p.seed_b): 0.5 - p.shared for p in plain.itertuples()}
    expected = mean_over_seeds(values)
    assert found.effect == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx(expected.interval())
    assert found.seeds == len(SEEDS)


def test_two_seeds_decide_nothing(make_run):
    pair = rows()
    for name in ("seed_pairs", "seed_modes"):
        pair[name] = pair[name].query("seed_a == 0 and seed_b == 1")
    pair["seed_estimates"] = pair["seed_estimates"].assign(seeds=2, error=math.nan)
    pair["seed_curve"] = pair["seed_curve"].query("seeds == 2 and base < 2")
    two = make_run({"seed_dependence": {"corpus": "text", "sweep_seeds": 2}})
    table = findings(two, pair)
    assert set(table.verdict) == {UNDECIDED, NOT_TESTABLE}
    assert table.measured.str.contains("no interval: 2 seeds").any()


@pytest.mark.parametrize("seeds, verdict", [(3, UNDECIDED), (8, DISAGREES)])
def test_pairs_of_few_seeds_that_all_say_the_same_are_still_few(run, seeds, verdict):
    few = rows(rejected=0)
    few["seed_modes"] = few["seed_modes"].query("seed_b < @seeds")
    table = findings(run, few)
    assert table[table.finding.str.contains("two kinds")].verdict.item() == verdict


def test_what_a_law_says_is_of_the_seeds_there_are(run):
    found = row(run, "power law")
    assert found.finding.endswith("on 2 to 8 seeds")
    assert "offset 0.130 [0.050, 0.210]" in found.measured
    assert (
        "With 100 seeds power law 0.050, with offset 0.150, beta-binomial 0.090" in found.measured
    )


def test_all_bases_are_reported(run):
    assert "p < 0.05 for 6 of 8 bases, p from 0.01 to 0.07" in row(run, "fire most").measured
