"""Every claim on rows where it holds, on rows where it does not, and on rows that cannot say."""

import pytest

from faithful_sae.paper.claims import claims
from faithful_sae.paper.exhibits import profile_note
from faithful_sae.paper.tables import table1
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

# claim, verdict, runs: each the keyword arguments of make_measured_run
CASES = [
    ("instruction", "agrees", [{"sfr": {OWN: [0.6, 0.7], ALPACA: [0.6], OPEN: [0.64, 0.65]}}]),
    ("instruction", "disagrees", [{"sfr": {OWN: [0.6, 0.7], ALPACA: [0.6], FLAN: [0.7]}}]),
    ("instruction", "disagrees", [{"sfr": {OWN: [0.6], ALPACA: [0.6]}}]),  # higher, not as high
    (
        "instruction",
        "disagrees",
        [
            {"sfr": {OWN: [0.6], ALPACA: [0.5]}},
            {"sfr": {OWN: [0.6], ALPACA: [0.5]}},
            {"sfr": {OWN: [0.6], ALPACA: [0.7]}},
        ],
    ),  # each corpus, each model
    ("instruction", "not testable", [{"sfr": {OWN: [0.6], PILE: [0.5], FINEWEB: [0.4]}}]),
    ("instruction", "not testable", [{"sfr": {ALPACA: [0.6], OPEN: [0.5]}}]),
    ("own text", "agrees", [{"sfr": {OWN: [0.6], OTHER: [0.5]}}]),
    (
        "own text",
        "disagrees",
        [{"sfr": {OWN: [0.6], OTHER: [0.5]}}, {"sfr": {OWN: [0.5], OTHER: [0.6]}}],
    ),
    ("own text", "not testable", [{"sfr": {OWN: [0.6], ALPACA: [0.5]}}]),
    (
        "web",
        "agrees",
        [
            {"sfr": {OWN: [0.5], PILE: [0.5], FINEWEB: [0.6]}},
            {"sfr": {OWN: [0.5], PILE: [0.6], FINEWEB: [0.6]}},
            {"sfr": {OWN: [0.7], PILE: [0.6], FINEWEB: [0.6]}},
        ],
    ),
    (
        "web",
        "disagrees",
        [
            {"sfr": {OWN: [0.5], PILE: [0.6], FINEWEB: [0.6]}},
            {"sfr": {OWN: [0.5], PILE: [0.6], FINEWEB: [0.4]}},
        ],
    ),  # one of two is not most
    ("web", "not testable", [{"sfr": {OWN: [0.5], PILE: [0.6]}}]),
    ("coverage", "agrees", [{"sfr": {OWN: [0.5]}, "coverage": 90.1}]),
    (
        "coverage",
        "disagrees",
        [{"sfr": {OWN: [0.5]}, "coverage": 99.0}, {"sfr": {OWN: [0.5]}, "coverage": 90.0}],
    ),
    (
        "kl",
        "agrees",
        [
            {"sfr": {OWN: [0.5]}, "kl": 1.9},
            {"sfr": {OWN: [0.5]}, "kl": 0.1},
            {"sfr": {OWN: [0.5]}, "kl": 2.5},
        ],
    ),
    ("kl", "disagrees", [{"sfr": {OWN: [0.5]}, "kl": 2.0}]),
    (
        "fineweb",
        "agrees",
        [
            {
                "sfr": {OWN: [0.5], PILE: [0.5], FINEWEB: [0.5]},
                "ce": {OWN: 0.1, PILE: 0.2, FINEWEB: 0.3},
            }
        ],
    ),
    (
        "fineweb",
        "disagrees",
        [
            {
                "sfr": {OWN: [0.5], PILE: [0.5], FINEWEB: [0.5]},
                "ce": {OWN: 0.1, PILE: 0.4, FINEWEB: 0.3},
            }
        ],
    ),
    (
        "fineweb",
        "not testable",
        [{"sfr": {OWN: [0.5], FINEWEB: [0.5]}, "ce": {OWN: 0.1, FINEWEB: 0.3}}],
    ),
    (
        "probing",
        "agrees",
        [
            {
                "sfr": {OWN: [0.5], PILE: [0.5]},
                "probing": {
                    "sst2": {OWN: [0.8, 0.6], PILE: [0.69, 0.7]},
                    "cola": {OWN: [0.5], PILE: [0.4]},
                    "yelp": {OWN: [0.5], PILE: [0.6]},
                },
            }
        ],
    ),
    (
        "probing",
        "disagrees",
        [
            {
                "sfr": {OWN: [0.5], PILE: [0.5]},
                "probing": {"sst2": {OWN: [0.8], PILE: [0.7]}, "cola": {OWN: [0.4], PILE: [0.4]}},
            }
        ],
    ),
    ("probing", "not testable", [{"sfr": {OWN: [0.5]}, "probing": {"sst2": {OWN: [0.8]}}}]),
    (
        "cola",
        "agrees",
        [
            {
                "sfr": {OWN: [0.5], PILE: [0.5]},
                "probing": {"sst2": {OWN: [0.1], PILE: [0.7]}, "cola": {OWN: [0.5], PILE: [0.4]}},
            }
        ],
    ),
    (
        "cola",
        "disagrees",
        [{"sfr": {OWN: [0.5], PILE: [0.5]}, "probing": {"cola": {OWN: [0.5], PILE: [0.4]}}}] * 2
        + [{"sfr": {OWN: [0.5], PILE: [0.5]}, "probing": {"cola": {OWN: [0.4], PILE: [0.5]}}}],
    ),
    (
        "cola",
        "not testable",
        [{"sfr": {OWN: [0.5], PILE: [0.5]}, "probing": {"sst2": {OWN: [0.9], PILE: [0.7]}}}],
    ),
    (
        "ffr",
        "agrees",
        [{"sfr": {OWN: [0.5], PILE: [0.5]}, "ffr": {OWN: [0.1, 0.3], PILE: [0.2, 0.21]}}],
    ),
    (
        "ffr",
        "disagrees",
        [
            {
                "sfr": {OWN: [0.5], PILE: [0.5], FINEWEB: [0.5]},
                "ffr": {OWN: [0.1], PILE: [0.2], FINEWEB: [0.1]},
            }
        ],
    ),
    (
        "ffr",
        "disagrees",
        [
            {"sfr": {OWN: [0.5], PILE: [0.5]}, "ffr": {OWN: [0.1], PILE: [0.2]}},
            {"sfr": {OWN: [0.5], PILE: [0.5]}, "ffr": {OWN: [0.3], PILE: [0.2]}},
        ],
    ),
    (
        "ffr",
        "not testable",
        [{"sfr": {OWN: [0.5], ALPACA: [0.5]}, "ffr": {OWN: [0.1], ALPACA: [0.2]}}],
    ),
]


