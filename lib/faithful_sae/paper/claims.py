"""The paper's claims as statements that measured rows agree or disagree with. Nothing is tuned
until one holds.

A claim is *not testable* where the profile lacks what it compares; otherwise the verdict is the
statement's, evaluated on the numbers as they are. Differences are printed with what they are made
of, so that a reader sees a close call. Models that would count and have not been measured are
named; until they are, a verdict that they may change is one *so far*.
"""

import math

import pandas as pd

from faithful_sae.paper.tables import INSTRUCTION, TASKS, WEB, ffr_values, probing_means, sfr_values
from faithful_sae.runs.rows import measured, read_rows

NOT_TESTABLE, NOT_MEASURED = "not testable", "not measured"


def claims(runs) -> pd.DataFrame:
    """One row per claim: the statement, its section, what was measured, the verdict. Runs without
    SAEs count for Table 1's alone.
    """
    trained = [run for run in runs if run.sae]
    rows = [
        (
            "On faithful text SFR is higher than on each instruction corpus",
            "4.1, Table 2",
            *_instruction(trained),
        ),
        (
            "SFR is higher on a model's own text than on another model's",
            "5.2, Table 3",
            *_own_text(trained),
        ),
        (
            "On web corpora SFR is at least that on faithful text, for most models",
            "5.3, Table 4",
            *_web(trained),
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
            *_fineweb_ce(trained),
        ),
        (
            "Probes read best from the faithful SAE's reconstruction in most cells",
            "5.6, Table 6",
            *_probing(trained, None),
        ),
        (
            "On CoLA probes read best from the faithful SAE, for every model",
            "5.6, Table 6",
            *_probing(trained, "cola"),
        ),
        ("The faithful SAE has the lowest FFR, for most models", "5.7, Table 7", *_ffr(trained)),
    ]
    return pd.DataFrame(rows, columns=["claim", "section", "measured", "verdict"])


def _verdict(found, runs, name, most=False):
    """(text, verdict) from [(text, holds)]; `most`: more than half must hold, otherwise all. runs:
    those that count, where their rows `name` are made.
    """
    there = measured(runs, name)
    missing = [run.label for run in runs if run not in there]
    waiting = [f"not measured: {', '.join(missing)}"] if missing else []
    if not found:
        return (
            (waiting[0], NOT_MEASURED)
            if missing
            else ("the profile has not what this compares", NOT_TESTABLE)
        )
    held = sum(holds for _, holds in found)
    agrees = held > len(found) / 2 if most else held == len(found)
    settled = not missing or not most and not agrees  # one that does not hold is enough
    return (
        "; ".join([f"{held} of {len(found)}: " + "; ".join(text for text, _ in found), *waiting]),
        ("agrees" if agrees else "disagrees") + ("" if settled else " so far"),
    )


def _comparable(runs, against, needed=1):
    """The runs with SAEs of faithful text and of at least `needed` others of the roles `against`."""
    roles = {run.name: {run.corpora[name].role for name in run.sae.train_on} for run in runs}
    return [
        run
        for run in runs
        if "faithful" in roles[run.name]
        and len(roles[run.name] & {*against} - {"faithful"}) >= needed
    ]


def _split(values, against):
    """[(faithful text's value, {role: value} of the others in `against`)], or [] without the one or
    the others.
    """
    others = {role: values[role] for role in against if role in values and role != "faithful"}
    return [(values["faithful"], others)] if "faithful" in values and others else []


def _sfr_verdict(runs, against, holds, needed=1, most=False):
    """holds: function of (SFR on faithful text, {role: SFR}). The standard error is that of one
    SFR.
    """
    runs = _comparable(runs, against, needed)
    found = []
    for run in measured(runs, "sfr"):
        for p, others in _split(sfr_values([run])[run.name], against):
            found.append(
                (
                    _listing(run, p, others, math.sqrt(max(p * (1 - p), 0) / run.sae.d_sae)),
                    holds(p, others),
                )
            )
    return _verdict(found, runs, "sfr", most)


def _instruction(runs):
    return _sfr_verdict(runs, INSTRUCTION, lambda p, others: p > max(others.values()))


def _own_text(runs):
    return _sfr_verdict(runs, ("faithful-other",), lambda p, others: p > others["faithful-other"])


def _web(runs):
    return _sfr_verdict(runs, WEB, lambda p, others: min(others.values()) >= p, needed=2, most=True)


def _coverage(runs):
    return _verdict(
        [
            (f"{run.label} {c:.1f} %", c > 90)
            for run in measured(runs, "dataset")
            for c in read_rows(run, "dataset", "01_generate_faithful").all_token_coverage
        ],
        runs,
        "dataset",
    )


def _kl(runs):
    return _verdict(
        [
            (f"{run.label} {kl:.3f} nats", kl < 2)
            for run in measured(runs, "dataset")
            for kl in read_rows(run, "dataset", "01_generate_faithful").kl
        ],
        runs,
        "dataset",
        most=True,
    )


def _fineweb_ce(runs):
    # on corpora that are none of the three's own, so that all three are averaged over the same
    runs = [
        run
        for run in _comparable(runs, WEB, needed=2)
        if {*run.fidelity.corpora} - {*_web_corpora(run)}
    ]
    found = []
    for run in measured(runs, "fidelity"):
        names = _web_corpora(run)
        rows = read_rows(run, "fidelity", "05_fidelity_matrix")
        rows = rows[
            (rows.seed == run.sae.seeds[0])
            & ~rows.include_bos
            & rows.trained_on.isin(names)
            & ~rows.evaluated_on.isin(names)
        ]
        means = {
            names[name]: float(ce) for name, ce in rows.groupby("trained_on").ce_diff.mean().items()
        }
        for faithful, others in _split(means, WEB):
            found.append(
                (_listing(run, faithful, others) + " nats", max(means, key=means.get) == "fineweb")
            )
    return _verdict(found, runs, "fidelity")


def _web_corpora(run):
    """{name: role} of the web corpora with SAEs."""
    return {
        name: run.corpora[name].role for name in run.sae.train_on if run.corpora[name].role in WEB
    }


def _probing(runs, task_role):
    wanted = (task_role,) if task_role else TASKS
    runs = [
        run
        for run in _comparable(runs, WEB)
        if {task.role for task in run.tasks.values()} & {*wanted}
    ]
    found = []
    means = probing_means(runs)
    for run in measured(runs, "probing"):
        roles = _web_corpora(run)
        for task, spec in run.probing.tasks.items():
            part = means[
                (means.run == run.name)
                & (means.task == task)
                & (means.representation == "reconstruction")
            ]
            values = {roles[c]: a for c, a in zip(part.corpus, part.accuracy) if c in roles}
            for faithful, others in _split(values, WEB) if spec.role in wanted else ():
                found.append(
                    (
                        _listing(run, faithful, others).replace(": ", f", {task}: ", 1),
                        faithful > max(others.values()),
                    )
                )
    return _verdict(found, runs, "probing", most=task_role is None)


def _ffr(runs):
    runs = _comparable(runs, WEB)
    found = []
    for run in measured(runs, "ffr"):
        for faithful, others in _split(ffr_values([run])[run.name], WEB):
            found.append((_listing(run, faithful, others) + " %", faithful < min(others.values())))
    return _verdict(found, runs, "ffr", most=True)


def _listing(run, faithful, others, error=None, digits=3):
    rest = ", ".join(f"{role} {value:.{digits}f}" for role, value in others.items())
    spread = f" (binomial s.e. {error:.3f})" if error is not None else ""
    return f"{run.label}: faithful {faithful:.{digits}f}{spread}, {rest}"
