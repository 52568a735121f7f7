"""sparsify itself: it computes our latents from the folders we write, we compute its latents from
the folders it writes.
"""

import os

import pytest
import torch

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read when it is imported; its kernels need a GPU
pytest.importorskip("sparsify", reason="make test-interop")

from sparsify import SparseCoder, SparseCoderConfig

from faithful_sae import TopKSAE, load_sae
from faithful_sae.sae.sae import SAEError

D, F, K = 6, 20, 4
X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1)) + 1


@torch.no_grad()
def assert_same(ours, theirs):
    values, indices, _ = theirs.encode(X)
    z = torch.zeros(len(X), theirs.num_latents).scatter_(1, indices, values)
    assert (z > 0).any(1).all()
    torch.testing.assert_close(ours.encode(X), z, atol=1e-5, rtol=1e-5)
    x_hat = theirs.decode(
        values, indices
    )  # their forward, but for multi_topk, where it returns what 4k latents give, for the loss
    torch.testing.assert_close(ours.reconstruct(X), x_hat, atol=1e-5, rtol=1e-5)


def coder(dtype=torch.float32, **config):
    """One of theirs with weights that look trained: biases are not 0, rows are not of norm 1."""
    theirs = SparseCoder(D, SparseCoderConfig(k=K, **config), dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    return theirs


@pytest.mark.parametrize(
    "config",
    [
        {"num_latents": F},
        {"expansion_factor": 3},
        {"num_latents": F, "normalize_decoder": False},
        {"num_latents": F, "multi_topk": True},
        {"num_latents": F, "dtype": torch.bfloat16},
    ],
    ids=["num_latents", "expansion_factor", "free_decoder", "multi_topk", "bfloat16"],
)
def test_theirs_in_our_hands(config, tmp_path):
    theirs = coder(**config)
    theirs.save_to_disk(tmp_path / "layers.3")
    ours = load_sae(tmp_path / "layers.3")
    assert_same(ours, theirs.float())
    assert ours.metadata == {"hook_name": "blocks.3.hook_resid_post", "layer": 4}
    ours.to_sparsify(tmp_path / "again")
    assert_same(ours, SparseCoder.load_from_disk(tmp_path / "again"))


@pytest.mark.parametrize("d_sae", [F, 18])  # 20 is no multiple of 6: expansion_factor cannot say it
def test_ours_in_their_hands(d_sae, tmp_path):
    ours = TopKSAE(D, d_sae, K, seed=3)
    generator = torch.Generator().manual_seed(0)
    ours.W_enc = ours.W_enc + 0.3 * torch.randn(D, d_sae, generator=generator)
    ours.b_enc = 0.3 * torch.randn(d_sae, generator=generator)
    ours.b_dec = torch.randn(D, generator=generator)
    ours.to_sparsify(tmp_path)
    assert_same(ours, SparseCoder.load_from_disk(tmp_path))


@pytest.mark.parametrize(
    "config, word",
    [
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"activation": "groupmax"}, "groupmax"),
    ],
)
def test_theirs_that_compute_something_else(config, word, tmp_path):
    coder(num_latents=F, **config).save_to_disk(tmp_path)
    with pytest.raises(SAEError, match=word):
        load_sae(tmp_path)
