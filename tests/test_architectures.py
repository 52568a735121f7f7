"""Notebook 10: penalties found by a search, its SAEs on a tiny model, and verdicts of planted
numbers.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from faithful_sae import load_sae
from faithful_sae.engine import plan
from faithful_sae.files import file_hash
from faithful_sae.metrics.ffr import fake_feature_ratio
from faithful_sae.metrics.fidelity import fidelity
from faithful_sae.metrics.planted import L0, RUNGS
from faithful_sae.metrics.sfr import shared_feature_ratio
from faithful_sae.paper import architectures
from faithful_sae.paper.plots import architectures as plots
from faithful_sae.paper.verdicts import AGREES, DISAGREES, NOT_TESTABLE
from faithful_sae.runs.params import ParamsError
from faithful_sae.runs.rows import read_rows
from faithful_sae.sae.formats.hooks import hook_name
from faithful_sae.sae.penalty import STEP, next_penalty
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s02_train_sae import sae_folder
from faithful_sae.stages.s03_sfr import heldout_activations
from faithful_sae.stages.s10_architectures import (
    PLANTED_L0,
    _pairs,
    elsewhere,
    folder,
    measure_variants,
    planted_ladder,
    train_elsewhere,
    train_variants,
)
from faithful_sae.stages.training import train_all

# --- the search for a penalty ---------------------------------------------------------------------


def search(l0_at, wanted, first=0.1, most=12):
    """The L0s that a search goes through, until one is within 5 % of the wanted one."""
    tried = {first: l0_at(first)}
    while abs(tried[[*tried][-1]] / wanted - 1) > 0.05 and len(tried) < most:
        penalty = next_penalty(tried, wanted)
        tried[penalty] = l0_at(penalty)
    return [*tried.values()]


def test_a_power_law_is_found_by_the_third_penalty():
    found = search(lambda l1: 8 * (l1 / 0.5) ** -0.7, 8)
    assert found[-1] == pytest.approx(8, rel=0.05)
    assert len(found) == 3


@pytest.mark.parametrize("wanted", [2, 8, 60])
@pytest.mark.parametrize("first", [1e-3, 0.1, 30.0])
def test_a_law_that_falls_off_at_once_is_found(wanted, first):
    """To no latents at all, beyond a penalty of 3."""
    found = search(lambda l1: 100 * max(1 - l1 / 3, 0) ** 2, wanted, first)
    assert found[-1] == pytest.approx(wanted, rel=0.05)


def test_a_penalty_moves_no_further_than_a_step_where_nothing_bounds_it():
    assert next_penalty({1.0: 1e6}, 8) == pytest.approx(STEP)
    assert next_penalty({1.0: 0.0}, 8) == pytest.approx(1 / STEP)


def test_a_penalty_stays_between_those_on_either_side():
    tried = {0.1: 30.0, 1.0: 0.0}
    assert 0.1 < next_penalty(tried, 8) < 1.0


def test_l0_that_rises_with_the_penalty_is_answered_with_more_of_it():
    assert next_penalty({1.0: 20.0, 2.0: 24.0}, 8) == pytest.approx(2 * 24 / 8)


@pytest.mark.parametrize(("tried", "l0"), [({}, 8), ({0.0: 5.0}, 8), ({1.0: 5.0}, 0)])
def test_nothing_to_go_by(tried, l0):
    with pytest.raises(ValueError, match="above 0"):
        next_penalty(tried, l0)


# --- training and measuring -----------------------------------------------------------------------

STUDY = {
    "corpora": ["text", "again"],
    "variants": {
        "topk": {"name": "topk"},
        "batch": {"name": "batch_topk"},
        "relu": {"name": "relu", "l1": 0.2},
    },
    "seeds": [42, 49],
    "tokens": 400,
    "l0": [2],
    "searches": 2,
    "within": 0.01,
    "rows": 6,
    "hook": "mlp",
    "planted": 1000,
}
TEXT = {"role": None, "path": "text.jsonl", "text_key": "text"}
CHANGES = {
    "corpora": {"faithful": {"role": "faithful", "faithful": "self"}, "text": TEXT, "again": TEXT},
    "fidelity.corpora": ["text"],
    "sae.train_on": ["text", "again"],
    "architectures": STUDY,
}


@pytest.fixture
def studied(make_run):
    run = make_run(CHANGES)
    lm = open_model(run)
    saes, summary = train_variants(run, lm)
    rows = measure_variants(run, saes, lm) | {"variant_saes": summary}
    rows["variant_hook"] = train_elsewhere(run)
    rows["variant_planted"] = planted_ladder(run)
    return run, lm, saes, rows


def test_a_study_from_training_to_tables(studied):
    run, lm, saes, rows = studied
    # every SAE that was asked for
    plain = {
        (v, c, "L0 4", s) for v in STUDY["variants"] for c in STUDY["corpora"] for s in (42, 49)
    }
    curve = {(variant, "text", "L0 2", 42) for variant in ("topk", "batch")}
    searched = {("relu", "text", f"search {i}", 42) for i in (1, 2)}
    assert {*saes} == plain | curve | searched
    assert len(rows["variant_saes"]) == len(saes) + 2  # the search on the second corpus

    # those of one kind are what notebook 02 trains
    train_all(run, lm)
    for name, seed in itertools.product(STUDY["corpora"], (42, 49)):
        here = folder(run, name) / "topk" / "L04" / f"seed{seed}" / "sae_weights.safetensors"
        there = sae_folder(run, name, seed) / "sae_weights.safetensors"
        assert file_hash(here) == file_hash(there)

    assert not rows["variant_sfr"].coupled.any()

    # at the other place of the block they are those that a run hooked there trains
    (row,) = rows["variant_hook"].to_dict("records")
    assert (row["hook"], row["corpus"], row["seed_a"], row["seed_b"]) == ("mlp", "text", 42, 49)
    one, other = (load_sae(elsewhere(run) / "topk" / "L04" / f"seed{s}") for s in (42, 49))
    assert row["sfr"] == shared_feature_ratio(one, other, run.sfr.threshold)
    assert one.metadata["hook_name"] == hook_name("mlp", run.layer)
    curves = pd.read_csv(elsewhere(run) / "training.csv").groupby("name").last()
    assert row["explained"] == pytest.approx(1 - curves.fvu.max())

    # each measure is that of its own notebook
    topk = saes["topk", "text", "L0 4", 42]
    pair = rows["variant_sfr"].query("variant == 'topk' and corpus == 'text'")
    other = saes["topk", "text", "L0 4", 49]
    assert pair.sfr.item() == shared_feature_ratio(topk, other, run.sfr.threshold)
    of_one = rows["variant_measures"].set_index(["variant", "corpus", "point", "seed"])
    measured = of_one.loc["topk", "text", "L0 4", 42]
    assert measured.ffr == fake_feature_ratio(
        topk, lm, run.ffr.tokens, run.ffr.frequency, sequence_length=run.sequence_length
    )
    x = heldout_activations(run, "text", lm, run.sfr.tokens).numpy()
    left = np.square(topk.reconstruct(torch.from_numpy(x)).numpy() - x).sum(1)
    left /= np.square(x - x.mean(0)).sum(1).mean()
    assert measured.error_median == pytest.approx(np.quantile(left, 0.5), rel=1e-4)
    assert measured.error_p99 == pytest.approx(np.quantile(left, 0.99), rel=1e-4)
    held_out = corpus(run, "text", lm).heldout[:6]
    expected = fidelity(topk, lm, held_out, include_bos=False)
    cell = rows["variant_fidelity"].query(
        "variant == 'topk' and trained_on == 'text' and evaluated_on == 'text'"
        " and point == 'L0 4' and seed == 42"
    )
    assert cell.explained_variance.item() == pytest.approx(expected.explained_variance, abs=1e-9)
    assert (of_one.xs("topk").xs("L0 4", level="point").l0 <= 4).all()

    # all seeds of a variant have one penalty, the best that was tried
    trained = rows["variant_saes"].query("variant == 'relu' and corpus == 'text'")
    tried = trained.loc[trained.point.str.startswith("search")]
    best = tried.loc[np.log(tried.l0.clip(1e-3) / 4).abs().idxmin(), "l1"]
    assert {*trained.loc[trained.point == "L0 4", "l1"]} == {best}

    # tables and figures
    table = architectures.table(run, rows)
    assert [*table.variant] == ["topk", "topk", "batch", "batch", "relu", "relu"]
    assert table["SFR"].iloc[0] == pair.sfr.item()
    sharing = architectures.sharing(run, rows)
    figure = plots.sharing(sharing)
    shown = [ax.get_xlabel().rpartition(", ")[0] for ax in figure.axes]
    assert shown == [*dict.fromkeys(sharing.measure)]
    assert [len(ax.containers) for ax in figure.axes] == [2, 2, 2, 2]
    points = architectures.curves(run, rows)
    assert points.groupby("variant").size().to_dict() == {"topk": 2, "batch": 2, "relu": 3}
    titles = [ax.get_title() for ax in plots.curves(points).axes]
    assert titles == 2 * ["topk", "batch", "relu"]
    spectrum = architectures.spectra(run, rows)
    sums = spectrum.groupby(["variant", "corpus"]).agg({"share": "sum", "never": "first"})
    assert (sums.share + sums.never).to_numpy() == pytest.approx(1)
    assert [ax.get_title() for ax in plots.spectra(spectrum).axes] == ["topk", "batch", "relu"]

    # every variant on every world, and what is published of two of them
    ladder = architectures.planted(run, rows).set_index(["variant", "world"])
    assert len(ladder) == 3 * len(RUNGS) + 2
    scores = rows["variant_planted"].query("variant == 'topk' and rung == 'dense'").mcc
    assert ladder.loc[("topk", "dense"), "MCC"] == pytest.approx(scores.mean(), abs=1e-12)
    assert ladder.loc[("batch", architectures.PUBLISHED), "F1"] == 0.732
    assert ladder["recall of parents"].notna().sum() == 3
    # a token has as many features as a token has latents on average, or half of them
    l0 = ladder.L0.xs("orthogonal", level="world")
    assert PLANTED_L0 == L0
    assert L0 < l0["topk"] <= 2 * L0
    assert l0["batch"] == pytest.approx(L0, rel=0.15)
    made = run.artifacts / "architectures" / "planted" / "provenance.json"
    stamp = made.stat().st_mtime_ns
    assert planted_ladder(run).equals(rows["variant_planted"])
    assert made.stat().st_mtime_ns == stamp

    # made once
    stamp = (folder(run, "text") / "provenance.json").stat().st_mtime_ns
    again, _ = train_variants(run, lm)
    assert (folder(run, "text") / "provenance.json").stat().st_mtime_ns == stamp
    assert {*again} == {*saes}
    assert len(read_rows(run, "variant_saes")) == len(rows["variant_saes"])


def test_a_study_without_massive_activations_shows_both(make_run):
    small = STUDY | {"variants": {"topk": {"name": "topk"}}, "l0": [], "tokens": 200}
    run = make_run(CHANGES | {"architectures": small, "sae.max_norm": 1.2})
    lm = open_model(run)
    saes, summary = train_variants(run, lm)
    rows = measure_variants(run, saes, lm) | {"variant_saes": summary}
    table = architectures.table(run, rows)
    sae = saes["topk", "text", "L0 4", 42], saes["topk", "text", "L0 4", 49]
    held_out = corpus(run, "text", lm).heldout[:6]
    measured = [vars(fidelity(one, lm, held_out, False, max_norm=1.2)) for one in sae]
    for name, column in (("explained_variance", "EV"), ("ce_diff", "CE difference")):
        for suffix, shown in (("", ""), ("_moderate", ", moderate")):
            expected = np.mean([record[name + suffix] for record in measured])
            assert table[column + shown][0] == pytest.approx(expected, rel=1e-6)
    assert table["EV, moderate"][0] != table["EV"][0]
    assert "explained variance, moderate" in {*architectures.sharing(run, rows).measure}


# --- verdicts -------------------------------------------------------------------------------------

SEEDS = [42, 49, 1, 2]


def planted(
    run,
    sfr,
    ffr,
    l0=None,
    explained=None,
    recovered=0.9,
    elsewhere_more=0.0,
    elsewhere_explained=0.8,
):
    """Rows of a study with given numbers: {(variant, corpus): mean}, with some noise over seeds
    that is another for each.
    """
    rng = np.random.default_rng(0)
    pairs = [
        {"variant": v, "corpus": c, "seed_a": a, "seed_b": b, "sfr": mean + rng.normal(0, 0.004)}
        for (v, c), mean in sfr.items()
        for a, b in itertools.combinations(SEEDS, 2)
    ]
    measures = [
        {
            "variant": v,
            "corpus": c,
            "point": "L0 4",
            "seed": seed,
            "l0": (l0 or {}).get((v, c), 4.0),
            "ffr": mean + rng.normal(0, 0.04),
            "dead": 0.0,
            "duplicates": 0.0,
            "error_median": 0.2,
            "error_p99": 0.8,
        }
        for (v, c), mean in ffr.items()
        for seed in SEEDS
    ]
    fidelity = [
        {
            "variant": v,
            "trained_on": c,
            "evaluated_on": evaluated_on,
            "point": "L0 4",
            "seed": seed,
            "explained_variance": (explained or {}).get((v, c), 0.8) if evaluated_on == c else 0.0,
            "ce_recovered": recovered,
        }
        for v, c in ffr
        for evaluated_on in ("text", "again")
        for seed in SEEDS
    ]
    pairs = pd.DataFrame(pairs)
    pairs = pairs.assign(sfr_encoder_decoder=pairs.sfr / 2, mean_cosine=pairs.sfr, coupled=False)
    return {
        "variant_sfr": pairs,
        "variant_measures": pd.DataFrame(measures),
        "variant_fidelity": pd.DataFrame(fidelity),
        "variant_hook": pairs.loc[(pairs.variant == "topk") & (pairs.corpus == "again")].assign(
            hook="mlp",
            corpus="text",
            sfr_encoder_decoder=lambda rows: rows.sfr_encoder_decoder + elsewhere_more,
            explained=elsewhere_explained,
        ),
    }


@pytest.fixture
def run(make_run):
    return make_run(CHANGES | {"sae.seeds": SEEDS, "architectures.seeds": SEEDS})


KEYS = list(itertools.product(STUDY["variants"], STUDY["corpora"]))


def verdicts(run, **numbers):
    table = architectures.findings(run, planted(run, **numbers))
    return dict(zip(table.question, table.verdict, strict=True))


@pytest.mark.parametrize(
    "more, explained, verdict",
    [(0.2, 0.8, AGREES), (-0.2, 0.8, DISAGREES), (0.2, 0.4, NOT_TESTABLE)],
)
def test_whether_seeds_share_more_at_another_place(run, more, explained, verdict):
    sfr = dict.fromkeys(KEYS, 0.5)
    given = {"elsewhere_more": more, "elsewhere_explained": explained}
    told = verdicts(run, sfr=sfr, ffr=dict.fromkeys(KEYS, 2.0), **given)
    question = "SAEs on the MLP output overlap more than on the residual stream"
    assert told[f"{question} (Paulo and Belrose 2025, Fig. 4)"] == verdict


@pytest.mark.parametrize(
    "hook, variants, why",
    [
        ("residual", STUDY["variants"], "= residual is what `hook` says"),
        ("mlp", {"relu": {"name": "relu"}}, "compares SAEs of topk .* name it in"),
    ],
)
def test_another_place_needs_something_to_compare_with(make_run, hook, variants, why):
    study = STUDY | {"hook": hook, "variants": variants}
    with pytest.raises(ParamsError, match=f"architectures.hook {why}"):
        make_run(CHANGES | {"architectures": study})


def test_planted_effects_are_told_and_their_opposites(run):
    sfr = {key: 0.5 + 0.1 * (key[1] == "text") for key in KEYS}
    ffr = {key: 3.0 + 1.0 * (key[1] == "text") for key in KEYS}
    found = verdicts(run, sfr=sfr, ffr=ffr)
    higher = [verdict for question, verdict in found.items() if "SFR is higher" in question]
    assert higher == [AGREES] * 4
    lower = [verdict for question, verdict in found.items() if "FFR is lower" in question]
    assert lower == [DISAGREES] * 4


def test_coupled_seeds_are_shown_apart_and_decide_nothing(make_run):
    """Of six pairs the two of one group share .9, which has been asked of them."""
    variants = STUDY["variants"] | {"mutual": {"name": "mutual"}, "pca": {"name": "pca"}}
    study = STUDY | {"variants": variants, "seeds": SEEDS}
    run = make_run(CHANGES | {"sae.seeds": SEEDS, "architectures": study})
    keys = list(itertools.product(variants, STUDY["corpora"]))
    rows = planted(run, sfr=dict.fromkeys(keys, 0.5), ffr=dict.fromkeys(keys, 3.0))
    pairs = rows["variant_sfr"]
    groups = pairs.seed_a.map(SEEDS.index) // 2 == pairs.seed_b.map(SEEDS.index) // 2
    within = groups & (pairs.variant == "mutual")
    pairs.loc[within, ["coupled", "sfr"]] = True, 0.9
    found = architectures._values(run, rows)
    apart = found["sfr"]["mutual", "text"]
    assert {*apart} == {(42, 1), (42, 2), (49, 1), (49, 2)}
    assert [*apart.values()] == pytest.approx([0.5] * 4, abs=0.02)
    assert found["sfr_coupled"]["mutual", "text"] == {(42, 49): 0.9, (1, 2): 0.9}
    assert [*found["sfr_coupled"]] == [("mutual", "text"), ("mutual", "again")]
    asked = {question.split(":")[0] for question in architectures.findings(run, rows).question}
    assert {name for name in variants if name in asked} == {*STUDY["variants"]}


def test_seeds_of_a_group_are_said_to_be_coupled(make_run):
    alone = {"variants": {"mutual": {"name": "mutual"}}, "hook": None}
    study = STUDY | alone | {"seeds": SEEDS, "tokens": 200}
    run = make_run(CHANGES | {"sae.seeds": SEEDS, "architectures": study})
    saes, _ = train_variants(run, open_model(run))
    # at its own L0 alone: the first seed has no others elsewhere
    assert {point for _, _, point, _ in saes} == {"L0 4"}
    pairs = _pairs(run, saes)
    coupled = pairs.loc[pairs.coupled, ["corpus", "seed_a", "seed_b"]].to_numpy().tolist()
    assert coupled == [[name, *pair] for name in STUDY["corpora"] for pair in ([42, 49], [1, 2])]
    assert len(pairs) == 12


def test_relu_against_topk_is_by_both_matchings(run):
    sfr = {key: 0.7 if key[0] == "relu" else 0.4 for key in KEYS}
    ffr = dict.fromkeys(KEYS, 3.0)
    (verdict,) = (v for q, v in verdicts(run, sfr=sfr, ffr=ffr).items() if "ReLU" in q)
    assert verdict == AGREES
    table = architectures.findings(run, planted(run, sfr=sfr, ffr=ffr))
    effect = table.set_index("question").filter(like="ReLU", axis=0).effect.item()
    assert effect == pytest.approx(0.15, abs=0.01)


def test_saes_that_are_not_at_one_l0_are_not_compared(run):
    sfr = {key: 0.5 + 0.1 * (key[1] == "text") for key in KEYS}
    ffr = dict.fromkeys(KEYS, 3.0)
    found = verdicts(run, sfr=sfr, ffr=ffr, l0={("relu", c): 4.5 for c in ("text", "again")})
    verdict = {question.split(":")[0]: v for question, v in found.items() if "SFR is h" in question}
    assert verdict["relu"] == NOT_TESTABLE
    assert verdict["topk"] == AGREES
    (other,) = (v for question, v in found.items() if "ReLU" in question)
    assert other == NOT_TESTABLE


def test_saes_that_explain_too_little_are_not_compared(run):
    sfr = {key: 0.5 + 0.1 * (key[1] == "text") for key in KEYS}
    ffr = dict.fromkeys(KEYS, 3.0)
    found = verdicts(run, sfr=sfr, ffr=ffr, explained={("batch", "again"): 0.4})
    verdict = {question.split(":")[0]: v for question, v in found.items() if "SFR is h" in question}
    assert verdict["batch"] == NOT_TESTABLE
    assert verdict["topk"] == AGREES


@pytest.mark.parametrize(
    "own, recovered, expected",
    [
        ({}, 0.9, AGREES),
        ({}, 0.4, NOT_TESTABLE),
        # then it is trained to explain the variance, too
        ({"local": 1.0}, 0.9, NOT_TESTABLE),
    ],
)
def test_of_end_to_end_saes_the_ce_that_they_recover_decides(make_run, own, recovered, expected):
    variants = {"e2e": {"name": "end_to_end"} | own, "topk": {"name": "topk"}}
    study = STUDY | {"variants": variants, "seeds": SEEDS}
    run = make_run(CHANGES | {"sae.seeds": SEEDS, "sae.batch_tokens": 60, "architectures": study})
    keys = itertools.product(variants, STUDY["corpora"])
    sfr = {key: 0.5 + 0.1 * (key[1] == "text") for key in keys}
    explained = dict.fromkeys(sfr, 0.3)
    numbers = {"sfr": sfr, "ffr": dict.fromkeys(sfr, 3.0)}
    found = verdicts(run, **numbers, explained=explained, recovered=recovered)
    (verdict,) = (v for question, v in found.items() if question.startswith("e2e: SFR"))
    assert verdict == expected


# --- parameters and workflow ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpora": ["text"]}, r"architectures\.corpora must name two corpora"),
        ({"corpora": ["text", "faithful"]}, "names 'faithful', which is not in sae.train_on"),
        ({"l0": [4]}, r"architectures\.l0 must lie between 1 and .* and not be sae\.k = 4"),
        ({"tokens": 10}, r"architectures\.tokens = 10 must be at least sae\.batch_tokens = 64"),
        ({"seeds": [7]}, r"architectures\.seeds = \[7\] must list some of sae\.seeds"),
        ({"variants": {}}, "architectures.variants must be a mapping with at least one entry"),
        ({"variants": {"a": {"name": "relu", "l1": 0.0}}}, r"variants\.a\.l1 = 0 penalises"),
        ({"variants": {"a": {"name": "end_to_end"}}}, "all trained on whole rows: name one"),
        ({"variants": {"a": {"name": "elu"}}}, r"variants\.a\.name must be one of topk, relu"),
        (
            {"variants": {"a": {"name": "switch", "experts": 5}}},
            r"architectures\.variants\.a experts = 5 must divide d_sae = 24",
        ),
        (
            {"variants": {"a": {"name": "topk", "l1": 1.0}}},
            r"unknown key architectures\.variants\.a\.l1",
        ),
    ],
)
def test_a_study_that_cannot_be_made(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(CHANGES | {"architectures": STUDY | changes})


def test_a_study_is_made_where_it_is_asked_for(make_run):
    run = make_run(CHANGES)

    def rows(studies):
        outputs = plan.profile_outputs([run], studies=studies)
        return [path for path in outputs if path.endswith("variant_sfr.csv")]

    assert rows([]) == []
    assert rows(plan.chosen_studies([run], "architectures")) == [
        str(run.artifacts / "rows" / "variant_sfr.csv")
    ]


def test_a_study_that_the_profile_has_not(make_run):
    run = make_run()
    with pytest.raises(ParamsError, match="STUDIES: 'architectures' is not in .*which has none"):
        plan.chosen_studies([run], "architectures")
    with pytest.raises(ParamsError, match="STUDIES: 'zoo' is not in .*which has architectures"):
        plan.chosen_studies([make_run(CHANGES)], "zoo")
    assert plan.chosen_studies([run], None) == []
