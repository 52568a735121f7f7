"""The stages on a tiny model: what exists is reused, what is damaged is refused or made again, and
order matters.
"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from conftest import EVALUATION, TEXT
from faithful_sae.engine.plan import paper_inputs, stage_exhibits
from faithful_sae.files import DiskFullError, MissingInputError, remove
from faithful_sae.paper.plots.paper import activation_norms as draw_norms
from faithful_sae.runs.keys import settings
from faithful_sae.runs.params import load_params
from faithful_sae.runs.registry import profile_stage
from faithful_sae.runs.rows import read_rows, rows_file, write_rows
from faithful_sae.sae.sae import SAEError, TopKSAE
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model, pretraining_counts, train_embedded_model
from faithful_sae.stages.s03_sfr import heldout_activations, seed_comparison
from faithful_sae.stages.s04_ffr import fake_features
from faithful_sae.stages.s05_fidelity import fidelity_matrix
from faithful_sae.stages.s06_probing import probe_tasks
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import (
    activation_cache,
    activation_norms,
    massive_activations,
    train_all,
)
from faithful_sae.text.packing import pack, tokenize

TEXT = {"role": "pile", "path": "text.jsonl", "text_key": "text"}
FIDELITY = {"fidelity.corpora": ["named"]}


@pytest.fixture
def trained(make_run):
    run = make_run()
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    return run, lm


def stamp(run, name):
    return (run.artifacts / "saes" / name / "provenance.json").stat().st_mtime_ns


def test_training_again_reuses_what_is_there_and_a_new_corpus_leaves_the_old_ones_alone(trained):
    run, lm = trained
    before = stamp(run, "text"), stamp(run, "faithful")
    train_all(run, lm)
    assert (stamp(run, "text"), stamp(run, "faithful")) == before
    train_all(run.changed(sae=run.sae.changed(train_on=("text",))), lm)
    assert stamp(run, "text") == before[0]
    train_all(run.changed(sae=run.sae.changed(lr=0.002)), lm)
    assert stamp(run, "text") > before[0]


@pytest.mark.parametrize("name", ["2023", "007", "1e3", "True", "NA", "nan"])
def test_a_corpus_may_be_called_like_a_number(make_run, name):
    file = make_run({"corpora": {"named": TEXT}, "sae.train_on": ["named"], **FIDELITY}).file
    file.write_text(
        file.read_text().replace("- named", f"- '{name}'").replace("named:", f"{name}:")
    )
    run = load_params(file)
    lm = open_model(run)
    train_all(run, lm)
    assert list(load_saes(run, lm)) == [(name, 42), (name, 49)]
    seed_comparison(run, load_saes(run, lm), lm)
    assert read_rows(run, "sfr").corpus.tolist() == [name]


def test_rows_come_back_as_they_were_written(make_run):
    run = make_run()
    rows = pd.DataFrame({"corpus": ["01", None], "task": ["a", "b"], "x": [1.5, None], "n": [1, 2]})
    write_rows(run, "sfr", rows)
    pd.testing.assert_frame_equal(read_rows(run, "sfr"), rows)


def test_kept_activations_give_the_same_saes_and_are_bound_to_their_parameters(
    make_run, monkeypatch
):
    run = make_run({"sae.tokens": 900})
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    file = run.artifacts / "saes" / "text" / "seed42" / "sae_weights.safetensors"
    kept = run.artifacts / "activations"
    before = file.read_bytes()
    remove(run.artifacts / "saes")
    caching = run.changed(sae=run.sae.changed(cache_activations=True))
    train_all(caching, lm)
    assert file.read_bytes() == before
    assert load_saes(run, lm)
    assert {f.name.rpartition("-")[0] for f in kept.iterdir()} == {"text-layer1", "faithful-layer1"}
    first = set(kept.iterdir())
    train_all(caching.changed(sae=caching.sae.changed(lr=0.002)), lm)
    assert set(kept.iterdir()) == first
    rows = corpus(run, "text", lm)
    folders = set()
    changes = ({"buffer_tokens": 64}, {"lm_batch_rows": 4}, {"include_bos": True})
    for changed in (
        caching,
        caching.changed(layer=0),
        caching.changed(threads=2),
        *(caching.changed(sae=caching.sae.changed(**change)) for change in changes),
    ):
        folders.add(activation_cache(changed, "text", rows, lm).folder)
    folders.add(
        activation_cache(caching, "text", dataclasses.replace(rows, key="another"), lm).folder
    )
    with monkeypatch.context() as patch:
        patch.setattr("faithful_sae.stages.training.model_key", lambda run: "another")
        folders.add(activation_cache(caching, "text", rows, lm).folder)
    assert len(folders) == 8
    train_all(caching, lm)
    first = set(kept.iterdir())
    other = caching.changed(sae=caching.sae.changed(data_seed=1))
    train_all(other, lm)
    assert len(set(kept.iterdir())) == 2
    assert not set(kept.iterdir()) & first
    rows = corpus(run, "text", lm)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=rows.train.size * lm.d_model * 4)
    )
    activation_cache(other, "text", rows, lm)  # most of it is there already
    remove(kept)
    with pytest.raises(
        DiskFullError, match=r"keeping the activations of text .sae\.cache_activations. needs"
    ):
        activation_cache(run, "text", rows, lm)


def test_massive_activations_are_counted_listed_and_the_same_when_kept(make_run):
    """A limit near the median, so that a tiny model has some above it."""
    run = make_run({"sae.max_norm": 1.1, "sae.train_on": ["text"]})
    lm = open_model(run)
    _, summary = train_all(run, lm)
    listed = massive_activations(run, "text")
    assert summary.massive.tolist() == [len(listed)] * 2
    assert len(listed) > 0
    assert (listed.norm > summary.norm_limit[0]).all()
    rows = corpus(run, "text", lm).train
    x = lm.activations(torch.tensor(rows.astype(np.int64)))
    norms = x.norm(dim=-1).numpy()[listed.row, listed.position]
    np.testing.assert_allclose(norms, listed.norm, rtol=1e-5)
    assert (rows[listed.row, listed.position] == listed.token).all()
    saes = load_saes(run, lm)
    assert saes["text", 42].metadata["norm_limit"] == summary.norm_limit[0]
    file = run.artifacts / "saes" / "text" / "seed42" / "sae_weights.safetensors"
    before = file.read_bytes()
    for _ in range(2):  # computed, then read
        remove(run.artifacts / "saes")
        train_all(run.changed(sae=run.sae.changed(cache_activations=True)), lm)
        assert file.read_bytes() == before
        assert massive_activations(run, "text").equals(listed)
    table = fidelity_matrix(run, saes, lm)
    assert (table.massive > 0).all()
    assert (table.explained_variance_moderate != table.explained_variance).all()
    with pytest.raises(SAEError, match=r"was made with sae\.max_norm = 1\.1, but .* says None"):
        load_saes(run.changed(sae=run.sae.changed(max_norm=None)), lm)


def test_latents_are_correlated_on_moderate_activations(make_run):
    run = make_run({"sae.max_norm": 1.1})
    lm = open_model(run)
    every = heldout_activations(run.changed(sae=run.sae.changed(max_norm=None)), "text", lm, 200)
    norms = every.norm(dim=-1)
    moderate = every[norms <= 1.1 * norms.quantile(0.5, interpolation="lower")]
    assert 0 < len(moderate) < len(every)
    assert torch.equal(heldout_activations(run, "text", lm, 200), moderate)


def test_keys_without_max_norm_are_as_before_it(make_run):
    run = make_run()
    assert "max_norm" not in settings(run, ("sae",))["sae"]
    assert settings(make_run({"sae.max_norm": 10.0}), ("sae",))["sae"]["max_norm"] == 10.0


@pytest.mark.parametrize("max_norm", [None, 1.1])
def test_norms_by_position_and_in_all(make_run, max_norm):
    run = make_run({"sae.max_norm": max_norm})
    lm = open_model(run)
    norms = activation_norms(run, "text", lm)
    rows = corpus(run, "text", lm).train[:64].astype(np.int64)
    by_hand = lm.activations(torch.tensor(rows)).norm(dim=-1).double().numpy()
    by_hand /= np.median(by_hand[rows != lm.bos_id])
    places = norms.loc[norms.kind == "position"]
    np.testing.assert_allclose(places.largest, by_hand.max(0), rtol=1e-5)
    np.testing.assert_allclose(places["median"], np.median(by_hand, 0), rtol=1e-5)
    assert norms.tokens.sum() == (rows != lm.bos_id).sum()
    assert isinstance(draw_norms(norms), Figure)


def test_a_short_corpus_is_said_and_bounded_by_max_epochs(make_run, capsys):
    run = make_run({"sae.tokens": 5000, "sae.max_epochs": 2})
    lm = open_model(run)
    make_faithful(run, lm)
    _, summary = train_all(run, lm)
    said = capsys.readouterr().out
    rows = corpus(run, "text", lm).train
    assert "note: text:" in said
    assert "sae.max_epochs = 2" in said
    text = summary[summary.corpus == "text"].iloc[0]
    assert text.distinct_tokens == (np.asarray(rows) != lm.bos_id).sum()
    assert text.tokens == 2 * text.distinct_tokens


def test_notebooks_opened_too_early_name_the_one_before(make_run):
    run = make_run()
    with pytest.raises(MissingInputError, match="02_train_sae"):
        load_saes(run)
    with pytest.raises(MissingInputError, match="01_generate_faithful"):
        corpus(run, "faithful", open_model(run))


def test_other_faithful_text_than_the_parameters_say_is_refused(trained):
    run, lm = trained
    other = run.changed(generate=run.generate.changed(temperature=2.0))
    with pytest.raises(MissingInputError, match="other parameters"):
        corpus(other, "faithful", lm)


def replace_sae(run, **sizes):
    sae = TopKSAE(**({"d_model": 16, "d_sae": 24, "k": 4, "seed": 42} | sizes))
    sae.metadata |= {"layer": run.layer}
    sae.save(run.artifacts / "saes" / "text" / "seed42")


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"d_model": 20}, "width 20"),
        ({"d_sae": 30}, "sae.d_sae = 30"),
        ({"k": 2}, "sae.k = 2"),
        ({}, "not those 02_train_sae wrote"),
    ],
)
def test_a_foreign_sae_is_refused(trained, sizes, words):
    run, lm = trained
    width = {"d_model": lm.d_model} | sizes
    replace_sae(run, **width)
    with pytest.raises(SAEError, match=words):
        load_saes(run, lm)


def test_a_truncated_sae_is_refused_and_training_again_restores_the_same_bytes(trained):
    run, lm = trained
    file = run.artifacts / "saes" / "text" / "seed49" / "sae_weights.safetensors"
    original = file.read_bytes()
    file.write_bytes(original[:-100])
    with pytest.raises(SAEError, match="truncated"):
        load_saes(run, lm)
    train_all(run, lm)
    assert file.read_bytes() == original


def test_rows_are_the_public_functions_values(trained):
    from faithful_sae import fake_feature_ratio, fidelity, shared_feature_ratio

    run, lm = trained
    saes = load_saes(run, lm)
    sfr, *_ = seed_comparison(run, saes, lm)
    a, b = saes["text", 42], saes["text", 49]
    row = sfr[sfr.corpus == "text"].iloc[0]
    assert row.sfr == shared_feature_ratio(a, b)
    assert row.sfr_encoder_decoder == shared_feature_ratio(a, b, criterion="encoder+decoder")
    written = pd.DataFrame({"token_id": range(lm.vocab_size), "count": 1})
    write_rows(run, "first_token", written)
    ffr, _ = fake_features(run, saes, lm)
    assert ffr.set_index(["corpus", "seed"]).ffr["text", 42] == fake_feature_ratio(
        a, lm, 500, 0.1, 0.0, 0, run.sequence_length
    )
    rows = fidelity_matrix(run, saes, lm)
    mine = rows[(rows.trained_on == "text") & (rows.seed == 42) & rows.include_bos].iloc[0]
    whole = fidelity(a, lm, corpus(run, "text", lm).heldout[: run.fidelity.rows])
    for name, value in vars(whole).items():
        assert mine[name] == pytest.approx(value, rel=1e-6), name
    probing = probe_tasks(run, saes, lm)
    assert set(probing.representation) == {"baseline", "likelihood", "sae", "reconstruction"}
    assert len(probing) == 2 + 2 * len(saes)


def test_probing_rows_say_what_guessing_gives_and_which_texts_were_right(trained):
    run, lm = trained
    probing = probe_tasks(run, load_saes(run, lm), lm)
    pd.testing.assert_frame_equal(read_rows(run, "probing"), probing)
    # train and test are the same 40 texts, half of them odd
    assert set(probing.chance) == {0.5}
    assert set(probing.majority) == {0.5}
    assert set(probing.near_copies) == {1.0}
    texts = read_rows(run, "probing_texts")
    one = ["task", "corpus", "seed", "representation"]
    pd.testing.assert_frame_equal(texts[one], probing[one])
    assert set(map(len, texts.correct)) == {40}
    for correct, accuracy in zip(texts.correct, probing.accuracy, strict=True):
        assert correct.count("1") / 40 == pytest.approx(accuracy)
        assert correct.count("0") == 40 - correct.count("1")


def test_only_the_seeds_asked_for_are_probed(trained):
    run, lm = trained
    whole = probe_tasks(run, load_saes(run, lm), lm)
    fewer = run.changed(probing=run.probing.changed(seeds=(49,)))
    assert list(load_saes(fewer, lm, seeds=fewer.probing.seeds)) == [("faithful", 49), ("text", 49)]
    some = probe_tasks(fewer, load_saes(fewer, lm), lm)
    expected = whole[whole.seed.isna() | (whole.seed == 49)].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)


def test_text_of_a_model_with_the_same_tokenizer_keeps_its_ids(make_run):
    own = make_run(name="own")
    make_faithful(own, open_model(own))
    run = make_run({"corpora.other": {"role": "faithful-other", "faithful": "own"}}, name="tiny")
    lm = open_model(run)
    same = corpus(run, "other", lm)
    first = corpus(load_params(own.file), "faithful", open_model(own))
    np.testing.assert_array_equal(
        np.asarray(same.train), np.asarray(first.train)
    )  # one tokenizer: the ids as they were sampled


def test_rows_keep_every_character_of_a_text(make_run):
    run = make_run({})
    texts = ["\r", "a\nb", '"', "", ",", "\r\n", "é"]
    write_rows(run, "dataset", pd.DataFrame({"token": texts, "count": range(7)}))
    back = read_rows(run, "dataset")
    assert back.token.fillna("").tolist() == texts


def test_held_out_rows_of_the_pretraining_text_are_new_to_the_model(make_run):
    """Of 100 rows the model is trained on 80; the corpus holds more of the text than these."""
    sizes = {"vocab_size": 300, "d_model": 16, "d_mlp": 32, "n_layers": 2, "n_heads": 2}
    steps = {"steps": 2, "batch_rows": 2, "lr": 1e-3, "warmup_steps": 1, "weight_decay": 0.0}
    model = {"corpus": "text", "architecture": "llama", "context": 16, "train_tokens": 1280}
    run = make_run(
        {
            "model": "embedded",
            "embedded": sizes | steps | model | {"seed": 0},
            "corpora.text.role": None,
            "corpus_tokens": 1900,
        }
    )
    train_embedded_model(run)
    lm = open_model(run)
    rows = corpus(run, "text", lm)
    lines = run.resolve("text.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    own = pack(tokenize(texts, lm.tokenizer), lm.bos_id, 16, 1600)
    assert np.array_equal(rows.heldout, own[80:][: len(rows.heldout), :12])
    assert pretraining_counts(run).tolist() == np.bincount(own[:80].ravel(), minlength=300).tolist()
    # 80 rows of 15 tokens are 1,200: 109 rows of 11 lie wholly in them
    seen = own[:80, 1:].ravel()
    assert np.array_equal(rows.train[:, 1:].ravel(), seen[: 109 * 11])


def test_answers_are_waited_for_where_they_are_asked_for(make_run):
    """And 07 promises no table of them."""
    run = make_run({"corpora.other": TEXT, "evaluation": EVALUATION})
    rows = str(rows_file(run, "interpretation"))
    assert rows not in paper_inputs([run])
    assert rows in paper_inputs([run], studies=["evaluation"])
    tables = [Path(path).stem for path in stage_exhibits(run, profile_stage())]
    assert "claims" in tables
    assert not {"open_questions", "evaluation_summary"} & {*tables}
