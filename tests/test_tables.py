"""The paper's tables from rows made by hand: averages, columns by role, and the paper's own row in
the right place.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test, spearmanr

from faithful_sae.files import MissingInputError
from faithful_sae.paper import figure_data, latent_data, tables
from faithful_sae.paper.plots import paper as plots
from faithful_sae.runs.rows import lacking, measured, read_rows


def here(table):
    return table[table.source == "here"].set_index("model")


def test_sfr_is_the_mean_over_pairs_of_seeds(make_measured_run):
    runs = [
        make_measured_run(
            "a",
            {"faithful": [0.5, 0.6, 0.1], "alpaca": [0.2, 0.3, 0.4], "pile": [0.9] * 3},
            beside="pythia-2.8b",
        ),
        make_measured_run("b", {"faithful": [0.8], "flan": [0.7]}),
    ]
    table = tables.sfr_table(runs, "table2", tables.INSTRUCTION)
    got = here(table)
    assert got.faithful.round(9).to_dict() == {"Model a": 0.4, "Model b": 0.8}
    assert got.alpaca["Model a"] == pytest.approx(0.3)
    assert np.isnan(got.alpaca["Model b"])
    assert got.flan["Model b"] == 0.7
    assert "pile" not in table.columns
    assert got.seeds.to_dict() == {"Model a": 3, "Model b": 2}
    assert got["faithful, seeds 42 and 49"].to_dict() == {"Model a": 0.5, "Model b": 0.8}


def test_half_of_an_interval_by_hand(make_measured_run):
    """Pairs .5 (42, 49), .6 (42, 1), .1 (49, 1). Without 42: .1; without 49: .6; without 1: .5.
    Their mean is .4; 2/3 (.09 + .04 + .01) = .28/3; t with 2 degrees of freedom is 4.3027.
    """
    run = make_measured_run("a", {"faithful": [0.5, 0.6, 0.1], "alpaca": [0.2, 0.2, 0.2]})
    got = here(tables.sfr_table([run], "table2", tables.INSTRUCTION))
    half = 4.302652729749464 * np.sqrt(0.28 / 3)
    assert got["faithful ±"]["Model a"] == pytest.approx(half)
    assert got["alpaca ±"]["Model a"] == pytest.approx(0)


def test_a_rank_correlation_of_sfrs_that_seeds_cannot_tell_apart_is_undecided(make_measured_run):
    """Three corpora in perfect order, by differences far below their intervals."""
    noise = [0.03, -0.02, 0.01, -0.03, 0.02, -0.01]
    means = {"faithful": 0.502, "pile": 0.501, "alpaca": 0.5}
    sfr = {role: [mean + n for n in noise] for role, mean in means.items()}
    run = make_measured_run("a", sfr, corpus_ce={"faithful": 2.0, "pile": 3.0, "alpaca": 4.0})
    row = tables.mechanism([run]).iloc[0]
    assert row["rank correlation"] == -1
    assert row.verdict == "undecided"


def test_one_pair_of_seeds_has_no_interval(make_measured_run):
    run = make_measured_run("a", {"faithful": [0.5], "alpaca": [0.2]})
    got = here(tables.sfr_table([run], "table2", tables.INSTRUCTION))
    assert np.isnan(got["faithful ±"]["Model a"])


def test_every_measure_of_what_seeds_share(make_measured_run):
    run = make_measured_run("a", {"faithful": [0.5, 0.6, 0.1], "pile": [0.2, 0.2, 0.2]})
    table = tables.shared_features([run]).set_index("corpus")
    faithful = table.loc["Faithful"]
    assert faithful["SFR"] == pytest.approx(0.4)
    assert faithful["SFR, alive"] == pytest.approx(0.5)
    assert faithful["SFR, encoder and decoder"] == pytest.approx(0.2)
    assert faithful["SFR, > for >="] == pytest.approx(0.39)
    sides = ["PW-MCC decoder", "PW-MCC encoder", "PW-MCC activations"]
    assert faithful[sides].tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert faithful["dead"] == 0.25
    assert table.loc["my-pile (Pile)", "SFR"] == pytest.approx(0.2)


def _noisy(mean, shift):
    """SFR of six pairs of seeds around a mean, in an order of each corpus's own."""
    return list(mean + np.roll([0.03, -0.02, 0.01, -0.03, 0.02, -0.01], shift))


