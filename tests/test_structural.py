"""Structural numbers: of SAEs that are known beforehand, of one latent by hand, and against NumPy
on hidden states that transformers gives out.
"""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from conftest import BOS
from faithful_sae import TopKSAE
from faithful_sae.metrics.fidelity import fidelity
from faithful_sae.metrics.structural import structural
from faithful_sae.sae.reference import identity_sae, mean_sae, pca_sae, zero_sae

D, F, K = 16, 40, 5


def hidden(lm, rows):
    """float64 [R, T, D]."""
    with torch.no_grad():
        read = lm.model(torch.tensor(rows), output_hidden_states=True, use_cache=False)
    return read.hidden_states[lm.layer].double()


def measured(rows, include_bos):
    return (rows != BOS) | include_bos


def one(sae, lm, rows, **options):
    records, latents = structural({"sae": sae}, lm, rows, **options)
    return records["sae"], latents["sae"]


@pytest.fixture
def sae():
    sae = TopKSAE(D, F, K, 3)
    generator = torch.Generator().manual_seed(4)
    sae.b_dec = 0.1 * torch.randn(D, generator=generator)
    sae.b_enc = 0.1 * torch.randn(F, generator=generator)
    sae.W_enc = sae.W_enc + 0.1 * torch.randn(D, F, generator=generator)
    return sae


@pytest.mark.parametrize("include_bos", [True, False])
def test_identity_loses_nothing(lm, rows, include_bos):
    got, _ = one(identity_sae(D), lm, rows, include_bos=include_bos)
    assert got.positions == measured(rows, include_bos).sum()
    assert got.mse == got.kl == got.ce_diff == 0
    assert got.explained_variance == got.ev_authors == got.ev_legacy == 1
    assert got.ce_score == got.kl_score == 1
    assert got.cosine == pytest.approx(1, abs=1e-12)
    assert got.l2_ratio == got.relative_reconstruction_bias == 1
    assert got.l0 == D
    # a latent's opposite is far from it, and all others are orthogonal
    assert got.decoder_nearest == 0


def test_zero_is_the_ablation(lm, rows):
    got, latents = one(zero_sae(D), lm, rows)
    x = hidden(lm, rows)[torch.tensor(measured(rows, False))]
    assert got.ce_score == got.kl_score == 0
    assert got.kl == got.kl_zero > 0
    assert got.l2_ratio == got.l2_out == got.cosine == 0
    variance = (x - x.mean(0)).square().sum(1).mean()
    expected = -(x.mean(0).square().sum() / variance).item()
    assert got.explained_variance == pytest.approx(expected, rel=1e-5)
    assert np.isnan(got.relative_reconstruction_bias)
    assert got.l0 == got.l1 == got.frac_alive == 0
    assert np.isnan(got.over_1_percent_normalised)
    assert latents.consistent_activation_heuristic.isna().all()


def test_kl_of_tokens_that_are_all_but_impossible(lm, rows):
    """The logarithm of a softmax is infinite where that underflows, and KL infinite or NaN."""
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(300)
    got, _ = one(zero_sae(D), lm, rows)
    ids, where = torch.tensor(rows), measured(rows, False)[:, :-1]
    logits, x = lm.logits(ids)
    silenced = torch.where(ids[..., None] == BOS, x, 0.0)
    p, q = logits[:, :-1], lm.spliced_logits(ids, silenced)[:, :-1]
    naive = p.softmax(-1) * (p.softmax(-1).log() - q.softmax(-1).log())
    assert not naive.isfinite().all()
    log_p, log_q = (log_softmax(part.double().numpy(), -1) for part in (p, q))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)[where].mean()
    assert got.kl_zero == pytest.approx(expected, rel=1e-5)
    assert got.kl_score == 0


def test_the_mean_explains_nothing(lm, rows):
    mean = hidden(lm, rows)[torch.tensor(measured(rows, False))].mean(0)
    got, _ = one(mean_sae(mean), lm, rows)
    # float32 of the mean
    assert got.explained_variance == pytest.approx(0, abs=1e-6)


def test_pca_of_all_components_is_nearly_the_identity(lm, rows):
    x = hidden(lm, rows)[torch.tensor(measured(rows, False))].float()
    got, _ = one(pca_sae(x, D), lm, rows)
    assert got.explained_variance == pytest.approx(1, abs=1e-6)
    assert got.l0 == pytest.approx(D)


def test_x_hat_doubled_has_bias_2(lm, rows):
    sae = identity_sae(D)
    sae.W_dec = 2 * sae.W_dec
    got, _ = one(sae, lm, rows)
    assert got.relative_reconstruction_bias == pytest.approx(2, rel=1e-12)
    assert got.l2_ratio == pytest.approx(2, rel=1e-12)
    assert got.cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ["topk", "threshold", "layer_norm"])
