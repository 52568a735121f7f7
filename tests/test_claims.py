"""Every claim on rows where it holds, on rows where it does not, and on rows that cannot say."""

import math

import pytest

from conftest import TEXTS
from faithful_sae.paper.claims import claims
from faithful_sae.paper.estimates import probe_difference
from faithful_sae.paper.exhibits import profile_note
from faithful_sae.paper.tables import table1
from faithful_sae.paper.verdicts import VERDICTS
from faithful_sae.runs.registry import stages
from faithful_sae.runs.rows import read_rows, write_rows

SECTIONS = {
    "instruction": 0,
    "own text": 1,
    "web": 2,
    "coverage": 3,
    "kl": 4,
    "fineweb": 5,
    "probing": 6,
    "cola": 7,
    "ffr": 8,
}
OWN = "faithful"
OTHER = "faithful-other"
PILE = "pile"
FINEWEB = "fineweb"
ALPACA = "alpaca"
OPEN = "open-instruct"
FLAN = "flan"

# seeds of a case: six pairs
SEEDS = 4


def pairs(mean, spread=0.004, phase=0):
    """SFR of the six pairs of four seeds, with a spread that no other phase has."""
    return [mean + spread * math.sin(1 + 2.3 * i + phase) for i in range(6)]


def each(mean, spread=0.004, phase=0):
    """A number per seed."""
    return [mean + spread * math.sin(2 + 1.7 * i + phase) for i in range(SEEDS)]


def sfr(**means):
    """{role: pairs}, each role with a phase of its own."""
    roles = {"own": OWN, "other": OTHER, "flan": FLAN, "open": OPEN, "alpaca": ALPACA}
    roles |= {"pile": PILE, "fineweb": FINEWEB}
    return {roles[name]: pairs(mean, phase=i) for i, (name, mean) in enumerate(means.items())}


def per_seed(**means):
    roles = {"own": OWN, "pile": PILE, "fineweb": FINEWEB, "alpaca": ALPACA}
    return {roles[name]: each(mean, phase=i) for i, (name, mean) in enumerate(means.items())}


WEB_SAES = sfr(own=0.5, pile=0.5, fineweb=0.5)

