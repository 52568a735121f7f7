"""The measures of notebook 08 against brute force, planted laws and SAEs made by hand."""

import itertools
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
    compare_latents,
    compare_pair,
    count_modes,
    fitted_curves,
    hit_masks,
    maximum_cosine,
    modes_test,
    only_in_base,
    power_laws,
    shared_by_maximum,
    thresholds,
)
from faithful_sae.metrics.sfr import match_seeds


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
    curves = fitted_curves(
        pd.DataFrame({"seeds": n, "only_in_base": a * n**-b + c, "base": 0}), fits.reset_index()
    )
    ends = curves[curves.series == "with offset"].only_in_base
    np.testing.assert_allclose(
        [ends.iloc[0], ends.iloc[-1]], [a * 2**-b + c, a * 9**-b + c], atol=3e-3
    )


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
