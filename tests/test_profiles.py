"""The profiles gpt2 and paper: Table 5 typed a second time, text of one model in another's SAEs, and 24 GB of GPU memory."""

import subprocess
import sys

import pytest

from faithful_sae.catalogue import exhibits
from faithful_sae.params import load_profile
from faithful_sae.pipeline import profile_outputs, rows_file, stage_inputs
from faithful_sae.provenance import ROOT
from faithful_sae.schema import SAE_SECTIONS, model_stages

WEB = ("faithful", "pile", "fineweb")
INSTRUCTION = ("faithful", "faithful-other", "open-instruct", "alpaca", "flan")
TABLE5 = {   # layer, d_sae, k, lr, sequence length, and the roles of the corpora; Pythia's last two for Tables 6 and 7
    "gpt2": ("openai-community/gpt2", 8, 12288, 48, 2e-4, 128, (*WEB, "openwebtext", "tinystories")),
    "llama-1b": ("meta-llama/Llama-3.2-1B", 12, 14336, 48, 2e-4, 512, WEB),
    "gemma-2b": ("google/gemma-2-2b", 20, 18432, 64, 3e-4, 1024, WEB),
    "llama-3b": ("meta-llama/Llama-3.2-3B", 21, 18432, 64, 1e-4, 512, WEB),
    "llama-8b": ("meta-llama/Llama-3.1-8B", 24, 16384, 80, 6e-5, 512, WEB),
    "pythia-1.4b": ("EleutherAI/pythia-1.4b", 18, 14336, 48, 2e-4, 512, (*INSTRUCTION, "pile", "fineweb")),
    "pythia-2.8b": ("EleutherAI/pythia-2.8b", 24, 15360, 64, 1e-4, 512, (*INSTRUCTION, "pile", "fineweb")),
}
SIZES = {   # weights, blocks, heads of keys, their width, vocabulary, d_model, context; as in each model's config.json
    "gpt2": (0.124e9, 12, 12, 64, 50257, 768, 1024), "pythia-1.4b": (1.41e9, 24, 16, 128, 50304, 2048, 2048),
    "pythia-2.8b": (2.78e9, 32, 32, 80, 50304, 2560, 2048), "pythia-6.9b": (6.86e9, 32, 32, 128, 50432, 4096, 2048),
    "gemma-2b": (2.61e9, 26, 4, 256, 256000, 2304, 8192), "llama-1b": (1.24e9, 16, 8, 64, 128256, 2048, 131072),
    "llama-3b": (3.21e9, 28, 8, 128, 128256, 3072, 131072), "llama-8b": (8.03e9, 32, 8, 128, 128256, 4096, 131072)}
GPU = 24 * 2 ** 30 - 0.6e9   # what CUDA leaves of 24 GB


@pytest.fixture(scope="module")
def runs():
    return {run.name: run for run in load_profile("paper")}


@pytest.mark.parametrize("name", TABLE5)
def test_table_5(runs, name):
    run, (model, layer, d_sae, k, lr, length, roles) = runs[name], TABLE5[name]
    s = run.sae
    assert (run.model, run.layer, s.d_sae, s.k, s.lr, run.sequence_length) == (model, layer, d_sae, k, lr, length)
    assert s.seeds == (42, 49) and s.tokens == (150_000_000 if name == "llama-8b" else 100_000_000) and run.beside == name
    assert {run.corpora[corpus].role for corpus in s.train_on} == set(roles) and len(s.train_on) == len(roles)
    assert exhibits()["table5"].numbers[name] == {"layer": layer, "d_sae": d_sae, "k": k, "lr": lr, "sequence_length": length}


def test_the_paper_has_these_models_and_gpt2_is_one_of_them(runs):
    assert set(runs) == {*TABLE5, "pythia-6.9b"} == set(SIZES)
    gpt2, = load_profile("gpt2")
    assert gpt2.file.read_text() == runs["gpt2"].file.read_text()


