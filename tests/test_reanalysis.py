"""The paper's own tables under noise. The expected figures were worked out independently, with
other code, from the paper's pages.
"""

import numpy as np
import pytest
from scipy.stats import binomtest

from faithful_sae.paper.reanalysis import comparisons, patterns
from faithful_sae.paper.verdicts import holm

# measure, model, compared with: difference, z and Holm's p under low, then under high noise
EXPECTED = {
    ("SFR", "Pythia 1.4B", "Alpaca"): (0.0007, 0.1, 1, 0.1, 1),
    ("SFR", "Pythia 1.4B", "FLAN"): (0.1032, 18.6, 0, 7.8, 0),
    ("SFR", "Pythia 2.8B", "Open-Instruct"): (0.0701, 14.1, 0, 5.4, 0),
    ("SFR", "Pythia 1.4B", "Faithful, other model's"): (0.0258, 4.8, 2e-5, 2.0, 0.45),
    ("SFR", "Pythia 2.8B", "Faithful, other model's"): (0.0623, 12.5, 0, 4.8, 2e-5),
    ("SFR", "GPT-2 Small", "Pile"): (-0.0147, 2.3, 0.13, 1.1, 1),
    ("SFR", "GPT-2 Small", "FineWeb"): (0.0049, -0.8, 1, -0.4, 1),
    ("SFR", "LLaMA 3.2-1B", "FineWeb"): (-0.0272, 4.6, 3e-5, 2.0, 0.42),
    ("SFR", "Gemma 2B", "FineWeb"): (-0.0348, 6.8, 0, 2.7, 0.08),
    ("SFR", "LLaMA 3.2-3B", "Pile"): (-0.0387, 9.2, 0, 3.0, 0.03),
    ("SFR", "LLaMA 3.1-8B", "FineWeb"): (-0.0022, 0.7, 1, 0.2, 1),
    ("FFR", "GPT-2 Small", "FineWeb"): (14.0 - 19.5, 2.1, None, 1.3, 1),
    ("FFR", "LLaMA 3.2-3B", "Pile"): (35 - 54, 4.5, None, 2.8, 0.061),
    ("FFR", "LLaMA 3.1-8B", "FineWeb"): (68 - 90, 3.9, None, 2.5, None),
    ("FFR", "Pythia 2.8B", "Pile"): (71.5 - 68.5, -0.6, 1, -0.4, 1),
    ("probes", "Gemma 2B", "best other on SST-2 (FineWeb)"): (-0.0665, -6.9, 0, -3.9, None),
    ("probes", "Pythia 2.8B", "best other on CoLA (Pile)"): (0.0202, 2.3, None, 1.3, 1),
    ("probes", "Gemma 2B", "best other on Yelp (FineWeb)"): (0.0041, 5.7, None, 1.7, 1),
}


@pytest.fixture(scope="module")
def table():
    return comparisons().set_index(["measure", "model", "compared_with"])


@pytest.mark.parametrize("which", EXPECTED, ids=lambda which: "-".join(which))
def test_a_comparison_is_as_worked_out_elsewhere(table, which):
    row = table.loc[which]
    difference, *others = EXPECTED[which]
    assert row.difference == pytest.approx(difference, abs=0.02 if which[0] == "FFR" else 1e-9)
    for (name, digits), expected in zip(
        [("z_low", 0.051), ("p_low", 0.0051), ("z_high", 0.051), ("p_high", 0.0051)],
        others,
        strict=True,
    ):
        if expected is not None:
            assert row[name] == pytest.approx(expected, abs=digits), name


@pytest.mark.parametrize(
    "section, low, high",
    [("4.1", 4, 4), ("5.2", 2, 1), ("5.3", 6, 2), ("5.7", 4, 0)],
)
def test_how_many_comparisons_of_a_claim_survive(table, section, low, high):
    part = table[table.section == section]
    assert (part.reading_low == "for").sum() == low
    assert (part.reading_high == "for").sum() == high


def test_the_comparisons_are_all_that_the_claims_name(table):
    assert table.groupby("measure").size().to_dict() == {"FFR": 14, "SFR": 18, "probes": 18}


def test_holm_by_hand():
    """Sorted .01 .02 .03 .5: 4 x .01, 3 x .02, 2 x .03, and .5."""
    assert holm([0.5, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]).tolist() == [1, 1]


def test_holm_keeps_the_rate_of_any_false_finding():
    """10 true null hypotheses, 2,000 times: a finding in at most 5 % (binomial 99.9 %: 6.7 %)."""
    p = np.random.default_rng(0).random((2000, 10))
    found = sum(min(holm(row)) < 0.05 for row in p)
    assert binomtest(found, 2000, 0.05, "greater").pvalue > 0.001


@pytest.mark.parametrize(
    "pattern, printed, p",
    [
        ("probes read best", 12, 0.004),
        ("CoLA alone", 6, 0.0014),
        ("SST-2 alone", 3, 0.32),
        ("FFR is lowest", 5, 0.045),
        ("text over Pile", 0.891, 0.028),
        ("text over FineWeb", 0.871, 0.007),
        ("CoLA accuracies that are multiples of 1/2086", 14, None),
        ("SST-2 accuracies that are multiples of 1/1744", 9, None),
        ("multiples of half a latent", 19, None),
        ("no higher than always naming", 6, None),
    ],
)
def test_patterns(pattern, printed, p):
    rows = patterns().set_index("pattern")
    (name,) = [name for name in rows.index if pattern in name]
    assert rows.printed[name] == pytest.approx(printed, abs=5e-4)
    if p is not None:
        assert rows.p[name] == pytest.approx(p, rel=0.13)
