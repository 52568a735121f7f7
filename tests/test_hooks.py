"""SAEs of what an MLP or attention adds to the residual stream: read and spliced exactly in every
architecture, against what transformers' own modules give out, and named in all that is written.
"""

import pandas as pd
import pytest
import torch

from conftest import BOS, make_tokenizer
from faithful_sae.engine.problems import problems
from faithful_sae.features.build import build_index
from faithful_sae.features.explorer.data import set_meta
from faithful_sae.files import read_json
from faithful_sae.lm.architectures import ADDED
from faithful_sae.lm.model import LanguageModel, ModelError, load_model
from faithful_sae.paper.cards import sae_card
from faithful_sae.paper.tables import table5
from faithful_sae.runs import registry
from faithful_sae.runs.keys import made_with, settings, workflow_settings
from faithful_sae.sae.formats.hooks import in_words
from faithful_sae.sae.sae import SAEError, TopKSAE
from faithful_sae.stages.model import open_model
from faithful_sae.stages.published import load_published
from faithful_sae.stages.s05_fidelity import fidelity_matrix
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all
from test_any_model import IDS, KINDS, LAYERS, ONE_GROUP, make

ALL = {kind: sizes for kind, sizes in KINDS.items() if kind.split()[0] in ADDED} | {
    "gemma": ONE_GROUP | {"head_dim": 8},
    "phi3": ONE_GROUP | {"pad_token_id": 1},
    "olmo": {"intermediate_size": 32},
    "olmo3": {"intermediate_size": 32},
    "glm4": ONE_GROUP | {"head_dim": 8},
    "falcon one after the other": {"parallel_attn": False},
    "stablelm side by side": KINDS["stablelm"] | {"use_parallel_residual": True},
}
NORMALISED = ("gemma2", "gemma3_text", "olmo2", "olmo3", "glm4")
OUTPUTS = ("mlp", "attention")
EACH = pytest.mark.parametrize("hook", OUTPUTS)


@pytest.fixture(params=ALL)
def any_lm(request, monkeypatch):
    monkeypatch.setitem(KINDS, request.param, ALL[request.param])
    return make(request.param)


def of_transformers(lm, hook):
    """The module of the hooked block that transformers itself calls an MLP or attention."""
    ending = {"mlp": "MLP", "attention": "Attention"}[hook]
    names = (ending, ending + "2", "SdpaAttention")
    (found,) = [m for m in lm.blocks[2].children() if type(m).__name__.endswith(names)]
    return found


def at(lm, hook):
    return LanguageModel(lm.model, lm.tokenizer, lm.layer, lm.bos_id, hook=hook)


def logits_of(lm):
    with torch.no_grad():
        return lm.model(IDS, use_cache=False).logits


def test_every_architecture_that_is_named_is_tried():
    assert {kind.split()[0] for kind in ALL} == set(ADDED)


def test_stream_and_outputs_add_up_to_the_stream_behind_the_block(any_lm):
    with torch.no_grad():
        states = any_lm.model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    added = [at(any_lm, hook).activations(IDS) for hook in OUTPUTS]
    torch.testing.assert_close(states[2] + added[0] + added[1], states[3], rtol=0, atol=2e-5)
    assert all(x.shape == (*IDS.shape, any_lm.d_model) for x in added)