# claim, verdict, runs: each the keyword arguments of make_measured_run
CASES = [
    ("instruction", "agrees", [{"sfr": sfr(own=0.65, alpaca=0.6, open=0.62)}]),
    ("instruction", "disagrees", [{"sfr": sfr(own=0.65, alpaca=0.6, flan=0.7)}]),
    ("instruction", "no difference", [{"sfr": sfr(own=0.6, alpaca=0.6)}]),
    (
        "instruction",
        "undecided",
        [{"sfr": {OWN: pairs(0.6, 0.06), ALPACA: pairs(0.6, 0.06, 1)}}],
    ),
    ("instruction", "undecided", [{"sfr": {OWN: [0.9], ALPACA: [0.1]}}]),  # one pair of seeds
    (
        "instruction",
        "disagrees",
        [
            {"sfr": sfr(own=0.6, alpaca=0.5)},
            {"sfr": sfr(own=0.6, alpaca=0.5)},
            {"sfr": sfr(own=0.6, alpaca=0.7)},
        ],
    ),  # each corpus, each model
    ("instruction", "not testable", [{"sfr": WEB_SAES}]),
    ("instruction", "not testable", [{"sfr": sfr(alpaca=0.6, open=0.5)}]),
    ("own text", "agrees", [{"sfr": sfr(own=0.6, other=0.5)}]),
    ("own text", "disagrees", [{"sfr": sfr(own=0.6, other=0.5)}, {"sfr": sfr(own=0.5, other=0.6)}]),
    ("own text", "not testable", [{"sfr": sfr(own=0.6, alpaca=0.5)}]),
    (
        "web",
        "agrees",
        [
            {"sfr": sfr(own=0.5, pile=0.55, fineweb=0.6)},
            {"sfr": sfr(own=0.5, pile=0.6, fineweb=0.6)},
            {"sfr": sfr(own=0.7, pile=0.6, fineweb=0.6)},
        ],
    ),
    (
        "web",
        "disagrees",
        [
            {"sfr": sfr(own=0.5, pile=0.6, fineweb=0.6)},
            {"sfr": sfr(own=0.5, pile=0.6, fineweb=0.4)},
        ],
    ),  # one of two is not most
    ("web", "not testable", [{"sfr": sfr(own=0.5, pile=0.6)}]),
    ("coverage", "agrees", [{"dataset": {"all_token_coverage": 90.1}}]),
    (
        "coverage",
        "disagrees",
        [{"dataset": {"all_token_coverage": 99.0}}, {"dataset": {"all_token_coverage": 90.0}}],
    ),
    (
        "coverage",
        "not testable",
        [
            {
                "dataset": {
                    "all_token_coverage": 84.0,
                    "pretraining_coverage": 86.4,
                    "relative_coverage": 97.0,
                }
            }
        ],
    ),
    (
        "kl",
        "agrees",
        [{"dataset": {"kl": 1.9}}, {"dataset": {"kl": 0.1}}, {"dataset": {"kl": 2.5}}],
    ),
    ("kl", "disagrees", [{"dataset": {"kl": 2.0}}]),
    (
        "kl",
        "not testable",
        [{"dataset": {"kl": 0.04, "expected_kl": 0.05, "expected_kl_sd": 0.003}}],
    ),
    (
        "fineweb",
        "agrees",
        [{"sfr": WEB_SAES, "ce": per_seed(own=0.1, pile=0.2, fineweb=0.3)}],
    ),
    (
        "fineweb",
        "disagrees",
        [{"sfr": WEB_SAES, "ce": per_seed(own=0.1, pile=0.4, fineweb=0.3)}],
    ),
    (
        "fineweb",
        "no difference",
        [{"sfr": WEB_SAES, "ce": per_seed(own=0.3, pile=0.3, fineweb=0.3)}],
    ),
    (
        "fineweb",
        "not testable",
        [{"sfr": sfr(own=0.5, fineweb=0.5), "ce": per_seed(own=0.1, fineweb=0.3)}],
    ),
    (
        "probing",
        "agrees",
        [
            {
                "sfr": sfr(own=0.5, pile=0.5),
                "probing": {
                    "sst2": per_seed(own=0.8, pile=0.7),
                    "cola": per_seed(own=0.7, pile=0.6),
                    "yelp": per_seed(own=0.5, pile=0.6),
                },
            }
        ],
    ),
    (
        "probing",
        "disagrees",
        [
            {
                "sfr": sfr(own=0.5, pile=0.5),
                "probing": {
                    "sst2": per_seed(own=0.8, pile=0.7),
                    "cola": per_seed(own=0.4, pile=0.5),
                },
            }
        ],
    ),
    (
        "probing",
        "not testable",
        [{"sfr": sfr(own=0.5), "probing": {"sst2": per_seed(own=0.8)}}],
    ),
    (
        "probing",
        "not testable",
        [
            {
                "sfr": sfr(own=0.5, pile=0.5),
                "probing": {
                    "sst2": per_seed(own=0.5, pile=0.4),
                    "yelp": per_seed(own=0.99, pile=0.98),
                },
                "baseline": {"sst2": 0.52, "yelp": 0.996},
            }
        ],
    ),  # at chance, and at the ceiling
    (
        "cola",
        "agrees",
        [
            {
                "sfr": sfr(own=0.5, pile=0.5),
                "probing": {
                    "sst2": per_seed(own=0.1, pile=0.7),
                    "cola": per_seed(own=0.6, pile=0.5),
                },
            }
        ],
    ),
    (
        "cola",
        "disagrees",
        [{"sfr": sfr(own=0.5, pile=0.5), "probing": {"cola": per_seed(own=0.6, pile=0.5)}}] * 2
        + [{"sfr": sfr(own=0.5, pile=0.5), "probing": {"cola": per_seed(own=0.5, pile=0.6)}}],
    ),
    (
        "cola",
        "not testable",
        [{"sfr": sfr(own=0.5, pile=0.5), "probing": {"sst2": per_seed(own=0.9, pile=0.7)}}],
    ),
    (
        "ffr",
        "agrees",
        [{"sfr": sfr(own=0.5, pile=0.5), "ffr": per_seed(own=0.2, pile=0.3)}],
    ),
    (
        "ffr",
        "undecided",
        [
            {
                "sfr": WEB_SAES,
                "ffr": {OWN: each(2.0, 1.0), PILE: each(2.1, 1.0, 1), FINEWEB: each(2.2, 1.0, 2)},
            }
        ],
    ),
    (
        "ffr",
        "disagrees",
        [
            {"sfr": sfr(own=0.5, pile=0.5), "ffr": per_seed(own=0.1, pile=0.2)},
            {"sfr": sfr(own=0.5, pile=0.5), "ffr": per_seed(own=0.3, pile=0.2)},
        ],
    ),
    (
        "ffr",
        "not testable",
        [{"sfr": sfr(own=0.5, alpaca=0.5), "ffr": per_seed(own=0.1, alpaca=0.2)}],
    ),
]


