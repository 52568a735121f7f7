"""Every notebook, with its checks, on a model of each architecture. Each has something of its own
that a check might not allow for: a narrow dtype, a large vocabulary, long rows, no BOS; SAEs
published with a threshold, which keep as many latents as that may be, not `sae.k`; and one seed.
"""

import base64
import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from conftest import (
    BOS,
    EVALUATION,
    FEATURES,
    PRUNING,
    SEED_DEPENDENCE,
    TEXT,
    execute,
    make_model,
    make_tokenizer,
)
from faithful_sae.engine.problems import problems, refuse
from faithful_sae.files import ROOT
from faithful_sae.lm.architectures import MODELS
from faithful_sae.lm.embedded import train_tokenizer
from faithful_sae.runs.registry import model_stages, profile_stage, stages
from faithful_sae.runs.rows import rows_file
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import load_saes

CHANGES = {
    "generate.tokens": 3000,
    "corpus_tokens": 1600,
    "corpora.other": TEXT,
    "generate.shard_tokens": 1500,
    "generate.batch_rows": 32,
    # whole rows, for a variant that is trained on them
    "sae.batch_tokens": 60,
    "fidelity.corpora": ["faithful", "text"],
    "seed_dependence": SEED_DEPENDENCE,
    "features": FEATURES,
}
PUBLISHED = {
    "sae.published": {
        "faithful": {"path": "jumprelu/seed{seed}"},
        "text": {"path": "batch_topk/seed{seed}"},
    },
    # of SAEs of others none is trained with another number
    "seed_dependence": {"corpus": "text", "sweep_seeds": 2},
}
STUDY = {
    "corpora": ["faithful", "text"],
    "variants": {
        "topk": {"name": "topk"},
        "gated": {"name": "gated"},
        "e2e": {"name": "end_to_end"},
    },
    "tokens": 400,
    "l0": [2],
    "searches": 2,
    "rows": 4,
    "planted": 600,
}
LAYERS = {"corpus": "text", "within": 0.6, "tokens": 300, "rows": 4}
LEARNING = {
    "corpora": ["faithful", "text"],
    "text": "other",
    "tokens": [200],
    "rows": 4,
    "replicates": 2,
    "sample": 200,
    "passes": [1, 2],
}
DOMAIN = {
    "corpus": "text",
    "own": "faithful",
    "text": "other",
    "shares": [0.25, 1.0],
    "tokens": 300,
    "rows": 4,
}
TEXTS = {
    "texts": {
        "hot": {"temperature": 1.3},
        "snippets": {"snippets": {"corpus": "other", "tokens": 3}},
    },
    **{"sampled": 600, "sizes": [0.5], "tokens": 400, "on": "text", "rows": 4},
    **{"task": "parity", "probed": 20},
}
# SAEs of a base model are trained here
OF_BASE = {"tuned": {"text": "text", "steps": 2, "lr": 1.0e-3}, "other": "faithful", "rows": 4}
# of SAEs that are trained with two seeds; these are hardly alike
CONSENSUS = {
    "consensus": {"corpora": ["faithful", "text"], "rows": 4, "tokens": 1200},
    "sfr.threshold": 0.3,
}
# one SAE of each corpus: there is no pair to compare
ONE_SEED = {
    "sae.seeds": [42],
    "sae.published": {
        "faithful": {"path": "jumprelu/seed42"},
        "text": {"path": "batch_topk/seed42"},
    },
    "seed_dependence": None,
    "features.seeds": [42],
}
OF_PAIRS = {"03_sfr", "08_seed_dependence", "14_data_or_seed", "18_text_choice"}
# what takes longest runs on three: trained SAEs, published ones, and one seed
STUDIES = {
    "architectures": STUDY,
    "layer_groups": LAYERS,
    "evaluation": EVALUATION,
    "data_or_seed": {},
    "pruning": PRUNING,
    "text_choice": TEXTS,
    "domain": DOMAIN,
}
NO_STUDIES = dict.fromkeys(STUDIES)
# what is its own: keys of the file, and `vocabulary`, `context` and tokenizer of the model
MODEL = {
    "llama": PUBLISHED | {"dtype": "bfloat16"},
    "gpt2": PUBLISHED | {"dtype": "float32", "vocabulary": 50_000} | NO_STUDIES,
    "gpt_neox": {"dtype": "float16", "sae.include_bos": True, "probing.include_bos": True}
    | {"learning": LEARNING, "tuned_model": OF_BASE}
    | CONSENSUS,
    "gemma2": {"dtype": "bfloat16", "vocabulary": 8000, "sae.max_norm": 1.2} | NO_STUDIES,
    "mistral": {"dtype": "float32", "sequence_length": 512, "context": 512}
    | {"corpus_tokens": 8192, "features.tokens": 1024, "generate.max_new_tokens": 500}
    | NO_STUDIES,
    "qwen2": ONE_SEED | {"dtype": "float16", "vocabulary": 300, "without_bos": True},
    "qwen3": {"dtype": "bfloat16", "sae.train_on": ["text"], "features.seeds": [42]} | NO_STUDIES,
}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def random_sae(run, seed):
    sae = TopKSAE(16, run.sae.d_sae, run.sae.k, seed)
    sae.b_dec += 0.1 * torch.randn(16, generator=torch.Generator().manual_seed(seed))
    return sae


