"""The TopK SAE against loops written out by hand, and the files it is kept in."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faithful_sae import TopKSAE, load_sae
from faithful_sae.sae.sae import SAEError

D, F, K = 6, 20, 4


@pytest.fixture
def sae():
    """Weights that look trained: biases are not 0, W_enc is not W_dec^T."""
    sae = TopKSAE(D, F, K, seed=3)
    g = torch.Generator().manual_seed(0)
    sae.W_enc = sae.W_enc + 0.3 * torch.randn(D, F, generator=g)
    sae.b_enc = 0.3 * torch.randn(F, generator=g)
    sae.b_dec = torch.randn(D, generator=g)
    sae.firing = torch.tensor([0.0, 0.5, 1.0, 1e-3] * 5)
    sae.metadata |= {"model": "tiny", "layer": 2, "corpus": "text", "sequence_length": 12}
    return sae


X = 2 * torch.randn(50, D, generator=torch.Generator().manual_seed(1))


def by_hand(sae, x):
    """(latents, reconstruction) of one token, in Python floats."""
    w_enc, b_enc, w_dec, b_dec = (
        w.double().tolist() for w in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    )
    pre = [
        max(sum((x[d] - b_dec[d]) * w_enc[d][f] for d in range(sae.d_model)) + b_enc[f], 0.0)
        for f in range(sae.d_sae)
    ]
    kept = sorted(range(sae.d_sae), key=lambda f: -pre[f])[: sae.k]
    z = [pre[f] if f in kept else 0.0 for f in range(sae.d_sae)]
    return z, [
        sum(z[f] * w_dec[f][d] for f in range(sae.d_sae)) + b_dec[d] for d in range(sae.d_model)
    ]


def test_encode_and_decode_by_hand(sae):
    expected = [by_hand(sae, x) for x in X.double().tolist()]
    z, x_hat = (torch.tensor(part) for part in zip(*expected, strict=True))
    torch.testing.assert_close(sae.encode(X), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(z), x_hat, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(X), x_hat, atol=1e-5, rtol=1e-5)
    # the case is not an empty one
    assert ((z > 0).sum(1) <= K).all()
    assert (z > 0).sum() > 100


def test_at_most_k_latents(sae):
    counts = (sae.encode(X) != 0).sum(-1)
    assert counts.max() == K
    sae.b_enc = (
        sae.b_enc - 3
    )  # now most latents are cut by the ReLU, so some tokens have fewer than k
    assert (sae.encode(X) != 0).sum(-1).min() < K
    assert (sae.encode(X) >= 0).all()


@pytest.mark.parametrize("shape", [(D,), (7, D), (2, 5, D)])
def test_sparse_and_dense_agree(sae, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    values, indices = sae.encode_topk(x)
    z = sae.encode(x)
    assert values.shape == indices.shape == (*shape[:-1], K)
    assert z.shape == (*shape[:-1], F)
    assert torch.equal(z.gather(-1, indices), values)
    assert torch.allclose(z.sum(-1), values.sum(-1))
    assert all(len(set(row)) == K for row in indices.reshape(-1, K).tolist())
    torch.testing.assert_close(
        sae.decode_topk(values, indices), sae.decode(z), atol=1e-5, rtol=1e-5
    )
    assert sae.reconstruct(x).shape == shape


def test_initialisation():
    a, b, c = TopKSAE(D, F, K, 1), TopKSAE(D, F, K, 1), TopKSAE(D, F, K, 2)
    assert torch.equal(a.W_dec, b.W_dec)
    assert not torch.allclose(a.W_dec, c.W_dec)
    assert np.allclose(np.linalg.norm(a.W_dec.numpy(), axis=1), 1, atol=1e-6)
    assert torch.equal(a.W_enc, a.W_dec.T)
    assert not a.b_enc.any()
    assert not a.b_dec.any()


@pytest.mark.parametrize("k", [0, -1, F + 1])
def test_k_outside(k):
    with pytest.raises(SAEError, match=f"k = {k} .*d_sae = {F}"):
        TopKSAE(D, F, k, 0)


# --- files ----------------------------------------------------------------------------------------


def test_round_trip_is_byte_exact(sae, tmp_path):
    sae.save(tmp_path / "a")
    again = load_sae(tmp_path / "a")
    for name, tensor in sae.weights.items():
        assert torch.equal(tensor, getattr(again, name))
        assert getattr(again, name).dtype == torch.float32
    assert (again.k, again.d_model, again.d_sae) == (K, D, F)
    assert again.metadata["corpus"] == "text"
    assert again.metadata["seed"] == 3
    again.save(tmp_path / "b")
    for name in ("sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_firing_survives_and_a_dead_latent_stays_dead(sae, tmp_path):
    """A latent that never fired must come back as exactly 0: SFR over alive latents asks for firing
    > 0.
    """
    sae.save(tmp_path / "a")
    again = load_sae(tmp_path / "a")
    torch.testing.assert_close(again.firing, sae.firing, rtol=1e-5, atol=1e-9)
    assert torch.equal(again.firing > 0, sae.firing > 0)
    sae.firing = None
    sae.save(tmp_path / "b")
    assert load_sae(tmp_path / "b").firing is None


def test_saelens_layout(sae, tmp_path):
    """File names, tensor names and shapes, and cfg.json keys of SAELens 6
    (sae_lens/saes/topk_sae.py, TopKSAEConfig).
    """
    sae.save(tmp_path / "a")
    assert {f.name for f in (tmp_path / "a").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }
    tensors = load_file(tmp_path / "a" / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (D, F),
        "b_enc": (F,),
        "W_dec": (F, D),
        "b_dec": (D,),
    }
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    expected = {
        "architecture": "topk",
        "d_in": D,
        "d_sae": F,
        "k": K,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["metadata"]["hook_name"] == "blocks.2.hook_resid_pre"
    assert config["metadata"]["model_name"] == "tiny"
    sparsity = load_file(tmp_path / "a" / "sparsity.safetensors")["sparsity"]
    assert np.allclose(sparsity[1:4], [np.log10(0.5), 0, -3], atol=1e-4)
    assert sparsity[0] < -9


def test_sparsify_layout(sae, tmp_path):
    """EleutherAI/sparsify's forward, rewritten from its formulas: topk of relu(nn.Linear(x -
    b_dec)), then @ W_dec + b_dec.
    """
    sae.to_sparsify(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    t = load_file(tmp_path / "a" / "sae.safetensors")
    assert config["d_in"] == D
    assert config["num_latents"] == F
    assert config["activation"] == "topk"
    assert not config["transcode"]
    linear = torch.nn.Linear(config["d_in"], config["num_latents"])
    linear.load_state_dict({"weight": t["encoder.weight"], "bias": t["encoder.bias"]})
    with torch.no_grad():
        top_acts, top_indices = torch.relu(linear(X - t["b_dec"])).topk(config["k"])
    z = torch.zeros(len(X), F).scatter_(1, top_indices, top_acts)
    torch.testing.assert_close(sae.encode(X), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        sae.reconstruct(X), z @ t["W_dec"] + t["b_dec"], atol=1e-5, rtol=1e-5
    )


def change_config(**values):
    def change(folder):
        config = json.loads((folder / "cfg.json").read_text()) | values
        (folder / "cfg.json").write_text(json.dumps(config))

    return change


def change_tensors(function):
    def change(folder):
        tensors = load_file(folder / "sae_weights.safetensors")
        function(tensors)
        save_file(tensors, folder / "sae_weights.safetensors")

    return change


def truncate(name):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-50])

    return change


DAMAGE = {
    "no weights": (lambda f: (f / "sae_weights.safetensors").unlink(), "sae_weights.safetensors"),
    "no cfg": (lambda f: (f / "cfg.json").unlink(), "cfg.json"),
    "truncated weights": (truncate("sae_weights.safetensors"), "sae_weights.safetensors"),
    "empty weights": (
        lambda f: (f / "sae_weights.safetensors").write_bytes(b""),
        "sae_weights.safetensors",
    ),
    "truncated sparsity": (truncate("sparsity.safetensors"), "sparsity.safetensors"),
    "truncated cfg": (truncate("cfg.json"), "cfg.json"),
    "cfg of another kind": (lambda f: (f / "cfg.json").write_text("[]"), "cfg.json"),
    "cfg without k": (
        lambda f: (f / "cfg.json").write_text('{"architecture": "topk", "d_in": 6, "d_sae": 20}'),
        "cfg.json",
    ),
    "missing tensor": (change_tensors(lambda t: t.pop("b_enc")), "b_enc"),
    "wrong shape": (change_tensors(lambda t: t.update(W_enc=t["W_enc"].T.contiguous())), "W_enc"),
    "cfg disagrees": (change_config(d_sae=F + 1), "cfg.json"),
    "NaN": (change_tensors(lambda t: t["W_dec"].__setitem__((2, 1), float("nan"))), "W_dec"),
    "infinity": (change_tensors(lambda t: t["b_dec"].__setitem__(0, float("inf"))), "b_dec"),
    "k of 0": (change_config(k=0), "k = 0"),
    "k beyond d_sae": (change_config(k=F + 1), f"k = {F + 1}"),
    "k is text": (change_config(k="4"), "k = '4'"),
    "another architecture": (change_config(architecture="matching_pursuit"), "matching_pursuit"),
    "jumprelu without thresholds": (change_config(architecture="jumprelu"), "threshold"),
    "normalised": (
        change_config(normalize_activations="expected_average_only_in"),
        "normalize_activations",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(sae, tmp_path, damage):
    sae.save(tmp_path / "a")
    load_sae(tmp_path / "a")
    change, word = DAMAGE[damage]
    change(tmp_path / "a")
    with pytest.raises(SAEError) as error:
        load_sae(tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value)
    assert word in str(error.value)


def test_saving_over_an_old_folder_leaves_nothing_of_it(sae, tmp_path):
    sae.save(tmp_path / "a")
    sae.firing = None
    sae.save(tmp_path / "a")
    assert {f.name for f in (tmp_path / "a").iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    shutil.rmtree(tmp_path / "a")
