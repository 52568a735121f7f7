"""Published SAE folders, written out here tensor by tensor, against each format's own formulas in
float64; and folders to refuse.
"""

import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faithful_sae import TopKSAE, load_sae
from faithful_sae.sae.formats.hooks import check_hook, hook_name, layer_of, place_of
from faithful_sae.sae.sae import SAEError

D, F, K = 6, 20, 4
GENERATOR = np.random.default_rng(0)
W_ENC, B_ENC, W_DEC, B_DEC = (
    GENERATOR.standard_normal(shape).astype("float32") for shape in ((D, F), F, (F, D), D)
)
THRESHOLD, OTHER, THIRD = (
    GENERATOR.standard_normal(F).astype("float32") for _ in range(3)
)  # a threshold below 0 means none
X = (3 * GENERATOR.standard_normal((50, D)) + 1).astype("float32")
CENTRED = X.astype("float64") - B_DEC


def relu(p):
    return np.maximum(p, 0)


def top(p, k=K):
    return relu(p * (p.argsort(-1).argsort(-1) >= p.shape[-1] - k))


def write(folder, config, name, tensors):
    """A folder of arrays: cfg.json with safetensors, or config.json with a pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("cfg.json" if name.endswith("safetensors") else "config.json")).write_text(
        json.dumps(config)
    )
    tensors = {key: torch.tensor(value) for key, value in tensors.items()}
    save_file(tensors, folder / name) if name.endswith("safetensors") else torch.save(
        tensors, folder / name
    )
    return folder


# --- the formats: each function writes a folder and returns (latents, reconstruction) of X --------

PLAIN = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
NORM = np.linalg.norm(W_DEC.astype("float64"), axis=1)


def saelens(folder, architecture="topk", tensors=PLAIN, **config):
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.49.2",
            "model_name": "gpt2-small",
            "hook_name": "blocks.8.hook_resid_pre",
            "hook_head_index": None,
            "context_size": 128,
            "prepend_bos": False,
        },
    } | config
    return write(folder, config, "sae_weights.safetensors", tensors)


def saelens_topk(folder):
    saelens(folder, k=K)
    z = top(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def saelens_rescaled(folder):
    saelens(folder, k=K, rescale_acts_by_decoder_norm=True)
    z = top((CENTRED @ W_ENC + B_ENC) * NORM)
    return z, z / NORM @ W_DEC + B_DEC


def saelens_not_centred(folder):
    saelens(folder, k=K, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    z = top((X @ W_ENC.astype("float64") + B_ENC) * NORM)
    return z, z / NORM @ W_DEC + B_DEC


def saelens_layer_norm(folder):
    saelens(folder, k=K, normalize_activations="layer_norm")
    mean = X.mean(1, keepdims=True, dtype="float64")
    std = X.std(1, keepdims=True, dtype="float64", ddof=1)
    z = top(((X - mean) / (std + 1e-5) - B_DEC) @ W_ENC + B_ENC)
    return z, (z @ W_DEC + B_DEC) * std + mean


def saelens_constant_norm(folder):
    saelens(folder, k=K, normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False)
    factor = D**0.5 / np.linalg.norm(X.astype("float64"), axis=1, keepdims=True)
    z = top(X * factor @ W_ENC + B_ENC)
    return z, (z @ W_DEC + B_DEC) / factor


def saelens_constant_factor(folder):
    """A checkpoint: the factor that activations are multiplied by in training lies beside it."""
    saelens(folder, k=K, normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.37}')
    z = top((0.37 * X - B_DEC.astype("float64")) @ W_ENC + B_ENC)
    return z, (z @ W_DEC + B_DEC) / 0.37


def saelens_jumprelu(folder):
    saelens(folder, "jumprelu", PLAIN | {"threshold": THRESHOLD})
    p = CENTRED @ W_ENC + B_ENC
    z = relu(p) * (p > THRESHOLD)
    return z, z @ W_DEC + B_DEC


def saelens_batchtopk_in_training(folder):
    saelens(
        folder,
        "batchtopk",
        PLAIN | {"topk_threshold": np.float64(1.5)},
        k=4.5,
        rescale_acts_by_decoder_norm=True,
    )
    p = (CENTRED @ W_ENC + B_ENC) * NORM
    z = p * (p > 1.5)
    return z, z / NORM @ W_DEC + B_DEC


def saelens_gated(folder):
    saelens(
        folder,
        "gated",
        {
            "W_enc": W_ENC,
            "W_dec": W_DEC,
            "b_dec": B_DEC,
            "r_mag": THRESHOLD,
            "b_gate": OTHER,
            "b_mag": THIRD,
        },
    )
    z = (CENTRED @ W_ENC + OTHER > 0) * relu(CENTRED @ (W_ENC * np.exp(THRESHOLD)) + THIRD)
    return z, z @ W_DEC + B_DEC


def saelens_standard(folder):
    saelens(folder, "standard")
    z = relu(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def saelens_5(folder, tensors=PLAIN, **config):
    config = {
        "d_in": D,
        "d_sae": F,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "model_name": "gpt2-small",
        "hook_name": "blocks.8.hook_resid_pre",
        "hook_layer": 8,
        "context_size": 128,
        "prepend_bos": False,
    } | config
    write(folder, config, "sae_weights.safetensors", tensors)
    z = top(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def saelens_5_oldest(folder):
    """Before `hook_name`, and with a normalisation that is true or false."""
    ones = {"scaling_factor": np.ones(F, "float32")}
    result = saelens_5(
        folder,
        PLAIN | ones,
        hook_name=None,
        hook_point="blocks.8.hook_resid_pre",
        normalize_activations=False,
    )
    config = json.loads((folder / "cfg.json").read_text())
    del config["hook_name"]
    (folder / "cfg.json").write_text(json.dumps(config))
    return result


def saelens_5_finetuned(folder):
    z, _ = saelens_5(folder, PLAIN | {"scaling_factor": OTHER}, finetuning_scaling_factor=True)
    return z, z * OTHER @ W_DEC + B_DEC


def saelens_5_relu(folder):
    saelens_5(folder, architecture="standard", activation_fn_str="relu", activation_fn_kwargs={})
    z = relu(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def sparsify(folder, tensors=None, **config):
    config = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": F,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
    } | config
    plain = {
        "encoder.weight": W_ENC.T.copy(),
        "encoder.bias": B_ENC,
        "W_dec": W_DEC,
        "b_dec": B_DEC,
    }
    write(folder, config, "sae.safetensors", plain | (tensors or {}))
    z = top(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def sparsify_no_num_latents(folder):
    """num_latents 0 stands for d_in times expansion_factor."""
    sparsify(
        folder,
        {
            "encoder.weight": W_ENC.T[:18].copy(),
            "encoder.bias": B_ENC[:18].copy(),
            "W_dec": W_DEC[:18].copy(),
        },
        num_latents=0,
        expansion_factor=3,
    )
    z = top((CENTRED @ W_ENC + B_ENC)[:, :18])
    return z, z @ W_DEC[:18] + B_DEC


LINEAR = {"encoder.weight": W_ENC.T.copy(), "encoder.bias": B_ENC, "decoder.weight": W_DEC.T.copy()}


def dictionary(folder, dict_class, tensors, trainer=None, **buffer):
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 7,
        "lm_name": "openai-community/gpt2",
        "submodule_name": "resid_post_layer_7",
        "seed": 5,
    } | (trainer or {})
    return write(folder, {"trainer": trainer, "buffer": {"io": "out"} | buffer}, "ae.pt", tensors)


def dictionary_topk(folder):
    """With a threshold in the file that its `encode` does not use."""
    dictionary(
        folder,
        "AutoEncoderTopK",
        LINEAR | {"b_dec": B_DEC, "k": np.int32(K), "threshold": np.float32(2)},
    )
    z = top(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def dictionary_batchtopk(folder, threshold=1.5):
    dictionary(
        folder,
        "BatchTopKSAE",
        LINEAR | {"b_dec": B_DEC, "k": np.int32(K), "threshold": np.float32(threshold)},
    )
    p = relu(CENTRED @ W_ENC + B_ENC)
    z = p * (p > threshold)
    return z, z @ W_DEC + B_DEC


def dictionary_unset_threshold(folder):
    return dictionary_batchtopk(folder, -1.0)


def dictionary_matryoshka(folder):
    more = {"k": np.int32(K), "threshold": np.float32(1), "group_sizes": np.array([8, 12])}
    dictionary(folder, "MatryoshkaBatchTopKSAE", PLAIN | more)
    p = relu(CENTRED @ W_ENC + B_ENC)
    z = p * (p > 1)
    return z, z @ W_DEC + B_DEC


def dictionary_backup(folder):
    """Made in training on activations divided by norm_factor; the final file has its biases and its
    threshold multiplied by it.
    """
    dictionary_batchtopk(folder)
    backup = {
        "step": 3,
        "ae": torch.load(folder / "ae.pt"),
        "optimizer": {"state": {}, "lr": 0.1},
        "norm_factor": 2.5,
    }
    torch.save(backup, folder / "ae.pt")
    p = relu((X - 2.5 * B_DEC.astype("float64")) @ W_ENC + 2.5 * B_ENC)
    z = p * (p > 2.5 * 1.5)
    return z, z @ W_DEC + 2.5 * B_DEC


def dictionary_jumprelu(folder):
    dictionary(folder, "JumpReluAutoEncoder", PLAIN | {"threshold": THRESHOLD})
    p = X @ W_ENC.astype("float64") + B_ENC
    z = relu(p * (p > THRESHOLD))
    return z, z @ W_DEC + B_DEC


def dictionary_relu(folder):
    """Loading it divides the decoder's rows by their norms and multiplies the encoder."""
    dictionary(folder, "AutoEncoder", LINEAR | {"bias": B_DEC})
    z = relu(CENTRED @ W_ENC + B_ENC) * NORM
    return z, z / NORM @ W_DEC + B_DEC


