"""SAELens itself: it computes our latents from the folders we write, we compute its latents from
the folders it writes.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("sae_lens", reason="make test-interop")

from datasets import Dataset
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainingSAE
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

from faithful_sae import TopKSAE, load_model, load_sae
from faithful_sae.paper.publish import publish
from faithful_sae.sae.formats.hooks import check_hook
from faithful_sae.stages.model import open_model
from faithful_sae.stages.training import train_all
from trained_variants import VARIANTS, trained

D, F, K = 6, 20, 4
X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1)) + 1


def randomise(module):
    """Weights that look trained: biases are not 0, decoder rows not of norm 1, some thresholds
    below 0.
    """
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = 0.5 * torch.randn(
            parameter.shape, generator=generator, dtype=parameter.dtype
        )
    return module


@torch.no_grad()
def assert_same(ours, theirs, x=X):
    z = theirs.encode(x)
    assert 0 < (z > 0).float().mean() < 0.9
    torch.testing.assert_close(ours.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(x), theirs(x), atol=1e-5, rtol=1e-5)


# --- theirs to ours, and back ---------------------------------------------------------------------

FLAGS = [
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
]
INFERENCE = [
    ("topk", {"k": K}),
    ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", {}),
    ("standard", {}),
    ("gated", {}),
]


@pytest.mark.parametrize(
    "flags", FLAGS, ids=["plain", "not_centred", "layer_norm", "constant_norm"]
)
@pytest.mark.parametrize(
    "architecture, more", INFERENCE, ids=["topk", "rescaled", "jumprelu", "standard", "gated"]
)
def test_every_architecture_and_flag(architecture, more, flags, tmp_path):
    sae_class, config_class = get_sae_class(architecture)
    theirs = randomise(sae_class(config_class(d_in=D, d_sae=F, **more, **flags)))
    theirs.save_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    assert_same(ours, theirs)
    ours.save(tmp_path / "ours")
    assert_same(ours, SAE.load_from_disk(tmp_path / "ours"))


@pytest.mark.parametrize("save", ["save_model", "save_inference_model"])
@pytest.mark.parametrize(
    "architecture, more",
    [("topk", {}), ("batchtopk", {}), ("matryoshka_batchtopk", {"matryoshka_widths": [8, F]})],
    ids=["topk", "batchtopk", "matryoshka"],
)
def test_saes_saved_while_they_train(architecture, more, save, tmp_path):
    """A BatchTopK SAE of theirs that trains mixes the tokens of a batch; what it is afterwards is
    what they save for inference.
    """
    sae_class, config_class = get_sae_training_class(architecture)
    training = randomise(sae_class(config_class(d_in=D, d_sae=F, k=K, **more)))
    if architecture != "topk":
        training.topk_threshold = torch.tensor(1.0, dtype=torch.double)
    getattr(training, save)(tmp_path / "theirs")
    training.save_inference_model(tmp_path / "inference")
    assert_same(load_sae(tmp_path / "theirs"), SAE.load_from_disk(tmp_path / "inference"))


TOPK_5 = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}


@pytest.mark.parametrize(
    "change",
    [
        TOPK_5,
        {"architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": K}},
        {"architecture": "standard", "activation_fn_str": "relu"},
        {"architecture": "jumprelu", "apply_b_dec_to_input": False},
        TOPK_5 | {"normalize_activations": "layer_norm"},
        {"normalize_activations": False},
    ],
    ids=["topk", "architecture_topk", "relu", "jumprelu", "layer_norm", "boolean"],
)
def test_version_5(change, tmp_path):
    """Their own reader of the old layout decides what such a file means."""
    theirs = randomise(get_sae_class("jumprelu")[0](get_sae_class("jumprelu")[1](d_in=D, d_sae=F)))
    theirs.save_model(tmp_path)
    if change.get("architecture") != "jumprelu":
        weights = load_file(tmp_path / "sae_weights.safetensors")
        del weights["threshold"]
        save_file(weights, tmp_path / "sae_weights.safetensors")
    config = {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "context_size": 128,
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "sae_lens_training_version": "3.1.0",
    } | change
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    ours = load_sae(tmp_path)
    theirs = SAE.load_from_disk(tmp_path)
    assert_same(ours, theirs)
    assert ours.metadata["hook_name"] == theirs.cfg.metadata.hook_name
    assert ours.metadata["model"] == theirs.cfg.metadata.model_name
    check_hook(ours, "gpt2", 8, tmp_path)


# --- ours to theirs -------------------------------------------------------------------------------


def test_ours_in_their_hands(tmp_path):
    ours = TopKSAE(D, F, K, seed=3)
    generator = torch.Generator().manual_seed(0)
    ours.W_enc = ours.W_enc + 0.3 * torch.randn(D, F, generator=generator)
    ours.b_enc = 0.3 * torch.randn(F, generator=generator)
    ours.b_dec = torch.randn(D, generator=generator)
    ours.metadata |= {"model": "gpt2", "layer": 8, "sequence_length": 128}
    ours.save(tmp_path)
    theirs = SAE.load_from_disk(tmp_path)
    assert_same(ours, theirs)
    metadata = theirs.cfg.metadata
    assert (
        metadata.hook_name,
        metadata.model_name,
        metadata.context_size,
        metadata.prepend_bos,
    ) == (
        "blocks.8.hook_resid_pre",
        "gpt2",
        128,
        True,
    )  # what their ActivationsStore.from_sae needs
    assert TrainingSAE.load_from_disk(tmp_path).cfg.k == K  # and it can be trained on


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_in_their_hands(variant, tmp_path):
    ours = trained(variant)
    ours.save(tmp_path)
    theirs = SAE.load_from_disk(tmp_path)
    assert_same(ours, theirs)
    known = {"topk": "topk", "pca": "topk", "relu": "standard"}
    assert theirs.cfg.architecture() == known.get(variant, "jumprelu")
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_pre"


# --- Gemma Scope ----------------------------------------------------------------------------------


def test_gemma_scope_as_they_load_it(tmp_path, monkeypatch):
    """Their loader of these files, given ours for what it would fetch."""
    place = "layer_20/width_16k/average_l0_71"
    folder = tmp_path / "gemma-scope-2b-pt-res" / place
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    shapes = {"W_enc": (D, F), "b_enc": F, "W_dec": (F, D), "b_dec": D, "threshold": F}
    arrays = {name: generator.standard_normal(s).astype("float32") for name, s in shapes.items()}
    np.savez(folder / "params.npz", **arrays)
    monkeypatch.setattr(
        pretrained_sae_loaders, "hf_hub_download", lambda *_, **__: folder / "params.npz"
    )
    config, state, _ = pretrained_sae_loaders.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", place, cfg_overrides={"d_in": D, "d_sae": F}
    )
    # the loader leaves normalize_activations open, and from_pretrained closes it like this
    theirs = SAE.from_dict(pretrained_sae_loaders.handle_config_defaulting(config))
    theirs.load_state_dict(state)
    ours = load_sae(folder)
    assert_same(ours, theirs)
    assert ours.metadata["hook_name"] == theirs.cfg.metadata.hook_name
    assert ours.metadata["model"] == "google/" + theirs.cfg.metadata.model_name
    ours.save(tmp_path / "ours")
    assert_same(ours, SAE.load_from_disk(tmp_path / "ours"))


# --- trained by them ------------------------------------------------------------------------------

CONTEXT, BATCH = 16, 64


def train(model_folder, folder, sae):
    """Train with their runner for 50 steps on the output of block 0 of a tiny Llama, a folder on
    disk.
    """
    rows = torch.randint(2, 64, (400, CONTEXT), generator=torch.Generator().manual_seed(0)).tolist()
    config = LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=str(model_folder),
        model_class_name="AutoModelForCausalLM",
        hook_name="model.layers.0",
        context_size=CONTEXT,
        dataset_path="local",
        streaming=False,
        is_dataset_tokenized=True,
        prepend_bos=True,
        n_batches_in_buffer=4,
        store_batch_size_prompts=8,
        train_batch_size_tokens=BATCH,
        training_tokens=50 * BATCH,
        lr=1e-2,
        n_batches_for_norm_estimate=5,
        checkpoint_path=None,
        output_path=str(folder),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    return LanguageModelSAETrainingRunner(
        config, override_dataset=Dataset.from_dict({"input_ids": rows})
    ).run()


@pytest.mark.parametrize(
    "flags", [{}, {"normalize_activations": "expected_average_only_in"}], ids=["plain", "scaled"]
)
def test_a_topk_sae_that_saelens_trained(flags, model_folders, tmp_path):
    folder = model_folders["llama"]
    before = TopKTrainingSAEConfig(d_in=16, d_sae=48, k=K, **flags)
    trained = train(folder, tmp_path / "sae", before)
    ours = load_sae(tmp_path / "sae")
    theirs = SAE.load_from_disk(tmp_path / "sae")
    lm = load_model(folder, 1, "cpu", "float32")
    check_hook(ours, folder, lm.layer, tmp_path)  # the output of block 0 is what enters block 1
    ids = torch.randint(2, 64, (20, 12), generator=torch.Generator().manual_seed(1))
    x = lm.activations(ids)
    torch.testing.assert_close(
        x, lm.model(ids, output_hidden_states=True).hidden_states[1], atol=1e-6, rtol=1e-6
    )
    assert_same(ours, theirs, x)
    assert_same(ours, trained, x)
    unexplained = (x - ours.reconstruct(x)).square().sum() / (x - x.mean((0, 1))).square().sum()
    assert (
        unexplained < 0.5
    )  # 50 steps have taught it something, which it would not know of other activations than these
    assert ours.firing.shape == (48,)
    assert abs(float(ours.firing.sum()) - K) < 0.5
    assert ours.metadata["training_architecture"] == "topk"
    assert ours.metadata["context_size"] == CONTEXT


def test_a_checkpoint_of_theirs_that_is_not_scaled_yet(tmp_path):
    """`expected_average_only_in`: in training the factor is beside the weights
    (activation_scaler.json), not in them.
    """
    sae_class, config_class = get_sae_training_class("topk")
    training = randomise(
        sae_class(
            config_class(d_in=D, d_sae=F, k=K, normalize_activations="expected_average_only_in")
        )
    )
    training.save_model(tmp_path)
    scaler = ActivationScaler(scaling_factor=0.37)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    ours = load_sae(tmp_path)
    with torch.no_grad():
        z = training.encode(scaler(X))
        torch.testing.assert_close(
            ours.reconstruct(X), scaler.unscale(training.decode(z)), atol=1e-5, rtol=1e-5
        )
    training.fold_activation_norm_scaling_factor(0.37)
    training.save_inference_model(tmp_path / "final")
    final = load_sae(tmp_path / "final")
    torch.testing.assert_close(final.reconstruct(X), ours.reconstruct(X), atol=1e-5, rtol=1e-5)


# --- make publish ---------------------------------------------------------------------------------


def test_saelens_reads_what_make_publish_writes(make_run):
    run = make_run({"sae.train_on": ["text"]})
    lm = open_model(run)
    train_all(run, lm)
    (saes,) = publish(run.file.parent)
    ours = load_sae(run.artifacts / "saes" / "text" / "seed42")
    theirs = SAE.load_from_disk(saes.folder / "text" / "seed42")
    assert_same(ours, theirs, lm.activations(torch.arange(2, 30)[None])[0])
    assert theirs.cfg.metadata.model_name == "llama"
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
