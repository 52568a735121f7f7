"""Measured rows -> the data of figures: what each draws, and no more, in long form, so that its csv
can be read by itself.
"""

import math
from collections.abc import Collection

import numpy as np
import pandas as pd

from faithful_sae.paper.estimates import MODERATE, fidelity_cells, sfr_estimates
from faithful_sae.paper.names import ROLE_NAMES, heading
from faithful_sae.paper.tables import (
    WEB,
    Record,
    cell,
    probing_scores,
    sae_corpora,
    with_mechanism,
)
from faithful_sae.runs.catalogue import HALF
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import BASELINES, Run


def mechanism(runs: list[Run]) -> pd.DataFrame:
    """The model's own cross-entropy on each corpus against the SFR of SAEs trained on it."""
    rows = []
    for run in with_mechanism(runs):
        ce = read_rows(run, "corpus_ce").set_index("corpus").to_dict("index")
        estimates = sfr_estimates(run)
        for corpus in sae_corpora(run):
            found = estimates[corpus]
            rows.append(
                {
                    "model": run.label,
                    "corpus": heading(run, corpus),
                    "ce": ce[corpus]["ce"],
                    "ce_error": ce[corpus]["error"],
                    "ce_as_sampled": ce[corpus].get("ce_as_sampled", math.nan),
                    "sfr": found.value,
                    "half_width": found.half_width(),
                }
            )
    columns = ["model", "corpus", "ce", "ce_error", "ce_as_sampled", "sfr", "half_width"]
    return pd.DataFrame(rows, columns=columns)


def probing(runs: list[Run]) -> pd.DataFrame:
    """Figure 6's data: the probes' scores of the web corpora (or, without roles, of all) and of
    baselines, tasks and corpora by their headings.
    """
    scores = probing_scores(runs)
    scores = scores.loc[scores.representation.isin(["baseline", "sae", "reconstruction"])]
    parts = [scores.head(0)]
    for run in measured(runs, "probing"):
        shown = {
            name: heading(run, name)
            for name, corpus in sae_corpora(run).items()
            if corpus.role in (*WEB, None)
        } | {name: name for name in run.baselines}
        titles = {
            name: f"{name} ({ROLE_NAMES[task.role]})" if task.role else name
            for name, task in run.tasks.items()
        }
        here = scores.corpus.isna() | scores.corpus.isin(shown)
        part = scores.loc[(scores.run == run.name) & here]
        parts.append(part.assign(corpus=part.corpus.map(shown), task=part.task.map(titles)))
    return pd.concat(parts, ignore_index=True)


def fidelity(run: Run) -> pd.DataFrame:
    """The matrices of Figure 5: every cell's mean over seeds and half of its interval."""
    measures = ("ce_diff", "l2", "explained_variance")
    if run.sae.max_norm is not None:
        measures += MODERATE
    cells = fidelity_cells(run, measures)
    rows = []
    for trained_on, evaluated_on in cells["ce_diff"]:
        row: Record = {
            "trained_on": heading(run, trained_on),
            "evaluated_on": heading(run, evaluated_on),
        }
        for measure in measures:
            row |= cell(measure, cells[measure][trained_on, evaluated_on])
        rows.append(row)
    return pd.DataFrame(rows)


def bars(runs: list[Run], table: pd.DataFrame, roles: Collection[str]) -> pd.DataFrame:
    """A table of SFR by role, and of baselines, in long form, for the bar figures: model, source,
    corpus (here by its heading, the paper's by its role), sfr, half_width.
    """
    called = {
        (run.label, "here", corpus.role): heading(run, name)
        for run in runs
        for name, corpus in sae_corpora(run).items()
    }
    parts = []
    for role in (column for column in table.columns if column in (*roles, *BASELINES)):
        half = table.get(f"{role}{HALF}", np.nan)
        of_paper = ROLE_NAMES.get(role, role)
        where = zip(table.model, table.source, strict=True)
        names = [called.get((model, source, role), of_paper) for model, source in where]
        part = table[["model", "source"]].assign(corpus=names, sfr=table[role], half_width=half)
        parts.append(part)
    return pd.concat(parts, ignore_index=True).dropna(subset="sfr")
