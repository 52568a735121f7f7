"""The measures of notebook 08 against brute force, planted laws and SAEs made by hand."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from faithful_sae import TopKSAE
from faithful_sae.matching import match_features, match_pairs
from faithful_sae.metrics import seed_dependence
from faithful_sae.metrics.seed_dependence import (
    beta_binomial,
    by_pair,
    compare_latents,
    compare_pair,
    count_modes,
    fit_laws,
    hit_masks,
    many_seeds,
    maximum_cosine,
    means_over_seeds,
    modes_test,
    only_in_base,
    over_seeds,
    power_laws,
    share_alone,
    shared_by_maximum,
    sharing,
    thresholds,
    who_is_shared,
)
from faithful_sae.metrics.sfr import match_seeds
from faithful_sae.metrics.uncertainty import mean_over_seeds


def dictionary(w_dec, w_enc=None) -> Any:
    w_dec = torch.as_tensor(np.asarray(w_dec), dtype=torch.float32)
    return SimpleNamespace(
        W_dec=w_dec,
        W_enc=w_dec.T if w_enc is None else torch.as_tensor(np.asarray(w_enc), dtype=torch.float32),
    )


def related(seeds, n=20, d=6, noise=0.25, seed=0):
    """SAEs that are noisy, shuffled copies of one dictionary: some latents hit, some miss."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, d))
    found = {}
    for name in seeds:
        order = rng.permutation(n)
        found[name] = dictionary(
            (w + noise * rng.normal(size=(n, d)))[order],
            (w + noise * rng.normal(size=(n, d)))[order].T,
        )
    return found


def hits_by_hand(a, b, threshold):
    """Which latents of a are shared with b, from matchings made in this direction."""
    decoder, encoder = match_features(a.W_dec, b.W_dec), match_features(a.W_enc.T, b.W_enc.T)
    return [
        decoder.permutation[i] == encoder.permutation[i]
        and decoder.cosine[i] >= threshold
        and encoder.cosine[i] >= threshold
        for i in range(len(a.W_dec))
    ]


# --- pairs ----------------------------------------------------------------------------------------


def test_all_pairs_in_order():
    rows = {name: np.random.default_rng(i).normal(size=(7, 4)) for i, name in enumerate("cab")}
    found = match_pairs(rows)
    assert list(found) == [("c", "a"), ("c", "b"), ("a", "b")]
    for (a, b), matching in found.items():
        np.testing.assert_array_equal(
            matching.permutation, match_features(rows[a], rows[b]).permutation
        )


def test_a_shuffled_copy_shares_every_latent():
    sae = TopKSAE(8, 40, 2, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    copy = dictionary(sae.W_dec[order], sae.W_enc[:, order])
    matchings = match_seeds({"a": sae, "b": copy})
    assert all(hits.shape == (1, 40) and hits.all() for hits in hit_masks(matchings, 0.7).values())
    latents = compare_latents(sae, copy, *matchings["a", "b"])
    np.testing.assert_array_equal(
        order[latents.match], np.arange(40)
    )  # row i of the copy is row order[i]
    row = compare_pair(latents, *matchings["a", "b"], 0.7)
    assert (
        row["shared"]
        == row["shared_decoder"]
        == row["shared_maximum"]
        == row["agree"]
        == row["at_maximum"]
        == 1.0
    )
    assert abs(row["mmcs"] - 1) < 1e-6
    assert abs(row["alignment"] - 1) < 1e-6
    assert np.isnan(row["alignment_disagree"])
    copy.W_enc = copy.W_enc.roll(
        1, 1
    )  # the decoders match, but every encoder now belongs to another latent
    row = compare_pair(
        latents.assign(encoder_match=-1, agree=False),
        *match_seeds({"a": sae, "b": copy})["a", "b"],
        0.7,
    )
    assert row["shared"] < 0.1
    assert row["shared_decoder"] == 1.0


def test_masks_are_those_of_matchings_made_in_either_direction():
    saes = related(range(4))
    masks = hit_masks(match_seeds(saes), 0.8)
    for base in saes:
        others = [name for name in saes if name != base]
        for row, other in zip(masks[base], others, strict=True):
            np.testing.assert_array_equal(row, hits_by_hand(saes[base], saes[other], 0.8))
    assert 0.1 < np.mean([m.mean() for m in masks.values()]) < 0.9  # neither all nor none


def test_maximum_cosine_is_a_dense_products():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(30, 5)), rng.normal(size=(17, 5))
    product = (A / np.linalg.norm(A, axis=1)[:, None]) @ (B / np.linalg.norm(B, axis=1)[:, None]).T
    index, cosine = maximum_cosine(A, B)
    np.testing.assert_array_equal(index, product.argmax(1))
    np.testing.assert_allclose(cosine, product.max(1), atol=1e-6)


