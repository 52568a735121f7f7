"""What the studies behind the paper answer, in one table: a row per question and language model."""

from collections.abc import Callable

import pandas as pd

from faithful_sae.paper import (
    consensus,
    data_or_seed,
    domain,
    evaluation,
    learning,
    pruning,
    text_choice,
    tuned_model,
)
from faithful_sae.runs.registry import model_stages
from faithful_sae.runs.rows import lacking, read_rows
from faithful_sae.runs.schema import Run

Findings = Callable[[Run, dict[str, pd.DataFrame]], pd.DataFrame]
# by notebook, in the order in which they are read
STUDIES: dict[str, Findings] = {
    "12_evaluation": evaluation.findings,
    "14_data_or_seed": data_or_seed.findings,
    "15_pruning": pruning.findings,
    "16_learning": learning.findings,
    "17_consensus": consensus.findings,
    "18_text_choice": text_choice.findings,
    "19_domain": domain.findings,
    "20_tuned_model": tuned_model.findings,
}
ANSWER = ["effect", "low", "high", "seeds", "verdict"]


def open_questions(runs: list[Run]) -> pd.DataFrame:
    """The findings of every study that has been made with the parameters as they are now; none, a
    table without rows.
    """
    tables = []
    for run in runs:
        for stage in model_stages(run):
            if stage.answers and not any(lacking(run, name) for name in stage.rows):
                rows = {name: read_rows(run, name) for name in stage.rows}
                table = STUDIES[stage.name](run, rows)
                tables.append(table.assign(notebook=stage.name, model=run.label))
    columns = ["notebook", "question", "model", *ANSWER]
    if not tables:
        return pd.DataFrame(columns=columns)
    table = pd.concat(tables, ignore_index=True)[columns]
    # one question, all models
    order = {question: i for i, question in enumerate(dict.fromkeys(table.question))}
    table = table.assign(place=table.question.map(order))
    table = table.sort_values(["notebook", "place"], kind="stable", ignore_index=True)
    return table.drop(columns="place")
