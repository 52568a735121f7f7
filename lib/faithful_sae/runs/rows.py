"""Opening a run, and the csv files through which notebooks hand over their results."""

import json

import pandas as pd

from faithful_sae.files import MissingInputError, write_csv, write_json
from faithful_sae.runs.params import load_params, made_with
from faithful_sae.runs.schema import EMBEDDED_ROWS, ROWS

STAGE_OF = {name: stage for stage, names in ROWS.items() for name in names} | {
    EMBEDDED_ROWS: "01_generate_faithful"
}


def open_run(path):
    """Load a parameter file and give this process its number of threads, part of what makes results
    repeat.
    """
    import torch  # for which the workflow, which asks for rows alone, does not wait

    run = load_params(path)
    torch.set_num_threads(run.threads)
    return run


def write_rows(run, name, rows):
    """Write rows/<name>.csv of a run, so that other notebooks and the exhibits can read it, and
    beside it what it was made with.
    """
    path = run.artifacts / "rows" / f"{name}.csv"
    write_csv(path, rows)
    write_json(path.with_suffix(".json"), {"made_with": made_with(run, STAGE_OF[name])})


def read_rows(run, name, notebook):
    """Read rows/<name>.csv; MissingInputError names the notebook that makes it."""
    path = run.artifacts / "rows" / f"{name}.csv"
    if not path.exists():
        raise MissingInputError(
            f"{path} is missing: run notebooks/{notebook} for {run.profile}/{run.name} first"
        )
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def measured(runs, name) -> list:
    """The runs that have rows/<name>.csv, made with the parameters they have now: others must not
    stand beside them in a table.
    """
    return [run for run in runs if not lacking(run, name)]


def lacking(run, name) -> str | None:
    """Why rows/<name>.csv cannot be shown, or None."""
    path = run.artifacts / "rows" / f"{name}.csv"
    if not path.exists():
        return "not made"
    try:
        recorded = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return "made with unknown parameters"
    return None if recorded == made_with(run, STAGE_OF[name]) else "made with other parameters"