def write_jumprelu(sae, folder):
    """SAELens' layout: each latent has a threshold of its own."""
    sae.k = None
    sae.threshold = torch.linspace(0.05, 0.15, sae.d_sae)
    sae.save(folder)


def write_batch_topk(sae, folder):
    """dictionary_learning's layout: one threshold, and a k that held on average over a batch."""
    folder.mkdir(parents=True)
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": sae.d_model, "dict_size": sae.d_sae}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer | {"k": sae.k}}))
    tensors = {
        "encoder.weight": sae.W_enc.T.contiguous(),
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T.contiguous(),
        "b_dec": sae.b_dec,
        "k": torch.tensor(sae.k),
        "threshold": torch.tensor(0.1),
    }
    torch.save(tensors, folder / "ae.pt")


@pytest.fixture(params=MODEL)
def run(make_run, tmp_path, request):
    """A run of the architecture; it has every notebook there is."""
    places = make_run().file.parent
    changes = CHANGES | STUDIES | MODEL[request.param]
    vocabulary = changes.pop("vocabulary", 64)
    folder = tmp_path / "model"
    model = make_model(request.param, vocabulary, context=changes.pop("context", 32))
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(vocabulary)
    if changes.pop("without_bos", False):
        tokenizer = train_tokenizer(["a b c"], vocabulary)
        tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    for seed in (42, 49):
        write_jumprelu(random_sae(make_run(), seed), places / "jumprelu" / f"seed{seed}")
        write_batch_topk(random_sae(make_run(), seed), places / "batch_topk" / f"seed{seed}")
    run = make_run(changes | {"model": str(folder)})
    text = places / "text.jsonl"
    text.write_text(text.read_text() * 8)
    return run


@pytest.fixture
def not_drawn(monkeypatch, request):
    """Figures are made for all models and laid out for two of them. Writing them as pdf and png,
    which takes most of the time, is for the end-to-end test.
    """
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: Path(file).write_bytes(PNG))
    if not any(name in request.node.name for name in ("llama", "gpt_neox")):
        monkeypatch.setattr(Figure, "draw_without_rendering", lambda _: None)
        monkeypatch.setattr(Figure, "get_tightbbox", lambda _: Bbox.unit())


def test_each_architecture_is_among_them():
    assert set(MODEL) == set(MODELS)


@pytest.mark.usefixtures("not_drawn")
def test_every_notebook(run):
    refuse(problems([run]))
    wanted = [stage.name for stage in model_stages(run)]
    on_disk = [file.stem for file in sorted((ROOT / "notebooks").glob("*.py"))]
    of_pairs = OF_PAIRS if len(run.sae.seeds) == 1 else set()
    sections = (*STUDIES, "learning", "consensus", "tuned_model")
    null = {name for name in sections if getattr(run, name) is None}
    left_out = of_pairs | {name for name, stage in stages().items() if {*stage.sections} & null}
    assert sorted({*wanted, profile_stage().name} | left_out) == on_disk
    assert not left_out & {*wanted}
    for notebook in wanted:
        execute(notebook, params=str(run.file))
    execute(profile_stage().name, profile=str(run.file.parent))
    if of_pairs:
        with pytest.raises(ParamsError, match=r"holds one seed: SFR compares two, and is not mea"):
            execute("03_sfr", params=str(run.file))
    if not run.published:
        return

    # were at most k latents active on a token, nothing would have been tried
    lm = open_model(run)
    saes = load_saes(run, lm)
    assert set(saes) == set(itertools.product(("faithful", "text"), run.sae.seeds))
    ids = torch.tensor(corpus(run, "text", lm).train[:], dtype=torch.int64)
    x = lm.activations(ids)[ids != BOS]
    for sae in saes.values():
        assert sae.k is None
        assert (sae.encode(x) > 0).sum(-1).max() > run.sae.k
    # on random tokens, too: what notebook 04 once held impossible
    firing = pd.read_csv(rows_file(run, "firing"))
    assert (firing.groupby(["corpus", "seed"]).frequency.sum() > run.sae.k).all()
    assert (pd.read_csv(rows_file(run, "saes")).l0 > run.sae.k).all()