@pytest.mark.parametrize(
    "claim, verdict, cases", CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)]
)
def test_verdicts(make_measured_run, claim, verdict, cases):
    make_measured_run("z", {OWN: [0.5]})  # whose text plays faithful-other
    runs = [make_measured_run(f"m{i}", other="z", **case) for i, case in enumerate(cases)]
    table = claims(runs)
    row = table.iloc[SECTIONS[claim]]
    assert row.verdict == verdict, row.measured
    assert len(table) == 9
    assert set(table.verdict) <= {"agrees", "disagrees", "not testable"}
    assert all(f"Model m{i}" in row.measured for i in range(len(runs))) or verdict == "not testable"


# claim, verdict, whose rows `forgotten` are not there: of two models of which the first is measured
WAITING = [
    ("instruction", "agrees so far", [0.6, 0.5], "sfr"),
    ("instruction", "disagrees", [0.5, 0.6], "sfr"),  # of all: one that fails is enough
    ("web", "disagrees so far", [0.6, 0.5], "sfr"),
    ("web", "agrees so far", [0.5, 0.6], "sfr"),
    ("coverage", "agrees so far", [0.5, 0.5], "dataset"),
    ("kl", "agrees so far", [0.5, 0.5], "dataset"),
    ("fineweb", "disagrees", [0.5, 0.5], "fidelity"),
    ("ffr", "disagrees so far", [0.5, 0.5], "ffr"),
]


