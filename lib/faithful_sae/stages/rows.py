"""Opening a run, and the csv files through which notebooks hand over their results."""

import pandas as pd
import torch

from faithful_sae.params import load_params
from faithful_sae.provenance import MissingInputError, write_csv


def open_run(path):
    """Load a parameter file and give this process its number of threads, part of what makes results repeat."""
    run = load_params(path)
    torch.set_num_threads(run.threads)
    return run


def write_rows(run, name, rows):
    """Write rows/<name>.csv of a run, so that other notebooks and the exhibits can read it."""
    write_csv(run.artifacts / "rows" / f"{name}.csv", rows)


def read_rows(run, name, notebook):
    """Read rows/<name>.csv; MissingInputError names the notebook that makes it."""
    path = run.artifacts / "rows" / f"{name}.csv"
    if not path.exists():
        raise MissingInputError(f"{path} is missing: run notebooks/{notebook} for {run.profile}/{run.name} first")
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
