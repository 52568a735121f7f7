"""Tiny language models with random weights, a parameter file to vary, and the helpers the tests
share. Nothing is downloaded.
"""

import copy
import importlib
import itertools
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRITON_INTERPRET"] = (
    "1"  # Triton kernels run on the CPU, so that every machine tests them
)
os.environ.setdefault("TQDM_DISABLE", "1")

import json
import threading

import jupytext
import pandas as pd
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import forked_kernels
from faithful_sae.files import ROOT
from faithful_sae.lm.model import load_model
from faithful_sae.runs import schema
from faithful_sae.runs.params import load_params
from faithful_sae.runs.rows import write_rows

forked_kernels.install()
torch.set_num_threads(1)
# tqdm's own lock is one for all processes: a forked one that a test kills while it has it would
# stop the others for ever
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What one file tests is run by one process. The notebooks and the end-to-end test, which take
    longest, are begun first, by the same process: the test compares with what the notebooks wrote,
    and changes files of the library for a while.
    """

    def place(item):
        if item.path.suffix == ".ipynb":
            return 0
        return 1 if item.path.name == "test_end_to_end.py" else 2

    for item in items:
        group = "workflow" if place(item) < 2 else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=place)


VOCABULARY, LAYERS, CONTEXT, BOS, EOS = 64, 3, 32, 0, 1
ARCHITECTURES = ("gpt2", "gpt_neox", "llama", "gemma2")
SPECIAL = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None}


def make_tokenizer(vocabulary=VOCABULARY, **special):
    """One token per word: <bos> 0, <eos> 1, then w2, w3, ...; an unknown word is w2."""
    words = {"<bos>": BOS, "<eos>": EOS} | {f"w{i}": i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **(special or {"bos_token": "<bos>", "eos_token": "<eos>"})
    )


# beside the sizes that all have
OWN_SIZES = {
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 32},
    "llama": {"intermediate_size": 32, "num_key_value_heads": 1},
    "gemma2": {
        "intermediate_size": 32,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 6,
    },
    "mistral": {"intermediate_size": 32, "num_key_value_heads": 1, "sliding_window": 6},
    "qwen2": {"intermediate_size": 32, "num_key_value_heads": 1},
    "qwen3": {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8},
}


def make_model(architecture, vocabulary=VOCABULARY, seed=0, spread=0.25, context=CONTEXT):
    """A random causal LM, 3 blocks wide 16 (Llama has 8 embedding rows that no token uses, as
    padded vocabularies do).
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocabulary + 8 * (architecture == "llama"),
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=spread,
        **SPECIAL,
        **OWN_SIZES[architecture],
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """{architecture: folder in Hugging Face's format}."""
    root = tmp_path_factory.mktemp("models")
    for name in ARCHITECTURES:
        make_model(name).save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ARCHITECTURES}


@pytest.fixture
def lm(model_folders):
    """The tiny Llama, hooked at block 1."""
    return load_model(model_folders["llama"], 1, "cpu", "float32")


@pytest.fixture(scope="module")
def browser():
    """Chromium, of the tests in tests/browser: only beside these is their driver found."""
    with importlib.import_module("driver").chromium() as one:
        yield one