def test_the_mechanism_is_decided_by_what_sfr_falls_by(make_measured_run):
    """In the order of CE .6, .7, .4, .1, .2: a slope of (-2 x .6 - .7 + .1 + 2 x .2) / 10 a step,
    and four steps.
    """
    sfr = {"faithful": 0.6, "pile": 0.7, "fineweb": 0.4, "alpaca": 0.2, "flan": 0.1}
    ce = {"faithful": 2.0, "pile": 2.5, "fineweb": 3.0, "alpaca": 5.0, "flan": 4.0}
    noisy = {role: _noisy(mean, i) for i, (role, mean) in enumerate(sfr.items())}
    row = tables.mechanism([make_measured_run("a", noisy, corpus_ce=ce)]).iloc[0]
    assert row.effect == pytest.approx(0.56)
    assert row.verdict == "agrees"


def test_two_corpora_are_too_few_for_a_mechanism(make_measured_run):
    sfr = {"faithful": _noisy(0.6, 0), "pile": _noisy(0.2, 1)}
    run = make_measured_run("a", sfr, corpus_ce={"faithful": 2.0, "pile": 3.0})
    assert tables.mechanism([run]).verdict[0] == "not testable"


def test_the_mechanism_is_spearmans_correlation_of_ce_with_sfr(make_measured_run):
    sfr = {"faithful": 0.6, "pile": 0.7, "fineweb": 0.4, "alpaca": 0.2, "flan": 0.1}
    ce = {"faithful": 2.0, "pile": 2.5, "fineweb": 3.0, "alpaca": 5.0, "flan": 4.0}
    run = make_measured_run("a", {r: [v] * 6 for r, v in sfr.items()}, corpus_ce=ce)
    row = tables.mechanism([run]).iloc[0]
    expected = spearmanr(list(ce.values()), list(sfr.values()))
    assert row["rank correlation"] == pytest.approx(expected.statistic)
    exact = permutation_test(
        (list(ce.values()),),
        lambda x: spearmanr(x, list(sfr.values())).statistic,
        permutation_type="pairings",
        alternative="less",
    )
    assert row.p_corpora == pytest.approx(exact.pvalue)
    points = figure_data.mechanism([run]).set_index("corpus")
    assert points.ce["my-flan (FLAN)"] == 4.0
    assert points.ce_as_sampled.dropna().to_dict() == {"Faithful": 2.9}


def test_the_papers_row_stands_directly_below(make_measured_run):
    runs = [
        make_measured_run("a", {"faithful": [0.5], "alpaca": [0.2]}),
        make_measured_run("b", {"faithful": [0.5], "alpaca": [0.2]}, beside="pythia-2.8b"),
    ]
    table = tables.sfr_table(runs, "table2", tables.INSTRUCTION)
    assert table[["model", "source"]].to_numpy().tolist() == [
        ["Model a", "here"],
        ["Model b", "here"],
        ["Pythia 2.8B", "paper"],
        ["Pythia 1.4B", "paper"],
    ]
    assert table.iloc[2][["faithful", "alpaca", "open-instruct", "flan"]].tolist() == [
        0.2911,
        0.2231,
        0.2210,
        0.1283,
    ]
    assert list(table.columns[:2]) == ["model", "source"]


def test_table_4_has_the_web_corpora_and_those_without_a_role(make_measured_run):
    values = {
        "pile": [0.5],
        "faithful": [0.4],
        "fineweb": [0.3],
        "alpaca": [0.2],
        "wikipedia": [0.1],
    }
    run = make_measured_run("a", values, named={"wikipedia": "wikipedia"}, beside="gpt2")
    table = tables.sfr_table([run], "table4", tables.WEB)
    assert here(table)[["pile", "faithful", "fineweb", "wikipedia"]].iloc[0].tolist() == [
        0.5,
        0.4,
        0.3,
        0.1,
    ]
    assert "alpaca" not in table
    assert table.iloc[1].model == "GPT-2 Small"
    assert table.iloc[1].pile == 0.5405
    assert len(table) == 6


def test_an_instruction_corpus_named_like_its_role_stays_out_of_tables_4_6_and_7(make_measured_run):
    """In the profile of the paper a corpus is simply called alpaca; it has a role, so it gets no
    column of its own.
    """
    run = make_measured_run(
        "a",
        {"pile": [0.5], "faithful": [0.4], "alpaca": [0.2]},
        named={"alpaca": "alpaca", "pile": "pile"},
        probing={"sst2": {"pile": [0.7], "faithful": [0.6], "alpaca": [0.5]}},
    )
    assert "alpaca" not in tables.sfr_table([run], "table4", tables.WEB)
    assert "alpaca" not in tables.table7([run])
    assert "alpaca" not in tables.table6([run])


