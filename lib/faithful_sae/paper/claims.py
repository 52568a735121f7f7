"""The paper's claims, and what a profile measures of them. Nothing is tuned until one holds.

Each claim names differences that should be above 0. Their intervals over seeds, rows and texts
decide, by the one rule of verdicts.py. Language models that would count and have not been measured
are named, and a verdict that they may change is not given.
"""

from collections.abc import Callable

import pandas as pd

from faithful_sae.metrics.uncertainty import Estimate, mean_over_seeds
from faithful_sae.paper.estimates import (
    ce_difference,
    ffr_values,
    guesses,
    pair_values,
    probe_difference,
    probe_estimates,
)
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import INSTRUCTION, TASKS, WEB, sae_corpora
from faithful_sae.paper.verdicts import NATS, PERCENT, SHARE, Case, Difference, judge, table_of
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import Run

MOST_COVERED = 90.0
KL_LIMIT = 2.0
CEILING = 0.99


def claims(runs: list[Run]) -> pd.DataFrame:
    """One row per claim: the statement, its section, and the columns of verdicts.judge. Runs
    without SAEs count for Table 1's alone.
    """
    rows = [
        (
            "On faithful text SFR is higher than on each instruction corpus",
            "4.1, Table 2",
            _sfr(runs, INSTRUCTION),
        ),
        (
            "SFR is higher on a model's own text than on another model's",
            "5.2, Table 3",
            _sfr(runs, ("faithful-other",)),
        ),
        (
            "On web corpora SFR is at least that on faithful text, for most models",
            "5.3, Table 4",
            _sfr(runs, WEB, needed=2, most=True, sign=-1),
        ),
        (
            f"Faithful text covers over {MOST_COVERED:.0f} % of the vocabulary, for every model",
            "5.4, Table 1",
            _text(runs, _coverage),
        ),
        (
            f"KL(model || dataset) of the first token stays below {KL_LIMIT:.0f} for most models",
            "5.4, Table 1",
            _text(runs, _kl, most=True),
        ),
        (
            "Of the web SAEs FineWeb's has the highest CE difference off its own corpus",
            "5.5, Figure 5",
            _fineweb_ce(runs),
        ),
        (
            "Probes read best from the faithful SAE's reconstruction in most cells",
            "5.6, Table 6",
            _probing(runs, TASKS, most=True),
        ),
        (
            "On CoLA probes read best from the faithful SAE, for every model",
            "5.6, Table 6",
            _probing(runs, ("cola",), most=False),
        ),
        ("The faithful SAE has the lowest FFR, for most models", "5.7, Table 7", _ffr(runs)),
    ]
    return table_of([{"claim": c, "section": s, **judged} for c, s, judged in rows])


def _judge(runs, name, case, most=False, margin=0.0):
    """The verdict on the models whose rows `name` are made, each a case or several.

    Args:
        case: function of a run; its cases.
    """
    there = measured(runs, name)
    missing = [run.label for run in runs if run not in there]
    cases = [found for run in there for found in case(run)]
    return judge(cases, missing, most, margin)


def _comparable(runs, against, needed=1):
    """The runs with SAEs of faithful text and of `needed` others of the roles `against`."""
    roles = {run.name: {corpus.role for corpus in sae_corpora(run).values()} for run in runs}
    return [
        run
        for run in runs
        if "faithful" in roles[run.name]
        and len(roles[run.name] & {*against} - {"faithful"}) >= needed
    ]


def _by_role(run: Run) -> dict[str, str]:
    """{role: name} of the corpora with SAEs that play one."""
    return {corpus.role: name for name, corpus in sae_corpora(run).items() if corpus.role}


def _against(
    run: Run,
    against: tuple[str, ...],
    difference: Callable[[str, str], Estimate],
    sign: int,
    digits: int = 3,
    chosen: str = "faithful",
) -> tuple[Difference, ...]:
    """What one corpus's number is above each of the others', or (sign -1) these above its."""
    names = _by_role(run)
    found = []
    for role in against:
        if role in names and role != chosen:
            ends = heading(run, names[chosen]), heading(run, names[role])
            estimate = difference(names[chosen], names[role])
            above, below = ends if sign > 0 else ends[::-1]
            signed = estimate if sign > 0 else estimate.negative()
            found.append(Difference(f"{above} over {below}", signed, digits))
    return tuple(found)


