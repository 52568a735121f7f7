"""The paper's claims as statements that measured rows agree or disagree with. Nothing is tuned
until one holds.

A claim is *not testable* where the profile lacks what it compares; otherwise the verdict is the
statement's, evaluated on the numbers as they are. Differences are printed with what they are made
of, so that a reader sees a close call. Models that would count and have not been measured are
named; until they are, a verdict that they may change is one *so far*.
"""

import math
from collections.abc import Callable, Collection

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
Values = dict[str, float]  # by role
Finding = tuple[str, bool]  # of one model or task: its numbers, and whether the claim holds there
Verdict = tuple[str, str]  # what was measured, the verdict


def claims(runs: list[Run]) -> pd.DataFrame:
    """One row per claim: the statement, its section, what was measured, the verdict. Runs without
    SAEs count for Table 1's alone.
    """
    rows = [
        (
            "On faithful text SFR is higher than on each instruction corpus",
            "4.1, Table 2",
            *_instruction(runs),
        ),
        (
            "SFR is higher on a model's own text than on another model's",
            "5.2, Table 3",
            *_own_text(runs),
        ),
        (
            "On web corpora SFR is at least that on faithful text, for most models",
            "5.3, Table 4",
            *_web(runs),
        ),
        (
            "Faithful text covers over 90 % of the vocabulary, for every model",
            "5.4, Table 1",
            *_coverage(runs),
        ),
        (
            "KL(model || dataset) of the first token stays below 2 for most models",
            "5.4, Table 1",
            *_kl(runs),
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


def _verdict(found: list[Finding], runs: list[Run], name: str, most: bool = False) -> Verdict:
    """What was measured, and the verdict.

    Args:
        found: of those that are measured.
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


def _comparable(runs: list[Run], against: Collection[str], needed: int = 1) -> list[Run]:
    """The runs with SAEs of faithful text and of `needed` others of the roles `against`."""
    roles = {run.name: {corpus.role for corpus in sae_corpora(run).values()} for run in runs}
    return [
        run
        for run in runs
        if "faithful" in roles[run.name]
        and len(roles[run.name] & {*against} - {"faithful"}) >= needed
    ]


def _others(values: Values, against: Collection[str]) -> Values:
    return {role: values[role] for role in against if role in values and role != "faithful"}


def _sfr(
    runs: list[Run],
    against: Collection[str],
    holds: Callable[[float, Values], bool],
    needed: int = 1,
    most: bool = False,
) -> Verdict:
    """A claim on SFR; the standard error shown is that of one SFR.

    Args:
        holds: function of (SFR on faithful text, {role: SFR}).
        needed, most: as in _comparable and _verdict.
    """
    runs = _comparable(runs, against, needed)
    found = []
    for run in measured(runs, "sfr"):
        values = sfr_values([run])[run.name]
        p = values["faithful"]
        others = _others(values, against)
        error = math.sqrt(max(p * (1 - p), 0) / run.sae.d_sae)
        spread = f" (binomial s.e. {error:.3f})"
        found.append((_listing(run.label, p, others, spread), holds(p, others)))
    return _verdict(found, runs, "sfr", most)


def _instruction(runs: list[Run]) -> Verdict:
    return _sfr(runs, INSTRUCTION, lambda p, others: p > max(others.values()))


def _own_text(runs: list[Run]) -> Verdict:
    return _sfr(runs, ("faithful-other",), lambda p, others: p > others["faithful-other"])


def _web(runs: list[Run]) -> Verdict:
    return _sfr(runs, WEB, lambda p, others: min(others.values()) >= p, needed=2, most=True)


def _coverage(runs: list[Run]) -> Verdict:
    found = [
        (f"{run.label} {percent:.1f} %", percent > 90)
        for run in measured(runs, "dataset")
        for percent in read_rows(run, "dataset", "01_generate_faithful").all_token_coverage
    ]
    return _verdict(found, runs, "dataset")


def _kl(runs: list[Run]) -> Verdict:
    found = [
        (f"{run.label} {kl:.3f} nats", kl < 2)
        for run in measured(runs, "dataset")
        for kl in read_rows(run, "dataset", "01_generate_faithful").kl
    ]
    return _verdict(found, runs, "dataset", most=True)


def _fineweb_ce(runs: list[Run]) -> Verdict:
    # on corpora that are none of the three's own, so that all three are averaged over the same
    runs = [
        run
        for run in _comparable(runs, WEB, needed=2)
        if run.fidelity and {*run.fidelity.corpora} - {*_web_corpora(run)}
    ]
    found = []
    for run in measured(runs, "fidelity"):
        roles = _web_corpora(run)
        rows = read_rows(run, "fidelity", "05_fidelity_matrix")
        rows = rows.loc[
            (rows.seed == run.sae.seeds[0])
            & ~rows.include_bos
            & rows.trained_on.isin(roles)
            & ~rows.evaluated_on.isin(roles)
        ]
        means = rows.groupby("trained_on").ce_diff.mean()
        values = {roles[name]: float(ce) for name, ce in means.items()}
        text = _listing(run.label, values["faithful"], _others(values, WEB)) + " nats"
        found.append((text, roles[means.idxmax()] == "fineweb"))
    return _verdict(found, runs, "fidelity")


def _web_corpora(run: Run) -> dict[str, str]:
    """{name: role} of the web corpora with SAEs."""
    return {name: corpus.role for name, corpus in sae_corpora(run).items() if corpus.role in WEB}


def _probing(runs: list[Run], task_roles: Collection[str], most: bool) -> Verdict:
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
            values = {roles[c]: a for c, a in zip(part.corpus, part.accuracy, strict=True)}
            others = _others(values, WEB)
            if others and task.role in task_roles:
                text = _listing(f"{run.label}, {name}", values["faithful"], others)
                found.append((text, values["faithful"] > max(others.values())))
    return _verdict(found, runs, "probing", most)


def _ffr(runs: list[Run]) -> Verdict:
    runs = _comparable(runs, WEB)
    found = []
    for run in measured(runs, "ffr"):
        values = ffr_values([run])[run.name]
        faithful = values["faithful"]
        others = _others(values, WEB)
        text = _listing(run.label, faithful, others) + " %"
        found.append((text, faithful < min(others.values())))
    return _verdict(found, runs, "ffr", most=True)


def _listing(label: str, faithful: float, others: Values, spread: str = "") -> str:
    rest = ", ".join(f"{role} {value:.3f}" for role, value in others.items())
    return f"{label}: faithful {faithful:.3f}{spread}, {rest}"
