"""The hook point is hidden_states[layer], splicing is exact, and every way in which loading can
fail says so.
"""

import json
import shutil
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import ARCHITECTURES, BOS, EOS, LAYERS, VOCABULARY, make_model, make_tokenizer
from faithful_sae import load_model
from faithful_sae.lm.decoding import Decoder
from faithful_sae.lm.model import LanguageModel, ModelError, device_map, spread
from faithful_sae.lm.sampling import sample

IDS = torch.randint(2, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0)).index_fill(
    1, torch.tensor([0]), BOS
)
EVERYWHERE = pytest.mark.parametrize("layer", range(LAYERS))
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES)


@EACH
@EVERYWHERE
def test_activations_are_hidden_states(model_folders, architecture, layer):
    reference = AutoModelForCausalLM.from_pretrained(
        model_folders[architecture], dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = reference(IDS, output_hidden_states=True, use_cache=False)
    lm = load_model(model_folders[architecture], layer, "cpu", "float32")
    logits, x = lm.logits(IDS)
    assert torch.equal(lm.activations(IDS), expected.hidden_states[layer])
    assert torch.equal(x, expected.hidden_states[layer])
    assert torch.equal(logits, expected.logits)
    assert lm.activations(IDS).shape == (3, 9, lm.d_model)
    assert lm.vocab_size == VOCABULARY


@EACH
@EVERYWHERE
def test_forward_stops_at_the_hook(model_folders, architecture, layer):
    lm = load_model(model_folders[architecture], layer, "cpu", "float32")
    called = []
    for i, block in enumerate(lm.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: called.append(i), prepend=True)
        block.register_forward_hook(lambda *_, i=i: called.append(("done", i)))
    lm.model.get_output_embeddings().register_forward_hook(lambda *_: called.append("head"))
    lm.activations(IDS)
    # block `layer` is entered, where the hook sits, but neither it nor anything after it is
    # computed
    assert [c for c in called if isinstance(c, tuple)] == [("done", i) for i in range(layer)]
    assert "head" not in called
    assert max(i for i in called if isinstance(i, int)) == layer


@EACH
@EVERYWHERE
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_splicing_x_itself_changes_nothing(model_folders, architecture, layer, dtype):
    lm = load_model(model_folders[architecture], layer, "cpu", dtype)
    logits, x = lm.logits(IDS)
    assert torch.equal(lm.spliced_logits(IDS, x), logits)


@EACH
@EVERYWHERE
def test_splicing_equals_a_full_pass_with_the_input_of_the_block_replaced(
    model_folders, architecture, layer
):
    """The blocks before the hook are skipped when splicing; here they run and what they made is
    overwritten.
    """
    lm = load_model(model_folders[architecture], layer, "cpu", "float32")
    x = torch.randn(3, 9, lm.d_model, generator=torch.Generator().manual_seed(2))
    got = lm.spliced_logits(IDS, x)
    plain = lm.logits(IDS)[0]

    def replace(module, args, kwargs):
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    handle = lm.blocks[layer].register_forward_pre_hook(replace, with_kwargs=True)
    with torch.no_grad():
        expected = lm.model(IDS, use_cache=False).logits
    handle.remove()
    assert torch.equal(got, expected)
    assert not torch.allclose(got, plain, atol=0.1)


@EACH
def test_blocks_are_as_before_after_a_splice(model_folders, architecture):
    lm = load_model(model_folders[architecture], 2, "cpu", "float32")
    before = lm.logits(IDS)[0]
    lm.spliced_logits(IDS, torch.zeros(3, 9, lm.d_model))
    with pytest.raises(RuntimeError):
        lm.spliced_logits(
            IDS, torch.zeros(3, 9, lm.d_model + 1)
        )  # wrong width: fails inside the model
    assert torch.equal(lm.logits(IDS)[0], before)
    assert all("forward" not in vars(block) and not block._forward_pre_hooks for block in lm.blocks)


@EACH
def test_right_padding_does_not_touch_real_tokens(model_folders, architecture):
    lm = load_model(model_folders[architecture], 2, "cpu", "float32")
    padded = torch.full((3, 9), 5)
    mask = torch.zeros(3, 9, dtype=torch.long)
    lengths = (4, 9, 1)
    for row, length in enumerate(lengths):
        padded[row, :length], mask[row, :length] = IDS[row, :length], 1
    x = lm.activations(padded, mask)
    for row, length in enumerate(lengths):
        alone = lm.activations(IDS[row : row + 1, :length])[0]
        torch.testing.assert_close(x[row, :length], alone, atol=2e-5, rtol=1e-5)


def test_bos_distribution_leaves_out_padding_rows_of_the_embedding(model_folders):
    lm = load_model(model_folders["llama"], 0, "cpu", "float32")
    assert lm.model.config.vocab_size == VOCABULARY + 8
    with torch.no_grad():
        scores = lm.model(torch.tensor([[BOS]])).logits[0, 0].double().exp()[:VOCABULARY]
    p = lm.bos_distribution()
    assert p.shape == (VOCABULARY,)
    assert p.dtype == torch.float64
    assert abs(p.sum().item() - 1) < 1e-12
    torch.testing.assert_close(p, scores / scores.sum(), rtol=1e-9, atol=0)


# --- loading --------------------------------------------------------------------------------------


@pytest.fixture
def folder(model_folders, tmp_path):
    return shutil.copytree(model_folders["gpt_neox"], tmp_path / "model")


def refused(folder, *words, layer=0):
    with pytest.raises(ModelError) as error:
        load_model(folder, layer, "cpu", "float32")
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_missing_folder(tmp_path):
    refused(tmp_path / "nothing", "no such folder")
    refused("nobody/nothing", "no such folder", "Hub")


def test_layer_out_of_range(folder):
    refused(folder, "layer 3", "blocks 0 to 2", layer=LAYERS)
    refused(folder, "layer -1", layer=-1)


@EACH
def test_folder_without_tokenizer(model_folders, tmp_path, architecture):
    """transformers makes up a tokenizer of special tokens alone for some architectures: that is
    none.
    """
    folder = shutil.copytree(model_folders[architecture], tmp_path / "model")
    for file in folder.glob("token*"):
        file.unlink()
    refused(folder, "tokenizer")


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json")


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(folder, "weights")


def test_weights_without_a_tensor(folder):
    """transformers fills the gap with random numbers and goes on: results would be of another
    model.
    """
    tensors = load_file(folder / "model.safetensors")
    del tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "dense_4h_to_h.bias")


