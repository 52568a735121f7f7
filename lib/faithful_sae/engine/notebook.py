"""Run one notebook as a workflow step.

Papermill runs the text notebook; the executed one is kept, whether it succeeded (OUTPUT.ipynb) or
failed (OUTPUT.failed.ipynb, with its traceback, which is printed too). While a cell works, its
progress bar is shown now and then as one line.
"""

import logging
import os
import re
import sys
from pathlib import Path

import jupytext
import papermill

from faithful_sae.engine.progress import Progress, title
from faithful_sae.files import ROOT, from_root, locked, writing
from faithful_sae.runs.start import SAID


class _Handler(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress(record.getMessage())


def execute(notebook: Path, output: Path, parameters: dict[str, str], name: str) -> None:
    """Execute a notebook and keep it.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
        DiskFullError, ReadOnlyError: the executed notebook cannot be written.
    """
    failed = output.with_suffix(".failed.ipynb")
    running = output.with_suffix(".running.ipynb")
    source = output.with_suffix(".source.ipynb")
    # a killed engine may have left this step at work: never two writers of one result
    stopped = None
    with locked(output.with_suffix(".lock")), writing(output):
        jupytext.write(jupytext.read(notebook), source)
        logger = logging.getLogger("papermill")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [_Handler(Progress(name))]
        try:
            papermill.execute_notebook(
                source,
                running,
                parameters=parameters,
                cwd=notebook.parent,
                progress_bar=False,
                log_output=True,
                # it warns of its own transport
                extra_arguments=["--log-level=CRITICAL"],
                # nothing is left to say: a kernel that takes its sockets down may abort in them
                shutdown_kernel="immediate",
            )
        except papermill.PapermillExecutionError as error:
            running.replace(failed)
            stopped = error
        else:
            running.replace(output)
            failed.unlink(missing_ok=True)
        finally:
            source.unlink()
    # what a cell said of a disk is not said of the notebook
    if stopped:
        raise stopped


def run_notebook(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Execute a notebook; the process ends where a cell failed."""
    model = parameters.get("params")  # not where it is one of a profile
    name = title(notebook.stem, *([Path(model).stem] if model else []))
    # another of the user's own would come first
    os.environ["JUPYTER_PATH"] = os.path.join(sys.prefix, "share", "jupyter")
    try:
        execute(notebook, output, {k: _shown(v) for k, v in parameters.items()}, name)
    except papermill.PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        said = f"  {error.evalue}" if error.ename in SAID else plain
        kept = output.with_suffix(".failed.ipynb")
        sys.exit(
            f"  ✗ {notebook} failed in cell {error.exec_count}:\n{said}\n"
            f"  the executed notebook is kept: {kept}"
        )


def _shown(place):
    """A file or folder of parameters, as an executed notebook says it: it runs elsewhere, and what
    lies in the repository may move with it.
    """
    path = Path(place).resolve()
    return from_root(path) if path.is_relative_to(ROOT) else str(path)
