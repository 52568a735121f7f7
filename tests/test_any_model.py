"""Every text architecture that transformers offers: hooked, spliced and sampled exactly, or refused
in one line. Models have random weights.
"""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import BOS, EOS, make_tokenizer
from faithful_sae.features.explain import vocab_projection
from faithful_sae.lm import sampling
from faithful_sae.lm.architectures import MODELS, not_sampled, shape_of, unknown
from faithful_sae.lm.decoding import CachedDecoder, Decoder, open_decoder
from faithful_sae.lm.model import LanguageModel, ModelError, device_map, load_model
from faithful_sae.lm.sampling import sample, write_shards

V, CONTEXT = 24, 40
ONE_GROUP = {"intermediate_size": 32, "num_key_value_heads": 1}
# beside the sizes that all have
KINDS = {
    "gpt2": {},
    "gpt_neo": {
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 6,
        "intermediate_size": 32,
    },
    "gptj": {"rotary_dim": 4},
    "gpt_neox": {"intermediate_size": 32},
    "llama": ONE_GROUP,
    "mistral": ONE_GROUP | {"sliding_window": 6},
    "qwen2": ONE_GROUP,
    "qwen3": ONE_GROUP | {"head_dim": 8},
    "phi": {"intermediate_size": 32},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {},
    "falcon": {},
    "falcon with ALiBi": {"alibi": True},
    "stablelm": {"intermediate_size": 32, "num_key_value_heads": 2},
    "olmo2": {"intermediate_size": 32},
    "gemma2": ONE_GROUP | {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": ONE_GROUP | {"head_dim": 8, "sliding_window": 6},
}
LAYERS = 4


def make(kind, seed=0, spread=0.5):
    """The language model, hooked at its third block."""
    name = kind.split()[0]
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": V}
    if name != "gpt_neo":
        sizes["num_hidden_layers"] = LAYERS
    if name != "bloom":
        sizes["max_position_embeddings"] = CONTEXT
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        name, **(sizes | special | {"initializer_range": spread} | KINDS[kind])
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.name_or_path = name
    return LanguageModel(model, make_tokenizer(V), 2, BOS)


@pytest.fixture(params=KINDS)
def any_lm(request):
    return make(request.param)


IDS = torch.randint(2, V, (3, 20), generator=torch.Generator().manual_seed(1))


def test_what_is_hooked_is_the_hidden_state_and_splicing_it_changes_nothing(any_lm):
    with torch.no_grad():
        out = any_lm.model(IDS, output_hidden_states=True, use_cache=False)
    x = any_lm.activations(IDS)
    assert torch.equal(x, out.hidden_states[2])
    assert torch.equal(any_lm.spliced_logits(IDS, x), out.logits)
    assert torch.equal(any_lm.logits(IDS)[0], out.logits)


def test_what_is_spliced_in_is_what_the_blocks_behind_see(any_lm):
    """Against a pass of all blocks, in which the input of the third is another."""
    x = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(2))

    def replace(module, args, kwargs):
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x.clone()})

    handle = any_lm.blocks[2].register_forward_pre_hook(replace, with_kwargs=True)
    with torch.no_grad():
        expected = any_lm.model(IDS, use_cache=False).logits
    handle.remove()
    assert torch.equal(any_lm.spliced_logits(IDS, x), expected)
    assert not torch.equal(any_lm.logits(IDS)[0], expected)


def test_sizes(any_lm):
    shape = shape_of(any_lm.model)
    assert (shape.layers, shape.d_model, shape.vocab_size) == (LAYERS, 16, V)
    assert shape.context == (2048 if any_lm.model.config.model_type == "bloom" else CONTEXT)
    assert unknown(any_lm.model.config) is None
    assert set(device_map(any_lm.model, 2).values()) == {0, 1}


def test_vocabulary_projection_is_the_models_own_head(any_lm):
    """Against the model itself, whose last block gives out the direction: its logits less those of
    nothing, up to the softcap that Gemma 2 has.
    """
    direction = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    x = direction / direction.norm(dim=-1, keepdim=True) * 4
    x = torch.cat([x, torch.zeros(1, 16)])

    def give_out(_module, _args, output):
        return (x[None], *output[1:]) if isinstance(output, tuple) else x[None]

    handle = any_lm.blocks[-1].register_forward_hook(give_out)
    with torch.no_grad():
        logits = any_lm.model(torch.tensor([[2, 3, 4]]), use_cache=False).logits[0]
    handle.remove()
    if cap := getattr(any_lm.model.config, "final_logit_softcapping", None):
        logits = cap * torch.atanh(logits / cap)
    torch.testing.assert_close(
        vocab_projection(any_lm, direction), logits[:2] - logits[2], rtol=1e-4, atol=1e-4
    )


