"""Rows of notebook 19 -> its table, the data of its figure, and verdicts: is a model's own text
worth more than a little of the real?
"""

from typing import Any

import pandas as pd

from faithful_sae.metrics.uncertainty import Values, mean_over_seeds
from faithful_sae.paper.estimates import ON_MODERATE, cells_by, values_by
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s19_domain import Arm, arms

Rows = dict[str, pd.DataFrame]
MEASURES = {"explained_variance": "EV", "ce_diff": "CE difference"}
# numbers that differ by less are the same: shares of variance, and nats
SAME = 0.01


def _said(arm: Arm) -> str:
    real = "all" if arm.share == 1 else f"{100 * arm.share:g} %"
    if not arm.share:
        return "own text"
    return f"{real} of the real text" + (" and own" if arm.with_own else "")


def _measures(rows: Rows) -> dict[str, str]:
    """With sae.max_norm, those of moderate activations: massive ones rule the others."""
    there = rows["domain_fidelity"]
    return {
        (name + ON_MODERATE if name + ON_MODERATE in there else name): said
        for name, said in MEASURES.items()
    }


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per arm: what it was trained on, EV and CE difference on held-out text of the domain
    and on other text, and SFR, with halves of intervals.
    """
    measures = _measures(rows)
    parts = (rows["domain_fidelity"], rows["domain_fidelity_rows"])
    found = cells_by(*parts, ["arm", "evaluated_on"], measures)
    shared = values_by(rows["domain_sfr"], ["arm"], "sfr")
    saes = rows["domain_saes"].groupby("arm")
    records: list[Record] = []
    for arm in arms(run):
        mine = saes.get_group(arm.name)
        record: Record = {
            "trained on": _said(arm),
            "distinct tokens": int(mine.distinct_tokens.iloc[0]),
            "passes": float(mine.passes.mean()),
        }
        for text in dict.fromkeys((run.domain.corpus, run.domain.text)):
            for measure, said in measures.items():
                record |= cell(f"{said}, {text}", found[measure][arm.name, text])
        if arm.name in shared:
            record |= cell("SFR", mean_over_seeds(shared[arm.name]))
        records.append(record)
    return pd.DataFrame(records)


def curve_data(run: Run, rows: Rows) -> pd.DataFrame:
    """Of the figure: EV and CE difference of every arm on each text, with halves of intervals."""
    measures = _measures(rows)
    parts = (rows["domain_fidelity"], rows["domain_fidelity_rows"])
    found = cells_by(*parts, ["arm", "evaluated_on"], measures)
    records = []
    for arm in arms(run):
        for text in dict.fromkeys((run.domain.corpus, run.domain.text)):
            for measure, said in measures.items():
                estimate = found[measure][arm.name, text]
                number = {"value": estimate.value, "half": estimate.half_width()}
                where = {"share": arm.share, "with_own": arm.with_own, "text": heading(run, text)}
                records.append({**where, "measure": said, **number})
    return pd.DataFrame(records)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question and share of the real text, with its verdict (paper.verdicts), on
    held-out text of the domain.
    """
    there = rows["domain_fidelity"]
    there = there[there.evaluated_on == run.domain.corpus]
    better = {measure: 1 if said == "EV" else -1 for measure, said in _measures(rows).items()}
    values: dict[str, dict[str, Values]] = {}
    for measure, sign in better.items():
        found = values_by(there.assign(**{measure: sign * there[measure]}), ["arm"], measure)
        values[measure] = found
    said = _measures(rows)
    own = Arm(0.0, True)
    table: list[dict[str, Any]] = []
    for arm in arms(run):
        if arm == own:
            continue
        alone = arm._replace(with_own=False)
        pair = (arm, alone) if arm.with_own else (own, arm)
        if arm.with_own:
            question = f"Own text beside {_said(alone)} is better than that alone"
        else:
            question = f"Own text is better than {_said(arm)}"
        cases = []
        for measure, name in said.items():
            first, second = (values[measure][one.name] for one in pair)
            less = "above" if better[measure] > 0 else "lower"
            difference = Difference(f"{name} {less}", mean_over_seeds(first, second))
            cases.append(Case(name, (difference,)))
        table.append({"question": question} | judge(cases, margin=SAME))
    return table_of(table)
