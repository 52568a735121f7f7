"""Fidelity of every SAE of a run on every evaluation corpus."""

import pandas as pd

from faithful_sae.metrics.fidelity import fidelity_of_all
from faithful_sae.runs.rows import write_rows
from faithful_sae.stages.corpus import corpus


def fidelity_matrix(run, saes, lm):
    """Fidelity of every SAE on fidelity.corpora, with and without BOS; writes rows `fidelity`.

    Rows measured on are held-out ones, or (rows_from: train, as the authors did) the first of those
    trained on.
    """
    records = []
    for name in run.fidelity.corpora:
        tokens = corpus(run, name, lm)
        rows = (tokens.heldout if run.fidelity.rows_from == "heldout" else tokens.train)[
            : run.fidelity.rows
        ]
        if len(rows) < run.fidelity.rows:
            print(
                f"note: {name}: {len(rows)} {run.fidelity.rows_from} rows, fewer than the "
                f"{run.fidelity.rows} asked for: all are used"
            )
        measured = fidelity_of_all(
            saes, lm, rows, run.fidelity.batch_rows, description=f"fidelity on {name}"
        )
        for ((trained_on, seed), include_bos), record in measured.items():
            records.append(
                {
                    "trained_on": trained_on,
                    "evaluated_on": name,
                    "seed": seed,
                    "include_bos": include_bos,
                    **vars(record),
                }
            )
    rows = pd.DataFrame(records)
    write_rows(run, "fidelity", rows)
    return rows
