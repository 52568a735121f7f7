"""SFR against a computation with scipy written here, and hand cases for its threshold and its
variants.
"""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from faithful_sae import TopKSAE, shared_feature_ratio
from faithful_sae.metrics.sfr import (
    compare_seeds,
    match_seeds,
    matched_correlations,
    shared,
    shared_feature_ratio,
)
from faithful_sae.paper.latent_data import cosine_histogram


def dictionary(w_dec, w_enc=None, firing=None) -> Any:
    w_dec = torch.as_tensor(w_dec, dtype=torch.float32)
    encoder = w_dec.T if w_enc is None else torch.as_tensor(w_enc, dtype=torch.float32)
    return SimpleNamespace(
        W_dec=w_dec,
        W_enc=encoder,
        encode_topk=lambda x: torch.relu(x @ encoder).topk(len(w_dec)),
        firing=torch.ones(len(w_dec)) if firing is None else torch.tensor(firing),
        d_sae=len(w_dec),
    )


def by_scipy(a, b, threshold, criterion):
    def match(A, B):
        A, B = (m.double().numpy() for m in (A, B))
        cos = (A / np.linalg.norm(A, axis=1)[:, None]) @ (B / np.linalg.norm(B, axis=1)[:, None]).T
        columns = linear_sum_assignment(cos, maximize=True)[1]
        return columns, cos[np.arange(len(A)), columns]

    to, cosine = match(a.W_dec, b.W_dec)
    hits = cosine >= threshold
    if criterion == "encoder+decoder":
        to_enc, cosine_enc = match(a.W_enc.T, b.W_enc.T)
        hits = hits & (cosine_enc >= threshold) & (to == to_enc)
    return hits.sum() / len(hits)


def tokens(width, n=64):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("criterion", ["decoder", "encoder+decoder"])
def test_equals_scipy(criterion):
    rng = np.random.default_rng(0)
    values = []
    for _ in range(300):
        n, d = rng.integers(1, 30), rng.integers(2, 8)
        w = rng.normal(size=(n, d))
        noise = rng.uniform(0, 2)
        a = dictionary(w, w_enc=(w + 0.3 * rng.normal(size=(n, d))).T)
        order = rng.permutation(n)
        b = dictionary(
            (w + noise * rng.normal(size=(n, d)))[order],
            w_enc=(w + noise * rng.normal(size=(n, d)))[order].T,
        )
        got = shared_feature_ratio(a, b, criterion=criterion)
        assert got == by_scipy(a, b, 0.7, criterion)
        assert isinstance(got, float)
        values.append(got)
    assert np.std(values) > 0.2  # the cases are not all alike


@pytest.mark.parametrize("criterion", ["decoder", "encoder+decoder"])
def test_many_seeds_at_once_equal_each_pair(criterion):
    rng = np.random.default_rng(3)
    w = rng.normal(size=(40, 8))
    saes = {
        seed: dictionary(w + 0.4 * rng.normal(size=w.shape), (w + 0.3 * rng.normal(size=w.shape)).T)
        for seed in (4, 9, 2)
    }
    ratios = {
        pair: shared(decoder, encoder if criterion == "encoder+decoder" else None, 0.7).mean()
        for pair, (decoder, encoder) in match_seeds(saes).items()
    }
    assert list(ratios) == [(4, 9), (4, 2), (9, 2)]
    for (a, b), ratio in ratios.items():
        assert ratio == by_scipy(saes[a], saes[b], 0.7, criterion)
    assert 0 < ratios[4, 9] < 1