def test_table_1(make_measured_run):
    table = tables.table1(
        [
            make_measured_run(
                "a",
                {"faithful": [0.5]},
                dataset={"all_token_coverage": 88.5, "kl": 0.25},
                beside="llama-8b",
            )
        ]
    )
    assert table.iloc[0][["model", "source", "all_token_coverage", "kl"]].tolist() == [
        "Model a",
        "here",
        88.5,
        0.25,
    ]
    assert table.iloc[1][
        ["model", "source", "all_token_coverage", "first_token_coverage", "kl"]
    ].tolist() == ["LLaMA 3.1-8B", "paper", 98.04, 10.31, 0.1054]
    assert len(table) == 9
    assert table.model.is_unique
    assert table[["tokens", "vocab_size"]].dropna().map(str).map(str.isdigit).all(axis=None)
    assert len(table.tokens.dropna()) == 1


def test_table_3_says_whose_text(make_measured_run):
    make_measured_run("b", {"faithful": [0.1]})
    runs = [
        make_measured_run(
            "a",
            {"faithful": [0.5, 0.7, 0.6], "faithful-other": [0.2] * 3, "pile": [0.3] * 3},
            other="b",
        ),
        make_measured_run("b", {"faithful": [0.1], "faithful-other": [0.4]}, other="a"),
    ]
    table = tables.table3(runs)
    rows = [
        tuple(row)
        for row in table[["target", "text from", "sfr"]][table.source == "here"]
        .round(9)
        .itertuples(index=False)
    ]
    assert rows == [
        ("Model a", "Model a", 0.6),
        ("Model a", "Model b", 0.2),
        ("Model b", "Model b", 0.1),
        ("Model b", "Model a", 0.4),
    ]
    paper = {
        (r.target, r["text from"]): r.sfr for _, r in table[table.source == "paper"].iterrows()
    }
    assert paper == {
        ("Pythia 2.8B", "Pythia 2.8B"): 0.2911,
        ("Pythia 2.8B", "Pythia 1.4B"): 0.2288,
        ("Pythia 1.4B", "Pythia 1.4B"): 0.7145,
        ("Pythia 1.4B", "Pythia 2.8B"): 0.6887,
    }


def test_table_5(make_measured_run):
    table = tables.table5([make_measured_run("a", {"faithful": [0.5]}, beside="gpt2")])
    assert table.iloc[0][["layer", "d_sae", "k", "tokens", "seeds", "recipe", "lr"]].tolist() == [
        1,
        24,
        4,
        400,
        "42, 49",
        "default",
        "0.001",
    ]
    assert table.iloc[1][["model", "layer", "d_sae", "k", "tokens", "lr"]].tolist() == [
        "GPT-2 Small",
        8,
        12288,
        48,
        100_000_000,
        "0.0002",
    ]
    assert table[table.model == "LLaMA 3.1-8B"].tokens.item() == 150_000_000


def test_table_6(make_measured_run):
    values = {
        "faithful": [0.8, 0.6],
        "pile": [0.5, 0.7],
        "fineweb": [0.4, 0.4],
        "alpaca": [0.3, 0.3],
    }
    run = make_measured_run(
        "a",
        {r: [0.5] for r in values},
        probing={"cola": values, "agnews": {"faithful": [0.25, 0.5]}},
        beside="gpt2",
    )
    table = tables.table6([run])
    first = table.iloc[0]
    assert (first.model, first.task, first.plays, first.baseline) == (
        "Model a",
        "my-cola",
        "CoLA",
        0.9,
    )
    assert [round(first[r], 9) for r in tables.WEB] == [
        0.6,
        0.7,
        0.4,
    ]  # the reconstruction's, mean over seeds
    assert table.iloc[1][["model", "source", "task", "faithful", "fineweb", "pile"]].tolist() == [
        "GPT-2 Small",
        "paper",
        "CoLA",
        0.7076,
        0.6989,
        0.6912,
    ]
    assert table.iloc[2].task == "my-agnews"
    assert table.iloc[2].faithful == 0.375
    assert "alpaca" not in table
    gpt2 = table[(table.model == "GPT-2 Small")]
    assert sorted(gpt2.task) == ["CoLA", "SST-2", "Yelp"], (
        "the counterpart's other tasks are shown as well"
    )


def test_table_7_is_the_mean_over_seeds_in_percent(make_measured_run):
    run = make_measured_run(
        "a",
        {"faithful": [0.5], "pile": [0.5]},
        ffr={"faithful": [0.1, 0.3], "pile": [1.0, 2.0]},
        beside="gemma-2b",
    )
    table = tables.table7([run])
    assert table.iloc[0].faithful == pytest.approx(0.2)
    assert table.iloc[0].pile == 1.5
    assert table.iloc[0]["pile, activation > 1"] == pytest.approx(0.375)
    assert table.iloc[1][["model", "faithful", "pile", "fineweb"]].tolist() == [
        "Gemma 2B",
        0.5425,
        0.5669,
        0.5995,
    ]