def test_two_latents_with_one_nearest_neighbour():
    """Rows 0 and 1 of A are nearest to row 0 of B; the matching gives it to row 0, and row 1 the
    axis that is left.
    """
    a = dictionary([[1, 0, 0], [0.9, 0.1, 0]])
    b = dictionary([[1, 0, 0], [0, 0, 1]])
    matchings = match_seeds({"a": a, "b": b})
    latents = compare_latents(a, b, *matchings["a", "b"])
    assert latents.match.tolist() == [0, 1]
    assert latents.maximum.tolist() == [0, 0]
    assert latents.agree.all()
    row = compare_pair(latents, *matchings["a", "b"], 0.7)
    assert row["shared"] == 0.5
    assert row["shared_maximum"] == 1.0
    assert row["at_maximum"] == 0.5
    assert row["mmcs"] > row["matched_cosine"]
    assert shared_by_maximum(latents, 0.999).tolist() == [
        True,
        False,
    ]


def test_nearest_latents_count_only_where_decoder_and_encoder_name_the_same_one():
    saes = related("ab", n=60, noise=0.8)
    a, b = saes.values()
    (matching,) = match_seeds(saes).values()
    (to, cosine), (to_encoder, cosine_encoder) = (
        maximum_cosine(a.W_dec, b.W_dec),
        maximum_cosine(a.W_enc.T, b.W_enc.T),
    )
    near = [cosine[i] >= 0.7 and cosine_encoder[i] >= 0.7 for i in range(60)]
    expected = [near[i] and to[i] == to_encoder[i] for i in range(60)]
    assert shared_by_maximum(compare_latents(a, b, *matching), 0.7).tolist() == expected
    assert 0 < sum(expected) < sum(near) < 60  # the cases differ


def test_thresholds_are_the_definitions_at_each_value():
    saes = related("ab", n=60)
    (matching,) = match_seeds(saes).values()
    latents = compare_latents(saes["a"], saes["b"], *matching)
    cuts = thresholds(latents, *matching, [0.0, 0.5, 0.7, 0.9])
    for cut in cuts.to_dict("records"):
        row = compare_pair(latents, *matching, cut["threshold"])
        for name in ("shared", "shared_decoder", "shared_maximum"):
            assert cut[name] == row[name]
    assert cuts.shared.is_monotonic_decreasing
    assert cuts.shared.nunique() > 1
    assert (cuts.shared <= cuts.shared_decoder).all()


# --- many seeds -----------------------------------------------------------------------------------


def test_only_in_base_is_the_average_over_all_sets_of_seeds():
    """Their experiment as they describe it: every set of n SAEs, every member of it as base, one
    matching after another.
    """
    saes = related(range(5))
    curve = (
        only_in_base(hit_masks(match_seeds(saes), 0.8)).set_index(["base", "seeds"]).only_in_base
    )
    hits = {
        (a, b): np.array(hits_by_hand(saes[a], saes[b], 0.8))
        for a, b in itertools.permutations(saes, 2)
    }
    for n in range(2, 6):
        shares = {base: [] for base in saes}
        for chosen in itertools.combinations(saes, n):
            for base in chosen:
                missed_by_all = np.all(
                    [~hits[base, other] for other in chosen if other != base], axis=0
                )
                shares[base].append(missed_by_all.mean())
        for base, values in shares.items():
            assert abs(curve[base, n] - np.mean(values)) < 1e-12
        mean = np.mean(np.concatenate(list(shares.values())))
        assert abs(curve.xs(n, level="seeds").mean() - mean) < 1e-12
    assert curve.nunique() > 10


@pytest.mark.parametrize("planted", [(0.9, 0.4, 0.0), (0.5, 0.8, 0.3), (0.6, 1.5, 0.1)])
def test_fits_find_a_planted_law_and_prefer_it(planted):
    a, b, c = planted
    n = np.arange(2, 10)
    noise = 1e-3 * np.random.default_rng(0).normal(size=len(n))
    fits = power_laws(n, a * n**-b + c + noise).set_index("law")
    np.testing.assert_allclose(
        fits.loc["with offset", ["a", "b", "c"]].astype(float), planted, atol=0.05
    )
    plain, offset = fits.loc["power law"], fits.loc["with offset"]
    if c:
        assert offset.aicc < plain.aicc - 2
        assert offset.loo < plain.loo
    else:
        np.testing.assert_allclose([plain.a, plain.b], [a, b], atol=0.02)
        assert plain.aicc < offset.aicc  # the offset buys nothing
    drawn = share_alone(fits.reset_index().to_dict("records")[1], n)
    np.testing.assert_allclose(drawn, a * n**-b + c, atol=3e-3)