def test_ties_and_duplicates():
    """With copies of a row there are many best matchings, but all pair the same directions."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        n, copies = rng.integers(1, 8), rng.integers(2, 4)
        A, B = rng.normal(size=(2, n, 5))
        a = dictionary(np.repeat(A, copies, 0))
        b = dictionary(np.repeat(B, copies, 0)[rng.permutation(n * copies)])
        assert shared_feature_ratio(a, b) == by_scipy(a, b, 0.7, "decoder")


@pytest.mark.parametrize("criterion", ["decoder", "encoder+decoder"])
def test_a_shuffled_copy_shares_everything(criterion):
    sae = TopKSAE(16, 300, 4, 0)
    other = TopKSAE(16, 300, 4, 1)
    order = torch.randperm(300)
    other.W_dec = sae.W_dec[order]
    other.W_enc = sae.W_enc[:, order]
    assert shared_feature_ratio(sae, other, criterion=criterion) == 1.0
    other.W_enc = other.W_enc.roll(
        1, 1
    )  # the decoders agree still, each encoder column now belongs to another latent
    assert shared_feature_ratio(sae, other) == 1.0
    assert shared_feature_ratio(sae, other, criterion="encoder+decoder") < 0.02


def test_random_dictionaries_share_nothing():
    """In 64 dimensions a random cosine has standard deviation 1/8: 0.7 is 5.6 of them away."""
    a, b = TopKSAE(64, 400, 4, 0), TopKSAE(64, 400, 4, 1)
    assert shared_feature_ratio(a, b) < 0.01
    assert shared_feature_ratio(a, b) == shared_feature_ratio(b, a)


def test_the_threshold_itself_counts():
    """The cosine is 1/2 exactly, in binary too."""
    a, b = dictionary([[0.5, 0.5, 0.5, 0.5]]), dictionary([[1.0, 0, 0, 0]])
    assert shared_feature_ratio(a, b, 0.5) == 1.0
    assert shared_feature_ratio(a, b, math.nextafter(0.5, 1)) == 0.0
    rows, _, curve = compare_seeds({1: a, 2: b}, tokens(4), 0.5, 0.0)
    assert (
        rows.sfr[0] == 1.0 and rows.sfr_strict[0] == 0.0
    )  # the authors' code asks for more than the threshold
    assert curve.set_index("threshold").sfr[[0.5, 0.52]].tolist() == [1.0, 0.0]


def test_alive_by_hand():
    """Latents 0-4 of A are axes 0-4. B holds axes 4, 0, 1 and two others in its rows, so A matches
    0->1, 1->2, 4->0.

    Shared 0, 1, 4 of 5: SFR 3/5. Dead: 1 and 2 of A, row 0 of B. Pairs alive on both sides: 0
    (shared) and 3 (an orphan), since 4 is matched to a dead row: alive SFR 1/2.
    """
    axes = torch.eye(8)
    a = dictionary(axes[:5], firing=[0.2, 0.0, 0.0, 0.3, 0.1])
    b = dictionary(axes[[4, 0, 1, 6, 7]], firing=[0.0, 0.1, 0.1, 0.1, 0.1])
    rows, latents, _ = compare_seeds({42: a, 49: b}, tokens(8), 0.7, 0.0)
    row = rows.iloc[0]
    assert (row.seed_a, row.seed_b, row.d_sae) == (42, 49, 5)
    assert row.sfr == 0.6
    assert row.sfr_alive == 0.5
    assert row.sfr_encoder_decoder == 0.6
    assert abs(row.dead - 0.3) < 1e-12
    assert abs(row.mean_cosine - 0.6) < 1e-12
    assert latents.match.tolist()[:2] == [1, 2]
    assert latents.match[4] == 0
    assert latents.decoder_cosine.round(6).tolist() == [1, 1, 0, 0, 1]
    assert latents.alive_both.tolist() == [True, False, False, True, False]
    strict, *_ = compare_seeds({42: a, 49: b}, tokens(8), 0.7, 0.1)  # at the limit is dead
    assert abs(strict.dead[0] - 0.8) < 1e-12
    assert np.isnan(strict.sfr_alive[0])


def test_every_pair_of_seeds():
    saes = {seed: dictionary(np.random.default_rng(seed).normal(size=(6, 4))) for seed in (1, 2, 3)}
    rows, latents, curve = compare_seeds(saes, tokens(4), 0.7, 0.0)
    assert list(zip(rows.seed_a, rows.seed_b, strict=True)) == [(1, 2), (1, 3), (2, 3)]
    assert len(latents) == 18
    assert len(curve) == 3 * 51
    for _, row in rows.iterrows():
        assert row.sfr == by_scipy(saes[row.seed_a], saes[row.seed_b], 0.7, "decoder")
        assert row.sfr_encoder_decoder == by_scipy(
            saes[row.seed_a], saes[row.seed_b], 0.7, "encoder+decoder"
        )


def test_correlations_are_numpys_of_the_matched_latents():
    saes = {seed: TopKSAE(8, 30, 4, seed) for seed in (1, 2, 3)}
    for sae in saes.values():
        sae.b_enc[:] = 0.1
    x = tokens(8, 3000)
    matchings = match_seeds(saes)
    found = matched_correlations(saes, matchings, x)
    latents = {seed: sae.encode(x).double().numpy() for seed, sae in saes.items()}
    for (a, b), (decoder, _) in matchings.items():
        for i, j in enumerate(decoder.permutation):
            pair = latents[a][:, i], latents[b][:, j]
            expected = 0.0
            if min(values.std() for values in pair) > 0:
                expected = np.corrcoef(*pair)[0, 1]
            assert found[a, b][i] == pytest.approx(expected, abs=1e-9)


def test_a_shuffled_copy_does_the_same():
    sae, other = TopKSAE(16, 60, 4, 0), TopKSAE(16, 60, 4, 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    other.W_dec, other.W_enc = sae.W_dec[order], sae.W_enc[:, order]
    found = matched_correlations(
        {1: sae, 2: other}, match_seeds({1: sae, 2: other}), tokens(16, 2000)
    )[1, 2]
    fires = sae.encode(tokens(16, 2000)).sum(0).numpy() > 0
    assert found[fires] == pytest.approx(1)
    assert (found[~fires] == 0).all()


def test_histogram_is_of_one_pair_on_average():
    saes = {seed: dictionary(np.random.default_rng(seed).normal(size=(6, 4))) for seed in (1, 2, 3)}
    _, latents, _ = compare_seeds(saes, tokens(4), 0.7, 0.0)
    found = cosine_histogram(latents.assign(corpus="text"), [-1, 0, 0.7, 1])
    assert (found.alive + found.dead).sum() == pytest.approx(6)
    above = (latents.decoder_cosine >= 0.7).sum() / 3
    assert (found.alive + found.dead).iloc[-1] == pytest.approx(above)


def test_errors():
    a, b = TopKSAE(4, 6, 2, 0), TopKSAE(4, 6, 2, 1)
    with pytest.raises(ValueError, match="criterion 'cosine'"):
        shared_feature_ratio(a, b, criterion="cosine")
    with pytest.raises(ValueError, match="one size"):
        shared_feature_ratio(a, TopKSAE(4, 7, 2, 1))
    b.W_dec[5, 0] = float("nan")
    with pytest.raises(ValueError, match="row 5 holds NaN"):
        shared_feature_ratio(a, b)