def test_bars_are_the_table_in_long_form(make_measured_run):
    runs = [
        make_measured_run("a", {"faithful": [0.5], "flan": [0.2]}),
        make_measured_run("b", {"faithful": [0.4]}),
    ]
    table = tables.sfr_table(runs, "table2", tables.INSTRUCTION)
    long = figure_data.bars(runs, table, tables.INSTRUCTION)
    values = {(r.model, r.source, r.corpus): r.sfr for r in long.itertuples()}
    assert values["Model a", "here", "my-flan (FLAN)"] == 0.2
    assert ("Model b", "here", "my-flan (FLAN)") not in values
    assert len(values) == len(long) == 3 + 8
    assert values["Pythia 1.4B", "paper", "Open-Instruct"] == 0.7134
    assert long.half_width.isna().all()  # of one pair, and of the paper


def test_who_plays_which_role(make_measured_run):
    run = make_measured_run("a", {"faithful": [0.5], "pile": [0.5]})
    table = tables.corpora_table([run]).set_index("name")
    assert table.plays.to_dict() == {
        "my-faithful": "Faithful",
        "my-pile": "Pile",
        "my-sst2": "SST-2",
    }
    assert table.text["my-faithful"] == "text of Model a"
    assert table.text["my-pile"] == "text.jsonl"
    assert table.passes["my-pile"] == 1.23


def forget(run, *names):
    for name in names:
        (run.artifacts / "rows" / f"{name}.csv").unlink()


@pytest.fixture
def partial(make_measured_run):
    """Two runs: one measured whole, the other without what `forgotten` names."""

    def make(*forgotten):
        values = {"faithful": [0.5], "pile": [0.6], "fineweb": [0.7], "alpaca": [0.2]}
        probing = {"sst2": {"faithful": [0.5], "pile": [0.4]}}
        runs = [
            make_measured_run(name, values, probing=probing, beside=beside)
            for name, beside in (("a", "pythia-1.4b"), ("b", "gpt2"))
        ]
        forget(runs[1], *forgotten)
        return runs

    return make


SHOWN = {  # which rows each table shows
    "table1": ("dataset", tables.table1),
    "table2": ("sfr", lambda runs: tables.sfr_table(runs, "table2", tables.INSTRUCTION)),
    "table3": ("sfr", lambda runs: tables.table3(runs).rename(columns={"target": "model"})),
    "table4": ("sfr", lambda runs: tables.sfr_table(runs, "table4", tables.WEB)),
    "table6": ("probing", tables.table6),
    "table7": ("ffr", tables.table7),
}


@pytest.mark.parametrize(
    "forgotten",
    [
        (),
        ("ffr",),
        ("probing", "fidelity"),
        ("sfr", "ffr", "fidelity", "probing"),
        ("saes", "sfr", "ffr", "fidelity", "probing", "dataset"),
    ],
    ids=len,
)
def test_tables_show_what_is_measured_and_the_papers_rows_whatever_is(partial, forgotten):
    whole = {name: table(partial()) for name, (_, table) in SHOWN.items()}
    runs = partial(*forgotten)
    for name, (rows, table) in SHOWN.items():
        got = table(runs)
        assert set(got[got.source == "here"].model) == {"Model a"} | (
            {"Model b"} if rows not in forgotten else set()
        ), name
        paper, expected = (t[t.source == "paper"].model.tolist() for t in (got, whole[name]))
        assert sorted(paper) == sorted(expected) and paper, name
    figure = figure_data.probing(runs)
    assert set(figure.model) == {"Model a"} | ({"Model b"} if "probing" not in forgotten else set())
    corpora = tables.corpora_table(runs)
    assert corpora[corpora.model == "Model b"]["training tokens"].isna().all() == (
        "saes" in forgotten
    )


def test_a_profile_of_which_nothing_is_measured(make_run):
    runs = [
        make_run({"label": "One", "beside": "gpt2"}, name="one"),
        make_run({"label": "Two"}, name="two"),
    ]
    for name, (_, table) in SHOWN.items():
        assert set(table(runs).source) == {"paper"}, name
    assert figure_data.probing(runs).empty
    assert len(tables.language_models(runs)) == 2
    assert len(tables.corpora_table(runs)) == 6
    assert plots.probing(figure_data.probing(runs)).texts[0].get_text() == "nothing measured yet"
    sources = [
        ax.get_title()
        for ax in plots.bars(figure_data.bars(runs, SHOWN["table4"][1](runs), tables.WEB)).axes
    ]
    assert sources == ["the paper, one pair of seeds"]