def dictionary_new(folder):
    dictionary(folder, "AutoEncoderNew", LINEAR | {"decoder.bias": B_DEC})
    z = relu(X @ W_ENC.astype("float64") + B_ENC)
    return z, z @ W_DEC + B_DEC


def dictionary_gated(folder):
    without = {key: value for key, value in LINEAR.items() if key != "encoder.bias"}
    more = {"decoder_bias": B_DEC, "r_mag": THRESHOLD, "gate_bias": OTHER, "mag_bias": THIRD}
    dictionary(folder, "GatedAutoEncoder", without | more)
    u = CENTRED @ W_ENC
    z = (u + OTHER > 0) * relu(np.exp(THRESHOLD.astype("float64")) * u + THIRD)
    return z, z @ W_DEC + B_DEC


def authors(folder, sae_type="topk", tensors=PLAIN, **config):
    config = {
        "sae_type": sae_type,
        "act_size": D,
        "dict_size": F,
        "top_k": K,
        "input_unit_norm": False,
        "dtype": "torch.bfloat16",
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "layer": 8,
        "seq_len": 128,
        "seed": 49,
        "dataset_path": "someone/text",
    } | config
    return write(folder, config, "sae.pt", tensors)


def authors_topk(folder):
    """The stored b_enc is not used."""
    authors(folder)
    z = top(CENTRED @ W_ENC)
    return z, z @ W_DEC + B_DEC


