"""SAEs that are read instead of trained: from every format and from the Hub, measured here, and
refused before any work if they do not fit.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import BOS, execute
from faithful_sae.engine.plan import corpus_inputs, corpus_settings, stage_inputs
from faithful_sae.engine.problems import hub_problems, problems, refuse
from faithful_sae.files import ROOT, file_hash, remove
from faithful_sae.paper import latent_data, tables
from faithful_sae.paper.exhibits import profile_note
from faithful_sae.paper.plots import paper as plots
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.keys import workflow_settings
from faithful_sae.runs.registry import stages, writer
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.published import measure
from faithful_sae.sae.sae import SAEError, TopKSAE, load_sae
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.published import locate
from faithful_sae.stages.s03_sfr import seed_comparison
from faithful_sae.stages.s04_ffr import fake_features
from faithful_sae.stages.s05_fidelity import fidelity_matrix
from faithful_sae.stages.s06_probing import probe_tasks
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all
from fake_hub import Repository, serve
from test_hub import OLD, check

HERE = {"path": "published/seed{seed}"}


def to_saelens(sae, folder):
    sae.save(folder)


def to_sparsify(sae, folder):
    sae.to_sparsify(folder)


def to_dictionary_learning(sae, folder):
    folder.mkdir(parents=True)
    trainer = {
        "dict_class": "AutoEncoderTopK",
        "activation_dim": sae.d_model,
        "dict_size": sae.d_sae,
        "k": sae.k,
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save(
        {
            "encoder.weight": sae.W_enc.T.contiguous(),
            "encoder.bias": sae.b_enc,
            "decoder.weight": sae.W_dec.T.contiguous(),
            "b_dec": sae.b_dec,
        },
        folder / "ae.pt",
    )


def to_batch_topk(sae, folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"sae_type": "topk", "act_size": sae.d_model, "dict_size": sae.d_sae, "top_k": sae.k}
        )
    )
    torch.save(sae.weights, folder / "sae.pt")


FORMATS = [to_saelens, to_sparsify, to_dictionary_learning, to_batch_topk]


def folder_of(run, seed):
    return run.file.parent / "published" / f"seed{seed}"


def random_sae(run, seed, **more):
    sae = TopKSAE(**({"d_model": 16, "d_sae": run.sae.d_sae, "k": run.sae.k, "seed": seed} | more))
    sae.b_dec += 0.1 * torch.randn(sae.d_model, generator=torch.Generator().manual_seed(seed))
    return sae


@pytest.fixture
def published(make_run):
    """published(**changes): a run that trains nothing, with random SAEs for `text` in SAELens'
    layout.
    """

    def make(**changes):
        plain = make_run()
        for seed in plain.sae.seeds:
            sae = random_sae(plain, seed)
            sae.metadata |= {"model": plain.model, "layer": plain.layer}
            sae.save(folder_of(plain, seed))
        return make_run({"sae.train_on": ["text"], "sae.published": {"text": HERE}, **changes})

    return make


# --- the same results as from training ------------------------------------------------------------


@pytest.mark.parametrize("write", FORMATS)
def test_published_saes_give_what_the_trained_ones_gave(make_run, write):
    run = make_run({"sae.train_on": ["text"]})
    lm = open_model(run)
    train_all(run, lm)
    place = run.artifacts / "saes" / "text"
    if write == to_batch_topk:  # their topk has no b_enc
        for seed in run.sae.seeds:
            sae = load_sae(place / f"seed{seed}")
            sae.b_enc.zero_()
            sae.save(place / f"seed{seed}")
        summary = read_rows(run, "saes")
        summary.assign(
            weights=[
                file_hash(place / f"seed{s}" / "sae_weights.safetensors") for s in run.sae.seeds
            ]
        ).to_csv(run.artifacts / "rows" / "saes.csv", index=False)
    trained = load_saes(run, lm)
    sfr, matching, _ = seed_comparison(run, trained, lm)
    rows = {
        name: (run.artifacts / "rows" / f"{name}.csv").read_bytes() for name in ("sfr", "matching")
    }
    for (_, seed), sae in trained.items():
        write(sae, folder_of(run, seed))
    remove(run.artifacts / "saes")

    again = make_run({"sae.train_on": ["text"], "sae.published": {"text": HERE}})
    refuse(problems([again]))
    train_all(again, lm)
    read = load_saes(again, lm)
    for key, sae in trained.items():
        assert all(torch.equal(sae.weights[name], read[key].weights[name]) for name in sae.weights)
        assert read[key].k == sae.k
    sfr_again, matching_again, _ = seed_comparison(again, read, lm)
    if write == to_saelens:  # which stores the firing frequencies, too: every byte
        assert {
            name: (again.artifacts / "rows" / f"{name}.csv").read_bytes() for name in rows
        } == rows
    measured_anew = ["sfr_alive", "dead", "firing", "alive_both"]
    for before, after in ((sfr, sfr_again), (matching, matching_again)):
        assert before.drop(columns=measured_anew, errors="ignore").equals(
            after.drop(columns=measured_anew, errors="ignore")
        )


@pytest.mark.parametrize("max_norm", [None, 1.1])
def test_what_is_measured_is_what_the_formulas_say(published, max_norm):
    run = published(**{"sae.tokens": 1000, "sae.lm_batch_rows": 3, "sae.max_norm": max_norm})
    lm = open_model(run)
    _, summary = train_all(run, lm)
    rows = np.asarray(corpus(run, "text", lm).train, dtype=np.int64)
    everywhere = lm.activations(torch.from_numpy(rows))[torch.from_numpy(rows) != BOS].double()
    x = everywhere[:100]  # a tenth of 1000
    if max_norm:
        limit = max_norm * everywhere.norm(dim=1).quantile(0.5, interpolation="lower")
        x = x[x.norm(dim=1) <= limit]
        assert 0 < len(x) < 100
    for record in summary.itertuples():
        sae = load_sae(run.artifacts / "saes" / "text" / f"seed{record.seed}")
        w = {name: value.double() for name, value in sae.weights.items()}
        p = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp(min=0)
        z = p * (p >= p.topk(run.sae.k).values[:, -1:])
        error = (x - z @ w["W_dec"] - w["b_dec"]).pow(2).sum()
        variance = len(x) * x.var(0, correction=0).sum()
        assert record.fvu == pytest.approx((error / variance).item(), rel=1e-5)
        assert record.l0 == pytest.approx((z > 0).sum().item() / len(x))
        assert record.dead == (z == 0).all(0).sum()
        np.testing.assert_allclose(sae.firing, (z > 0).double().mean(0), atol=1e-6)
        assert record.source == f"published/seed{record.seed}"
        assert pd.isna(record.tokens)
        assert pd.isna(record.distinct_tokens)


def test_firing_frequencies_that_were_published_are_kept_to_the_last_digit(published):
    run = published()
    for seed in run.sae.seeds:
        sae = random_sae(run, seed)
        sae.firing = torch.rand(run.sae.d_sae, generator=torch.Generator().manual_seed(seed)) ** 3
        sae.save(folder_of(run, seed))
    train_all(run, open_model(run))
    for seed in run.sae.seeds:
        files = [
            place / "sparsity.safetensors"
            for place in (folder_of(run, seed), run.artifacts / "saes" / "text" / f"seed{seed}")
        ]
        assert torch.equal(*(load_file(file)["sparsity"] for file in files))


def test_nothing_but_bos_to_measure_on(lm):
    with pytest.raises(ValueError, match="nothing but BOS"):
        measure([], lm, np.zeros((3, 1), np.int64), 10, False, 2, 10)


def test_a_run_that_trains_some_and_reads_some(published, make_run):
    mixed = published(
        **{
            "sae.train_on": ["faithful", "text"],
            "corpora.faithful": {"role": "faithful", "path": "text.jsonl", "text_key": "text"},
        }
    )
    lm = open_model(mixed)
    curves, summary = train_all(mixed, lm)
    rows = {
        name: (mixed.artifacts / "rows" / f"{name}.csv").read_text().splitlines()
        for name in ("training", "saes")
    }
    assert summary.set_index(["corpus", "seed"]).tokens.notna().tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert curves.groupby("corpus", sort=False).tokens.apply(
        lambda tokens: tokens.notna().all()
    ).tolist() == [True, False]
    figure = plots.training(latent_data.training(curves))
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-", "--"}
    table = tables.corpora_table([mixed]).set_index("name")
    assert table["training tokens"].notna().to_dict() == {
        "faithful": True,
        "text": False,
        "parity": False,
    }
    assert table.loc["text", "SAEs from"] == HERE["path"]
    here = tables.table5([mixed]).iloc[0]
    assert (here.corpora, here.published, here.tokens, here.lr) == (
        "faithful",
        "text",
        400,
        "0.001",
    )
    assert profile_note([mixed]).endswith("SAE recipe: as published, default.")
    alone = make_run(
        {
            "sae.train_on": ["faithful"],
            "corpora.faithful": {"role": "faithful", "path": "text.jsonl", "text_key": "text"},
        }
    )
    stamp = (alone.artifacts / "saes" / "faithful" / "provenance.json").stat().st_mtime_ns
    train_all(alone, lm)  # the key of a training knows nothing of what is read beside it
    assert (alone.artifacts / "saes" / "faithful" / "provenance.json").stat().st_mtime_ns == stamp
    for name, lines in rows.items():  # and its rows are the same bytes
        alone_lines = (alone.artifacts / "rows" / f"{name}.csv").read_text().splitlines()
        assert lines[: len(alone_lines)] == alone_lines


def test_a_table_claims_nothing_of_saes_that_others_trained(published):
    run = published()
    here = tables.table5([run]).iloc[0]
    assert here[["lr", "tokens", "recipe", "corpora"]].isna().all()
    assert here.published == "text"
    assert here.d_sae == 24
    assert profile_note([run]).endswith("SAE recipe: as published.")


def test_a_threshold_instead_of_k_runs_through_every_measure(published, capsys):
    run = published()
    for seed in run.sae.seeds:
        sae = random_sae(run, seed)
        sae.k = None
        sae.threshold = torch.full((run.sae.d_sae,), 0.8)
        sae.normalisation = "layer_norm"
        sae.save(folder_of(run, seed))
    refuse(problems([run]))
    lm = open_model(run)
    train_all(run, lm)
    assert (
        "note: text, seed 42: keeps the latents above a threshold, not the k largest; sae.k = 4 "
        "is not its own" in capsys.readouterr().out
    )
    saes = load_saes(run, lm)
    seed_comparison(run, saes, lm)
    every = pd.DataFrame({"token_id": range(lm.vocab_size), "count": 1})
    write_rows(run, "first_token", every)
    fake_features(run, saes, lm)
    fidelity_matrix(run, saes, lm)
    probed = probe_tasks(run, saes, lm)
    assert set(probed.representation) == {"baseline", "likelihood", "sae", "reconstruction"}
    x = lm.activations(torch.arange(2, 40)[None])[0]
    above = saes["text", 42].encode(x)
    assert above[above > 0].min() > 0.8
    assert (above > 0).sum(-1).max() > run.sae.k


def test_another_file_or_another_measure_is_read_again_and_nothing_else(published, monkeypatch):
    run = published()
    lm = open_model(run)
    stamp = run.artifacts / "saes" / "text" / "provenance.json"
    train_all(run, lm)
    before = stamp.stat().st_mtime_ns
    train_all(run, lm)
    assert stamp.stat().st_mtime_ns == before
    random_sae(run, 7).save(folder_of(run, 42))
    train_all(run, lm)
    after = stamp.stat().st_mtime_ns
    assert after > before
    record = json.loads(stamp.read_text())
    assert record["inputs"]["seed42"] == [
        "published/seed42",
        {
            "sae_weights.safetensors": file_hash(folder_of(run, 42) / "sae_weights.safetensors"),
            "cfg.json": file_hash(folder_of(run, 42) / "cfg.json"),
        },
    ]
    monkeypatch.setattr(
        "faithful_sae.runs.keys.code_hash",
        lambda *modules: "changed" if "sae/formats/saelens" in modules else code_hash(*modules),
    )
    train_all(run, lm)
    assert stamp.stat().st_mtime_ns > after


def test_the_files_are_inputs_of_their_corpus_alone_and_so_is_the_key(published, make_run):
    run = published()
    files = {str(file) for seed in run.sae.seeds for file in folder_of(run, seed).iterdir()}
    (name,) = run.published
    assert len(files) == 4
    assert files <= set(corpus_inputs(run, name))
    assert not files & set(stage_inputs(run, stages()["03_sfr"]))
    training = writer("saes")
    for other in set(run.sae.train_on) - {name}:
        assert not files & set(corpus_inputs(run, other))
        assert corpus_settings(run, other) != corpus_settings(run, name)
    assert workflow_settings(run, training) != workflow_settings(make_run(), training)


def test_a_file_stands_for_the_folder_of_an_sae(published):
    run = published()
    there = {"path": HERE["path"] + "/sae_weights.safetensors"}
    named = published(**{"sae.published": {"text": there}})
    assert corpus_inputs(named, "text") == corpus_inputs(run, "text")
    assert locate(named, "text", run.sae.seeds[0])[0] == locate(run, "text", run.sae.seeds[0])[0]


# --- refused --------------------------------------------------------------------------------------


def edit_config(folder, **changes):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "sae_weights.safetensors")
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "sae_weights.safetensors",
    )


def told(folder, **metadata):
    edit_config(
        folder, metadata=json.loads((folder / "cfg.json").read_text())["metadata"] | metadata
    )


def no_latents(folder):
    remove(folder)
    to_sparsify(TopKSAE(16, 24, 4, 0), folder)
    edit_config(folder, num_latents=0, expansion_factor=0)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_code(folder):
    remove(folder)
    to_dictionary_learning(TopKSAE(16, 24, 4, 0), folder)
    torch.save({"encoder.weight": Evil(folder.parent / "executed")}, folder / "ae.pt")


def of_another_size(folder, **sizes):
    remove(folder)
    TopKSAE(**({"d_model": 16, "d_sae": 24, "k": 4, "seed": 0} | sizes)).save(folder)


REFUSED = {
    "empty folder": (lambda f: (remove(f), f.mkdir()), "no SAE here"),
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop("W_dec")),
        "tensor W_dec is missing",
    ),
    "wrong orientation": (
        lambda f: edit_tensors(f, lambda t: t.update(W_dec=t["W_dec"].T)),
        "W_dec is [16, 24], transposed",
    ),
    "configuration against weights": (
        lambda f: edit_config(f, d_sae=25),
        "W_enc is [16, 24]; by cfg.json it is [16, 25]",
    ),
    "truncated": (lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x09"), "truncated"),
    "another hook point": (
        lambda f: told(f, hook_name="blocks.2.hook_resid_pre"),
        "reads blocks.2.hook_resid_pre, but the profile",
    ),
    "the block's output": (
        lambda f: told(f, hook_name="blocks.1.hook_resid_post"),
        "reads blocks.1.hook_resid_post",
    ),
    "another model": (
        lambda f: told(f, model_name="gpt2", model=None),
        "was made for the model gpt2",
    ),
    "no latents": (no_latents, "num_latents = 0 must be a whole number above 0"),
    "a pickle with code": (with_code, "not opened, since it is damaged or holds more than tensors"),
    "another width": (
        lambda f: of_another_size(f, d_model=20),
        "takes activations of width 20, but those of",
        "are 16 wide",
    ),
    "another d_sae": (
        lambda f: of_another_size(f, d_sae=30),
        "has d_sae = 30",
        "says sae.d_sae = 24: write 30 there",
    ),
    "another k": (lambda f: of_another_size(f, k=3), "has k = 3", "says sae.k = 4"),
    "one SAE for two seeds": (
        lambda f: (remove(f), shutil.copytree(f.with_name("seed42"), f)),
        "holds the weights of",
        "two seeds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_sae_that_does_not_fit_is_refused_before_any_work(published, case):
    damage, *words = REFUSED[case]
    run = published()
    refuse(problems([run]))
    damage(folder_of(run, 49))
    with pytest.raises(ParamsError) as error:
        refuse(problems([run]))
    message = str(error.value)
    assert message.startswith(f"{run.file}: sae.published.text: {folder_of(run, 49)}")
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (run.file.parent / "published" / "executed").exists()
    assert not run.artifacts.exists()
    with pytest.raises(SAEError):  # and by the notebook, where the folder was damaged after that
        train_all(run, open_model(run))


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"path": "published/seed42"}, "holds no {seed}: all seeds would be one SAE"),
        ({"path": "elsewhere/seed{seed}"}, ".path = 'elsewhere/seed{seed}': no such folder"),
        ({"path": "a{seed}", "hub": "a/b"}, "must have exactly one of path, hub; it has path, hub"),
        ({"revision": "{seed}"}, "must have exactly one of path, hub; it has none"),
        ({"hub": "a/b", "folder": "seed{seed}"}, ".revision is missing"),
        (
            {"hub": "a/b", "revision": "main", "folder": "../seed{seed}"},
            "must be a path inside the repository",
        ),
        (
            {"path": "published/seed{seed}", "revision": "main"},
            "has a path, so revision and folder must be left out",
        ),
        (
            {"path": "published/seed{seed}", "folders": "x"},
            "unknown key sae.published.text.folders: did you mean",
        ),
    ],
)
def test_entries_that_are_wrong(published, make_run, entry, words):
    file = published().file
    with pytest.raises(ParamsError) as error:
        make_run({"sae.published": {"text": entry}})
    assert str(error.value).startswith(f"{file}: ")
    assert "sae.published.text" in str(error.value)
    assert words in str(error.value)


def test_a_corpus_that_is_not_trained_on(make_run):
    with pytest.raises(
        ParamsError, match=r"sae.published.tex is not in sae.train_on \(faithful, text\)"
    ):
        make_run({"sae.published": {"tex": HERE}})


# --- the Hub --------------------------------------------------------------------------------------

ENTRY = {"hub": "pub/saes", "revision": "main", "folder": "runs/layers.0/seed{seed}"}


@pytest.fixture
def repository(published):
    """The folder of a repository with sparsify's layout: runs/{config.json, layers.0/seed<n>};
    block 0's output is block 1's input.
    """
    run = published()
    root = run.file.parent.parent / "repository"
    for seed in run.sae.seeds:
        to_sparsify(random_sae(run, seed), root / "runs" / "layers.0" / f"seed{seed}")
        (root / "runs" / "layers.0" / f"seed{seed}" / "optimizer.pt").write_bytes(
            b"not to be fetched"
        )
    (root / "runs" / "config.json").write_text(json.dumps({"model": "tiny/llama"}))
    return root


@pytest.fixture
def cache(repository, tmp_path, monkeypatch):
    """A Hub cache with that repository at OLD; HF_HUB_OFFLINE is 1 in all tests (conftest)."""
    root = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    shutil.copytree(repository, root / "models--pub--saes" / "snapshots" / OLD)
    (root / "models--pub--saes" / "refs").mkdir()
    (root / "models--pub--saes" / "refs" / "main").write_text(OLD)
    return root / "models--pub--saes"


def test_saes_of_the_hub_are_those_of_the_folder_at_one_commit(make_run, cache, repository):
    run = make_run({"sae.train_on": ["text"], "sae.published": {"text": ENTRY}})
    refuse(problems([run]))
    refuse(hub_problems([run]))
    lm = open_model(run)
    _, summary = train_all(run, lm)
    assert summary.source.tolist() == [
        f"pub/saes/runs/layers.0/seed{seed} at {OLD}" for seed in (42, 49)
    ]
    assert run.hub.commits() == {"model pub/saes main": OLD}
    for (_, seed), sae in load_saes(run, lm).items():
        folder = load_sae(repository / "runs" / "layers.0" / f"seed{seed}")
        assert all(torch.equal(sae.weights[name], folder.weights[name]) for name in sae.weights)
        assert sae.metadata["seed"] == seed
    (cache / "refs" / "main").write_text("b" * 40)  # moved: the profile stays
    train_all(run, lm)
    assert json.loads((run.artifacts / "saes" / "text" / "provenance.json").read_text())["inputs"][
        "seed42"
    ][0].endswith(OLD)


def test_what_can_be_wrong_with_saes_of_the_hub(make_run, cache):
    def refused(*words, **entry):
        run = make_run({"sae.train_on": ["text"], "sae.published": {"text": ENTRY | entry}})
        with pytest.raises(ParamsError) as error:
            refuse(hub_problems([run]))
        assert str(error.value).startswith(f"{run.file}: sae.published.text: ")
        assert "\n" not in str(error.value)
        assert all(word in str(error.value) for word in words), str(error.value)

    refused(
        "pub/saes: no SAE in runs/layers.9/seed42 at",
        "it has none of sae_weights.safetensors",
        folder="runs/layers.9/seed{seed}",
    )
    refused("pub/none: the Hub cannot be reached", hub="pub/none")
    (cache / "snapshots" / OLD / "runs" / "config.json").write_text(
        json.dumps({"model": "tiny/gpt2"})
    )
    refused("was made for the model tiny/gpt2, but the profile's is")
    (cache / "snapshots" / OLD / "runs" / "layers.0").rename(
        cache / "snapshots" / OLD / "runs" / "layers.1"
    )
    refused("reads blocks.1.hook_resid_post", folder="runs/layers.1/seed{seed}")


def test_a_server_is_asked_for_the_saes_alone_and_its_errors_are_one_line(
    make_run, repository, model_folders, tmp_path, root
):
    repositories = {
        ("model", "pub/saes"): Repository({OLD: repository}, {"main": OLD}),
        ("model", "shut/saes"): Repository({OLD: repository}, {"main": OLD}, gated=True),
    }
    cases = [
        ({}, "ok"),
        ({"hub": "pub/none"}, "sae.published.text: pub/none: no such model on the Hub"),
        ({"revision": "seeds"}, "sae.published.text: pub/saes: this model has no revision 'seeds'"),
        ({"folder": "seed{seed}"}, "sae.published.text: pub/saes: no SAE in seed42 at"),
        ({"hub": "shut/saes"}, "sae.published.text: shut/saes: a gated model: accept its licence"),
    ]
    files = [
        make_run(
            {"sae.train_on": ["text"], "sae.published": {"text": ENTRY | changes}}, name=f"case{i}"
        ).file
        for i, (changes, _) in enumerate(cases)
    ]
    with serve(repositories) as server:
        said = check(files, server, root, tmp_path / "home")
    for (_, start), line in zip(cases, said, strict=True):
        assert line.startswith(start), line
    assert not any("optimizer" in path for path in server.asked)


# --- notebooks ------------------------------------------------------------------------------------


def test_notebooks_02_and_03_with_nothing_to_train(published):
    run = published()
    for notebook in ("02_train_sae", "03_sfr"):
        execute(notebook, params=str(run.file))
    assert (run.figures / "training_tiny.png").stat().st_size > 0
    assert (run.figures / "cosines_tiny.png").stat().st_size > 0
    data = pd.read_csv(run.figures / "training_tiny.csv")
    assert data.seeds.tolist() == [2]
    assert data.tokens.isna().all()
    assert data[["fvu", "l0", "dead"]].notna().all(axis=None)
    made = json.loads((run.figures / "training_tiny.provenance.json").read_text())
    assert made["parameters"]["tiny"]["sae"]["published"]["text"]["path"] == HERE["path"]


def test_the_workflow_plans_them(published):
    """Its settings hold `{seed}`, which Snakemake would take for a wildcard of its own."""
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
            "1",
            "--config",
            f"profile={published().file.parent}",
            "engine=local",
            "--dry-run",
            "--quiet",
            "rules",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (
        result.returncode == 0 and "02_train_sae" in result.stdout and "07_paper" in result.stdout
    ), result.stderr[-2000:]