def _sfr(runs, against, needed=1, most=False, sign=1):
    def case(run):
        values = pair_values(run)

        def difference(a, b):
            return mean_over_seeds(values[a], values[b])

        own = mean_over_seeds(values[_by_role(run)["faithful"]])
        words = f"faithful {own.value:.3f}"
        return [Case(run.label, _against(run, against, difference, sign), words=words)]

    return _judge(_comparable(runs, against, needed), "sfr", case, most, SHARE)


def _text(runs, case, most=False):
    """Of the faithful dataset."""

    def cases(run):
        (row,) = read_rows(run, "dataset").to_dict("records")
        return [case(run.label, row)]

    return _judge(runs, "dataset", cases, most)


def _coverage(label, row):
    words = f"{row['all_token_coverage']:.1f} %"
    limit = row["pretraining_coverage"]
    if pd.notna(limit):
        words += f", and {row['relative_coverage']:.1f} % of what its training text has"
    covered = row["all_token_coverage"] > MOST_COVERED
    excluded = None
    if limit <= MOST_COVERED:
        excluded = f"no text can tell: even the model's training text covers {limit:.1f} %"
    return Case(label, fact=covered, words=words, excluded=excluded)


def _kl(label, row):
    expected, spread = row["expected_kl"], row["expected_kl_sd"]
    words = f"{row['kl']:.3f} nats, perfect sampling {expected:.3f} ± {spread:.3f}"
    excluded = None
    if abs(expected - KL_LIMIT) > 2 * spread:
        excluded = "it is decided by the number of documents, not by what they are"
    return Case(label, fact=row["kl"] < KL_LIMIT, words=words, excluded=excluded)


def _fineweb_ce(runs):
    def elsewhere(run):
        own = {name for role, name in _by_role(run).items() if role in WEB}
        # on corpora that are none of the three's own, so that all three are averaged over the same
        return [name for name in run.fidelity.corpora if name not in own]

    def case(run):
        def difference(a, b):
            return ce_difference(run, elsewhere(run), a, b)

        return [Case(run.label, _against(run, WEB, difference, 1, chosen="fineweb"))]

    runs = [run for run in _comparable(runs, WEB, needed=2) if elsewhere(run)]
    return _judge(runs, "fidelity", case, margin=NATS)


def _probing(runs, task_roles, most):
    def case(run):
        return [
            _probe_case(run, name) for name, task in run.tasks.items() if task.role in task_roles
        ]

    runs = [
        run
        for run in _comparable(runs, WEB)
        if {task.role for task in run.tasks.values()} & {*task_roles}
    ]
    return _judge(runs, "probing", case, most, SHARE)


def _probe_case(run, task):
    """One cell; not testable where the probe on the activations themselves reads no more than
    chance, or all there is.
    """

    def difference(a, b):
        return probe_difference(run, task, a, b)

    (baseline,) = probe_estimates(run, task, "baseline").values()
    chance = max(guesses(run, task).values())
    low, high = baseline.interval()
    excluded = None
    if low <= chance:
        excluded = f"its baseline, {baseline.value:.3f}, is no better than chance"
    elif high > CEILING:
        excluded = f"its baseline, {baseline.value:.3f}, leaves no room above"
    name = f"{run.label}, {task}"
    return Case(name, _against(run, WEB, difference, 1), excluded=excluded)


def _ffr(runs):
    def case(run):
        values = ffr_values(run)

        def difference(a, b):
            return mean_over_seeds(values[a], values[b])

        return [Case(run.label, _against(run, WEB, difference, -1, digits=2))]

    return _judge(_comparable(runs, WEB), "ffr", case, most=True, margin=PERCENT)
