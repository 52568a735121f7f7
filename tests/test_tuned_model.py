"""A model and what it becomes: effects by hand, what is kept against numpy, the study on a tiny
model, and verdicts on planted numbers.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import BOS
from faithful_sae import fidelity, shared_feature_ratio
from faithful_sae.metrics.generalisation import fine_tuned
from faithful_sae.metrics.tuned_model import effects, kept, mean_active
from faithful_sae.paper import tuned_model as shown
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s20_tuned_model import (
    cells,
    folder,
    measure_cells,
    train_cells,
    tune,
    write_texts,
)
from faithful_sae.stages.training import train_all

CELLS = [*itertools.product(("base", "tuned"), ("base", "tuned"))]

# --- effects --------------------------------------------------------------------------------------


def test_effects_are_those_of_least_squares():
    """y = mean + model a + text b + interaction c, with -1/2 and 1/2 for base and tuned."""
    y = dict(zip(CELLS, (0.3, 0.4, 0.8, 0.2), strict=True))
    signs = np.array([[-1 if name == "base" else 1 for name in cell] for cell in CELLS]) / 2
    design = np.column_stack([np.ones(4), *signs.T, 2 * signs[:, 0] * signs[:, 1]])
    _, *expected = np.linalg.lstsq(design, np.array([*y.values()]), rcond=None)[0]
    found = [
        sum(weights[cell] * y[cell] for cell in CELLS)
        for weights in effects("base", "tuned").values()
    ]
    assert found == pytest.approx(expected)


# --- what is kept, and L0 -------------------------------------------------------------------------


def test_a_model_keeps_all_of_itself(lm, rows):
    assert kept(lm, lm, rows) == 1


def test_what_is_kept_is_numpys(lm, rows):
    tuned = fine_tuned(lm, rows, steps=5, lr=1e-2, batch_rows=4)
    ids = torch.from_numpy(rows)
    content = rows != BOS
    old, new = (model.activations(ids).double().numpy()[content] for model in (lm, tuned))
    expected = 1 - ((new - old) ** 2).sum() / ((new - new.mean(0)) ** 2).sum()
    assert kept(lm, tuned, rows, batch_rows=3) == pytest.approx(expected, rel=1e-9)


def test_massive_activations_are_left_out(lm, rows):
    tuned = fine_tuned(lm, rows, steps=5, lr=1e-2, batch_rows=4)
    x = tuned.activations(torch.from_numpy(rows)).norm(dim=-1).numpy()[rows != BOS]
    assert kept(lm, tuned, rows, max_norm=1.1) != kept(lm, tuned, rows)
    assert kept(lm, tuned, rows, max_norm=2 * x.max() / np.median(x)) == kept(lm, tuned, rows)


def test_active_latents_are_counted(lm, rows):
    sae = TopKSAE(16, 24, 4, 0)
    x = lm.activations(torch.from_numpy(rows))[torch.from_numpy(rows) != BOS]
    expected = (sae.encode(x) > 0).sum(1).double().mean()
    assert mean_active({"a": sae}, lm, rows, 3) == {"a": pytest.approx(float(expected))}


# --- the study ------------------------------------------------------------------------------------

TUNED = {
    "tuned_model": {
        "tuned": {"text": "text", "steps": 8, "lr": 3e-3},
        "other": "faithful",
        "rows": 4,
        "batch_rows": 4,
    }
}
STARTS = {"tuned_model": {"tuned": None, "start": "w3", "other": "faithful", "rows": 4}}


def made(run):
    """(models, texts, SAEs, rows) of a study, after what it needs."""
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    models = tune(run, lm)
    texts = write_texts(run, models)
    saes = train_cells(run, models, texts)
    return models, texts, saes, measure_cells(run, models, texts, saes)


@pytest.fixture
def study(make_run):
    run = make_run(TUNED)
    return run, *made(run)


def test_the_study(study):
    run, models, texts, saes, rows = study
    assert [*saes] == [(*cell, seed) for cell in CELLS for seed in (42, 49)]
    assert texts["tuned"].key != texts["base"].key
    heldout = corpus(run, "text", models["base"]).heldout[:4]
    table = rows["tuned_fidelity"].set_index(
        ["model", "text", "seed", "measured_in", "evaluated_on"]
    )
    expected = fidelity(saes["base", "tuned", 49], models["tuned"], heldout, False)
    there = table.loc["base", "tuned", 49, "tuned", "text"]
    assert there.explained_variance == pytest.approx(expected.explained_variance, rel=1e-6)
    assert there.ce_diff == pytest.approx(expected.ce_diff, abs=1e-6)


def test_the_tuned_model_predicts_its_text_better(study):
    *_, rows = study
    ce = rows["tuned_models"].set_index(["measured_in", "evaluated_on"]).ce
    assert ce["tuned", "text"] < ce["base", "text"]


def test_all_saes_are_matched(study):
    *_, saes, rows = study
    pairs = rows["tuned_pairs"]
    assert len(pairs) == 8 * 7 / 2
    for row in pairs.itertuples():
        a, b = ((row.model_a, row.text_a, row.seed_a), (row.model_b, row.text_b, row.seed_b))
        assert row.sfr == shared_feature_ratio(saes[a], saes[b])


def test_what_is_made_is_made_once(study):
    run, models, _, saes, _ = study
    places = [folder(run, "text"), *(folder(run, *cell) for cell in CELLS[1:])]
    before = [(place / "provenance.json").stat().st_mtime_ns for place in places]
    again = train_cells(run, models, write_texts(run, models))
    after = [(place / "provenance.json").stat().st_mtime_ns for place in places]
    assert after == before
    for name, sae in saes.items():
        assert torch.equal(again[name].W_dec, sae.W_dec)


def test_another_tuning_makes_all_that_is_the_tuned_models_anew(study, make_run):
    _, _, _, saes, _ = study
    other = make_run(TUNED | {"tuned_model.tuned.steps": 2})
    models = tune(other, open_model(other))
    again = train_cells(other, models, write_texts(other, models))
    same = {name[:2] for name, sae in saes.items() if torch.equal(again[name].W_dec, sae.W_dec)}
    assert same == {("base", "base")}


def test_of_one_model_two_starts_are_compared(make_run):
    run = make_run(STARTS)
    models, _, saes, rows = made(run)
    assert [*models] == ["base"]
    assert cells(run) == [("base", "base"), ("base", "tuned")]
    assert len(saes) == 4
    assert {*rows["tuned_fidelity"].evaluated_on} == {"tuned_model", "faithful"}
    table = shown.findings(run, rows).set_index("question")
    assert "SAEs of text after BOS serve text after w3" in table.index[0]
    assert {*shown.served(run, rows).text} == {"text after BOS", "text after w3"}
    assert shown.sharing(run, rows)["the other"].iloc[-1] == "text after w3"
    model = table.loc["The model that an SAE is trained in matters more than the text"]
    assert model.verdict == "not testable"


def test_massive_activations_are_left_out_of_what_is_shown(make_run):
    run = make_run(STARTS | {"sae.max_norm": 1.2, "sae.cache_activations": True})
    *_, rows = made(run)
    table = shown.table(run, rows)
    moderate = rows["tuned_fidelity"].groupby(["evaluated_on", "model", "text"], sort=False)
    assert table.EV.tolist() == pytest.approx(moderate.explained_variance_moderate.mean().tolist())


def test_kept_activations_are_the_bases(make_run):
    """With sae.cache_activations, those of the tuned model are not taken for the base's."""
    plain, cached = (make_run(TUNED | {"sae.cache_activations": on}) for on in (False, True))
    first = made(plain)[2]
    for cell in CELLS[1:]:
        for file in folder(plain, *cell).rglob("*"):
            if file.is_file():
                file.unlink()
    models = tune(cached, open_model(cached))
    again = train_cells(cached, models, write_texts(cached, models))
    assert all(torch.equal(again[name].W_dec, sae.W_dec) for name, sae in first.items())