@pytest.mark.parametrize(
    "claim, verdict, values, forgotten", WAITING, ids=[f"{c[0]}-{c[1]}" for c in WAITING]
)
def test_a_model_that_is_not_measured_is_named_and_the_verdict_waits(
    make_measured_run, claim, verdict, values, forgotten
):
    runs = [
        make_measured_run(
            name,
            {OWN: values[:1], PILE: values[1:], FINEWEB: values[1:], ALPACA: values[1:]},
            ce={OWN: 0.1, PILE: 0.4, FINEWEB: 0.3},
        )
        for name in ("a", "b")
    ]
    (runs[1].artifacts / "rows" / f"{forgotten}.csv").unlink()
    row = claims(runs).iloc[SECTIONS[claim]]
    assert row.verdict == verdict
    assert row.measured.endswith("; not measured: Model b")
    assert "of 1: Model a" in row.measured
    (runs[0].artifacts / "rows" / f"{forgotten}.csv").unlink()
    row = claims(runs).iloc[SECTIONS[claim]]
    assert (row.verdict, row.measured) == ("not measured", "not measured: Model a, Model b")
    assert claims(runs).verdict[SECTIONS["own text"]] == "not testable", (
        "no model has the other's text, measured or not"
    )


def test_what_was_measured_is_shown(make_measured_run):
    run = make_measured_run(
        "m", {OWN: [0.6, 0.7], ALPACA: [0.61234], FLAN: [0.2]}, ffr={OWN: [0.1234], ALPACA: [5.0]}
    )
    measured = claims([run]).measured[0]
    # binomial standard error of 0.65 over 24 latents: sqrt(.65 * .35 / 24) = 0.097
    for word in ("1 of 1", "faithful 0.650", "s.e. 0.097", "alpaca 0.612", "flan 0.200"):
        assert word in measured


def test_the_papers_own_numbers_agree_as_the_paper_says(make_measured_run):
    """The claims, read off the paper's tables as if they had been measured here, with the paper's
    verdict on each.
    """
    from faithful_sae.paper.exhibits import exhibits

    n = {
        t: exhibits()[t].numbers
        for t in ("table1", "table2", "table3", "table4", "table6", "table7")
    }
    make_measured_run("z", {OWN: [0.5]})
    runs = []
    for model, ffr in n["table7"].items():
        sfr = {
            **n["table4"].get(model, {}),
            **n["table2"].get(model, {}),
            **n["table3"].get(model, {}),
        }
        roles = {*sfr, *ffr}
        runs.append(
            make_measured_run(
                model,
                {
                    r: [sfr.get(r, 0.5)]
                    for r in sorted(roles)
                    if r in sfr or model not in n["table4"]
                },
                other="z",
                ffr={r: [v] for r, v in ffr.items()},
                probing={
                    t: {r: [v] for r, v in c.items()} for t, c in n["table6"].get(model, {}).items()
                }
                or None,
                coverage=n["table1"][model]["all_token_coverage"],
                kl=n["table1"][model]["kl"],
            )
        )
    table = claims(runs)
    verdicts = {name: table.verdict[i] for name, i in SECTIONS.items()}
    assert {
        k: verdicts[k] for k in ("instruction", "own text", "coverage", "kl", "probing", "cola")
    } == dict.fromkeys(("instruction", "own text", "coverage", "kl", "probing", "cola"), "agrees")
    assert table.measured[SECTIONS["probing"]].startswith("12 of 18")
    assert table.measured[SECTIONS["cola"]].startswith("6 of 6")
    # in Table 7 FineWeb is lower than faithful for both Pythias, and for them alone
    assert verdicts["ffr"] == "agrees"
    assert table.measured[SECTIONS["ffr"]].startswith("5 of 7")


def test_a_model_without_saes_counts_where_its_text_does(make_measured_run, make_run):
    trained = make_measured_run(
        "a", sfr={OWN: [0.5], PILE: [0.6], FINEWEB: [0.6]}, coverage=95.0, kl=1.0
    )
    about_saes = [key for stage in stages().values() if stage.with_saes for key in stage.sections]
    text = make_run({"label": "Text"} | dict.fromkeys(about_saes), name="b")
    write_rows(
        text, "dataset", read_rows(trained, "dataset").assign(all_token_coverage=80.0, kl=3.0)
    )
    alone, together = (claims(runs).set_index("section") for runs in ([trained], [trained, text]))
    about_text = ["5.4, Table 1"]
    assert alone.drop(about_text).equals(together.drop(about_text))
    assert "Text 80.0 %" in together.measured["5.4, Table 1"].iloc[0]
    assert list(together.verdict["5.4, Table 1"]) == ["disagrees", "disagrees"]
    assert list(table1([trained, text]).model[:2]) == ["Model a", "Text"]
    assert profile_note([trained, text]).endswith("SAE recipe: default.")