def test_too_few_points_for_a_law():
    fits = power_laws([2, 3, 4], [0.9, 0.8, 0.75]).set_index("law")
    assert np.isfinite(fits.loc["power law", "a"])
    assert np.isnan(fits.loc["with offset", "a"])
    assert fits.aicc.isna().all()
    assert np.isnan(power_laws([2], [0.9]).a).all()


def test_left_out_errors_are_of_fits_without_the_point():
    n = np.arange(2, 8)
    share = np.array([0.9, 0.8, 0.72, 0.7, 0.66, 0.65])
    errors = []
    for i in range(len(n)):
        rest = power_laws(np.delete(n, i), np.delete(share, i)).iloc[0]
        errors.append(rest.a * n[i] ** -rest.b - share[i])
    assert abs(power_laws(n, share).iloc[0].loo - np.sqrt(np.mean(np.square(errors)))) < 1e-9


def log_likelihood(histogram, alpha, beta):
    """Of a beta-binomial law, from its definition."""

    def log_beta(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    m = len(histogram) - 1
    return sum(
        count
        * (math.log(math.comb(m, k)) + log_beta(k + alpha, m - k + beta) - log_beta(alpha, beta))
        for k, count in enumerate(histogram)
    )


def found_by_others(alpha, beta, n_latents=20_000, others=7, seed=0):
    """How many of the others find each latent, of latents that no SAE has for itself."""
    rng = np.random.default_rng(seed)
    return rng.binomial(others, rng.beta(alpha, beta, size=n_latents))


@pytest.mark.parametrize("planted", [(0.4, 0.6), (2.0, 1.0), (0.2, 3.0)])
def test_a_planted_beta_binomial_law_is_found(planted):
    histogram = np.bincount(found_by_others(*planted), minlength=8)
    np.testing.assert_allclose(beta_binomial(histogram), planted, rtol=0.06)


def test_no_other_law_is_more_likely():
    histogram = [400, 150, 90, 60, 60, 70, 90, 200]
    alpha, beta = beta_binomial(histogram)
    best = log_likelihood(histogram, alpha, beta)
    near = itertools.product((0.99, 1.0, 1.01), repeat=2)
    assert best == max(log_likelihood(histogram, alpha * a, beta * b) for a, b in near)
    far = itertools.product(np.geomspace(0.05, 20, 25), repeat=2)
    assert best > max(log_likelihood(histogram, a, b) for a, b in far)


@pytest.mark.parametrize("histogram", [[5, 7], [0, 0, 0, 0], [12]])
def test_one_other_or_no_latent_tells_no_beta_binomial_law(histogram):
    assert np.isnan(beta_binomial(histogram)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 100])
def test_share_alone_is_the_chance_that_all_others_miss(n):
    """A latent missed by i others is missed by the next with (beta + i) / (alpha + beta + i)."""
    alpha, beta = 0.42, 0.56
    missed = math.prod((beta + i) / (alpha + beta + i) for i in range(n - 1))
    law = {"law": "beta-binomial", "alpha": alpha, "beta": beta}
    assert share_alone(law, n) == pytest.approx(missed, rel=1e-12)


def test_the_curve_does_not_tell_whether_there_is_an_offset():
    """Latents without a seed of their own (their share alone ends at 0) give a curve that a power
    law with an offset follows to within the noise of eight SAEs, and continues to another end.
    """
    n = np.arange(2, 9)
    law = {"law": "beta-binomial", "alpha": 0.42, "beta": 0.56}
    truth = share_alone(law, n)
    fits = power_laws(n, truth).set_index("law")
    offset = fits.loc["with offset"]
    assert offset.c > 0.1
    assert offset.rmse < 0.002
    assert offset.loo < fits.loc["power law"].loo / 2
    assert share_alone(law, 100) < offset.a * 100**-offset.b + offset.c - 0.05