# --- verdicts -------------------------------------------------------------------------------------


def planted(ev, ce=lambda *_: 0.3, sfr=lambda *_: 0.5, seeds=(1, 2, 3, 4)):
    """Rows of SAEs whose numbers functions say, with some scatter between seeds."""
    saes = [(*cell, seed) for cell in CELLS for seed in seeds]
    rows, by_row, fakes, pairs = [], [], [], []
    for measured_in, text in itertools.product(("base", "tuned"), ("text", "faithful")):
        for model, of, seed in saes:
            which = {"model": model, "text": of, "seed": seed}
            which |= {"measured_in": measured_in, "evaluated_on": text}
            explained = ev(measured_in, model, of) + 1e-4 * seed * (1 + (model == "base"))
            added = ce(measured_in, model, of) + 1e-4 * seed * (1 + (model == "base"))
            rows.append(which | {"explained_variance": explained, "ce_diff": added, "l0": 4.0})
            each = {"row": range(4), "variance": 10.0, "error": 10 * (1 - explained), "scored": 10}
            by_row.append(pd.DataFrame(which | each | {"ce": 0.0, "ce_sae": 10 * added}))
            if text == "text":
                fakes.append(which | {"ffr": float(seed)})
    for a, b in itertools.combinations(saes, 2):
        names = {
            f"{key}_{side}": value
            for side, sae in (("a", a), ("b", b))
            for key, value in zip(("model", "text", "seed"), sae, strict=True)
        }
        shared = sfr(a, b) + 1e-3 * ((a[2] * b[2]) % 5) * (1 + (a[:2] == b[:2]))
        pairs.append(names | {"sfr": shared, "mean_cosine": shared})
    return {
        "tuned_fidelity": pd.DataFrame(rows),
        "tuned_fidelity_rows": pd.concat(by_row, ignore_index=True),
        "tuned_ffr": pd.DataFrame(fakes),
        "tuned_pairs": pd.DataFrame(pairs),
    }


