"""The public functions at the edges of what they can be given: it works, or one line says why
not.
"""

import math

import pytest
import torch

from conftest import BOS
from faithful_sae import (
    TopKSAE,
    fake_feature_ratio,
    fidelity,
    load_model,
    load_sae,
    match_features,
    shared_feature_ratio,
    train_saes,
)
from faithful_sae.lm.model import ModelError

D, F, K = 16, 24, 4


@pytest.fixture
def sae():
    return TopKSAE(D, F, K, 0)


@pytest.fixture
def x():
    return torch.randn(6, D, generator=torch.Generator().manual_seed(0))


def train(batches, **changes):
    settings = dict(d_model=D, d_sae=F, k=K, seeds=[3], lr=1e-3, n_tokens=12, batch_tokens=6)
    return train_saes(batches, **(settings | changes))


# --- the SAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_activations_of_another_dtype_are_read_as_float32(sae, x, dtype, normalisation):
    sae.normalisation = normalisation
    given = x.to(dtype)
    assert torch.equal(sae.encode(given), sae.encode(given.float()))
    assert torch.equal(sae.reconstruct(given), sae.reconstruct(given.float()))
    assert sae.reconstruct(given).dtype == torch.float32


def test_latents_of_another_dtype_are_read_as_float32(sae, x):
    z = sae.encode(x)
    assert torch.equal(sae.decode(z.double()), sae.decode(z))


def test_a_batch_and_a_time_dimension(sae, x):
    both = x.view(2, 3, D)
    assert sae.encode(both).shape == (2, 3, F)
    assert torch.equal(sae.encode(both).view(6, F), sae.encode(x))
    torch.testing.assert_close(sae.decode(sae.encode(both)).view(6, D), sae.decode(sae.encode(x)))
    assert torch.equal(sae.reconstruct(both).view(6, D), sae.reconstruct(x))


def test_one_activation_and_none(sae, x):
    torch.testing.assert_close(sae.encode(x[0]), sae.encode(x)[0])
    assert sae.encode(x[:0]).shape == (0, F)
    assert sae.decode(sae.encode(x[:0])).shape == (0, D)
    assert sae.reconstruct(x[:0]).shape == (0, D)


def test_another_width(sae, x):
    with pytest.raises(ValueError, match=r"shape \[6, 15\] do not fit an SAE with d_model = 16"):
        sae.encode(x[:, 1:])
    with pytest.raises(ValueError, match=r"shape \[6, 16\] do not fit an SAE with d_sae = 24"):
        sae.decode(x)


def test_no_sae_there(tmp_path):
    with pytest.raises(ValueError, match="no SAE here"):
        load_sae(tmp_path / "nothing")


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_not_blamed_on_the_learning_rate(x, bad):
    second = x.clone()
    second[4, 2] = bad
    with pytest.raises(ValueError, match="batch 1: its activations hold NaN or infinity") as said:
        train([x, second])
    assert "lr" not in str(said.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_on_another_dtype_is_training_on_float32(x, dtype):
    (given,) = train([x.to(dtype), x.to(dtype)])
    (expected,) = train([x.to(dtype).float(), x.to(dtype).float()])
    assert torch.equal(given.W_dec, expected.W_dec)
    assert given.W_dec.dtype == torch.float32


def test_training_on_batch_and_time_is_training_on_tokens(x):
    (given,) = train([x.view(2, 3, D), x.view(3, 2, D)])
    (expected,) = train([x, x])
    assert torch.equal(given.W_dec, expected.W_dec)
    assert torch.equal(given.firing, expected.firing)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": []}, "no seeds"),
        ({"d_model": 15}, r"batch 0 has the shape \[6, 16\]: activations \[B, 15\] are needed"),
        ({"batch_tokens": 5}, "batch 0 has 6 activations, more than batch_tokens = 5"),
        ({"n_tokens": 0}, r"n_tokens = \[0\] must be above 0"),
        ({"batch_tokens": 0}, r"batch_tokens = \[0\] must be above 0"),
        ({"lr": math.inf}, r"lr = \[inf\] must be above 0 and finite"),
        ({"lr": math.nan}, r"lr = \[nan\] must be above 0 and finite"),
        ({"recipe": "other"}, "recipe 'other' must be one of default, authors"),
    ],
)
def test_what_cannot_be_trained(x, changes, said):
    with pytest.raises(ValueError, match=said):
        train([x, x], **changes)