def test_all_three_laws_of_masks():
    hits = found_by_others(0.42, 0.56, n_latents=24_000, seed=1).reshape(8, 3000)
    masks = {base: np.arange(7)[:, None] < row for base, row in enumerate(hits)}
    fits = fit_laws(masks).set_index("law")
    curve = only_in_base(masks).groupby("seeds").only_in_base.mean()
    pd.testing.assert_frame_equal(
        fits.loc[["power law", "with offset"], ["a", "b", "c", "loo"]],
        power_laws(curve.index, curve).set_index("law")[["a", "b", "c", "loo"]],
    )
    third = fits.loc["beta-binomial"]
    np.testing.assert_allclose([third.alpha, third.beta], [0.42, 0.56], rtol=0.06)
    assert third.rmse < 0.005
    assert third.at_100 == pytest.approx(
        share_alone({"law": "beta-binomial", "alpha": third.alpha, "beta": third.beta}, 100)
    )
    offset = fits.loc["with offset"]
    assert offset.at_100 == pytest.approx(offset.a * 100**-offset.b + offset.c)


def test_means_of_pairs_have_errors_of_seeds():
    pairs = pd.DataFrame(
        {
            "value": [1, 1, 1, 2],
            "seed_a": [1, 1, 2, 1],
            "seed_b": [2, 3, 3, 2],
            "shared": [0.2, 0.3, 0.7, 0.5],
        }
    )
    three, two = means_over_seeds(pairs, ["value"], ["shared"]).to_dict("records")
    # without a seed one pair is left: 0.7, 0.3, 0.2
    error = math.sqrt(2 / 3 * np.square(np.array([0.7, 0.3, 0.2]) - 0.4).sum())
    assert three["shared"] == pytest.approx(0.4)
    # Student's t with 2 degrees of freedom, at 97.5 %
    assert three["shared_high"] == pytest.approx(0.4 + 4.302653 * error)
    assert two["shared"] == 0.5
    assert np.isnan(two["shared_low"])
    nothing = means_over_seeds(pairs[:0], ["value"], ["shared"])
    assert list(nothing) == ["value", "shared", "shared_low", "shared_high"]
    assert nothing.empty


def test_each_latent_of_each_base_is_held_against_all_others():
    saes = related(range(4))
    firing = {seed: np.linspace(0, 1, 20) + seed for seed in saes}
    latents = sharing(match_seeds(saes), firing, 0.8)
    for base, part in latents.groupby("base"):
        others = [saes[other] for other in saes if other != base]
        counts = np.sum([hits_by_hand(saes[base], other, 0.8) for other in others], axis=0)
        cosines = [match_features(saes[base].W_dec, other.W_dec).cosine for other in others]
        assert part.seeds_sharing.tolist() == counts.tolist()
        np.testing.assert_allclose(part.mean_cosine, np.mean(cosines, axis=0), atol=1e-12)
        np.testing.assert_array_equal(part.firing, firing[base])
    assert latents.seeds_sharing.nunique() > 2


def test_who_is_shared_by_hand():
    """30 latents that fire, ten that do not; 12 are shared by all three others, 8 of them among the
    ten that fire most.
    """
    shares = [1] * 16 + [3] * 4 + [1] * 2 + [3] * 8
    table = pd.DataFrame(
        {
            "base": 7,
            "latent": range(40),
            "firing": [*np.linspace(0.1, 0.9, 30), *[0.0] * 10],
            "mean_cosine": [*np.linspace(0.9, 0.2, 30), *[0.0] * 10],
            "seeds_sharing": [*shares, *[0] * 10],
        }
    )
    (row,) = who_is_shared(table, 3).to_dict("records")
    assert [row[name] for name in ("base", "alive", "size", "most", "all")] == [7, 30, 10, 8, 12]
    ways = sum(math.comb(12, i) * math.comb(18, 10 - i) for i in range(8, 11))
    assert row["most_p"] == pytest.approx(ways / math.comb(30, 10))
    assert row["most_excess"] == pytest.approx(8 / 10 - 12 / 30)
    # the dead are shared by none, and do not count
    assert [row["least"], row["none"], row["least_excess"]] == [0, 0, 0]
    assert row["least_p"] == 1
    assert row["rank"] == pytest.approx(-1)


def test_a_base_that_never_fires_says_nothing():
    table = pd.DataFrame(
        {"base": 0, "latent": range(5), "firing": 0.0, "mean_cosine": 0.5, "seeds_sharing": 1}
    )
    (row,) = who_is_shared(table, 1).to_dict("records")
    assert np.isnan([row["most_excess"], row["least_excess"], row["rank"]]).all()


