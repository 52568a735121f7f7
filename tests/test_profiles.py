"""The profiles gpt2 and paper: Table 5 typed a second time, text of one model in another's SAEs,
and 24 GB of GPU memory.
"""

import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from faithful_sae.engine.plan import profile_outputs, stage_inputs
from faithful_sae.files import ROOT
from faithful_sae.lm.architectures import Shape
from faithful_sae.lm.model import device_map
from faithful_sae.runs.catalogue import exhibits
from faithful_sae.runs.keys import settings
from faithful_sae.runs.needs import needs
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import model_stages, stages
from faithful_sae.runs.rows import rows_file
from faithful_sae.runs.schema import plain

WEB = ("faithful", "pile", "fineweb")
INSTRUCTION = ("faithful", "faithful-other", "open-instruct", "alpaca", "flan")
# layer, d_sae, k, lr, sequence length, and the roles of the corpora; Pythia's last two for Tables 6
# and 7
TABLE5 = {
    "gpt2": (
        "openai-community/gpt2",
        8,
        12288,
        48,
        2e-4,
        128,
        (*WEB, "openwebtext", "tinystories"),
    ),
    "llama-1b": ("meta-llama/Llama-3.2-1B", 12, 14336, 48, 2e-4, 512, WEB),
    "gemma-2b": ("google/gemma-2-2b", 20, 18432, 64, 3e-4, 1024, WEB),
    "llama-3b": ("meta-llama/Llama-3.2-3B", 21, 18432, 64, 1e-4, 512, WEB),
    "llama-8b": ("meta-llama/Llama-3.1-8B", 24, 16384, 80, 6e-5, 512, WEB),
    "pythia-1.4b": (
        "EleutherAI/pythia-1.4b",
        18,
        14336,
        48,
        2e-4,
        512,
        (*INSTRUCTION, "pile", "fineweb"),
    ),
    "pythia-2.8b": (
        "EleutherAI/pythia-2.8b",
        24,
        15360,
        64,
        1e-4,
        512,
        (*INSTRUCTION, "pile", "fineweb"),
    ),
}
SIZES = {  # as in each model's config.json, the number of weights as published
    "gpt2": Shape(12, 768, 12, 12, 64, 3072, 50257, 124439808, 1024, 4),
    "pythia-1.4b": Shape(24, 2048, 16, 16, 128, 8192, 50304, 1414647808, 2048, 2),
    "pythia-2.8b": Shape(32, 2560, 32, 32, 80, 10240, 50304, 2775208960, 2048, 2),
    "pythia-6.9b": Shape(32, 4096, 32, 32, 128, 16384, 50432, 6857302016, 2048, 2),
    "gemma-2b": Shape(26, 2304, 8, 4, 256, 9216, 256000, 2614341888, 8192, 2),
    "llama-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256, 1235814400, 131072, 2),
    "llama-3b": Shape(28, 3072, 24, 8, 128, 8192, 128256, 3212749824, 131072, 2),
    "llama-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 8030261248, 131072, 2),
}
# of one model, in order; those that come to the library later are not among them
STAGES = (
    "01_generate_faithful",
    "02_train_sae",
    "03_sfr",
    "04_ffr",
    "05_fidelity",
    "06_probing",
    "09_explore_features",
)


@pytest.fixture(scope="module")
def runs():
    return {run.name: run for run in load_profile("paper")}


@pytest.mark.parametrize("name", TABLE5)
def test_table_5(runs, name):
    run, (model, layer, d_sae, k, lr, length, roles) = runs[name], TABLE5[name]
    s = run.sae
    assert (run.model, run.layer, s.d_sae, s.k, s.lr, run.sequence_length) == (
        model,
        layer,
        d_sae,
        k,
        lr,
        length,
    )
    assert s.seeds == (42, 49)
    assert s.tokens == (150_000_000 if name == "llama-8b" else 100_000_000)
    assert run.beside == name
    assert {run.corpora[corpus].role for corpus in s.train_on} == set(roles)
    assert len(s.train_on) == len(roles)
    assert exhibits()["table5"].numbers[name] == {
        "layer": layer,
        "d_sae": d_sae,
        "k": k,
        "lr": lr,
        "sequence_length": length,
        "tokens": s.tokens,
        "seeds": "42, 49",
    }


def test_the_paper_has_these_models_and_gpt2_is_one_of_them(runs):
    assert set(runs) == {*TABLE5, "pythia-6.9b"} == set(SIZES)
    (gpt2,) = load_profile("gpt2")
    assert plain(gpt2) == plain(runs["gpt2"])


def test_what_the_paper_says_of_all(runs):
    for run in runs.values():
        g = run.generate
        assert (g.temperature, g.top_p, g.first_token, run.embedded, run.revision) == (
            1.0,
            1.0,
            "bos",
            None,
            "main",
        )
        if run.sae:
            assert (run.sfr.threshold, run.ffr.tokens, run.ffr.frequency, run.ffr.activation) == (
                0.7,
                1_000_000,
                0.1,
                0.0,
            )
            assert [run.corpora[name].role for name in run.fidelity.corpora] == [
                *WEB,
                "openwebtext",
                "tinystories",
            ]
            assert {task.role for task in run.tasks.values()} == {"sst2", "cola", "yelp", "agnews"}
            # tokens of one pass, less BOS in front of every row and, in text of a hundred tokens a
            # piece, between documents
            assert (
                run.corpus_tokens * (1 - run.heldout) * (1 - 1 / run.sequence_length - 0.01)
                > run.sae.tokens
            )
            assert g.tokens >= run.corpus_tokens
            assert run.sae.cache_activations is False