@pytest.mark.parametrize("include_bos", [True, False])
def test_against_numpy(lm, rows, sae, kind, include_bos):
    if kind == "threshold":
        sae.above(0.3)
    if kind == "layer_norm":
        sae.normalisation = "layer_norm"
    got, latents = one(sae, lm, rows, include_bos=include_bos)
    where = measured(rows, include_bos)
    x = hidden(lm, rows)
    # a token at a time, so that a threshold leaves no zeros behind
    z = np.array([[sae.encode(t.float()).numpy() for t in row] for row in x], float)
    x_hat = np.array([[sae.reconstruct(t.float()).numpy() for t in row] for row in x], float)
    x = x.numpy()
    a, b = x[where], x_hat[where]
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    expected = {
        "mse": np.square(a - b).mean(),
        "explained_variance": 1 - np.square(a - b).sum() / np.square(a - a.mean(0)).sum(),
        "cosine": ((a * b).sum(1) / norms[0] / norms[1]).mean(),
        "l2_in": norms[0].mean(),
        "l2_out": norms[1].mean(),
        "l2_ratio": (norms[1] / norms[0]).mean(),
        "relative_reconstruction_bias": np.square(b).sum() / (a * b).sum(),
        "l1": z[where].sum(1).mean(),
    }
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, rel=2e-5), name
    fires = z > 0
    density = fires[where].mean(0)
    assert got.l0 == pytest.approx(density.sum())
    np.testing.assert_allclose(latents.density, density)
    assert got.frac_alive == (density > 0).mean()
    over = density > 0.1
    assert 0 < over.mean() < 1
    assert got.over_10_percent == over.mean()
    assert got.over_10_percent_normalised == pytest.approx(density[over].sum() / density.sum())
    assert got.over_1_percent == (density > 0.01).mean()
    for latent in range(F):
        pairs = zip(fires[..., latent], where, strict=True)
        firings = [(row & counts).sum() for row, counts in pairs]
        rows_with = sum(n > 0 for n in firings)
        value = latents.consistent_activation_heuristic[latent]
        assert value == sum(firings) / rows_with if rows_with else np.isnan(value)


def test_weights_of_latents(lm, rows, sae):
    got, latents = one(sae, lm, rows)
    encoder, decoder = sae.W_enc.T.double().numpy(), sae.W_dec.double().numpy()
    between = 1 - cdist(encoder, decoder, "cosine")
    np.testing.assert_allclose(latents.encoder_decoder_cosine, np.diag(between), atol=1e-6)
    np.testing.assert_allclose(latents.encoder_norm, np.linalg.norm(encoder, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(latents.encoder_bias, sae.b_enc)
    for name, matrix in (("encoder_nearest", encoder), ("decoder_nearest", decoder)):
        cosine = 1 - cdist(matrix, matrix, "cosine")
        np.fill_diagonal(cosine, -1)
        np.testing.assert_allclose(latents[name], cosine.max(1), atol=1e-6)
        assert getattr(got, name) == pytest.approx(cosine.max(1).mean(), abs=1e-6)
    assert latents.latent.tolist() == list(range(F))


def test_twins_are_duplicates_and_an_orthogonal_decoder_has_none(lm, rows):
    sae = TopKSAE(D, D, 4, 0)
    sae.W_dec = torch.eye(D)
    got, _ = one(sae, lm, rows)
    assert got.decoder_nearest == got.duplicates == 0
    assert got.decoder_random > 0.3
    sae.W_dec[3] = sae.W_dec[5]
    assert one(sae, lm, rows)[0].duplicates == 2 / D


def test_batches_change_nothing(lm, rows, sae):
    (few, table), (many, same) = (one(sae, lm, rows, batch_rows=n) for n in (3, 10))
    for name, value in asdict(few).items():
        # the model's matrix products are rounded differently
        assert getattr(many, name) == pytest.approx(value, rel=1e-5, abs=1e-6), name
    np.testing.assert_allclose(table, same, rtol=1e-6)


def test_several_saes_are_each_as_alone(lm, rows, sae):
    records, latents = structural({"a": sae, 7: identity_sae(D)}, lm, rows)
    assert list(records) == list(latents) == ["a", 7]
    assert records["a"] == one(sae, lm, rows)[0]


def test_bad_input_is_refused(lm, rows, sae):
    with pytest.raises(ValueError, match="at least two"):
        structural({"one": TopKSAE(D, 1, 1, 0)}, lm, rows)
    with pytest.raises(ValueError, match="at least two tokens"):
        structural({"a": sae}, lm, rows[:, :1])


def test_of_moderate_positions_the_numbers_are_fidelitys(lm, rows, sae):
    # below the median half of all positions are massive
    got, _ = one(sae, lm, rows, max_norm=0.9)
    want = fidelity(sae, lm, rows, include_bos=False, max_norm=0.9)
    assert got.massive == want.massive > 0
    assert got.explained_variance_moderate == want.explained_variance_moderate
    assert got.mse_moderate == want.l2_moderate
    assert got.ce_diff_moderate == want.ce_diff_moderate
