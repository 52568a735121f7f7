"""Verdicts follow from the rows: planted ones hold, their opposites do not, and what is within
noise is open.
"""

import numpy as np
import pandas as pd
import pytest

from faithful_sae.paper.seed_claims import FAILS, HOLDS, NOT_TESTABLE, OPEN, findings, noise

SEEDS = tuple(range(9))


@pytest.fixture
def run(make_run):
    return make_run(
        {
            "seed_dependence": {
                "corpus": "text",
                "seeds": list(SEEDS),
                "sweep_seeds": 3,
                "d_sae": [12, 48],
                "k": [2, 8],
                "tokens": [200, 800],
                "layers": [0, 2],
            },
            "sae.d_sae": 1000,
        }
    )


def pairs(sweep, value, n, rng, shared, **others):
    numbers = {
        "shared": shared,
        "shared_maximum": shared,
        "alignment_agree": 0.8,
        "alignment_disagree": 0.4,
        "correlation": 0.9,
        "at_maximum": 0.8,
    } | others
    return [
        {"sweep": sweep, "value": value, "d_sae": 1000}
        | {key: level + 0.01 * rng.normal() for key, level in numbers.items()}
        for _ in range(n)
    ]


def rows(shared=0.3, sweeps=None, latents=None, p=0.0, offset=0.3, remaining=0.4, **others):
    rng = np.random.default_rng(0)
    table = pairs("seeds", 9, 36, rng, shared, **others)
    for sweep, values in (sweeps or {}).items():
        for value, level in values.items():
            table += pairs(sweep, value, 3, rng, level)
    if latents is None:
        firing = np.geomspace(1e-4, 0.5, 400)
        latents = pd.DataFrame(
            {
                "latent": range(400),
                "firing": firing,
                "seeds_sharing": np.linspace(0, 8.99, 400).astype(int),
                "mean_cosine": np.linspace(0.9, 0.2, 400),
            }
        )
    curve = [
        {"base": b, "seeds": n, "only_in_base": remaining + (9 - n) / 20 + 0.01 * (b % 3)}
        for b in SEEDS
        for n in range(2, 10)
    ]
    fits = [
        {
            "law": "power law",
            "a": 1.0,
            "b": 0.3,
            "c": 0.0,
            "rmse": 0.01,
            "aicc": -50.0,
            "loo": 0.02,
        },
        {
            "law": "with offset",
            "a": 1.0,
            "b": 0.8,
            "c": offset,
            "rmse": 0.001,
            "aicc": -60.0 if offset else -45.0,
            "loo": 0.001 if offset else 0.03,
        },
    ]
    return {
        "seed_pairs": pd.DataFrame(table),
        "seed_latents": latents,
        "seed_curve": pd.DataFrame(curve),
        "seed_fits": pd.DataFrame(fits),
        "seed_modes": pd.DataFrame({"modes": [2 if p < 0.05 else 1] * 8, "p": [p] * 8}),
    }


def verdict(run, word, **given):
    table = findings(run, rows(**given))
    found = table[table.finding.str.contains(word, regex=False)]
    assert len(found) == 1, word
    return found.verdict.item()


