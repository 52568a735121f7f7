"""What corpora are called in tables and figures: by their own name, and by the role they play."""

import re
from collections.abc import Iterable

import pandas as pd

from faithful_sae.runs.schema import BASELINES, Run

ROLE_NAMES = {
    "faithful": "Faithful",
    "faithful-other": "Faithful, other model's",
    "pile": "Pile",
    "fineweb": "FineWeb",
    "openwebtext": "OpenWebText",
    "tinystories": "TinyStories",
    "alpaca": "Alpaca",
    "open-instruct": "Open-Instruct",
    "flan": "FLAN",
    "sst2": "SST-2",
    "cola": "CoLA",
    "yelp": "Yelp",
    "agnews": "AG News",
}


def heading(run: Run, corpus: str) -> str:
    """How a corpus is called in tables and figures: the role it plays, with its own name where that
    says more; and a baseline.
    """
    if corpus in BASELINES:
        return corpus
    role = run.corpora[corpus].role
    if role is None:
        return corpus
    return ROLE_NAMES[role] if role.startswith("faithful") else f"{corpus} ({ROLE_NAMES[role]})"


def role_of(name: str) -> str | None:
    """The role of a corpus that is called so by `heading`, or by its role alone, as the paper's
    are; None without one.
    """
    found = re.search(r" \(([^()]*)\)$", name)
    called = found[1] if found else name
    return next((role for role, said in ROLE_NAMES.items() if said == called), None)


def without_role(runs: Iterable[Run]) -> list[str]:
    """Corpora of some runs that play no role, each once, in the order in which they are named."""
    names = (n for run in runs for n, corpus in run.corpora.items() if corpus.role is None)
    return list(dict.fromkeys(names))


def named(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a run with what tables and figures call its corpora in column `corpus`."""
    return rows.assign(corpus=[heading(run, name) for name in rows.corpus])