@pytest.mark.parametrize(
    "claim, verdict, cases", CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)]
)
def test_verdicts(make_measured_run, claim, verdict, cases):
    make_measured_run("z", {OWN: [0.5]})  # whose text plays faithful-other
    runs = [
        make_measured_run(f"m{i}", other="z", **{"sfr": sfr(own=0.5)} | case)
        for i, case in enumerate(cases)
    ]
    table = claims(runs)
    row = table.iloc[SECTIONS[claim]]
    assert row.verdict == verdict, row.measured
    assert len(table) == 9
    assert set(table.verdict) <= {*VERDICTS}
    assert all(f"Model m{i}" in row.measured for i in range(len(runs))) or verdict == "not testable"


# claim, verdict, whose rows `forgotten` are not there: of two models of which the first is measured
WAITING = [
    ("instruction", "undecided", [0.6, 0.5], "sfr"),
    ("instruction", "disagrees", [0.5, 0.6], "sfr"),  # of all: one that fails is enough
    ("web", "disagrees", [0.6, 0.5], "sfr"),  # of two, most are both
    ("web", "undecided", [0.5, 0.6], "sfr"),
    ("coverage", "undecided", [0.5, 0.5], "dataset"),
    ("fineweb", "disagrees", [0.5, 0.5], "fidelity"),
]


@pytest.mark.parametrize(
    "claim, verdict, values, forgotten", WAITING, ids=[f"{c[0]}-{c[1]}" for c in WAITING]
)
def test_a_model_that_is_not_measured_is_named_and_the_verdict_waits(
    make_measured_run, claim, verdict, values, forgotten
):
    own, other = values
    runs = [
        make_measured_run(
            name,
            sfr(own=own, pile=other, fineweb=other, alpaca=other),
            ce=per_seed(own=0.1, pile=0.4, fineweb=0.3),
        )
        for name in ("a", "b")
    ]
    (runs[1].artifacts / "rows" / f"{forgotten}.csv").unlink()
    row = claims(runs).iloc[SECTIONS[claim]]
    assert row.verdict == verdict
    assert row.measured.endswith("; not measured: Model b")
    assert "of 1 agree. Model a" in row.measured
    (runs[0].artifacts / "rows" / f"{forgotten}.csv").unlink()
    row = claims(runs).iloc[SECTIONS[claim]]
    assert (row.verdict, row.measured) == ("not measured", "not measured: Model a, Model b")
    assert claims(runs).verdict[SECTIONS["own text"]] == "not testable", (
        "no model has the other's text, measured or not"
    )


def test_of_one_seed_sfr_is_not_measured_and_nothing_is_decided(make_measured_run):
    roles = (OWN, PILE, FINEWEB, ALPACA)
    once = {role: [float(i)] for i, role in enumerate(roles)}
    texts = {"sst2": {role: [0.6 + i / 20] for i, role in enumerate(roles)}}
    run = make_measured_run("m", dict.fromkeys(roles, ()), ffr=once, ce=once, probing=texts)
    assert run.sae.seeds == (42,)
    table = claims([run])
    for name in ("instruction", "web"):
        row = table.iloc[SECTIONS[name]]
        assert (row.verdict, row.measured) == ("not measured", "not measured: Model m")
    for name in ("fineweb", "probing", "ffr"):
        row = table.iloc[SECTIONS[name]]
        assert row.verdict == "undecided", row.measured
        assert "(no interval: 1 seed)" in row.measured
        assert (row.seeds, row.p) == (1, 1.0)
    assert profile_note([run]).endswith(
        "One seed (Model m): SFR is not measured, and nothing has an interval."
    )