def authors_bfloat16(folder):
    authors(folder)
    torch.save(
        {name: w.bfloat16() for name, w in torch.load(folder / "sae.pt").items()}, folder / "sae.pt"
    )
    w_enc, w_dec, b_dec = (
        torch.tensor(w).bfloat16().double().numpy() for w in (W_ENC, W_DEC, B_DEC)
    )
    z = top((X - b_dec) @ w_enc)
    return z, z @ w_dec + b_dec


def authors_unit_norm(folder):
    authors(folder, input_unit_norm=True)
    mean = X.mean(1, keepdims=True, dtype="float64")
    std = X.std(1, keepdims=True, dtype="float64", ddof=1)
    z = top(((X - mean) / (std + 1e-5) - B_DEC) @ W_ENC)
    return z, (z @ W_DEC + B_DEC) * std + mean


def authors_vanilla(folder):
    authors(folder, "vanilla")
    z = relu(CENTRED @ W_ENC + B_ENC)
    return z, z @ W_DEC + B_DEC


def authors_jumprelu(folder):
    authors(folder, "jumprelu", PLAIN | {"jumprelu.log_threshold": OTHER})
    p = relu(X @ W_ENC.astype("float64") + B_ENC)
    z = p * (p > np.exp(OTHER))
    return z, z @ W_DEC + B_DEC


def gemma_scope(folder, tensors=None, **more):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = PLAIN | {"threshold": THRESHOLD} if tensors is None else tensors
    np.savez(folder / "params.npz", **tensors, **more)
    p = X @ W_ENC.astype("float64") + B_ENC
    z = relu(p) * (p > THRESHOLD)
    return z, z @ W_DEC + B_DEC


FORMATS = [
    saelens_topk,
    saelens_rescaled,
    saelens_not_centred,
    saelens_layer_norm,
    saelens_constant_norm,
    saelens_constant_factor,
    saelens_jumprelu,
    saelens_batchtopk_in_training,
    saelens_gated,
    saelens_standard,
    saelens_5,
    saelens_5_oldest,
    saelens_5_finetuned,
    saelens_5_relu,
    sparsify,
    sparsify_no_num_latents,
    dictionary_topk,
    dictionary_batchtopk,
    dictionary_unset_threshold,
    dictionary_matryoshka,
    dictionary_backup,
    dictionary_jumprelu,
    dictionary_relu,
    dictionary_new,
    dictionary_gated,
    authors_topk,
    authors_bfloat16,
    authors_unit_norm,
    authors_vanilla,
    authors_jumprelu,
    gemma_scope,
]