def test_a_model_for_its_text_alone(runs):
    run = runs["pythia-6.9b"]
    assert run.sae is None
    assert run.probing is None
    assert [stage.name for stage in model_stages(run)] == ["01_generate_faithful"]
    made = [path for path in profile_outputs(list(runs.values())) if "pythia-6.9b" in path]
    figure = {f"first_token_pythia-6.9b.{suffix}" for suffix in ("csv", "md", "pdf", "png")}
    assert {path.rpartition("/")[2] for path in made} == {"dataset.csv", "first_token.csv"} | figure
    assert stage_inputs(run, stages()["01_generate_faithful"]) == []


def test_the_text_of_one_model_is_an_input_of_the_others_saes(runs):
    training = stages()["02_train_sae"]
    for name, other in (("pythia-1.4b", "pythia-2.8b"), ("pythia-2.8b", "pythia-1.4b")):
        text = rows_file(runs[other], "dataset")
        assert str(text) in stage_inputs(runs[name], training)
        assert runs[name].corpora[f"faithful-{other}"].role == "faithful-other"
    unused = rows_file(runs["pythia-6.9b"], "dataset")
    assert str(unused) not in stage_inputs(runs["pythia-1.4b"], training)


def test_what_a_corpus_with_a_dot_in_its_name_depends_on(runs):
    run = runs["pythia-1.4b"]
    said = settings(run, ("corpora.faithful-pythia-2.8b",))["corpora.faithful-pythia-2.8b"]
    assert said == plain(run.corpora["faithful-pythia-2.8b"], ("numbers",))


@pytest.mark.parametrize("name", SIZES)
def test_it_fits_a_gpu_of_24_gb_and_the_file_says_so(runs, name):
    run = runs[name]
    gpu = []
    ram = []
    largest = max(needs(run, SIZES[name], stage).memory for stage in model_stages(run))
    for stage in model_stages(run):
        need = needs(run, SIZES[name], stage)
        assert need.device_memory < 24 * 2**30, stage
        if stage.name in STAGES:
            ram.append(f"{stage.name[:2]} {need.memory / 1e9:.1f} GB")
            if need.device_memory:
                gpu.append(f"{stage.name[:2]} {need.device_memory / 1e9:.1f} GB")
        else:  # what the file need not say, since others need more
            assert need.memory < largest, stage
    assert f"#   GPU  {', '.join(gpu)}\n#   RAM  {', '.join(ram)}\n" in run.file.read_text()


def test_the_largest_model_on_two_gpus():
    """Its file says: 16 blocks on each, 8.0 GB; built on `meta`, with the sizes of its config.json,
    it holds no memory.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128256,
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                dtype=torch.bfloat16,
            )
        ).to(torch.bfloat16)
    held = [0, 0]
    places = device_map(model, 2)
    for module, number in places.items():
        held[number] += sum(w.nbytes for w in module.parameters())
    assert sum(held) == pytest.approx(2 * SIZES["llama-8b"].parameters, rel=1e-3)
    assert held == pytest.approx([8.03e9] * 2, rel=1e-3)
    assert [places[block] for block in model.model.layers] == [0] * 16 + [1] * 16


def dry_run(*config):
    """(exit code, {job: how many}, what is said of errors)."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            "workflow/Snakefile",
            "--profile",
            "workflow/profiles/local",
            "--cores",
            "8",
            "--config",
            "profile=paper",
            "engine=local",
            *config,
            "--dry-run",
            "--quiet",
            "rules",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    lines = map(str.split, result.stdout.partition("Job stats:")[2].splitlines())
    counts = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    return result.returncode, counts, result.stderr


def without_later(counts, models):
    """The counts less those of stages that are not in STAGES, which run once for each model too."""
    later = {name for name in counts if name in stages() and name not in (*STAGES, "07_paper")}
    assert {counts[name] for name in later} <= {models}
    rest = {name: number for name, number in counts.items() if name not in later}
    return rest | {"total": counts["total"] - models * len(later)}


def test_some_models_and_several_workers():
    """Pythia 1.4B's SAEs need the text of 2.8B; workers sample both texts, and 07 runs although six
    models are missing.
    """
    code, counts, _ = dry_run("models=pythia-1.4b", "workers=3")
    assert code == 0
    assert without_later(counts, 1) == {
        "share_of_text": 6,
        "01_generate_faithful": 2,
        "train_corpus": 7,
        "07_paper": 1,
        "site": 1,
        "all": 1,
        "total": 24,
        **dict.fromkeys(STAGES[1:], 1),
    }
    code, _, said = dry_run("models=gpt3")
    assert code == 3
    assert "MODELS: 'gpt3' is not in" in said


def test_a_dry_run_needs_neither_network_nor_gpu():
    code, counts, said = dry_run()
    assert code == 0, said[-2000:]
    assert without_later(counts, 7) == {
        "01_generate_faithful": 8,
        "train_corpus": 31,
        "07_paper": 1,
        "site": 1,
        "all": 1,
        "total": 84,
        **dict.fromkeys(STAGES[1:], 7),
    }
    assert not (ROOT / "artifacts" / "paper" / "hub.json").exists()


def test_the_small_real_model_goes_over_few_tokens_ten_times():
    (run,) = load_profile("smollm2")
    assert run.sae
    assert run.gguf
    assert (run.layer, run.sae.d_sae, run.sae.k, run.sae.max_norm) == (22, 1152, 16, 10.0)
    kept = run.corpus_tokens * (1 - run.heldout)
    assert run.sae.tokens / kept == pytest.approx(run.sae.max_epochs, rel=0.03)
    # what is sampled fills the rows that are read
    assert run.generate.tokens > run.corpus_tokens
    assert run.sae.cache_activations