def packed_rows(n):
    """int64 [n, 12]; every row starts with BOS, one in seven has a second one."""
    ids = torch.randint(2, VOCABULARY, (n, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = BOS
    ids[::7, 6] = BOS
    return ids.numpy()


@pytest.fixture
def rows():
    """int64 [10, 12]: token rows that start with BOS; row 3 has a second BOS in the middle."""
    ids = torch.randint(2, VOCABULARY, (10, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = BOS
    ids[3, 6] = BOS
    return ids.numpy()


def set_key(values, key, value):
    """Set (or with value KeyError, delete) the dotted key of a nested dict."""
    *path, last = key.split(".")
    for name in path:
        values = values[name]
    if value is KeyError:
        del values[last]
    else:
        # a later key may be one of its own
        values[last] = copy.deepcopy(value)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Results go to an empty folder instead of the repository."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setattr(schema, "ROOT", folder)
    return folder


@pytest.fixture
def make_run(tmp_path, root, model_folders):
    """Write a valid parameter file, with dotted keys replaced, and load it: make_run({"sae.k": 3})
    -> Run.
    """

    def make(changes=None, name="tiny", load=True):
        folder = tmp_path / "handmade"
        folder.mkdir(exist_ok=True)
        texts = [" ".join(f"w{2 + (7 * i + j * j) % 60}" for j in range(30)) for i in range(40)]
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        for part in ("train", "test"):
            (folder / f"{part}.jsonl").write_text(
                "".join(
                    json.dumps({"text": t, "label": "even" if i % 2 else "odd"}) + "\n"
                    for i, t in enumerate(texts)
                )
            )
        values = copy.deepcopy(VALUES) | {"model": str(model_folders["llama"])}
        for key, value in (changes or {}).items():
            set_key(values, key, value)
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return load_params(file) if load else file

    return make


VALUES = yaml.safe_load("""
label: Tiny
beside: null
model: to be filled in
revision: null
dtype: float32
device: cpu
gpus: 1
threads: 1
hours: {generate: 1.0, train: 1.0, measure: 1.0}
layer: 1
hook: residual
sequence_length: 12
corpus_tokens: 600
heldout: 0.2
embedded: null
generate: {tokens: 300, max_new_tokens: 10, batch_rows: 6, temperature: 1.0, top_p: 1.0,
           first_token: bos, shard_tokens: 90, seed: 5}
corpora:
  faithful: {role: faithful, faithful: self}
  text: {role: pile, path: text.jsonl, text_key: text}
sae: {train_on: [faithful, text], d_sae: 24, k: 4, lr: 1.0e-3, tokens: 400, max_epochs: 2,
      batch_tokens: 64, buffer_tokens: 128, lm_batch_rows: 8, cache_activations: false,
      include_bos: false, recipe: default, seeds: [42, 49], data_seed: 0, published: null}
sfr: {threshold: 0.7, dead_below: 0.0}
ffr: {tokens: 500, frequency: 0.1, activation: 0.0, seed: 0}
fidelity: {corpora: [text], rows: 8, rows_from: heldout, batch_rows: 16}
probing:
  tasks:
    parity: {role: sst2, train: train.jsonl, test: test.jsonl, text_key: text, label_key: label}
  max_train: 40
  max_test: 40
  max_tokens: 12
  batch_rows: 64
  include_bos: false
  inverse_regularisation: 1.0
  max_iter: 200
  seed: 0
seed_dependence: null
features: null
architectures: null
layer_groups: null
learning: null
evaluation: null
data_or_seed: null
pruning: null
domain: null
text_choice: null
consensus: null
tuned_model: null
""")
EMBEDDED = {
    "corpus": "text",
    "architecture": "llama",
    "vocab_size": 300,
    "d_model": 16,
    "d_mlp": 32,
    "n_layers": 2,
    "n_heads": 2,
    "context": 16,
    "train_tokens": 100,
    "steps": 2,
    "batch_rows": 2,
    "lr": 1e-3,
    "warmup_steps": 1,
    "weight_decay": 0.0,
    "seed": 0,
}
SEED_DEPENDENCE = {
    "corpus": "text",
    "sweep_seeds": 2,
    "d_sae": [12],
    "k": [2],
    "tokens": [200],
    "layers": [0],
}
FEATURES = {
    "corpora": ["text"],
    "seeds": [42, 49],
    "tokens": 300,
    "batch_rows": 8,
    "top": 3,
    "strata": 2,
    "samples": 2,
    "left": 4,
    "right": 2,
    "listed": 4,
    "pruned": 1,
    "per_group": 2,
    "doses": [1.0, 2.0],
    "steered_rows": 3,
    "seed": 0,
}
EVALUATION = {
    "corpora": ["faithful", "text"],
    "text": "other",
    "rows": 8,
    "tokens": 1200,
    "window": 3,
    "windows": 6,
    "least": 2,
    "described": 3,
    "class_tokens": 40,
    "edges": [4],
    "forget": "faithful",
    "retain": "text",
}
PRUNING = {
    "corpora": ["faithful", "text"],
    "text": "other",
    "shares": [0.1, 0.5],
    "draws": 2,
    "tokens": 240,
    "rows": 6,
    "tasks": ["parity"],
}


TEXT = {"path": "text.jsonl", "text_key": "text"}
# that a probe of make_measured_run is scored on
TEXTS = 500


@pytest.fixture
def make_measured_run(make_run):
    """A run with rows as notebooks 01-06 write them, made of given numbers.

    make_measured_run(name, sfr={role: [one per pair of seeds]}, ffr={role: [one per seed]},
    probing={task role: {role: [per seed]}}, baseline={task role: accuracy}, ce={role: [CE
    difference off its own corpus, per seed]}, corpus_ce={role: the model's own}, dataset={column:
    value}, beside, other="name of the run whose text plays faithful-other"). Corpora are called
    my-<role>, but those in `named` as given there. Probes are scored on TEXTS texts.
    """

    def make(
        name,
        sfr,
        ffr=None,
        probing=None,
        baseline=None,
        ce=None,
        corpus_ce=None,
        dataset=None,
        beside=None,
        other=None,
        named=None,
    ):
        names = {role: (named or {}).get(role, f"my-{role}") for role in sfr}
        sources = {"faithful": {"faithful": "self"}, "faithful-other": {"faithful": other}}
        corpora = {
            names[r]: {"role": r if r in schema.ROLES else None, **sources.get(r, TEXT)}
            for r in sfr
        }
        n_pairs = max(map(len, sfr.values()))
        n_seeds = round((1 + (1 + 8 * n_pairs) ** 0.5) / 2)
        seeds = [42, 49, *range(1, n_seeds - 1)][:n_seeds]
        probing = probing or {"sst2": {r: [0.6] * n_seeds for r in sfr}}
        tasks = {
            f"my-{r}": {
                "role": r,
                "train": "train.jsonl",
                "test": "test.jsonl",
                "text_key": "text",
                "label_key": "label",
            }
            for r in probing
        }
        train_on = list(corpora)
        if ce:
            corpora["elsewhere"] = {"role": None, **TEXT}
        run = make_run(
            {
                "label": f"Model {name}",
                "beside": beside,
                "corpora": corpora,
                "sae.train_on": train_on,
                "sae.seeds": seeds,
                "fidelity.corpora": list(corpora),
                "probing.tasks": tasks,
            },
            name=name,
        )
        pairs = [
            {
                "corpus": names[r],
                "seed_a": a,
                "seed_b": b,
                "d_sae": 24,
                "sfr": v,
                "sfr_strict": v - 0.01,
                "sfr_alive": v + 0.1,
                "sfr_encoder_decoder": v / 2,
                "mean_cosine": 0.5,
                "mean_encoder_cosine": 0.4,
                "mean_correlation": 0.3,
                "dead": 0.25,
            }
            for r, vs in sfr.items()
            for (a, b), v in zip(itertools.combinations(seeds, 2), vs, strict=True)
        ]
        fakes = [
            {
                "corpus": names[r],
                "seed": seed,
                "tokens": 100,
                "ffr": v,
                "ffr_occurring": v / 2,
                "ffr_authors": v / 4,
                "fake": 1,
                "d_sae": 24,
            }
            for r, vs in (ffr or {r: [1.0] for r in sfr}).items()
            for seed, v in zip([42, 49, *range(1, 20)], vs, strict=False)
        ]
        probes = [
            {
                "task": f"my-{t}",
                "majority": 0.5,
                "chance": 0.5,
                "train": 9,
                "test": TEXTS,
                "corpus": None,
                "seed": None,
                "representation": kind,
                "accuracy": (baseline or {}).get(t, 0.9) if kind == "baseline" else 0.6,
                "f1": 0.9,
                "f1_error": 0.01,
                "auc": 0.95,
                "auc_error": 0.02,
                "converged": True,
            }
            for t in probing
            for kind in ("baseline", "likelihood")
        ]
        probes += [
            probes[0]
            | {
                "task": f"my-{t}",
                "corpus": names[r],
                "seed": seed,
                "representation": part,
                "accuracy": v - (part == "sae") / 2,
            }
            for t, values in probing.items()
            for r, vs in values.items()
            for seed, v in zip([42, 49, *range(1, 20)], vs, strict=False)
            for part in ("sae", "reconstruction")
        ]
        texts = [
            {key: probe[key] for key in ("task", "corpus", "seed", "representation")}
            | {"correct": "".join("01"[i < round(probe["accuracy"] * TEXTS)] for i in range(TEXTS))}
            for probe in probes
        ]
        matrix, per_row = [], []
        for a, b, bos in itertools.product(sfr, (*sfr, "elsewhere"), (True, False)):
            losses = (ce or {}).get(a, [1.0, 1.0])
            for seed, loss in zip([42, 49, *range(1, 20)], losses, strict=False):
                where = {"trained_on": names[a], "evaluated_on": names.get(b, b), "seed": seed}
                where["include_bos"] = bos
                # only what is measured without BOS on a corpus that is nobody's own may count
                counts = not bos and b == "elsewhere"
                loss = loss if counts else 9.0 if a == "pile" else 0.0
                matrix.append(
                    where
                    | {"tokens": 12, "ce": 2.0, "ce_zero": 6.0, "ce_mean": 5.0}
                    | {"ce_diff": loss, "ce_recovered": 1 - loss / 4, "kl": loss, "l2": 1.0}
                    | {"explained_variance": 0.75, "ev_authors": 0.7, "ev_legacy": 0.5}
                )
                for i in range(3):
                    sums = {"measured": 4, "scored": 4, "ce": 8.0, "ce_sae": 8 + 4 * loss}
                    sums |= {"kl": 4 * loss, "error": 1.0, "variance": 4.0, "ce_zero": 24.0}
                    sums |= {"ev_authors": 0.7, "ev_legacy": 2.0}
                    per_row.append(where | {"row": i} | sums)
        rows = {
            "sfr": pairs,
            "ffr": fakes,
            "probing": probes,
            "probing_texts": texts,
            "fidelity": matrix,
            "fidelity_rows": per_row,
            "corpus_ce": [
                {"corpus": names[r], "rows": 9, "ce": (corpus_ce or {}).get(r, 3.0), "error": 0.1}
                | ({"ce_as_sampled": 2.9} if r == "faithful" else {})
                for r in sfr
            ],
            "dataset": [
                {
                    "documents": 9,
                    "tokens": 99,
                    "vocab_size": 64,
                    "all_token_coverage": 95.0,
                    "pretraining_coverage": float("nan"),
                    "relative_coverage": float("nan"),
                    "first_token_coverage": 10.0,
                    "expected_first_token_coverage": 11.0,
                    "kl": 1.0,
                    "expected_kl": 2.0,
                    "expected_kl_sd": 0.5,
                    "missing_mass": 0.1,
                    "expected_missing_mass": 0.2,
                }
                | (dataset or {})
            ],
            "saes": [
                {"corpus": names[r], "seed": 42, "distinct_tokens": 400, "passes": 1.234}
                for r in sfr
            ],
        }
        for file, records in rows.items():
            if records:
                write_rows(run, file, pd.DataFrame(records))
        return run

    return make


def execute(notebook, **parameters):
    """The cells of a notebook one after the other, here instead of in a kernel of its own."""
    names = {}
    for number, cell in enumerate(jupytext.read(ROOT / "notebooks" / f"{notebook}.py").cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook}, cell {number}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", ()):
            names |= parameters
