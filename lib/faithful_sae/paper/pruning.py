"""Rows of notebook 15 -> its figure, its table, and verdicts: what an SAE loses without its fake
latents, and whether it is a shorter description without them, as the paper's section 8 hopes.

An SAE that reconstructs worse takes fewer bits. So bits are compared at one FVU: of a pruned SAE
and the whole one that which is `ABOVE` times the larger of both FVUs before anything is rounded,
and each is rounded as coarsely as reaches it. Where SAEs are trained without massive activations,
all is on moderate positions alone (metrics.fidelity).
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.metrics.description_length import bits_at
from faithful_sae.metrics.uncertainty import bootstrap_error, mean_over_seeds
from faithful_sae.paper.estimates import on_moderate, row_sums, values_by
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s15_pruning import FAKE, WHOLE

Rows = dict[str, pd.DataFrame]
ABOVE = 1.1
# differences of EV, of CE in nats, of accuracy and of shares of bits that are smaller are none
SAME = 0.01
# what is removed, as tables and figures say it
REMOVED = {
    WHOLE: "nothing",
    "random tokens": "most on random tokens",
    "own text": "most on the model's text",
    "frequent": "most on unseen text",
    "rare": "least on unseen text",
    "at random": "at random",
}
# of rows `pruning`
COLUMNS = {"EV": "explained_variance", "CE difference": "ce_diff"}
MEASURES = (*COLUMNS, "ratio")
# as axes say it
SHOWN = {
    "EV": "explained variance",
    "CE difference": "CE difference (nats)",
    "ratio": "bits (whole SAE: 1)",
}
BY = ["corpus", "order", "size"]


def at_equal_fvu(bits: pd.DataFrame) -> pd.DataFrame:
    """One row per SAE of rows `pruning_bits`: `bits` per token, those of the `whole` SAE at the
    same FVU (both NaN where no step reaches it), and their `ratio`.
    """
    own = ["corpus", "seed"]
    names = [*own, "order", "draw", "size", "removed"]
    groups = bits.groupby(names, sort=False)
    curves: dict[Any, pd.DataFrame] = {name: part.sort_values("step") for name, part in groups}
    whole = {name[:2]: curve for name, curve in curves.items() if name[2] == WHOLE}
    records = []
    for name, curve in curves.items():
        other = whole[name[:2]]
        level = ABOVE * max(curve.fvu.iloc[0], other.fvu.iloc[0])
        found, there = (bits_at(one.fvu, one.bits, level) for one in (curve, other))
        records.append((*name, found, there, found / there))
    return pd.DataFrame(records, columns=[*names, "bits", "whole", "ratio"])


def measured(rows: Rows) -> pd.DataFrame:
    """One row per corpus, order, size and seed: `removed` latents, EV, CE difference (nats), bits
    per token, and their ratio to the whole SAE's at one FVU; means over draws.
    """
    table = rows["pruning"]
    names = {on_moderate(table, column): name for name, column in COLUMNS.items()}
    table = table.rename(columns=names)
    at = [*BY, "seed", "draw"]
    table = table.merge(at_equal_fvu(rows["pruning_bits"]).drop(columns="removed"), on=at)
    return _over_draws(table, ["removed", "bits", *MEASURES])


def _over_draws(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    means = table.groupby([*BY, "seed"], sort=False)[columns].mean()
    return pd.DataFrame(means).reset_index()


def curves(run: Run, rows: Rows) -> pd.DataFrame:
    """A row per measure, corpus, order and size: the percentage of latents that is gone, and the
    mean over seeds with its interval. Of each measure and corpus the whole SAE is first.
    """
    assert run.sae
    table = measured(rows)
    records = []
    for measure in MEASURES:
        for (corpus, order, size), values in values_by(table, BY, measure).items():
            estimate = mean_over_seeds(values)
            low, high = estimate.interval()
            part = _of(table, (corpus, order, size))
            records.append(
                {
                    "corpus": heading(run, corpus),
                    "order": REMOVED[order],
                    "measure": SHOWN[measure],
                    "removed": 100 * part.removed.mean() / run.sae.d_sae,
                    "value": estimate.value,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(records)


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per corpus and order, where as many latents are gone as are fake: how many, EV and CE
    difference (nats) on unseen and on its own text, accuracy of probes, bits per token and their
    ratio to the whole SAE's at one FVU, with halves of intervals over seeds.
    """
    of_unseen = measured(rows)
    names = {name: on_moderate(rows["pruning_own"], column) for name, column in COLUMNS.items()}
    of_own = _over_draws(rows["pruning_own"], [*names.values()])
    columns = {
        "latents": (of_unseen, "removed"),
        "EV": (of_unseen, "EV"),
        "CE difference": (of_unseen, "CE difference"),
        "accuracy": (_over_draws(rows["pruning_probes"], ["accuracy"]), "accuracy"),
        "bits": (of_unseen, "bits"),
        "ratio": (of_unseen, "ratio"),
        "EV, own text": (of_own, names["EV"]),
        "CE difference, own text": (of_own, names["CE difference"]),
    }
    found = {name: values_by(at, BY, column) for name, (at, column) in columns.items()}
    records: list[Record] = []
    for key in found["EV"]:
        corpus, order, size = key
        if size not in (WHOLE, FAKE):
            continue
        record: Record = {"trained on": heading(run, corpus), "removed": REMOVED[order]}
        for name, values in found.items():
            # where nothing is probed
            if key in values:
                record |= cell(name, mean_over_seeds(values[key]))
        records.append(record)
    return pd.DataFrame(records)


