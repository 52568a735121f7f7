"""The beginning of every notebook: which run it is of, and, before anything slow is loaded, what it
lacks.
"""

import os
import shlex
from pathlib import Path

from faithful_sae.files import ROOT, MissingInputError
from faithful_sae.runs.params import load_params, load_profile
from faithful_sae.runs.registry import stages, writer
from faithful_sae.runs.rows import command, open_run, rows_file
from faithful_sae.runs.schema import ParamsError, Run
from faithful_sae.runs.stage import Stage

# errors of the library whose message says all: what failed, and what to do
SAID = {
    *("DiskFullError", "ReadOnlyError", "MissingInputError", "ParamsError", "SAEError"),
    *("CorpusError", "FeatureError", "HubError", "ModelError"),
}


def start(notebook: str, params: str | Path) -> Run:
    """Open the run that a notebook is of. From here on an error whose message says all is shown
    without its traceback.

    Args:
        notebook: its stem.
        params: as load_params.

    Raises:
        ParamsError: as load_params; a section that the notebook is about is null.
        MissingInputError: an earlier notebook has not written what this one reads; the message has
            the command that makes it.
    """
    _say_in_one_line()
    run, stage = load_params(params), stages()[notebook]
    _refuse(run, stage)
    print(f"{run.profile}/{run.name}: {run.label}. Loading torch, which takes a while ...")
    return open_run(run.file)


def start_profile(profile: str | Path) -> list[Run]:
    """Open the runs of a profile, for a notebook that gathers what they measured.

    Args:
        profile: as load_profile.

    Raises:
        ParamsError: as load_profile.
    """
    _say_in_one_line()
    runs = load_profile(profile)
    print(f"{runs[0].profile}: {', '.join(run.label for run in runs)}")
    return runs


def _refuse(run: Run, stage: Stage) -> None:
    if not stage.wanted(run):
        # of another reason the stage itself speaks
        null = [name for name in ("sae", *stage.sections) if getattr(run, name) is None]
        if null:
            what = f"{', '.join(null)} is null"
            raise ParamsError(f"{run.file}: {what}, and {stage.name} is about that")
    if absent := sorted(_absent(run, stage)):
        rest = command(run, stage).removeprefix("make")
        raise MissingInputError(
            f"{stage.name} needs results of {' and '.join(absent)}, which {run.profile}/{run.name} "
            "lacks: run that first, or everything from a cell: "
            f"!make -C {shlex.quote(os.path.relpath(ROOT))}{rest}"
        )


def _absent(run: Run, stage: Stage) -> set[str]:
    """The earlier notebooks that have not written what this one reads, nor what those read."""
    found = set()
    for rows in stage.reads:
        # where all SAEs are published, the model's own text may not be asked for
        if rows == "dataset" and run.sae and len(run.published) == len(run.sae.train_on):
            continue
        earlier = writer(rows)
        if earlier.wanted(run) and not rows_file(run, rows).exists():
            found |= {earlier.name} | _absent(run, earlier)
    return found


def _say_in_one_line() -> None:
    """Where a cell is run by IPython: what stands in the way is one line."""
    from IPython import get_ipython

    if shell := get_ipython():
        shell.set_custom_exc((Exception,), _show)


def _show(shell, kind, error, trace, tb_offset=None):
    said = kind.__name__ in SAID
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset, exception_only=said)
