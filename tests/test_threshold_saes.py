"""Every notebook, with its checks, on published SAEs that keep what is above a threshold: as many
latents as that may be, not `sae.k`.
"""

import json

import jupytext
import pandas as pd
import pytest
import torch

from conftest import BOS, FEATURES, SEED_DEPENDENCE, make_model, make_tokenizer
from faithful_sae.engine.plan import problems, refuse
from faithful_sae.files import ROOT
from faithful_sae.runs.registry import model_stages, profile_stage
from faithful_sae.runs.rows import rows_file
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import load_saes

CHANGES = {
    "generate.tokens": 3000,
    "sae.published": {
        "faithful": {"path": "jumprelu/seed{seed}"},
        "text": {"path": "batch_topk/seed{seed}"},
    },
    "fidelity.corpora": ["faithful", "text"],
    "seed_dependence": SEED_DEPENDENCE,
    "features": FEATURES,
}


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


def execute(notebook, **parameters):
    """The cells of a notebook one after the other, here instead of in a kernel of its own."""
    names = {}
    for number, cell in enumerate(jupytext.read(ROOT / "notebooks" / f"{notebook}.py").cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook}, cell {number}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", ()):
            names |= parameters


@pytest.fixture(params=["float32", "bfloat16"])
def run(make_run, tmp_path, request):
    """A run that trains none of its SAEs but those of 08; it has every notebook there is."""
    places = make_run().file.parent
    model = make_model("llama")
    # room for the 40 tokens that notebook 09 lets it write
    model.config.max_position_embeddings = 64
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    for seed in (42, 49):
        write_jumprelu(random_sae(make_run(), seed), places / "jumprelu" / f"seed{seed}")
        write_batch_topk(random_sae(make_run(), seed), places / "batch_topk" / f"seed{seed}")
    return make_run(CHANGES | {"model": str(tmp_path / "model"), "dtype": request.param})


def test_every_notebook_on_saes_with_thresholds(run):
    refuse(problems([run]))
    wanted = [stage.name for stage in model_stages(run)]
    on_disk = [file.stem for file in sorted((ROOT / "notebooks").glob("*.py"))]
    assert sorted([*wanted, profile_stage().name]) == on_disk
    for notebook in wanted:
        execute(notebook, params=str(run.file))
    execute(profile_stage().name, profile=str(run.file.parent))

    # were at most k latents active on a token, nothing would have been tried
    lm = open_model(run)
    saes = load_saes(run, lm)
    assert set(saes) == {(name, seed) for name in ("faithful", "text") for seed in (42, 49)}
    ids = torch.tensor(corpus(run, "text", lm).train[:], dtype=torch.int64)
    x = lm.activations(ids)[ids != BOS]
    for sae in saes.values():
        assert sae.k is None
        assert (sae.encode(x) > 0).sum(-1).max() > run.sae.k
    # on random tokens, too: what notebook 04 once held impossible
    firing = pd.read_csv(run.figures / "firing_tiny.csv")
    assert (firing.groupby(["corpus", "seed"]).frequency.sum() > run.sae.k).all()
    assert (pd.read_csv(rows_file(run, "saes")).l0 > run.sae.k).all()