def test_no_batch_and_an_empty_one(x):
    with pytest.raises(ValueError, match="no batch"):
        train([])
    with pytest.raises(ValueError, match=r"batch 1 has the shape \[0, 16\]"):
        train([x, x[:0]])


# --- measures -------------------------------------------------------------------------------------


def test_fidelity_without_bos_on_rows_of_nothing_else(lm, sae):
    rows = torch.full((2, 5), BOS).numpy()
    with pytest.raises(ValueError, match="no token but BOS with another behind it"):
        fidelity(sae, lm, rows, include_bos=False)


@pytest.mark.parametrize("unknown", [-1, 72])
def test_fidelity_of_ids_that_the_model_has_not(lm, sae, unknown):
    assert lm.shape.vocab_size == 72
    with pytest.raises(ValueError, match=f"hold ids .*{unknown}.*, and the model's are 0 to 71"):
        fidelity(sae, lm, torch.tensor([[BOS, 5, unknown]]).numpy())


def test_fidelity_without_bos_on_rows_of_one_token(lm, sae):
    """What follows the only token is not known: nothing is predicted from it."""
    with pytest.raises(ValueError, match="nothing to predict"):
        fidelity(sae, lm, torch.tensor([[BOS, 5], [BOS, 7]]).numpy(), include_bos=False)
    assert fidelity(sae, lm, torch.tensor([[BOS, 5], [BOS, 7]]).numpy()).tokens == 4


def test_fidelity_of_one_measured_token_has_no_variance_to_explain(lm, sae):
    found = fidelity(sae, lm, torch.tensor([[BOS, 5, BOS]]).numpy(), include_bos=False)
    assert found.tokens == 1
    assert math.isnan(found.explained_variance)
    assert math.isfinite(found.ce_diff)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (5,)])
def test_fidelity_without_rows(lm, sae, shape):
    with pytest.raises(ValueError, match="rows of at least two tokens"):
        fidelity(sae, lm, torch.zeros(shape, dtype=torch.int64).numpy())


def test_fake_features_need_a_token_behind_bos(lm, sae):
    with pytest.raises(ValueError, match="sequence_length = 1 must be at least 2"):
        fake_feature_ratio(sae, lm, n_tokens=10, sequence_length=1)
    assert 0 <= fake_feature_ratio(sae, lm, n_tokens=10, sequence_length=2) <= 100


def test_measures_of_an_sae_of_another_width(lm, sae):
    other = TopKSAE(D - 1, F, K, 0)
    with pytest.raises(ValueError, match="width 15, but the model's are 16 wide"):
        fidelity(other, lm, torch.tensor([[BOS, 5, 6]]).numpy())
    with pytest.raises(ValueError, match="do not fit an SAE with d_model = 15"):
        fake_feature_ratio(other, lm, n_tokens=10)
    with pytest.raises(ValueError, match="15"):
        shared_feature_ratio(sae, other)


def test_matching_float64_and_nothing(sae):
    assert match_features(sae.W_dec.double(), sae.W_dec).cosine.min() > 1 - 1e-5
    with pytest.raises(ValueError, match="row"):
        match_features(sae.W_dec[:0], sae.W_dec)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "float8", "Float32"])
def test_an_unknown_dtype(model_folders, dtype):
    with pytest.raises(ModelError, match=f"dtype '{dtype}' must be one of auto, float32, bfloat16"):
        load_model(model_folders["llama"], 1, "cpu", dtype)


@pytest.mark.parametrize("device", ["gpu", "meta"])
def test_an_unknown_device(model_folders, device):
    with pytest.raises(ModelError, match=f"device '{device}' must be auto, cpu, cuda, or"):
        load_model(model_folders["llama"], 1, device)


def test_a_gpu_that_is_not_there(model_folders):
    with pytest.raises(ModelError, match="device: cuda:99 was asked for and there is none here"):
        load_model(model_folders["llama"], 1, "cuda:99")