def rollout(lm, first, length, start=(BOS,)):
    """What the likeliest tokens after a first one are, each from a forward pass over all."""
    ids = [*start, first]
    while len(ids) < len(start) + length and ids[-1] not in (BOS, EOS):
        with torch.no_grad():
            ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(start) :]


def sample_likeliest(lm, rows, length, **kwargs):
    """Documents of the likeliest tokens (temperature near 0) after a uniform first one."""
    generator = torch.Generator().manual_seed(1)
    options = {"temperature": 1e-4, "first_token": "flat", "tokens": 70}
    return sample(lm, rows, length, generator, **options, **kwargs)


def test_sampling_is_that_of_plain_forward_passes(any_lm):
    """Rows end, begin anew and drop out at different times."""
    documents = sample_likeliest(any_lm, 6, 9)
    assert len(documents) > 8
    assert len({len(d) for d in documents}) > 1
    expected = {first: rollout(any_lm, first, 9) for first in {int(d[0]) for d in documents}}
    assert [d.tolist() for d in documents] == [expected[int(d[0])] for d in documents]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_both_decoders_give_the_same_documents(kind, monkeypatch):
    """With the model's own distribution: the same refill and the same random numbers."""
    lm = make(kind, spread=0.3)
    found = []
    for decoder in (Decoder, CachedDecoder):
        monkeypatch.setattr(sampling, "open_decoder", decoder)
        found.append(sample(lm, 6, 12, torch.Generator().manual_seed(3), tokens=200))
    assert len(found[0]) > 12
    assert [d.tolist() for d in found[0]] == [d.tolist() for d in found[1]]


def test_the_decoder_that_is_known_to_be_exact_is_taken(any_lm):
    decoder = open_decoder(any_lm.model, 2, 5)
    assert isinstance(decoder, Decoder) == (any_lm.model.config.model_type in MODELS)


def test_the_other_decoder_is_said_in_one_line(tmp_path, capsys):
    settings = {"seed": 0, "batch_rows": 3, "max_new_tokens": 5, "temperature": 1.0, "top_p": 1.0}
    for kind in ("llama", "opt"):
        write_shards(
            tmp_path / kind, make(kind), tokens=20, shard_tokens=10, first_token="bos", **settings
        )
    assert capsys.readouterr().out == (
        "note: sampling with transformers' own cache, which is slower: the attention of a model of "
        "type 'opt' is not known here\n"
    )


def test_a_cache_that_is_not_exact_is_refused():
    """A Bloom whose positions are told to nobody: attention to the past, without ALiBi's slopes
    where there is a cache.
    """
    lm = make("bloom")
    build = lm.model.base_model.build_alibi_tensor
    lm.model.base_model.build_alibi_tensor = lambda mask, *args, **kwargs: (
        build(mask, *args, **kwargs) * (10 if mask.shape[0] > 1 else 1)
    )
    with pytest.raises(
        ModelError, match=r"^bloom: cannot sample from a model of type 'bloom': wit"
    ):
        sample(lm, 3, 8, torch.Generator())


STATES = {
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "falcon_mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}


@pytest.mark.parametrize("kind", STATES)
def test_a_model_with_a_state_is_refused_in_one_line(tmp_path, kind):
    config = AutoConfig.for_model(kind, vocab_size=V, **STATES[kind])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as error:
        load_model(tmp_path, 1, "cpu")
    assert "\n" not in str(error.value)
    assert f"a model of type {kind!r} has no num_attention_heads" in str(error.value)
    said = str(not_sampled(config.to_dict()))
    assert re.fullmatch(
        f"cannot sample from a model of type '{kind}', whose past is a state .*: take one of .*",
        said,
    )


def test_what_transformers_does_not_know():
    assert "no causal language model of type 'abacus'" in str(not_sampled({"model_type": "abacus"}))
    assert "no causal language model of type 't5'" in str(not_sampled({"model_type": "t5"}))
    assert "text_config" in str(not_sampled({"model_type": "gemma3", "text_config": {}}))


def test_random_numbers_of_the_process_are_left_alone():
    decoder = open_decoder(make("opt").model, 2, 5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with decoder:
        pass
    assert torch.equal(torch.rand(3), expected)