@pytest.mark.parametrize(
    "word, given, expected",
    [
        ("Fewer than half", {"shared": 0.3}, HOLDS),
        ("Fewer than half", {"shared": 0.7}, FAILS),
        ("Fewer than half", {"shared": 0.5}, OPEN),
        ("two modes", {"p": 0.0}, HOLDS),
        ("two modes", {"p": 0.5}, FAILS),
        ("strongly correlated", {"correlation": 0.9}, HOLDS),
        ("strongly correlated", {"correlation": 0.3}, FAILS),
        ("both matchings agree", {}, HOLDS),
        ("both matchings agree", {"alignment_agree": 0.2}, FAILS),
        ("both matchings agree", {"alignment_agree": 0.4}, OPEN),
        ("over a third", {"remaining": 0.4}, HOLDS),
        ("over a third", {"remaining": 0.1}, FAILS),
        ("over a third", {"remaining": 1 / 3 - 0.01}, OPEN),
        ("power law", {"offset": 0.3}, HOLDS),
        ("power law", {"offset": 0.0}, FAILS),
        ("with their nearest", {"at_maximum": 0.9}, HOLDS),
        ("with their nearest", {"at_maximum": 0.2}, FAILS),
        ("nearest instead of matched", {}, HOLDS),
        ("nearest instead of matched", {"shared_maximum": 0.5}, FAILS),
        ("fire most", {}, HOLDS),
        ("fire least", {}, HOLDS),
        ("similar latents fire less", {}, HOLDS),
        ("More latents", {"sweeps": {"d_sae": {12: 0.6, 24: 0.4, 48: 0.2}}}, HOLDS),
        ("More latents", {}, NOT_TESTABLE),
        ("More latents", {"sweeps": {"d_sae": {12: 0.2, 24: 0.4, 48: 0.6}}}, FAILS),
        ("More latents", {"sweeps": {"d_sae": {12: 0.4, 24: 0.4, 48: 0.4}}}, OPEN),
        (
            "More latents",
            {"sweeps": {"d_sae": {12: 0.3, 24: 0.6, 48: 0.1}}},
            FAILS,
        ),  # down in all, but up on the way
        ("More active", {"sweeps": {"k": {2: 0.6, 4: 0.4}}}, HOLDS),
        ("Longer training", {"sweeps": {"tokens": {200: 0.2, 400: 0.6}}}, HOLDS),
        ("Longer training", {"sweeps": {"tokens": {200: 0.6, 400: 0.2}}}, FAILS),
        ("over middle layers", {"sweeps": {"layer": {0: 0.2, 1: 0.5, 2: 0.5, 3: 0.2}}}, HOLDS),
        ("over middle layers", {"sweeps": {"layer": {0: 0.2, 1: 0.3, 2: 0.6, 3: 0.2}}}, FAILS),
        ("over middle layers", {"sweeps": {"layer": {0: 0.2, 1: 0.5, 2: 0.2}}}, NOT_TESTABLE),
        (
            "over middle layers",
            {"sweeps": {"layer": {0: 0.0, 1: 0.02, 2: 0.02, 3: 0.0}}},
            OPEN,
        ),  # a halving would drown in the noise
        ("first layer", {"sweeps": {"layer": {0: 0.2, 1: 0.5, 2: 0.2}}}, HOLDS),
        ("first layer", {"sweeps": {"layer": {0: 0.5, 1: 0.5, 2: 0.2}}}, OPEN),
        ("last layer", {"sweeps": {"layer": {0: 0.2, 1: 0.5, 2: 0.5, 3: 0.8}}}, FAILS),
        ("last layer", {"sweeps": {"layer": {0: 0.2, 1: 0.5}}}, NOT_TESTABLE),
        ("ReLU", {}, NOT_TESTABLE),
    ],
)
def test_a_verdict_is_what_its_rows_say(run, word, given, expected):
    assert verdict(run, word, **given) == expected


def test_who_is_shared_by_hand(run):
    """The opposite of what they found: the rarest latents are shared by all, and the most similar
    fire most.
    """
    firing = np.geomspace(1e-4, 0.5, 400)
    latents = pd.DataFrame(
        {
            "latent": range(400),
            "firing": firing,
            "seeds_sharing": np.where(np.arange(400) < 200, 8, 0),
            "mean_cosine": np.linspace(0.2, 0.9, 400),
        }
    )
    for word in ("fire most", "fire least", "similar latents fire less"):
        assert verdict(run, word, latents=latents) == FAILS
    even = latents.assign(seeds_sharing=np.tile(range(8), 50), mean_cosine=np.tile([0.4, 0.6], 200))
    assert verdict(run, "similar latents fire less", latents=even) == OPEN
    assert verdict(run, "fire least", latents=even) == OPEN
    dead = pd.concat([latents.assign(firing=0.0, seeds_sharing=0), latents])
    assert verdict(run, "fire least", latents=dead) == FAILS  # the dead do not count as rare


def test_noise_by_hand():
    shares = pd.Series([0.4, 0.5, 0.6])  # standard deviation 0.1
    assert (
        abs(noise(shares, 3) - 0.1) < 1e-12
    )  # three seeds: one pair that shares no seed with another
    assert abs(noise(shares, 9) - 0.1 / 2) < 1e-12  # nine: four
    assert (
        abs(noise(shares, 3, 100) - 0.1) < 1e-12
    )  # sqrt(0.5 * 0.5 / 100) = 0.05 is less than the spread
    assert abs(noise(shares, 3, 4) - 0.25) < 1e-12  # sqrt(0.25 / 4) is more
    assert abs(noise(shares[:1], 2, 24) - 0.1) < 1e-12  # one pair: only the binomial is known
    assert np.isnan(noise(shares[:1], 2))