def verdicts(run, rows):
    return shown.findings(run, rows).verdict.tolist()


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0.002, "agrees"), (-0.05, "agrees"), (0.03, "disagrees")]
)
def test_a_base_sae_serves_where_it_loses_little(make_run, lost, verdict):
    rows = planted(lambda at, model, _: 0.8 - lost * (at == "tuned" and model == "base"))
    first = shown.findings(make_run(TUNED), rows).iloc[0]
    assert first.verdict == verdict
    # the limit is in the verdict alone
    assert first.effect == pytest.approx(-lost, abs=1e-3)
    assert first.low < first.effect < first.high


@pytest.mark.parametrize(("lost", "verdict"), [(0.005, "agrees"), (0.05, "disagrees")])
def test_a_tuned_sae_serves_the_base(make_run, lost, verdict):
    rows = planted(
        lambda *_: 0.8, ce=lambda at, model, _: 0.3 + lost * (at == "base" and model == "tuned")
    )
    found = verdicts(make_run(TUNED), rows)
    assert found[3] == verdict
    # the other way round nothing is lost
    assert found[:3] == ["agrees"] * 3


@pytest.mark.parametrize(
    ("model", "text", "verdict"), [(0.1, 0.02, "agrees"), (0.02, 0.1, "disagrees")]
)
def test_the_model_against_the_text(make_run, model, text, verdict):
    rows = planted(lambda _, m, t: 0.5 + model * (m == "tuned") + text * (t == "tuned"))
    found = shown.findings(make_run(TUNED), rows).iloc[4]
    assert found.verdict == verdict
    assert found.effect == pytest.approx(model - text, abs=1e-3)


def test_sharing_is_of_two_seeds_and_of_one(make_run):
    def sfr(a, b):
        same_cell, same_seed = a[:2] == b[:2], a[2] == b[2]
        return {(True, False): 0.5, (False, True): 0.7, (False, False): 0.3}[same_cell, same_seed]

    rows = planted(lambda *_: 0.8, sfr=sfr)
    run = make_run(TUNED)
    assert verdicts(run, rows)[5:7] == ["agrees", "disagrees"]
    table = shown.sharing(run, rows)
    assert len(table) == 10
    within = table["one SAE"] == table["the other"]
    assert table[within]["SFR, two seeds"].tolist() == pytest.approx([0.5] * 4, abs=1e-2)
    assert table[~within]["SFR, two seeds"].tolist() == pytest.approx([0.3] * 6, abs=1e-2)
    assert table[~within]["SFR, one seed"].tolist() == pytest.approx([0.7] * 6, abs=1e-2)
    assert table[within]["SFR, one seed"].isna().all()


@pytest.mark.parametrize(("of_text", "verdict"), [(0.3, "agrees"), (0.5, "disagrees")])
def test_what_is_shared_with_another_model_and_with_another_text(make_run, of_text, verdict):
    def sfr(a, b):
        of_pair = {(True, True): 0.6, (False, True): 0.4, (True, False): of_text}
        return of_pair.get((a[0] == b[0], a[1] == b[1]), 0.2) + 1e-3 * (len(a[0]) * a[2] % 3)

    found = shown.findings(make_run(TUNED), planted(lambda *_: 0.8, sfr=sfr)).iloc[-1]
    assert found.verdict == verdict
    assert found.effect == pytest.approx(0.4 - of_text, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tuned_model.tuned": None}, r"tuned_model\.tuned is null, and tuned_model\.start says"),
        ({"tuned_model.tuned.text": "none"}, r"tuned_model\.tuned\.text names 'none'"),
        ({"tuned_model.other": "none"}, r"tuned_model\.other names 'none'"),
        ({"tuned_model.other": "text"}, r"tuned_model\.other = 'text' is tuned_model\.tuned\.text"),
        ({"tuned_model.start": "flat"}, r"tuned_model\.start = 'flat' is no start"),
        ({"tuned_model.seeds": [42]}, r"tuned_model\.seeds = \[42\]"),
        ({"tuned_model.seeds": [42, 7]}, r"tuned_model\.seeds = \[42, 7\] must list some"),
        ({"sae.train_on": ["text"]}, r"sae\.train_on has no corpus `faithful: self`"),
    ],
)
def test_bad_sections_are_refused(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(TUNED | changes)
