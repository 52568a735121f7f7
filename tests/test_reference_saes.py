"""SAEs that are known beforehand, against what they must give out, and PCA against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from faithful_sae.sae.reference import identity_sae, mean_sae, pca_sae, zero_sae

D = 12


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, D, generator=generator) @ torch.randn(D, D, generator=generator) + 3


def test_identity_gives_x_back_exactly(x):
    sae = identity_sae(D)
    assert torch.equal(sae.reconstruct(x), x)
    assert sae.d_sae == 2 * D


def test_identity_uses_d_latents_and_none_is_negative(x):
    values, _ = identity_sae(D).encode_topk(x)
    assert values.shape[-1] == D
    assert (values > 0).all()


def test_zero_and_mean_give_the_same_whatever_they_see(x):
    assert not zero_sae(D).reconstruct(x).any()
    mean = x.double().mean(0)
    assert torch.equal(mean_sae(mean).reconstruct(x), mean.float().expand_as(x))
    assert not mean_sae(mean).encode(x).any()


@pytest.mark.parametrize("n", [1, 5, D])
def test_pca_is_scikit_learns(x, n):
    sae = pca_sae(x, n)
    theirs = PCA(n).fit(x.numpy())
    expected = theirs.inverse_transform(theirs.transform(x.numpy()))
    # float32 of numbers up to 30
    np.testing.assert_allclose(sae.reconstruct(x), expected, atol=1e-4)


def test_pca_has_both_signs_of_a_component_and_uses_one(x):
    sae = pca_sae(x, 5)
    values, indices = sae.encode_topk(x)
    assert values.shape[-1] == 5
    assert (np.sort(indices // 2) == np.arange(5)).all()
    assert torch.equal(sae.W_dec[::2], -sae.W_dec[1::2])


def test_pca_of_more_components_than_there_are_is_refused(x):
    with pytest.raises(ValueError, match="must be 1 to 12"):
        pca_sae(x, D + 1)
    with pytest.raises(ValueError, match="must be 1 to 3"):
        pca_sae(x[:4], 4)
    with pytest.raises(ValueError, match="n = 0"):
        pca_sae(x, 0)
