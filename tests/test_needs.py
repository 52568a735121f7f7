"""What a stage needs, against tensors that are really allocated, files that are really written, and numbers worked by hand."""

import dataclasses

import pytest
import torch
from conftest import ARCHITECTURES, make_model

from faithful_sae import needs
from faithful_sae.decoding import Decoder
from faithful_sae.needs import Shape
from faithful_sae.sae import TopKSAE
from faithful_sae.schema import model_stages
from faithful_sae.stages.language_model import model_shape, open_model
from faithful_sae.stages.token_rows import make_faithful
from faithful_sae.stages.training import train_all

GPT2 = Shape(layers=12, d_model=768, heads=12, kv_heads=12, head_dim=64, d_mlp=3072, vocab_size=50257, parameters=124_439_808, context=1024,
             bytes_per_weight=4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_without_weights_are_those_of_the_model(make_run, model_folders, architecture):
    run = make_run({"model": str(model_folders[architecture])})
    (model_folders[architecture] / "model.safetensors").stat()   # it is there, and not read
    shape, model = model_shape(run), make_model(architecture)
    groups = 1 if architecture in ("llama", "gemma2") else 2
    assert shape == Shape(layers=3, d_model=16, heads=2, kv_heads=groups, head_dim=8, d_mlp=64 if architecture == "gpt2" else 32,
                          vocab_size=72 if architecture == "llama" else 64, parameters=sum(w.numel() for w in model.parameters()),
                          context=32, bytes_per_weight=4)
    assert model_shape(make_run({"model": str(model_folders[architecture]), "dtype": "bfloat16"})).bytes_per_weight == 2
    assert open_model(run).shape == shape


def test_gpt2_by_hand():
    embedding, block, norm = (50257 + 1024) * 768, 12 * 768 ** 2 + 13 * 768, 2 * 768
    assert needs.weights(GPT2) == 4 * (embedding + 12 * block + norm) == 497_759_232
    # keys and values of 1023 tokens lie in 16 tiles of 64; 14 layers of 768 numbers
    assert needs.cache_bytes(GPT2, 128, 1023) == 128 * 1024 * 2 * 14 * 768 * 4
    assert needs.sampling_bytes(GPT2, 1, 1023) == 1024 * 2 * 14 * 768 * 4 + 24 * 50257
    assert needs.sae_bytes(768, 12288) == 4 * (2 * 768 * 12288 + 768 + 12288)