def compare(sae, z, x_hat):
    x = torch.tensor(X)
    assert 0 < (z > 0).mean() < 0.9  # a case in which something is kept and something is not
    torch.testing.assert_close(
        sae.encode(x), torch.tensor(z, dtype=torch.float32), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        sae.reconstruct(x), torch.tensor(x_hat, dtype=torch.float32), atol=1e-5, rtol=1e-5
    )
    values, indices = sae.encode_topk(x.view(5, 10, D))  # tokens in rows, as fidelity has them
    assert torch.equal(
        torch.zeros(5, 10, sae.d_sae).scatter_(-1, indices, values).view(50, -1), sae.encode(x)
    )
    torch.testing.assert_close(
        sae.reconstruct(x.view(5, 10, D)).view(50, D), sae.reconstruct(x), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_a_folder_computes_what_its_format_says(make, tmp_path):
    # some have only these names to say where they read
    z, x_hat = make(tmp_path / "layer_7" / "layers.7")
    sae = load_sae(tmp_path / "layer_7" / "layers.7")
    compare(sae, z, x_hat)
    assert all(w.dtype == torch.float32 and w.is_contiguous() for w in sae.weights.values())
    assert (sae.k is None) != (sae.threshold is None)
    assert sae.metadata["layer"] == 8
    assert sae.metadata.get("model") in (
        "gpt2-small",
        "openai-community/gpt2",
        None,
    )
    sae.save(tmp_path / "again")  # and so does what `save` makes of it
    again = load_sae(tmp_path / "again")
    compare(again, z, x_hat)
    check_hook(again, "somewhere/gpt2", 8, tmp_path)
    if sae.threshold is None and sae.normalisation == "none":
        sae.to_sparsify(tmp_path / "sparsify")
        compare(load_sae(tmp_path / "sparsify"), z, x_hat)
    else:
        with pytest.raises(SAEError, match="sparsify keeps the k largest"):
            sae.to_sparsify(tmp_path / "sparsify")
        assert not (tmp_path / "sparsify").exists()
    if sae.normalisation == "none":
        sae.to_dictionary_learning(tmp_path / "dictionary")
        theirs = load_sae(tmp_path / "dictionary")
        compare(theirs, z, x_hat)
        check_hook(theirs, "somewhere/gpt2", 8, tmp_path)
    else:
        with pytest.raises(SAEError, match="dictionary_learning has no class"):
            sae.to_dictionary_learning(tmp_path / "dictionary")
        assert not (tmp_path / "dictionary").exists()


# --- what is written ------------------------------------------------------------------------------


def an_sae(k=None, threshold=0.0, unit=True):
    """One with biases; without k, latents are kept above a threshold."""
    sae = TopKSAE(D, F, K, 3)
    sae.W_enc, sae.b_enc, sae.b_dec = (torch.tensor(w) for w in (W_ENC, B_ENC, B_DEC))
    if not unit:
        sae.W_dec = torch.tensor(W_DEC)
    if k is None:
        sae.above(torch.as_tensor(threshold))
    return sae


def read_dictionary(folder):
    """(class, {name: float64 array}) of what was written."""
    kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    state = torch.load(folder / "ae.pt", weights_only=True)
    return kind, {name: w.double().numpy() for name, w in state.items()}


def of_dictionary(kind, w):
    """(latents, reconstruction) of X by that library's formulas."""
    x = X.astype("float64")
    if kind == "AutoEncoderTopK":
        z = top((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], int(w["k"]))
        return z, z @ w["decoder.weight"].T + w["b_dec"]
    if kind == "AutoEncoder":
        z = relu((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"])
        return z, z @ w["decoder.weight"].T + w["bias"]
    p = x @ w["W_enc"] + w["b_enc"]
    z = relu(p * (p > w["threshold"]))
    return z, z @ w["W_dec"] + w["b_dec"]


WRITTEN = {
    "topk": ({"k": K}, "AutoEncoderTopK", "topk"),
    "topk, free rows": ({"k": K, "unit": False}, "AutoEncoderTopK", "topk"),
    "relu": ({}, "AutoEncoder", "standard"),
    "relu, free rows": ({"unit": False}, "JumpReluAutoEncoder", "standard"),
    "never set": ({"threshold": -1.0}, "AutoEncoder", "standard"),
    "one threshold": ({"threshold": 1.5}, "JumpReluAutoEncoder", "jumprelu"),
    "thresholds": ({"threshold": THRESHOLD}, "JumpReluAutoEncoder", "jumprelu"),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_dictionary_learning_computes_what_is_written_for_it(case, tmp_path):
    settings, kind, _ = WRITTEN[case]
    sae = an_sae(**settings)
    sae.to_dictionary_learning(tmp_path / "a")
    found, weights = read_dictionary(tmp_path / "a")
    assert found == kind
    compare(sae, *of_dictionary(found, weights))


@pytest.mark.parametrize("case", WRITTEN)
def test_saelens_architecture_of_each_kind(case, tmp_path):
    settings, _, architecture = WRITTEN[case]
    sae = an_sae(**settings)
    sae.save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    assert config["architecture"] == architecture
    assert ("k" in config) == (architecture == "topk")
    weights = load_file(tmp_path / "a" / "sae_weights.safetensors")
    assert ("threshold" in weights) == (architecture == "jumprelu")
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    p = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    z = top(p) if architecture == "topk" else relu(p) * (p > w.get("threshold", 0))
    compare(load_sae(tmp_path / "a"), z, z @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    "metadata, trainer, io",
    [
        ({"layer": 8}, {"layer": 7, "submodule_name": "resid_post_layer_7"}, "out"),
        ({"layer": 0}, {"layer": 0, "submodule_name": "resid_pre_layer_0"}, "in"),
        ({"hook_name": "h.2"}, {"layer": 2, "submodule_name": "resid_post_layer_2"}, "out"),
        (
            {"hook_name": "blocks.3.hook_resid_mid"},
            {"submodule_name": "blocks.3.hook_resid_mid"},
            "out",
        ),
        ({}, {"submodule_name": None}, "out"),
    ],
)
def test_the_place_that_dictionary_learning_is_told(metadata, trainer, io, tmp_path):
    sae = an_sae(K)
    sae.metadata = metadata | {"model": "gpt2", "seed": 4, "sequence_length": 128}
    sae.to_dictionary_learning(tmp_path / "a")
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written["buffer"] == {"d_submodule": D, "io": io, "ctx_len": 128}
    known = {"dict_class": "AutoEncoderTopK", "activation_dim": D, "dict_size": F, "k": K}
    assert written["trainer"] == known | {"lm_name": "gpt2", "seed": 4} | trainer
    again = load_sae(tmp_path / "a").metadata
    place = metadata.get("hook_name")
    assert again.get("layer") == (layer_of(place) if place else metadata.get("layer"))
    said = place, f"blocks.{trainer.get('layer')}.hook_resid_post"
    assert place is None or again["hook_name"] in said


def test_experts_have_no_class_in_dictionary_learning(tmp_path):
    sae = an_sae(K)
    sae.router, sae.b_router = torch.ones(D, 2), torch.zeros(D)
    with pytest.raises(SAEError, match="has experts") as error:
        sae.to_dictionary_learning(tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_saving_a_loaded_sae_twice_gives_the_same_bytes(tmp_path):
    saelens_jumprelu(tmp_path / "a")
    load_sae(tmp_path / "a").save(tmp_path / "b")
    load_sae(tmp_path / "b").save(tmp_path / "c")
    for name in ("sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    written = json.loads((tmp_path / "b" / "cfg.json").read_text())
    assert written["architecture"] == "jumprelu"
    assert "k" not in written
    assert not written["metadata"]["prepend_bos"]


def test_no_latent_above_its_threshold(tmp_path):
    saelens(tmp_path / "a", "jumprelu", PLAIN | {"threshold": np.full(F, 1e6, "float32")})
    sae = load_sae(tmp_path / "a")
    for x in (torch.tensor(X), torch.tensor(X[0]), torch.zeros(0, D)):
        assert not sae.encode(x).any()
        assert torch.equal(sae.reconstruct(x), sae.b_dec.expand(x.shape))


# --- the places an SAE says it reads --------------------------------------------------------------


@pytest.mark.parametrize(
    "hook, layer",
    [
        ("blocks.8.hook_resid_pre", 8),
        ("blocks.8.hook_resid_post", 9),
        ("layers.10", 11),
        ("h.0", 1),
        ("transformer.h.3", 4),
        ("gpt_neox.layers.15", 16),
        ("model.layers.2", 3),
        ("blocks.8.hook_resid_mid", None),
        ("blocks.8.hook_mlp_out", 8),
        ("blocks.8.hook_attn_out", 8),
        ("layers.3.mlp", 3),
        ("h.3.mlp.c_proj", None),
        ("blocks.8.attn.hook_z", None),
        ("", None),
        (None, None),
    ],
)
def test_the_block_of_a_hook_point(hook, layer):
    assert layer_of(hook) == layer


def sae_of(**metadata):
    sae = TopKSAE(D, F, K, 0)
    sae.metadata |= metadata
    return sae


@pytest.mark.parametrize(
    "metadata, model",
    [
        ({}, "gpt2"),
        ({"hook_name": "blocks.8.hook_resid_pre", "layer": 8}, "gpt2"),
        ({"hook_name": "h.7", "model": "gpt2-small"}, "gpt2"),
        ({"layer": 8, "model": "openai-community/gpt2"}, "/models/gpt2/"),
        ({"layer": 8, "model": "Llama-3.2-1B"}, "meta-llama/Llama-3.2-1B"),
        (
            {"model": "meta-llama/Llama-3.2-1B-topk-sae-14336-pile-uncopyrighted"},
            "meta-llama/Llama-3.2-1B",
        ),
    ],
)
def test_an_sae_of_the_profiles_place(metadata, model):
    check_hook(sae_of(**metadata), model, 8, "some/folder")


@pytest.mark.parametrize(
    "metadata, words",
    [
        (
            {"hook_name": "blocks.9.hook_resid_pre"},
            ["reads blocks.9.hook_resid_pre", "entering block 8"],
        ),
        (
            {"hook_name": "blocks.8.hook_resid_post"},
            ["reads blocks.8.hook_resid_post", "entering block 8"],
        ),
        ({"hook_name": "blocks.8.hook_mlp_out"}, ["reads blocks.8.hook_mlp_out"]),
        ({"layer": 0}, ["the input of block 0"]),
        ({"layer": 8, "model": "pythia-1.4b"}, ["model pythia-1.4b", "gpt2"]),
        ({"model": "gpt2-medium"}, ["model gpt2-medium"]),
    ],
)
def test_an_sae_of_another_place(metadata, words):
    with pytest.raises(SAEError) as error:
        check_hook(sae_of(**metadata), "openai-community/gpt2", 8, "some/folder")
    assert all(word in str(error.value) for word in ["some/folder", *words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, hook, module",
    [
        ("blocks.8.hook_mlp_out", "mlp", "post_feedforward_layernorm"),
        ("blocks.8.hook_attn_out", "attention", None),
        ("layers.8.mlp", "mlp", "mlp"),
        ("model.layers.8.self_attn", "attention", "self_attn"),
        ("gpt_neox.layers.8.attention", "attention", None),
        ("h.8.attn", "attention", "attn"),
        ("layers.8.post_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    ],
)
def test_an_sae_of_the_profiles_module(name, hook, module):
    check_hook(sae_of(hook_name=name), "gpt2", 8, "some/folder", hook, module)


@pytest.mark.parametrize(
    "metadata, hook, module, word",
    [
        ({"hook_name": "blocks.8.hook_mlp_out"}, "attention", None, "blocks.8.hook_attn_out"),
        ({"hook_name": "blocks.8.hook_resid_pre"}, "mlp", None, "MLP output of block 8"),
        ({"hook_name": "blocks.7.hook_mlp_out"}, "mlp", None, "MLP output of block 8"),
        ({"hook_name": "blocks.8.attn.hook_z"}, "attention", None, "attention output of block 8"),
        ({"layer": 8}, "mlp", None, "the input of block 8"),
        # before the normalisation that stands behind it
        ({"hook_name": "layers.8.mlp"}, "mlp", "post_feedforward_layernorm", "layers.8.mlp"),
    ],
)
def test_an_sae_of_another_module(metadata, hook, module, word):
    with pytest.raises(SAEError, match=r"^some/folder: reads [^\n]*$") as error:
        check_hook(sae_of(**metadata), "gpt2", 8, "some/folder", hook, module)
    assert word in str(error.value)


@pytest.mark.parametrize("hook", ["residual", "mlp", "attention"])
def test_the_hook_stands_in_every_layout_that_has_a_place_for_it(hook, tmp_path):
    sae = sae_of(hook_name=hook_name(hook, 3), layer=3)
    sae.save(tmp_path / "saelens")
    assert place_of(load_sae(tmp_path / "saelens").metadata["hook_name"]) == (hook, 3)
    sae.to_dictionary_learning(tmp_path / "dictionary")
    assert place_of(load_sae(tmp_path / "dictionary").metadata["hook_name"]) == (hook, 3)
    sae.to_sparsify(tmp_path / "layers.3.mlp")
    assert place_of(load_sae(tmp_path / "layers.3.mlp").metadata["hook_name"]) == ("mlp", 3)


def test_where_sparsify_and_dictionary_learning_name_the_place(tmp_path):
    """sparsify: the folder is the hook point, the run's config.json has the model.
    dictionary_learning: layer, submodule_name, io.
    """
    sparsify(tmp_path / "run" / "h.3" / "seed2")
    (tmp_path / "run" / "config.json").write_text('{"model": "EleutherAI/pythia-70m"}')
    assert load_sae(tmp_path / "run" / "h.3" / "seed2").metadata == {
        "seed": 2,
        "model": "EleutherAI/pythia-70m",
        "hook_name": "blocks.3.hook_resid_post",
        "layer": 4,
    }
    sparsify(tmp_path / "run" / "layers.3.mlp")
    with pytest.raises(SAEError, match=r"reads layers.3.mlp"):
        check_hook(load_sae(tmp_path / "run" / "layers.3.mlp"), "EleutherAI/pythia-70m", 3, "")
    for name in ("embed_tokens", "model.embed_tokens", "transformer.wte", "gpt_neox.embed_in"):
        sparsify(tmp_path / "run" / name)
        for layer in (0, 3):
            with pytest.raises(SAEError, match=f"reads {name}, but the profile hooks"):
                check_hook(load_sae(tmp_path / "run" / name), "pythia-70m", layer, "")
    sparsify(tmp_path / "elsewhere" / "my-sae")
    assert load_sae(tmp_path / "elsewhere" / "my-sae").metadata == {}
    topk = LINEAR | {"b_dec": B_DEC}
    for trainer, buffer, hook in [
        ({"submodule_name": None}, {}, "blocks.7.hook_resid_post"),
        ({}, {"io": "in"}, "blocks.7.hook_resid_pre"),
        ({"submodule_name": "resid_pre_layer_7"}, {}, "blocks.7.hook_resid_pre"),
        ({"submodule_name": "mlp_layer_7"}, {}, "mlp_layer_7"),
    ]:
        dictionary(tmp_path / "d", "AutoEncoderTopK", topk, trainer, **buffer)
        assert load_sae(tmp_path / "d").metadata["hook_name"] == hook


@pytest.mark.parametrize(
    "path, metadata",
    [
        (
            "layer_20/width_16k/average_l0_71",
            {"hook_name": "blocks.20.hook_resid_post", "layer": 21},
        ),
        (
            "gemma-scope-9b-it-res/layer_9/width_131k/average_l0_22",
            {
                "model": "google/gemma-2-9b-it",
                "hook_name": "blocks.9.hook_resid_post",
                "layer": 10,
            },
        ),
        (
            "models--google--gemma-scope-2b-pt-mlp/snapshots/0a/layer_5/width_16k/average_l0_6",
            {"model": "google/gemma-2-2b", "hook_name": "blocks.5.hook_mlp_out", "layer": 5},
        ),
        (
            "gemma-scope-2b-pt-att/layer_5/width_16k/average_l0_6",
            {"model": "google/gemma-2-2b", "hook_name": "blocks.5.attn.hook_z"},
        ),
        (
            "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
            {"model": "google/gemma-2-2b", "hook_name": "embedding"},
        ),
        ("mine", {}),
    ],
)
def test_where_gemma_scope_names_the_place(path, metadata, tmp_path):
    gemma_scope(tmp_path / path)
    assert load_sae(tmp_path / path).metadata == metadata


@pytest.mark.parametrize(
    "make, name",
    [
        (gemma_scope, "params.npz"),
        (saelens_topk, "sae_weights.safetensors"),
        (authors, "config.json"),
    ],
)
def test_a_file_stands_for_its_folder(make, name, tmp_path):
    make(tmp_path / "a")
    sae = load_sae(tmp_path / "a" / name)
    assert torch.equal(sae.W_dec, load_sae(tmp_path / "a").W_dec)


# --- refused --------------------------------------------------------------------------------------


def edit(make, name, function):
    """Write a folder, then change its tensors in `name`."""

    def write_changed(folder):
        make(folder)
        read, keep = (
            (load_file, save_file) if name.endswith("safetensors") else (torch.load, torch.save)
        )
        tensors = read(folder / name)
        function(tensors)
        keep(tensors, folder / name)

    return write_changed


def transpose(*names):
    return lambda tensors: tensors.update({name: tensors[name].T.contiguous() for name in names})


WITH_B_DEC = LINEAR | {"b_dec": B_DEC}
REFUSED = {
    "empty folder": (
        lambda f: f.mkdir(),
        ["no SAE here", "sae_weights.safetensors, sae.safetensors, ae.pt, sae.pt"],
    ),
    "no folder": (lambda f: None, ["no SAE here"]),
    "two formats": (
        lambda f: (saelens_topk(f), save_file({"a": torch.ones(1)}, f / "sae.safetensors")),
        ["of different formats"],
    ),
    "sparsify: missing tensor": (
        edit(sparsify, "sae.safetensors", lambda t: t.pop("W_dec")),
        ["sae.safetensors", "W_dec is missing"],
    ),
    "sparsify: transposed encoder": (
        edit(sparsify, "sae.safetensors", transpose("encoder.weight")),
        ["encoder.weight is [6, 20], transposed"],
    ),
    "sparsify: transposed decoder": (
        edit(sparsify, "sae.safetensors", transpose("W_dec")),
        ["W_dec is [6, 20], transposed", "[20, 6]"],
    ),
    "sparsify: signed": (lambda f: sparsify(f, signed=True), ["cfg.json", "signed"]),
    "sparsify: other num_latents": (lambda f: sparsify(f, num_latents=21), ["cfg.json", "[21, 6]"]),
    "sparsify: 0 latents, other expansion": (
        lambda f: sparsify(f, num_latents=0, expansion_factor=4),
        ["cfg.json", "[24, 6]"],
    ),
    "sparsify: 0 latents, no expansion": (
        lambda f: sparsify(f, num_latents=0, expansion_factor=0),
        ["num_latents = 0"],
    ),
    "sparsify: k beyond": (lambda f: sparsify(f, k=21), ["k = 21", "num_latents = 20"]),
    "sparsify: groupmax": (lambda f: sparsify(f, activation="groupmax"), ["cfg.json", "groupmax"]),
    "sparsify: transcoder": (lambda f: sparsify(f, transcode=True), ["cfg.json", "transcode"]),
    "sparsify: skip": (
        lambda f: sparsify(f, skip_connection=True),
        ["cfg.json", "skip_connection"],
    ),
    "sparsify: skip in the weights": (
        lambda f: sparsify(f, {"W_skip": np.ones((D, D), "float32")}),
        ["skip_connection"],
    ),
    "sparsify: no d_in": (
        lambda f: (sparsify(f), (f / "cfg.json").write_text('{"k": 4}')),
        ["cfg.json", "key d_in is missing"],
    ),
    "dictionary: missing tensor": (
        lambda f: dictionary(f, "BatchTopKSAE", WITH_B_DEC),
        ["ae.pt", "threshold is missing"],
    ),
    "dictionary: no b_dec": (
        lambda f: dictionary(f, "AutoEncoderTopK", LINEAR),
        ["ae.pt", "b_dec is missing"],
    ),
    "dictionary: transposed": (
        lambda f: dictionary(f, "AutoEncoderTopK", WITH_B_DEC | {"decoder.weight": W_DEC}),
        ["decoder.weight", "transposed"],
    ),
    "dictionary: other size": (
        lambda f: dictionary(f, "AutoEncoderTopK", WITH_B_DEC, {"dict_size": 19}),
        ["config.json", "[19, 6]"],
    ),
    "dictionary: k disagrees": (
        lambda f: dictionary(f, "AutoEncoderTopK", WITH_B_DEC | {"k": np.int32(5)}),
        ["config.json", "k = 4", "says 5"],
    ),
    "dictionary: k of 0": (
        lambda f: dictionary(f, "AutoEncoderTopK", WITH_B_DEC, {"k": 0}),
        ["k = 0"],
    ),
    "dictionary: NaN": (
        lambda f: dictionary(f, "AutoEncoderTopK", WITH_B_DEC | {"b_dec": B_DEC * np.nan}),
        ["b_dec holds NaN"],
    ),
    "dictionary: unknown class": (
        lambda f: dictionary(f, "CrossCoder", WITH_B_DEC),
        ["config.json", "CrossCoder"],
    ),
    "dictionary: transcoder": (
        lambda f: dictionary(f, "AutoEncoderTopK", WITH_B_DEC, io="in_and_out"),
        ["config.json", "transcoder"],
    ),
    "dictionary: no trainer": (
        lambda f: (dictionary_topk(f), (f / "config.json").write_text("{}")),
        ["config.json", "dict_class is missing"],
    ),
    "dictionary: a list": (
        lambda f: (dictionary_topk(f), (f / "config.json").write_text('{"trainer": []}')),
        ["config.json", "trainer holds a list"],
    ),
    "authors: batchtopk": (lambda f: authors(f, "batchtopk"), ["config.json", "whole batch"]),
    "authors: unknown": (lambda f: authors(f, "nnet"), ["config.json", "nnet"]),
    "authors: no k": (
        lambda f: (
            authors(f),
            (f / "config.json").write_text('{"sae_type": "topk", "act_size": 6, "dict_size": 20}'),
        ),
        ["config.json", "top_k is missing"],
    ),
    "authors: transposed": (
        lambda f: authors(f, tensors=PLAIN | {"W_enc": W_ENC.T.copy()}),
        ["sae.pt", "W_enc is [20, 6], transposed"],
    ),
    "authors: other size": (lambda f: authors(f, act_size=7), ["sae.pt", "[7, 20]", "config.json"]),
    "authors: no config": (
        lambda f: (authors(f), (f / "config.json").unlink()),
        ["config.json is missing"],
    ),
    "authors: a whole module": (
        lambda f: (authors(f), torch.save(torch.nn.Linear(2, 2), f / "sae.pt")),
        ["sae.pt: not opened"],
    ),
    "authors: a list": (
        lambda f: (authors(f), torch.save([1], f / "sae.pt")),
        ["sae.pt: holds a list"],
    ),
    "authors: truncated": (
        lambda f: (authors(f), (f / "sae.pt").write_bytes((f / "sae.pt").read_bytes()[:-200])),
        ["sae.pt: not opened"],
    ),
    "authors: text": (
        lambda f: (
            authors(f),
            (f / "sae.pt").write_text("version https://git-lfs.github.com/spec/v1"),
        ),
        ["sae.pt: not opened"],
    ),
    "gemma: no threshold": (
        lambda f: gemma_scope(f, PLAIN),
        ["params.npz", "threshold is missing"],
    ),
    "gemma: no W_enc": (
        lambda f: gemma_scope(f, {"W_dec": W_DEC}),
        ["params.npz", "W_enc is missing"],
    ),
    "gemma: W_enc of one axis": (
        lambda f: gemma_scope(f, PLAIN | {"W_enc": B_ENC}),
        ["params.npz", "W_enc", "no matrix"],
    ),
    "gemma: transposed": (
        lambda f: gemma_scope(f, PLAIN | {"W_dec": W_ENC}),
        ["params.npz", "W_dec is [6, 20], transposed; by W_enc it is [20, 6]"],
    ),
    "gemma: one threshold": (
        lambda f: gemma_scope(f, PLAIN | {"threshold": np.float32(1)}),
        ["params.npz", "threshold is []"],
    ),
    "gemma: NaN": (
        lambda f: gemma_scope(f, PLAIN | {"threshold": THRESHOLD * np.nan}),
        ["params.npz", "threshold holds NaN"],
    ),
    "gemma: another tensor": (
        lambda f: gemma_scope(f, W_skip=W_ENC),
        ["params.npz", "holds W_skip"],
    ),
    "gemma: truncated": (
        lambda f: (
            gemma_scope(f),
            (f / "params.npz").write_bytes((f / "params.npz").read_bytes()[:-200]),
        ),
        ["params.npz: not opened"],
    ),
    "gemma: a damaged byte": (
        lambda f: (
            gemma_scope(f),
            (f / "params.npz").write_bytes(
                (f / "params.npz").read_bytes().replace(W_DEC.tobytes()[:8], b"\0" * 8)
            ),
        ),
        ["params.npz: not opened"],
    ),
    "gemma: one array": (
        lambda f: (f.mkdir(), np.save(f / "a.npy", W_ENC), (f / "a.npy").rename(f / "params.npz")),
        ["params.npz: not opened"],
    ),
    "gemma: objects": (
        lambda f: gemma_scope(f, PLAIN | {"threshold": np.array([None, {}])}),
        ["params.npz: not opened"],
    ),
    "saelens: attention heads": (
        lambda f: saelens(f, k=K, reshape_activations="hook_z"),
        ["cfg.json", "hook_z"],
    ),
    "saelens: factor not known": (
        lambda f: saelens(f, k=K, normalize_activations="expected_average_only_in"),
        ["cfg.json", "activation_scaler.json"],
    ),
    "saelens: null": (
        lambda f: (
            saelens_constant_factor(f),
            (f / "activation_scaler.json").write_text('{"scaling_factor": null}'),
        ),
        ["cfg.json", "activation_scaler.json"],
    ),
    "saelens 5: factor not known": (
        lambda f: saelens_5(f, normalize_activations=True),
        ["cfg.json", "expected_average_only_in"],
    ),
    "saelens: whitening": (
        lambda f: saelens(f, k=K, normalize_activations="covariance_whitening"),
        ["cfg.json", "covariance_whitening"],
    ),
    "saelens: transcoder": (
        lambda f: saelens(f, "transcoder"),
        ["cfg.json", "architecture transcoder"],
    ),
    "saelens: signed topk": (
        lambda f: saelens(f, "abstopk", k=K),
        ["cfg.json", "architecture abstopk"],
    ),
    "saelens 5: jumprelu, then topk": (
        lambda f: saelens_5(f, PLAIN | {"threshold": THRESHOLD}, architecture="jumprelu"),
        ["cfg.json", "activation topk", "jumprelu"],
    ),
    "saelens 5: gated, then topk": (
        lambda f: saelens_5(f, architecture="gated"),
        ["cfg.json", "activation topk", "gated"],
    ),
    "saelens: skip in the weights": (
        lambda f: saelens(f, tensors=PLAIN | {"W_skip": np.ones((D, D), "float32")}, k=K),
        ["sae_weights.safetensors", "W_skip"],
    ),
    "saelens 5: tanh": (
        lambda f: saelens_5(f, activation_fn_str="tanh-relu"),
        ["cfg.json", "tanh-relu"],
    ),
    "saelens 5: factor unsaid": (
        lambda f: saelens_5(f, PLAIN | {"scaling_factor": OTHER}),
        ["cfg.json", "finetuning_scaling_factor"],
    ),
    "saelens: missing threshold": (lambda f: saelens(f, "jumprelu"), ["threshold is missing"]),
    "saelens: a threshold for all": (
        lambda f: saelens(f, "jumprelu", PLAIN | {"threshold": np.float32(1)}),
        ["threshold is []", "[20]"],
    ),
    "saelens: another d_sae": (
        lambda f: saelens(f, k=K, d_sae=24),
        ["sae_weights.safetensors", "[6, 24]", "cfg.json"],
    ),
    "saelens: d_sae 0": (lambda f: saelens(f, k=K, d_sae=0), ["cfg.json", "d_sae = 0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_or_trusted_is_refused(case, tmp_path):
    make, words = REFUSED[case]
    make(tmp_path / "a")
    with pytest.raises(SAEError) as error:
        load_sae(tmp_path / "a")
    message = str(error.value)
    assert str(tmp_path / "a") in message
    assert all(word in message for word in words)
    assert "\n" not in message


def test_a_gemma_scope_transcoder_is_refused(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3"
    gemma_scope(folder)
    with pytest.raises(SAEError, match="layer_3: a transcoder"):
        load_sae(folder)


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(value, path):
    path.write_bytes(pickle.dumps(value, 2))


@pytest.mark.parametrize(
    "make, name",
    [
        (authors, "sae.pt"),
        (dictionary_topk, "ae.pt"),
        (saelens_topk, "sae_weights.safetensors"),
        (gemma_scope, "params.npz"),
    ],
)
@pytest.mark.parametrize(
    "save, load",
    [(torch.save, lambda file: torch.load(file, weights_only=False)), (pickled, pickle.load)],
)
def test_code_in_a_pickle_is_never_run(make, name, save, load, tmp_path):
    make(tmp_path / "a")
    save(
        {"W_enc": torch.tensor(W_ENC), "b_dec": Touch(str(tmp_path / "touched"))},
        tmp_path / "a" / name,
    )
    with pytest.raises(SAEError, match=f"{name}: (not opened|truncated)"):
        load_sae(tmp_path / "a")
    assert not (tmp_path / "touched").exists()
    load(io.BytesIO((tmp_path / "a" / name).read_bytes()))  # what opening it carelessly does
    assert (tmp_path / "touched").exists()