# --- findings -------------------------------------------------------------------------------------

# what is removed, what it is compared with, of which measure, and the statement
STATEMENTS = {
    ("random tokens", "at random", "EV"): "Fake latents cost less EV than as many at random",
    ("random tokens", "at random", "CE difference"): (
        "Fake latents cost less CE than as many at random"
    ),
    ("random tokens", "at random", "accuracy"): (
        "Fake latents cost probes less accuracy than as many at random"
    ),
    ("random tokens", "frequent", "EV"): (
        "Fake latents cost less EV than as many that fire most on unseen text"
    ),
    ("random tokens", "frequent", "CE difference"): (
        "Fake latents cost less CE than as many that fire most on unseen text"
    ),
    ("random tokens", WHOLE, "ratio"): (
        "Without its fake latents an SAE takes fewer bits at one FVU than whole"
    ),
    ("random tokens", "at random", "ratio"): (
        "Without its fake latents an SAE takes fewer bits than without as many at random"
    ),
    ("own text", "at random", "EV"): (
        "As many latents that fire most on the model's text cost less EV than at random"
    ),
    ("own text", "at random", "CE difference"): (
        "As many latents that fire most on the model's text cost less CE than at random"
    ),
    ("own text", WHOLE, "ratio"): (
        "Without as many that fire most on the model's text an SAE takes fewer bits than whole"
    ),
}


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per statement, with its verdict (paper.verdicts); cases are the corpora. As many
    latents are removed as are fake, in every order. Differences are taken seed by seed, against the
    mean over draws where others are removed at random; bits are shares of the whole SAE's.
    """
    assert run.pruning
    tables = {**dict.fromkeys(MEASURES, measured(rows))}
    tables["accuracy"] = _over_draws(rows["pruning_probes"], ["accuracy"])
    judged = []
    for (order, other, measure), said in STATEMENTS.items():
        found = values_by(tables[measure], BY, measure)
        # where nothing is probed there are none
        cases = [
            _case(run, rows, corpus, measure, order, other, found)
            for corpus in run.pruning.corpora
            if (corpus, WHOLE, WHOLE) in found
        ]
        judged.append({"question": said} | judge(cases, margin=SAME))
    return table_of(judged)


def _case(run, rows, corpus, measure, order, other, found):
    """How much better an SAE is without the latents of one order than without those of another."""
    name = heading(run, corpus)
    keys = [_key(corpus, one) for one in (order, other)]
    if not _of(rows["pruning"], keys[0]).removed.any():
        return Case(name, excluded="no latent of its SAEs is fake")
    estimate = mean_over_seeds(*(found[key] for key in keys))
    if math.isnan(estimate.value):
        return Case(name, excluded="an SAE reconstructs so little that no two have one FVU")
    if measure in ("CE difference", "ratio"):
        estimate = estimate.negative()
    if measure != "ratio":
        estimate = replace(estimate, text_error=_text_error(rows, measure, keys))
    return Case(name, (Difference("better by", estimate),))


def _key(corpus, order):
    return corpus, order, WHOLE if order == WHOLE else FAKE


def _text_error(rows, measure, keys):
    """What other rows, or other texts of a probe, would do to a difference, means over seeds and
    draws.
    """
    if measure == "accuracy":
        probes = rows["pruning_probes"]
        errors = []
        for _, part in probes.groupby("task"):
            right = [
                np.array([[digit == "1" for digit in text] for text in one.correct]).mean(0)
                for one in (_of(part, key) for key in keys)
            ]
            errors.append(bootstrap_error(right[0] - right[1], np.ones(len(right[0]))))
        return math.hypot(*errors) / len(errors)
    column = on_moderate(rows["pruning"], COLUMNS[measure])
    parts = [row_sums(_of(rows["pruning_rows"], key), column) for key in keys]
    return bootstrap_error(parts[0][0] - parts[1][0], parts[0][1])


def _of(table, key):
    """The rows of a corpus, order and size."""
    return table.loc[(table[BY] == list(key)).all(axis=1)]
