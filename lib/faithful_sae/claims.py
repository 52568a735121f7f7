"""The paper's claims as statements that measured rows agree or disagree with. Nothing is tuned until one holds.

A claim is *not testable* where the profile lacks what it compares; otherwise the verdict is the statement's, evaluated on the
numbers as they are. Differences are printed with what they are made of, so that a reader sees a close call.
"""

import math

import pandas as pd

from faithful_sae.stages.rows import read_rows
from faithful_sae.tables import INSTRUCTION, TASKS, WEB, ffr_values, probing_means, sfr_values

NOT_TESTABLE = "not testable"


def claims(runs) -> pd.DataFrame:
    """One row per claim: the statement, its section, what was measured, the verdict. Runs without SAEs count for Table 1's alone."""
    trained = [run for run in runs if run.sae]
    rows = [("On faithful text SFR is higher than on each instruction corpus", "4.1, Table 2", *_instruction(trained)),
            ("SFR is higher on a model's own text than on another model's", "5.2, Table 3", *_own_text(trained)),
            ("On web corpora SFR is at least that on faithful text, for most models", "5.3, Table 4", *_web(trained)),
            ("Faithful text covers over 90 % of the vocabulary, for every model", "5.4, Table 1", *_coverage(runs)),
            ("KL(model || dataset) of the first token stays below 2 for most models", "5.4, Table 1", *_kl(runs)),
            ("Of the web SAEs FineWeb's has the highest CE difference off its own corpus", "5.5, Figure 5", *_fineweb_ce(trained)),
            ("Probes read best from the faithful SAE's reconstruction in most cells", "5.6, Table 6", *_probing(trained, None)),
            ("On CoLA probes read best from the faithful SAE, for every model", "5.6, Table 6", *_probing(trained, "cola")),
            ("The faithful SAE has the lowest FFR, for most models", "5.7, Table 7", *_ffr(trained))]
    return pd.DataFrame(rows, columns=["claim", "section", "measured", "verdict"])


def _verdict(found, most=False):
    """(text, verdict) from [(text, holds)]; `most`: more than half must hold, otherwise all."""
    if not found:
        return "the profile has not what this compares", NOT_TESTABLE
    held = sum(holds for _, holds in found)
    agrees = held > len(found) / 2 if most else held == len(found)
    return f"{held} of {len(found)}: " + "; ".join(text for text, _ in found), "agrees" if agrees else "disagrees"


def _sfr_comparisons(runs, against):
    """[(run, faithful SFR, {role: SFR} of `against`, standard error of one SFR)] where both sides exist."""
    out = []
    for run in runs:
        values = sfr_values([run])[run.name]
        others = {role: values[role] for role in against if role in values and role != "faithful"}
        if "faithful" in values and others:
            p = values["faithful"]
            out.append((run, p, others, math.sqrt(max(p * (1 - p), 0) / run.sae.d_sae)))
    return out


def _listing(run, faithful, others, error=None, digits=3):
    rest = ", ".join(f"{role} {value:.{digits}f}" for role, value in others.items())
    spread = f" (binomial s.e. {error:.3f})" if error is not None else ""
    return f"{run.label}: faithful {faithful:.{digits}f}{spread}, {rest}"


def _instruction(runs):
    return _verdict([(_listing(run, p, others, error), p > max(others.values()))
                     for run, p, others, error in _sfr_comparisons(runs, INSTRUCTION)])


def _own_text(runs):
    return _verdict([(_listing(run, p, others, error), p > others["faithful-other"])
                     for run, p, others, error in _sfr_comparisons(runs, ("faithful-other",))])


def _web(runs):
    return _verdict([(_listing(run, p, others, error), min(others.values()) >= p)
                     for run, p, others, error in _sfr_comparisons(runs, WEB) if len(others) == 2], most=True)


def _coverage(runs):
    return _verdict([(f"{run.label} {c:.1f} %", c > 90) for run in runs
                     for c in read_rows(run, "dataset", "01_generate_faithful").all_token_coverage])


def _kl(runs):
    return _verdict([(f"{run.label} {kl:.3f} nats", kl < 2) for run in runs
                     for kl in read_rows(run, "dataset", "01_generate_faithful").kl], most=True)


def _fineweb_ce(runs):
    found = []
    for run in runs:
        names = {run.corpora[name].role: name for name in run.sae.train_on if run.corpora[name].role in WEB}
        rows = read_rows(run, "fidelity", "05_fidelity_matrix")
        # on corpora that are none of the three's own, so that all three are averaged over the same
        rows = rows[(rows.seed == run.sae.seeds[0]) & ~rows.include_bos & rows.trained_on.isin(names.values())
                    & ~rows.evaluated_on.isin(names.values())]
        off = rows.groupby("trained_on").ce_diff.mean()
        if len(names) == 3 and len(off) == 3:
            means = {role: float(off[name]) for role, name in names.items()}
            others = {role: value for role, value in means.items() if role != "faithful"}
            found.append((_listing(run, means["faithful"], others) + " nats", max(means, key=means.get) == "fineweb"))
    return _verdict(found)


def _probing(runs, task_role):
    found, means = [], probing_means(runs)
    for run in runs:
        roles = {name: run.corpora[name].role for name in run.sae.train_on if run.corpora[name].role in WEB}
        for task, spec in run.probing.tasks.items():
            part = means[(means.run == run.name) & (means.task == task) & (means.representation == "reconstruction")]
            values = {roles[c]: a for c, a in zip(part.corpus, part.accuracy) if c in roles}
            if "faithful" in values and len(values) > 1 and spec.role in ((task_role,) if task_role else TASKS):
                others = {role: value for role, value in values.items() if role != "faithful"}
                text = _listing(run, values["faithful"], others).replace(": ", f", {task}: ", 1)
                found.append((text, values["faithful"] > max(others.values())))
    return _verdict(found, most=task_role is None)


def _ffr(runs):
    found = []
    for run in runs:
        values = ffr_values([run])[run.name]
        others = {role: values[role] for role in WEB if role in values and role != "faithful"}
        if "faithful" in values and others:
            found.append((_listing(run, values["faithful"], others) + " %", values["faithful"] < min(others.values())))
    return _verdict(found, most=True)
