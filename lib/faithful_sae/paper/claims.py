"""The paper's claims as statements that measured rows agree or disagree with. Nothing is tuned
until one holds.

A claim is *not testable* where the profile lacks what it compares; otherwise the verdict is the
statement's, evaluated on the numbers as they are. Differences are printed with what they are made
of, so that a reader sees a close call. Models that would count and have not been measured are
named; until they are, a verdict that they may change is one *so far*.
"""

import math

import pandas as pd

from faithful_sae.paper.tables import (
    INSTRUCTION,
    TASKS,
    WEB,
    ffr_values,
    probing_means,
    sae_corpora,
    sfr_values,
)
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import Run

NOT_TESTABLE = "not testable"
NOT_MEASURED = "not measured"


def claims(runs: list[Run]) -> pd.DataFrame:
    """One row per claim: the statement, its section, what was measured, the verdict. Runs without
    SAEs count for Table 1's alone.
    """
    rows = [
        (
            "On faithful text SFR is higher than on each instruction corpus",
            "4.1, Table 2",
            *_sfr(runs, INSTRUCTION, _highest),
        ),
        (
            "SFR is higher on a model's own text than on another model's",
            "5.2, Table 3",
            *_sfr(runs, ("faithful-other",), _highest),
        ),
        (
            "On web corpora SFR is at least that on faithful text, for most models",
            "5.3, Table 4",
            *_sfr(runs, WEB, lambda p, others: min(others) >= p, needed=2, most=True),
        ),
        (
            "Faithful text covers over 90 % of the vocabulary, for every model",
            "5.4, Table 1",
            *_text(runs, "all_token_coverage", "{:.1f} %", lambda percent: percent > 90),
        ),
        (
            "KL(model || dataset) of the first token stays below 2 for most models",
            "5.4, Table 1",
            *_text(runs, "kl", "{:.3f} nats", lambda kl: kl < 2, most=True),
        ),
        (
            "Of the web SAEs FineWeb's has the highest CE difference off its own corpus",
            "5.5, Figure 5",
            *_fineweb_ce(runs),
        ),
        (
            "Probes read best from the faithful SAE's reconstruction in most cells",
            "5.6, Table 6",
            *_probing(runs, TASKS, most=True),
        ),
        (
            "On CoLA probes read best from the faithful SAE, for every model",
            "5.6, Table 6",
            *_probing(runs, ("cola",), most=False),
        ),
        ("The faithful SAE has the lowest FFR, for most models", "5.7, Table 7", *_ffr(runs)),
    ]
    return pd.DataFrame(rows, columns=["claim", "section", "measured", "verdict"])


def _verdict(found, runs, name, most=False) -> tuple[str, str]:
    """What was measured, and the verdict.

    Args:
        found: [(numbers in words, whether the claim holds for them)].
        runs: the models that count, whether their rows `name` are made or not.
        most: more than half of `found` must hold; otherwise all.
    """
    there = measured(runs, name)
    missing = [run.label for run in runs if run not in there]
    waiting = [f"not measured: {', '.join(missing)}"] if missing else []
    if not found and missing:
        return waiting[0], NOT_MEASURED
    if not found:
        return "the profile has not what this compares", NOT_TESTABLE
    held = sum(holds for _, holds in found)
    agrees = held > len(found) / 2 if most else held == len(found)
    verdict = "agrees" if agrees else "disagrees"
    # of a claim on all models, one that does not hold is enough
    settled = not missing or (not most and not agrees)
    if not settled:
        verdict += " so far"
    texts = "; ".join([*(text for text, _ in found), *waiting])
    return f"{held} of {len(found)}: {texts}", verdict


def _comparable(runs, against, needed=1):
    """The runs with SAEs of faithful text and of `needed` others of the roles `against`."""
    roles = {run.name: {corpus.role for corpus in sae_corpora(run).values()} for run in runs}
    return [
        run
        for run in runs
        if "faithful" in roles[run.name]
        and len(roles[run.name] & {*against} - {"faithful"}) >= needed
    ]


def _beside_faithful(label, values, against, holds, unit="", spread=""):
    """A finding: the value of faithful text and those of the other roles `against`, in words, and
    whether `holds` is true of them.

    Args:
        values: {role: value}.
        holds: function of (faithful text's value, the others).
    """
    p = values["faithful"]
    others = {role: values[role] for role in against if role in values and role != "faithful"}
    rest = ", ".join(f"{role} {value:.3f}" for role, value in others.items())
    return f"{label}: faithful {p:.3f}{spread}, {rest}{unit}", holds(p, others.values())


def _highest(p, others):
    return p > max(others)


def _lowest(p, others):
    return p < min(others)


def _sfr(runs, against, holds, needed=1, most=False):
    """The standard error is that of one SFR."""
    runs = _comparable(runs, against, needed)
    found = []
    for run in measured(runs, "sfr"):
        assert run.sae
        values = sfr_values([run])[run.name]
        p = values["faithful"]
        error = math.sqrt(max(p * (1 - p), 0) / run.sae.d_sae)
        spread = f" (binomial s.e. {error:.3f})"
        found.append(_beside_faithful(run.label, values, against, holds, spread=spread))
    return _verdict(found, runs, "sfr", most)


def _text(runs, column, words, holds, most=False):
    """Of the faithful dataset."""
    found = [
        (f"{run.label} {words.format(value)}", holds(value))
        for run in measured(runs, "dataset")
        for value in read_rows(run, "dataset")[column]
    ]
    return _verdict(found, runs, "dataset", most)


def _fineweb_ce(runs):
    # on corpora that are none of the three's own, so that all three are averaged over the same
    runs = [
        run
        for run in _comparable(runs, WEB, needed=2)
        if {*run.fidelity.corpora} - {*_web_corpora(run)}
    ]
    found = []
    for run in measured(runs, "fidelity"):
        assert run.sae
        roles = _web_corpora(run)
        rows = read_rows(run, "fidelity")
        rows = rows.loc[
            (rows.seed == run.sae.seeds[0])
            & ~rows.include_bos
            & rows.trained_on.isin(roles)
            & ~rows.evaluated_on.isin(roles)
        ]
        means = rows.groupby("trained_on").ce_diff.mean().rename(roles)
        text, _ = _beside_faithful(run.label, means, WEB, _highest, " nats")
        found.append((text, means.idxmax() == "fineweb"))
    return _verdict(found, runs, "fidelity")


def _web_corpora(run):
    """{name: role} of the web corpora with SAEs."""
    return {name: corpus.role for name, corpus in sae_corpora(run).items() if corpus.role in WEB}


def _probing(runs, task_roles, most):
    runs = [
        run
        for run in _comparable(runs, WEB)
        if {task.role for task in run.tasks.values()} & {*task_roles}
    ]
    found = []
    means = probing_means(runs)
    for run in measured(runs, "probing"):
        roles = _web_corpora(run)
        for name, task in run.tasks.items():
            part = means.loc[
                (means.run == run.name)
                & (means.task == name)
                & (means.representation == "reconstruction")
                & means.corpus.isin(roles)
            ]
            if task.role in task_roles and len(part):
                values = part.set_index("corpus").accuracy.rename(roles)
                found.append(_beside_faithful(f"{run.label}, {name}", values, WEB, _highest))
    return _verdict(found, runs, "probing", most)


def _ffr(runs):
    runs = _comparable(runs, WEB)
    values = ffr_values(runs)
    found = [
        _beside_faithful(run.label, values[run.name], WEB, _lowest, " %")
        for run in measured(runs, "ffr")
    ]
    return _verdict(found, runs, "ffr", most=True)