def test_weights_of_another_size_than_config_says(folder):
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 24}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "safetensors")


def test_pickled_weights_are_refused(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    refused(folder, "safetensors")


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "safetensors")


def test_eos_takes_the_place_of_a_missing_bos_and_says_so(folder):
    make_tokenizer(eos_token="<eos>").save_pretrained(folder)
    with pytest.warns(UserWarning, match="no BOS; EOS '<eos>'"):
        lm = load_model(folder, 0, "cpu", "float32")
    assert lm.bos_id == EOS


def test_a_tokenizer_longer_than_the_embedding(folder):
    """A token was added, and the embedding not resized."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["w64"])
    tokenizer.save_pretrained(folder)
    refused(folder, "ids up to 64", "64 rows", "resize_token_embeddings(65)")


SMALL = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None}
UNKNOWN = {
    "xlnet": ({"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 8}, "max_position_embeddings"),
    "xlm": ({"emb_dim": 16, "n_layers": 2, "n_heads": 2}, "blocks"),
    "mamba": ({"hidden_size": 16, "num_hidden_layers": 2}, "num_attention_heads"),
    "gemma3": ({}, "text_config"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_architecture_that_is_not_known(tmp_path, kind):
    sizes, why = UNKNOWN[kind]
    config = AutoConfig.for_model(kind, **({**SMALL, **sizes} if sizes else {}))
    config.save_pretrained(tmp_path)
    if kind == "xlm":  # its blocks are seen when it is built
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, f"type {kind!r}", why, layer=1)


def test_neither_bos_nor_eos(folder):
    make_tokenizer(unk_token="w2").save_pretrained(folder)
    refused(folder, "neither BOS nor EOS")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folder):
    with pytest.raises(ModelError, match="cuda was asked for"):
        load_model(folder, 0, "cuda")


# --- several devices ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_has_a_device_and_they_hold_about_the_same(architecture, n):
    model = make_model(architecture)
    places = device_map(model, n)
    held = [0] * n
    seen = set()
    for module, number in places.items():
        held[number] += sum(w.nbytes for w in module.parameters())
        seen |= {id(w) for w in module.parameters()}
    assert seen == {id(w) for w in model.parameters()}
    numbers = [places[block] for block in LanguageModel(model, make_tokenizer(), 1, BOS).blocks]
    assert numbers == sorted(numbers)
    assert places[model.get_input_embeddings()] == 0
    assert places[model.get_output_embeddings()] == n - 1
    assert set(places.values()) <= set(range(n))
    biggest = max(sum(w.nbytes for w in module.parameters()) for module in places)
    assert max(held) <= sum(held) / n + biggest


def test_a_model_of_many_blocks_is_cut_in_halves():
    """By hand: 3000 weights in each block, 800 in the embedding, 808 behind; 10 blocks: five on
    each side.
    """
    model = types.SimpleNamespace()
    blocks = torch.nn.ModuleList(torch.nn.Linear(3000, 1, bias=False) for _ in range(10))
    base = torch.nn.Module()
    base.embed = torch.nn.Embedding(80, 10)
    base.layers = blocks
    base.norm = torch.nn.RMSNorm(8)
    base.rotary = torch.nn.Identity()
    head = torch.nn.Linear(10, 80, bias=False)
    model.base_model = base
    model.get_output_embeddings = lambda: head
    assert [*device_map(model, 2).items()] == [
        (base.embed, 0),
        (base.rotary, 0),
        *((b, i // 5) for i, b in enumerate(blocks)),
        (base.norm, 1),
        (head, 1),
    ]
    assert [device_map(model, 3)[b] for b in blocks] == [
        0,
        0,
        0,
        1,
        1,
        1,
        1,
        2,
        2,
        2,
    ]  # 800 + 3 x 3000 of 31608; then up to 21072


@pytest.mark.parametrize("devices", [["cpu"] * 2, ["cpu"] * 3], ids=len)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_spread_model_computes_the_same_bytes(model_folders, architecture, devices):
    whole, parts = (load_model(model_folders[architecture], 1, "cpu", "float32") for _ in range(2))
    spread(parts.model, devices)
    ids = torch.randint(2, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    x = whole.activations(ids)
    for a, b in (
        (x, parts.activations(ids)),
        (whole.activations(ids, mask), parts.activations(ids, mask)),
        *zip(whole.logits(ids), parts.logits(ids), strict=True),
        (whole.spliced_logits(ids, x / 2), parts.spliced_logits(ids, x / 2)),
        (whole.bos_distribution(), parts.bos_distribution()),
    ):
        assert torch.equal(a, b)
    assert any(block._forward_pre_hooks for block in parts.blocks)
    assert not any(block._forward_pre_hooks for block in whole.blocks)
    draws = [sample(lm, 4, 8, torch.Generator().manual_seed(1), tokens=60) for lm in (whole, parts)]
    assert [d.tolist() for d in draws[0]] == [d.tolist() for d in draws[1]]


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_input_of_a_part_is_on_its_device(model_folders, architecture, layer):
    """The second device is `meta`, on which nothing is computed but every operation with a tensor
    of another device is an error.
    """
    lm = load_model(model_folders[architecture], layer, "cpu", "float32")
    spread(lm.model, ["cpu", "meta"])
    lm = LanguageModel(lm.model, lm.tokenizer, layer, BOS)
    homes = [next(block.parameters()).device.type for block in lm.blocks]
    assert homes[0] == "cpu"
    assert homes[-1] == "meta"
    assert lm.device.type == "meta"
    assert lm.model.get_input_embeddings().weight.device.type == "cpu", (
        "a head that shares its weights gets its own"
    )
    ids = torch.randint(2, VOCABULARY, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    assert lm.activations(ids, mask.to("cpu")).device.type == "meta"
    logits, x = lm.logits(ids)
    assert logits.device.type == x.device.type == "meta"
    assert logits.shape[:2] == x.shape[:2] == ids.shape
    if homes[layer] == "meta":  # nothing comes back from there
        assert lm.spliced_logits(ids, x).shape == logits.shape
    with Decoder(lm.model, 3, 8) as decoder:
        for _ in range(2):
            assert decoder.step(torch.tensor([2, 3]), torch.tensor([0, 2])).device.type == "meta"
        assert [decoder.layers[i][0].device.type for i in range(LAYERS)] == homes


def test_more_gpus_than_there_are(model_folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="gpus: 2 were asked for, and there are 1 here"):
        load_model(model_folders["llama"], 1, "cuda", "float32", gpus=2)
