"""dictionary_learning itself: we compute its latents from the folders that its trainSAE writes, it
computes ours from the folders we write.
"""

import json
import sys
import types

import pytest
import torch

sys.modules.setdefault(
    "nnsight", types.SimpleNamespace(LanguageModel=None)
)  # imported for its buffer, which is not used here
pytest.importorskip("dictionary_learning", reason="make test-interop")

from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import (
    MatryoshkaBatchTopKSAE,
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary

from faithful_sae import TopKSAE, load_sae
from faithful_sae.sae.formats.hooks import check_hook
from trained_variants import VARIANTS, trained

D, F, K = 6, 20, 4
X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(1)) + 1


@torch.no_grad()
def assert_same(ours, theirs):
    z = theirs.encode(X)
    assert 0 < (z > 0).float().mean() < 0.9
    torch.testing.assert_close(ours.encode(X), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(X), theirs(X), atol=1e-5, rtol=1e-5)


CLASSES = {
    AutoEncoderTopK: (K,),
    BatchTopKSAE: (K,),
    MatryoshkaBatchTopKSAE: (K, [8, 12]),
    JumpReluAutoEncoder: (),
    AutoEncoder: (),
    AutoEncoderNew: (),
    GatedAutoEncoder: (),
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("threshold", [-1.0, 2.0], ids=["unset", "set"])
def test_every_class(kind, threshold, tmp_path):
    theirs = kind(D, F, *CLASSES[kind])
    generator = torch.Generator().manual_seed(3)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    if "threshold" in dict(theirs.named_buffers()):
        theirs.threshold.fill_(threshold)
    trainer = {
        "dict_class": kind.__name__,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 7,
        "lm_name": "gpt2",
    }
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    assert_same(load_sae(tmp_path), kind.from_pretrained(str(tmp_path / "ae.pt")))


@pytest.mark.parametrize("normalised", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize(
    "kind, trainer, more",
    [
        (AutoEncoderTopK, TopKTrainer, {}),
        (BatchTopKSAE, BatchTopKTrainer, {}),
        (MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer, {"group_fractions": [0.4, 0.6]}),
    ],
    ids=["topk", "batchtopk", "matryoshka"],
)
def test_saes_they_trained(kind, trainer, more, normalised, tmp_path):
    """30 steps; with normalize_activations, which they fold into the biases and the threshold
    before they save.
    """
    generator = torch.Generator().manual_seed(0)
    data = iter([2 * torch.randn(64, D, generator=generator) + 1 for _ in range(200)])
    config = {
        "trainer": trainer,
        "steps": 30,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 7,
        "lm_name": "gpt2",
        "seed": 4,
        "lr": 1e-2,
        "warmup_steps": 0,
        "threshold_start_step": 5,
        "device": "cpu",
        "submodule_name": "resid_post_layer_7",
    }
    trainSAE(
        data,
        [config | more],
        steps=30,
        save_dir=str(tmp_path),
        normalize_activations=normalised,
        device="cpu",
    )
    ours = load_sae(tmp_path / "trainer_0")
    assert_same(ours, kind.from_pretrained(str(tmp_path / "trainer_0" / "ae.pt")))
    assert ours.threshold is None or ours.threshold[0] > 0
    assert ours.metadata == {
        "seed": 4,
        "model": "gpt2",
        "hook_name": "blocks.7.hook_resid_post",
        "layer": 8,
    }
    check_hook(ours, "gpt2", 8, tmp_path)


# --- ours to theirs, and back ---------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_in_their_hands(variant, tmp_path):
    ours = trained(variant)
    ours.to_dictionary_learning(tmp_path)
    theirs, config = load_dictionary(str(tmp_path), "cpu")
    assert_same(ours, theirs)
    assert_same(load_sae(tmp_path), theirs)
    # the input of block 3 is what block 2 puts out
    assert config["trainer"]["layer"] == 2
    check_hook(load_sae(tmp_path), "gpt2", 3, tmp_path)


@pytest.mark.parametrize("k", [K, None], ids=["topk", "relu"])
def test_rows_of_other_norms_in_their_hands(k, tmp_path):
    ours = TopKSAE(D, F, k, 3)
    generator = torch.Generator().manual_seed(0)
    ours.W_dec = torch.randn(F, D, generator=generator)
    ours.b_dec = torch.randn(D, generator=generator)
    ours.to_dictionary_learning(tmp_path)
    assert_same(ours, load_dictionary(str(tmp_path), "cpu")[0])


def test_theirs_that_went_through_our_hands(tmp_path):
    """Gated, which has no class of its own after reading."""
    theirs = GatedAutoEncoder(D, F)
    generator = torch.Generator().manual_seed(3)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    trainer = {"dict_class": "GatedAutoEncoder", "activation_dim": D, "dict_size": F}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    load_sae(tmp_path).to_dictionary_learning(tmp_path / "again")
    again, _ = load_dictionary(str(tmp_path / "again"), "cpu")
    assert_same(load_sae(tmp_path), again)
    torch.testing.assert_close(again.encode(X), theirs.encode(X), atol=1e-5, rtol=1e-5)