@EACH
def test_what_is_read_is_what_transformers_module_gives_out(any_lm, hook):
    seen = []

    def keep(_module, _args, output):
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = of_transformers(any_lm, hook).register_forward_hook(keep)
    logits = logits_of(any_lm)
    handle.remove()
    (expected,) = seen
    lm = at(any_lm, hook)
    read, x = lm.logits(IDS)
    assert torch.equal(read, logits)
    assert torch.equal(lm.activations(IDS), x)
    if lm.model.config.model_type in NORMALISED:
        # the weights of a new normalisation do nothing
        expected = expected * (expected.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(x, expected)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_splicing_the_output_itself_changes_no_logit(any_lm, hook, dtype):
    any_lm.model.to(dtype)
    lm = at(any_lm, hook)
    x = lm.activations(IDS)
    before = x.clone()
    assert torch.equal(lm.spliced_logits(IDS, x), logits_of(lm).float())
    assert torch.equal(x, before)


@EACH
def test_splicing_zeros_ablates_the_module(any_lm, hook):
    """Against a model in which all weights of that module are 0."""
    lm = at(any_lm, hook)
    plain = logits_of(lm)
    ablated = lm.spliced_logits(IDS, torch.zeros(*IDS.shape, lm.d_model))
    # hooks are gone
    assert torch.equal(logits_of(lm), plain)
    with torch.no_grad():
        for weights in of_transformers(lm, hook).parameters():
            weights.zero_()
    assert torch.equal(ablated, logits_of(lm))
    assert not torch.allclose(ablated, plain, atol=1e-3)


@EACH
def test_the_pass_stops_at_the_hook(any_lm, hook):
    done = []
    for i, block in enumerate(any_lm.blocks):
        block.register_forward_hook(lambda *_, i=i: done.append(i))
    any_lm.model.get_output_embeddings().register_forward_hook(lambda *_: done.append("head"))
    at(any_lm, hook).activations(IDS)
    assert done == [0, 1]


@EACH
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_first_and_last_block(hook, layer):
    lm = make("llama")
    lm = LanguageModel(lm.model, lm.tokenizer, layer, BOS, hook=hook)
    assert torch.equal(lm.spliced_logits(IDS, lm.activations(IDS)), logits_of(lm))


def test_a_failed_splice_leaves_no_hook():
    lm = at(make("gpt2"), "mlp")
    plain = logits_of(lm)
    with pytest.raises(RuntimeError):
        lm.spliced_logits(IDS, torch.zeros(*IDS.shape, lm.d_model + 1))
    assert torch.equal(logits_of(lm), plain)


# --- what cannot be hooked ------------------------------------------------------------------------


@pytest.fixture
def bloom(tmp_path):
    make("bloom").model.save_pretrained(tmp_path / "bloom")
    make_tokenizer(24).save_pretrained(tmp_path / "bloom")
    return tmp_path / "bloom"


@EACH
def test_an_architecture_without_such_a_hook_is_refused_in_one_line(bloom, hook, make_run):
    why = f"hook '{hook}': it is not known what MLP and attention of a model of type 'bloom' add to"
    with pytest.raises(ModelError, match=rf"^{bloom}: {why}[^\n]*gpt_neox[^\n]*$"):
        load_model(bloom, 1, "cpu", hook=hook)
    run = make_run({"model": str(bloom), "hook": hook, "layer": 1})
    assert [line for line in problems([run]) if line.startswith(f"{run.file}: {why}")]
    assert not any("hook" in line for line in problems([run.changed(hook="residual")]))


def test_a_hook_that_there_is_not(model_folders, make_run):
    with pytest.raises(ModelError, match=r"hook 'mpl' must be one of residual, mlp, attention$"):
        load_model(model_folders["llama"], 1, "cpu", hook="mpl")
    with pytest.raises(ValueError, match="hook must be one of .*'mpl'"):
        make_run({"hook": "mpl"})


# --- runs -----------------------------------------------------------------------------------------


def test_the_residual_stream_is_in_no_fingerprint_and_another_hook_in_all(make_run):
    run = make_run()
    there = make_run({"hook": "mlp"})
    without = make_run({"hook": KeyError})
    assert settings(run, ("layer", "hook")) == {"layer": 1}
    assert settings(there, ("layer", "hook")) == {"layer": 1, "hook": "mlp"}
    for name, stage in registry.stages().items():
        assert workflow_settings(run, stage) == workflow_settings(without, stage)
        # the text is the same
        changed = name != "01_generate_faithful"
        assert (made_with(run, stage) != made_with(there, stage)) == changed, name


@EACH
def test_saes_of_a_run_are_trained_measured_and_named(make_run, hook):
    run = make_run({"hook": hook, "sae.train_on": ["text"], "sae.seeds": [42]})
    lm = open_model(run)
    assert lm.hook == hook
    train_all(run, lm)
    folder = run.artifacts / "saes" / "text" / "seed42"
    name = {"mlp": "blocks.1.hook_mlp_out", "attention": "blocks.1.hook_attn_out"}[hook]
    assert read_json(folder / "cfg.json")["metadata"]["hook_name"] == name
    saes = load_saes(run, lm)
    table = fidelity_matrix(run, saes, lm)
    assert (table.ce_zero != table.ce).all()
    with pytest.raises(SAEError, match=f"was made with hook = {hook}, but .* says None"):
        load_saes(run.changed(hook="residual"))
    assert table5([run]).hook.iloc[0] == hook
    assert in_words(run.hook, 1) in str(sae_card(run, ["text"], "me/saes", "me/text", ()))
    index = build_index(
        run.artifacts / "index", lm, saes["text", 42], IDS[:, :12].numpy(), batch_rows=2
    )
    assert set_meta(index)["hook"] == hook


def test_a_published_sae_of_another_hook_is_refused_in_one_line(make_run, tmp_path):
    sae = TopKSAE(16, 24, 4, 0)
    sae.metadata |= {"layer": 1, "hook_name": "blocks.1.hook_mlp_out"}
    sae.save(tmp_path / "handmade" / "theirs")
    published = {"text": {"path": "theirs"}}
    changes = {"sae.published": published, "sae.seeds": [42], "sae.train_on": ["text"]}
    run = make_run(changes | {"hook": "mlp"})
    assert load_published(run, "text", 16, "llama")[42].metadata["layer"] == 1
    for hook in ("residual", "attention"):
        (line,) = [p for p in problems([make_run(changes | {"hook": hook})]) if "theirs" in p]
        assert f"reads blocks.1.hook_mlp_out, but the profile hooks the {hook}" in line
        assert "\n" not in line


def test_tables_of_residual_streams_have_no_column_for_the_hook(make_run):
    table = table5([make_run()])
    assert isinstance(table, pd.DataFrame)
    assert "hook" not in table
