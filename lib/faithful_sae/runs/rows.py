"""Opening a run, and the csv files through which notebooks hand over their results."""

from pathlib import Path

import pandas as pd

from faithful_sae.files import (
    ROOT,
    MissingInputError,
    read_csv,
    read_json,
    text_columns,
    write_csv,
    write_json,
)
from faithful_sae.runs.keys import made_with
from faithful_sae.runs.params import load_params
from faithful_sae.runs.registry import writer
from faithful_sae.runs.schema import Run
from faithful_sae.runs.stage import Stage


def open_run(path: str | Path) -> Run:
    """Load a parameter file and give this process its number of threads, part of what makes results
    repeat.
    """
    # for which the workflow, which asks for rows alone, does not wait
    import torch

    run = load_params(path)
    torch.set_num_threads(run.threads)
    return run


def rows_file(run: Run, name: str) -> Path:
    """Where rows/<name>.csv of a run is."""
    return run.artifacts / "rows" / f"{name}.csv"


def write_rows(run: Run, name: str, rows: pd.DataFrame) -> None:
    """Write rows/<name>.csv of a run, so that other notebooks and the exhibits can read it, and
    beside it what it was made with.
    """
    path = rows_file(run, name)
    write_csv(path, rows)
    record = {"made_with": made_with(run, writer(name)), "text": text_columns(rows)}
    write_json(path.with_suffix(".json"), record)


def read_rows(run: Run, name: str) -> pd.DataFrame:
    """Read rows/<name>.csv.

    Raises:
        MissingInputError: it is not there; the message names the notebook that makes it.
    """
    path = rows_file(run, name)
    if not path.exists():
        raise MissingInputError(f"{path} is missing: {run_first(run, name)}")
    return read_csv(path, read_json(path.with_suffix(".json"))["text"])


def run_first(run: Run, rows: str) -> str:
    """What to do where the result of the notebook that writes some rows is missing."""
    return f"run notebooks/{writer(rows).name} for {run.profile}/{run.name} first"


def command(run: Run, stage: Stage) -> str:
    """The command that makes what a notebook makes for a run, or for its profile."""
    folder = run.file.parent
    # as seen from where it lies: no path of this machine
    built_in = folder == ROOT / "params" / run.profile
    profile = f"PROFILE={run.profile}" if built_in else f"PARAMS={folder.name}"
    model = "" if stage.profile else f" MODELS={run.name}"
    study = f" STUDIES={next(iter(stage.sections))}" if stage.study else ""
    return f"make paper {profile}{model}{study}"


def measured(runs: list[Run], name: str) -> list[Run]:
    """The runs that have rows/<name>.csv, made with the parameters they have now: others must not
    stand beside them in a table.
    """
    return [run for run in runs if not lacking(run, name)]


def lacking(run: Run, name: str) -> str | None:
    """Why rows/<name>.csv cannot be shown, or None."""
    path = rows_file(run, name)
    if not path.exists():
        return "not made"
    try:
        recorded = read_json(path.with_suffix(".json"))["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return "made with unknown parameters"
    same = recorded == made_with(run, writer(name))
    return None if same else "made with other parameters"