def test_rows_of_other_parameters_are_left_out(make_measured_run, make_run):
    """sfr.threshold concerns SFR alone, sae.lr what stands on the SAEs, generate.seed everything,
    and another run's text its readers.
    """
    values = {"faithful": [0.5], "faithful-other": [0.4]}
    make_measured_run("z", {"faithful": [0.5]})
    run = make_measured_run("a", values, other="z")
    everything = ("dataset", "saes", "sfr", "ffr", "fidelity", "probing")

    def shown(run):
        return tuple(name for name in everything if measured([run], name))

    assert shown(run) == everything
    for section, change, kept in (
        ("sfr", {"threshold": 0.6}, ("dataset", "saes", "ffr", "fidelity", "probing")),
        ("sae", {"lr": 0.5}, ("dataset",)),
        ("ffr", {"tokens": 7}, ("dataset", "saes", "sfr", "fidelity", "probing")),
        ("generate", {"seed": 6}, ()),
    ):
        changed = run.changed(**{section: getattr(run, section).changed(**change)})
        assert shown(changed) == kept, section
        assert (
            lacking(changed, next(name for name in everything if name not in kept))
            == "made with other parameters"
        )
    text = make_run({"label": "Model z", "generate.seed": 6}, name="z").file
    assert shown(run) == ("dataset",)
    assert text.stem == "z"
    (run.artifacts / "rows" / "dataset.json").unlink()
    assert shown(run) == ()
    assert lacking(run, "dataset") == "made with unknown parameters"


def test_a_missing_csv_names_its_notebook(make_measured_run):
    run = make_measured_run("a", {"faithful": [0.5]})
    forget(run, "ffr")
    with pytest.raises(
        MissingInputError, match=r"ffr\.csv is missing: run notebooks/04_ffr for handmade/a first"
    ):
        read_rows(run, "ffr")


def test_a_corpus_without_a_role_may_be_called_like_one_without_playing_it(make_run):
    from faithful_sae.paper.tables import columns_without_role

    text = {"path": "text.jsonl", "text_key": "text"}
    run = make_run(
        {
            "corpora.tinystories": text | {"role": None},
            "corpora.extra": text | {"role": None},
            "sae.train_on": ["faithful", "tinystories", "extra"],
        }
    )
    assert columns_without_role([run]) == {"tinystories (no role)", "extra"}


def test_training_curves_are_means_and_ranges_over_seeds():
    curves = pd.DataFrame(
        {"corpus": "a", "tokens": [0, 8, 0, 8], "seed": [1, 1, 2, 2], "fvu": [1, 0.5, 0.8, 0.1]}
    ).assign(l0=8.0, dead=[0, 4, 0, 2])
    first, last = latent_data.training(curves).to_dict("records")
    assert (first["tokens"], first["seeds"], first["fvu"]) == (0, 2, pytest.approx(0.9))
    assert (last["fvu"], last["fvu least"], last["fvu most"]) == (pytest.approx(0.3), 0.1, 0.5)
    assert (last["dead"], last["dead most"]) == (3, 4)


def test_fidelity_of_every_cell_with_its_interval(make_measured_run):
    run = make_measured_run("a", {"pile": [0.5]}, ce={"pile": [0.2, 0.4]})
    table = tables.fidelity(run).set_index(["evaluated_on", "include_bos"])
    assert len(table) == 4
    one = table.loc[("elsewhere", False)]
    assert (one.seeds, one.tokens, one.ce_zero) == (2, 12, 6)
    assert one.ce_diff == pytest.approx(0.3)
    # rows are alike, and two seeds differ by 0.2: 12.706 standard errors of 0.1
    assert one["ce_diff ±"] == pytest.approx(12.706 * 0.1, rel=1e-4)
    assert one["ce_recovered ±"] == pytest.approx(12.706 * 0.025, rel=1e-4)
    assert one["ev_legacy ±"] == 0


def test_columns_have_the_names_of_corpora_where_models_agree_on_them(make_measured_run):
    values = {"faithful": [0.5], "pile": [0.6], "fineweb": [0.7]}
    runs = [make_measured_run(name, values, named={"fineweb": name}) for name in ("a", "b")]
    assert tables.called_here(runs) == {"pile": "Pile (here my-pile)"}