def test_what_all_pairs_say_has_the_error_of_leaving_out_a_seed():
    """A mean over pairs is where both ways of computing it meet."""
    matchings = match_seeds(related(range(5), n=30))
    shares = {pair: decoder.cosine.mean() for pair, (decoder, _) in matchings.items()}

    def numbers(pairs):
        return {"mean": float(np.mean([shares[pair] for pair in pairs]))}

    found = over_seeds(matchings, numbers)["mean"]
    expected = mean_over_seeds(shares)
    assert found.value == pytest.approx(expected.value)
    assert found.seed_error == pytest.approx(expected.seed_error)
    assert found.seeds == 5


def test_tables_and_estimates_of_many_seeds():
    saes = related(range(5), n=30)
    firing = {seed: np.random.default_rng(seed).uniform(size=30) for seed in saes}
    matchings = match_seeds(saes)
    tables, estimates = many_seeds(matchings, firing, 0.8)
    drawn = tables["extrapolated"].set_index(["series", "seeds"])
    # of two SAEs, what is alone is what they do not share
    alone = {pair: np.mean(~hit_masks({pair: m}, 0.8)[pair[0]]) for pair, m in matchings.items()}
    expected = mean_over_seeds(alone)
    low, high = expected.interval()
    two = drawn.loc[("measured", 2), ["only_in_base", "low", "high"]].astype(float)
    np.testing.assert_allclose(two, [expected.value, low, high], rtol=1e-9)
    # there is one set of all
    assert drawn.loc[("measured", 5), ["low", "high"]].isna().all()
    curve = tables["curve"].groupby("seeds").only_in_base.mean()
    np.testing.assert_allclose(drawn.loc["measured"].only_in_base, curve)
    assert estimates["only_in_base"].value == curve[4]
    for fit in tables["fits"].to_dict("records"):
        ends = drawn.loc[fit["law"]].only_in_base
        np.testing.assert_allclose(ends, share_alone(fit, ends.index.to_numpy()))
        assert ends.loc[100] == fit["at_100"]
    # three numbers of SAEs without one of all, and three parameters
    assert tables["fits"].c_low.isna().all()
    who = tables["who"]
    for name in ("most_excess", "least_excess", "rank"):
        assert estimates[name].value == pytest.approx(who[name].mean())
        assert estimates[name].seed_error > 0


def test_six_seeds_say_how_well_an_offset_is_known():
    saes = related(range(6), n=40, noise=0.3)
    firing = {seed: np.linspace(0, 1, 40) for seed in saes}
    tables, estimates = many_seeds(match_seeds(saes), firing, 0.8)
    fit = tables["fits"].set_index("law").loc["with offset"]
    assert estimates["c"].value == fit.c
    assert (fit.c_low, fit.c_high) == estimates["c"].interval()
    assert fit.at_100_low < fit.at_100 < fit.at_100_high


def test_two_seeds_have_values_without_errors():
    saes = related(range(2), n=30)
    firing = {seed: np.linspace(0, 1, 30) for seed in saes}
    tables, estimates = many_seeds(match_seeds(saes), firing, 0.8)
    assert estimates["only_in_base"].value == tables["curve"].only_in_base.mean()
    assert np.isnan(estimates["only_in_base"].error)
    assert np.isnan(estimates["loo_gain"].value)
    assert tables["fits"].at_100.isna().all()


def test_pairs_without_a_number_are_left_out():
    pairs = pd.DataFrame({"seed_a": [1, 1], "seed_b": [2, 3]})
    assert by_pair(pairs, [0.5, np.nan]) == {(1, 2): 0.5}


# --- modes ----------------------------------------------------------------------------------------


def test_two_clouds_have_two_modes_and_one_cloud_has_one():
    rng = np.random.default_rng(0)
    one = rng.normal(0.6, 0.1, 300)
    two = np.concatenate([rng.normal(0.3, 0.08, 150), rng.normal(0.9, 0.05, 150)])
    assert count_modes(two, 0.05) == 2
    assert count_modes(one, 0.06) == 1
    assert count_modes(two, 1.0) == 1
    assert modes_test(two)[0] == 2
    assert modes_test(two)[1] < 0.01
    assert modes_test(one)[1] > 0.05
    assert modes_test(one) == modes_test(one)
    assert modes_test([0.5, 0.5])[0] == 0
    assert np.isnan(modes_test([0.5])[1])


def test_one_mode_is_seldom_rejected():
    rejected = [
        seed_dependence.modes_test(np.random.default_rng(i).normal(size=150), resamples=60)[1]
        < 0.05
        for i in range(30)
    ]
    assert np.mean(rejected) <= 0.15