def test_what_was_measured_is_shown(make_measured_run):
    run = make_measured_run("m", sfr(own=0.65, alpaca=0.6, flan=0.2))
    row = claims([run]).iloc[0]
    for word in ("1 of 1", "faithful 0.65", "my-alpaca (Alpaca) +0.05", "my-flan (FLAN) +0.45"):
        assert word in row.measured
    assert row.effect == pytest.approx(0.05, abs=0.01)
    assert row.low < row.effect < row.high
    assert row.seeds == SEEDS


def test_an_undecided_claim_says_how_many_seeds_it_takes(make_measured_run):
    values = {OWN: pairs(0.62, 0.06), ALPACA: pairs(0.6, 0.06, 1)}
    row = claims([make_measured_run("m", values)]).iloc[0]
    assert row.verdict == "undecided"
    assert row.seeds_needed > SEEDS


def test_texts_count_beside_seeds(make_measured_run):
    """Two corpora whose probes differ in 30 of 500 texts, the same ones for every seed: the seeds
    agree wholly, the texts do not.
    """
    probing = {"cola": {OWN: [0.70] * 4, PILE: [0.69] * 4}}
    run = make_measured_run("m", sfr(own=0.5, pile=0.5), probing=probing)
    difference = probe_difference(run, "my-cola", "my-faithful", "my-pile")
    assert difference.seed_error == pytest.approx(0, abs=1e-12)
    # 5 of 500 texts differ: sqrt(.01 * .99 / 500)
    assert difference.text_error == pytest.approx(math.sqrt(0.01 * 0.99 / TEXTS), rel=0.1)


def test_the_papers_own_numbers_agree_as_the_paper_says(make_measured_run):
    """The claims, read off the paper's tables as if they had been measured here by four seeds that
    hardly differ, with the paper's verdict on each.
    """
    from faithful_sae.paper.exhibits import exhibits

    n = {
        t: exhibits()[t].numbers
        for t in ("table1", "table2", "table3", "table4", "table6", "table7")
    }
    make_measured_run("z", {OWN: [0.5]})
    runs = []
    for model, ffr in n["table7"].items():
        values = {
            **n["table4"].get(model, {}),
            **n["table2"].get(model, {}),
            **n["table3"].get(model, {}),
        }
        roles = {*values, *ffr}
        numbers = n["table1"][model]
        runs.append(
            make_measured_run(
                model,
                {
                    r: pairs(values.get(r, 0.5), 1e-7, i)
                    for i, r in enumerate(sorted(roles))
                    if r in values or model not in n["table4"]
                },
                other="z",
                ffr={r: each(v, 1e-7, i) for i, (r, v) in enumerate(ffr.items())},
                dataset={
                    "all_token_coverage": numbers["all_token_coverage"],
                    "kl": numbers["kl"],
                },
            )
        )
    table = claims(runs)
    verdicts = {name: table.verdict[i] for name, i in SECTIONS.items()}
    agreed = ("instruction", "own text", "coverage", "kl", "ffr")
    assert {k: verdicts[k] for k in agreed} == dict.fromkeys(agreed, "agrees")
    # in Table 7 FineWeb is lower than faithful for both Pythias, and the Pile's equals it once
    assert table.measured[SECTIONS["ffr"]].startswith("5 of 7")


def test_a_model_without_saes_counts_where_its_text_does(make_measured_run, make_run):
    trained = make_measured_run("a", sfr={OWN: [0.5], PILE: [0.6], FINEWEB: [0.6]})
    about_saes = [key for stage in stages().values() if stage.with_saes for key in stage.sections]
    text = make_run({"label": "Text"} | dict.fromkeys(about_saes), name="b")
    write_rows(
        text, "dataset", read_rows(trained, "dataset").assign(all_token_coverage=80.0, kl=3.0)
    )
    alone, together = (claims(runs).set_index("section") for runs in ([trained], [trained, text]))
    about_text = ["5.4, Table 1"]
    assert alone.drop(about_text).equals(together.drop(about_text))
    assert "Text: 80.0 %" in together.measured["5.4, Table 1"].iloc[0]
    assert list(together.verdict["5.4, Table 1"]) == ["disagrees", "disagrees"]
    assert list(table1([trained, text]).model[:2]) == ["Model a", "Text"]
    assert profile_note([trained, text]).endswith("SAE recipe: default.")
