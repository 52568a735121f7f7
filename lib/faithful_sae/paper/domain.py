"""Rows of notebook 19 -> its tables, the data of its figure, and verdicts: is a model's own text
worth more than a little of the real?
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.metrics.domain import worth
from faithful_sae.metrics.uncertainty import mean_over_seeds
from faithful_sae.paper.estimates import cells_by, on_moderate, values_by, weighted_sum
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s19_domain import Arm, arms, references

Rows = dict[str, pd.DataFrame]
MEASURES = {"explained_variance": "EV", "ce_diff": "CE difference"}
# of what more is better, and less
SIGN = {"EV": 1, "CE difference": -1}
OF_LATENTS = {"l0": "L0", "dead": "dead", "ffr": "FFR"}
# numbers that differ by less are the same: shares of variance, and nats
SAME = 0.01
OWN = Arm(0.0, True)


def _real(share: float) -> str:
    return "all of the real text" if share == 1 else f"{100 * share:g} % of the real text"


def _said(run: Run, arm: Arm) -> str:
    text = _real(arm.share) if arm.share else "own text"
    if arm.share and arm.with_own:
        text = f"{text} and own"
    return f"{text}, {run.sae.tokens:,} activations" if arm.of_run else text


def _texts(run: Run) -> list[str]:
    """Those that SAEs are evaluated on."""
    return list(dict.fromkeys((run.domain.corpus, run.domain.text)))


def _measures(rows: Rows) -> dict[str, str]:
    there = rows["domain_fidelity"]
    return {on_moderate(there, name): said for name, said in MEASURES.items()}


def _cells(rows: Rows) -> dict[str, dict[tuple, Any]]:
    parts = (rows["domain_fidelity"], rows["domain_fidelity_rows"])
    return cells_by(*parts, ["arm", "evaluated_on"], _measures(rows))


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per arm: what it was trained on, EV and CE difference on held-out text of the domain
    and on other text, and SFR, L0, dead latents (share) and FFR (percent), with halves of
    intervals.
    """
    found = _cells(rows)
    shared = values_by(rows["domain_sfr"], ["arm"], "sfr")
    latents = {name: values_by(rows["domain_latents"], ["arm"], name) for name in OF_LATENTS}
    saes = rows["domain_saes"].groupby("arm")
    records: list[Record] = []
    for arm in [*arms(run), *references(run)]:
        mine = saes.get_group(arm.name)
        record: Record = {
            "trained on": _said(run, arm),
            "distinct tokens": round(mine.distinct_tokens.mean()),
            "passes": float(mine.passes.mean()),
        }
        for text in _texts(run):
            for measure, said in _measures(rows).items():
                record |= cell(f"{said}, {text}", found[measure][arm.name, text])
        if arm.name in shared:
            record |= cell("SFR", mean_over_seeds(shared[arm.name]))
        for name, said in OF_LATENTS.items():
            record |= cell(said, mean_over_seeds(latents[name][arm.name]))
        records.append(record)
    return pd.DataFrame(records)


def curve_data(run: Run, rows: Rows) -> pd.DataFrame:
    """Of the figure: EV and CE difference of every arm on each text, with halves of intervals."""
    found = _cells(rows)
    records = []
    for arm in arms(run):
        for text in _texts(run):
            for measure, said in _measures(rows).items():
                estimate = found[measure][arm.name, text]
                number = {"value": estimate.value, "half": estimate.half_width()}
                where = {"share": arm.share, "with_own": arm.with_own, "text": heading(run, text)}
                records.append({**where, "measure": said, **number})
    return pd.DataFrame(records)


def worth_table(run: Run, rows: Rows) -> pd.DataFrame:
    """How much real text the model's own is worth (metrics.domain), in percent of what there is: a
    row per text and measure, with the least, middle and largest of the seeds.
    """
    shares = run.domain.shares
    records = []
    for text in _texts(run):
        there = rows["domain_fidelity"].query("evaluated_on == @text")
        for measure, said in _measures(rows).items():
            values = values_by(there, ["arm"], measure)
            found = []
            for seed in values[OWN.name]:
                curve = [SIGN[said] * values[Arm(share, False).name][seed] for share in shares]
                found.append(worth(shares, curve, SIGN[said] * values[OWN.name][seed]))
            # between two of which one is beyond the measured shares there is no middle
            points = np.quantile(found, (0, 0.5, 1), method="lower")
            said_of = dict(zip(("least", "middle", "most"), points, strict=True))
            number = {name: _percent(value, shares) for name, value in said_of.items()}
            records.append({"evaluated on": heading(run, text), "by": said, **number})
    return pd.DataFrame(records)


def _percent(share, shares):
    if share == 0:
        return f"below {100 * shares[0]:g}"
    return f"above {100 * shares[-1]:g}" if math.isinf(share) else f"{100 * share:.1f}"


def _comparisons(run: Run) -> dict[str, tuple[Arm, Arm]]:
    """{question: (what is said to be better, than what)}."""
    found = {
        f"Own text is better than {_real(share)}": (OWN, Arm(share, False))
        for share in run.domain.shares
    }
    for share in run.domain.shares:
        both, real = Arm(share, True), _real(share)
        if share < 1:
            found[f"Half {real}, half own text is better than {real}"] = (both, Arm(share, False))
            found[f"Half {real}, half own text is better than own text"] = (both, OWN)
    if len(references(run)) == 2:
        real, own = references(run)
        found[f"Own text is better than {_said(run, real)}"] = (own, real)
    return found


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts), on held-out text of the domain: by
    EV and by CE difference, both of which must agree.
    """
    here = run.domain.corpus
    names = ("domain_fidelity", "domain_fidelity_rows")
    table, by_row = (rows[name].loc[rows[name].evaluated_on == here] for name in names)
    found: list[dict[str, Any]] = []
    for question, pair in _comparisons(run).items():
        differences = []
        for measure, said in _measures(rows).items():
            better, worse = (arm.name for arm in pair)
            weights = {better: SIGN[said], worse: -SIGN[said]}
            estimate = weighted_sum(table, by_row, "arm", weights, measure)
            above = "above" if SIGN[said] > 0 else "lower by"
            differences.append(Difference(f"{said} {above}", estimate))
        found.append({"question": question} | judge([Case(here, (*differences,))], margin=SAME))
    return table_of(found)