def test_what_the_paper_says_of_all(runs):
    for run in runs.values():
        g = run.generate
        assert (g.temperature, g.top_p, g.first_token, run.embedded, run.revision) == (1.0, 1.0, "bos", None, "main")
        if run.sae:
            assert (run.sfr.threshold, run.ffr.tokens, run.ffr.frequency, run.ffr.activation) == (0.7, 1_000_000, 0.1, 0.0)
            assert [run.corpora[name].role for name in run.fidelity.corpora] == [*WEB, "openwebtext", "tinystories"]
            assert {task.role for task in run.tasks.values()} == {"sst2", "cola", "yelp", "agnews"}
            # tokens of one pass, less BOS in front of every row and, in text of a hundred tokens a piece, between documents
            assert run.corpus_tokens * (1 - run.heldout) * (1 - 1 / run.sequence_length - 0.01) > run.sae.tokens
            assert g.tokens >= run.corpus_tokens and run.sae.cache_activations is False


def test_a_model_for_its_text_alone(runs):
    run = runs["pythia-6.9b"]
    assert not any(getattr(run, section) for section in SAE_SECTIONS) and model_stages(run) == ["01_generate_faithful"]
    made = [path for path in profile_outputs(list(runs.values())) if "pythia-6.9b" in path]
    figure = {f"first_token_pythia-6.9b.{suffix}" for suffix in ("csv", "pdf", "png")}
    assert {path.rpartition("/")[2] for path in made} == {"dataset.csv", "first_token.csv"} | figure
    assert stage_inputs(run, "01_generate_faithful") == []


def test_the_text_of_one_model_is_an_input_of_the_others_saes(runs):
    for name, other in (("pythia-1.4b", "pythia-2.8b"), ("pythia-2.8b", "pythia-1.4b")):
        assert rows_file(runs[other], "dataset") in stage_inputs(runs[name], "02_train_sae")
        assert runs[name].corpora[f"faithful-{other}"].role == "faithful-other"
    assert rows_file(runs["pythia-6.9b"], "dataset") not in stage_inputs(runs["pythia-1.4b"], "02_train_sae")


@pytest.mark.parametrize("name", SIZES)
def test_it_fits_a_gpu_of_24_gb(runs, name):
    run, (weights, blocks, heads, width, vocabulary, d_model, context) = runs[name], SIZES[name]
    bytes_each = {"float32": 4, "bfloat16": 2}[run.dtype]
    weights *= bytes_each
    g, s = run.generate, run.sae
    assert g.max_new_tokens < context and run.sequence_length <= context
    sampling = g.batch_rows * (g.max_new_tokens * 2 * blocks * heads * width * bytes_each + 24 * vocabulary)
    assert sampling < 0.9 * (GPU - weights), "more than generate.require_memory lets through"
    if s:
        sae = 2 * 4 * d_model * s.d_sae
        saes = len(s.train_on) * len(s.seeds) * sae
        training = len(s.seeds) * 4.25 * sae + 2 * 4 * d_model * (s.buffer_tokens + s.batch_tokens)
        forward = s.lm_batch_rows * run.sequence_length * 12 * d_model * bytes_each + s.batch_tokens * s.d_sae * 4 * 3
        fidelity = saes + run.fidelity.batch_rows * run.sequence_length * vocabulary * 26
        probing = saes + run.probing.batch_rows * run.probing.max_tokens * len(s.train_on) * len(s.seeds) * s.d_sae * 4
        for what, needed in (("training", training + forward), ("fidelity", fidelity), ("probing", probing)):
            assert weights + needed < GPU, (what, (weights + needed) / 1e9)


def test_a_dry_run_needs_neither_network_nor_gpu():
    result = subprocess.run([sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--profile", "workflow/profiles/local",
                             "--cores", "8", "--config", "profile=paper", "--dry-run", "--quiet", "rules"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    counts = dict(line.split() for line in result.stdout.split("Job stats:")[1].splitlines() if len(line.split()) == 2 and line.split()[1].isdigit())
    assert counts == {"01_generate_faithful": "8", "07_paper": "1", "all": "1", "total": "52",
                      **dict.fromkeys(("02_train_sae", "03_sfr", "04_ffr", "05_fidelity_matrix", "06_probing", "09_explore_features"), "7")}
    assert not (ROOT / "artifacts" / "paper" / "hub.json").exists()
