"""Run one notebook as a workflow step.

Papermill runs the text notebook; the executed one is kept, whether it succeeded (OUTPUT.ipynb) or
failed (OUTPUT.failed.ipynb, with its traceback, which is printed too). While a cell works, its
progress bar is shown now and then as one line.
"""

import logging
import re
import sys
import time
from pathlib import Path

import jupytext
import papermill

from faithful_sae.files import locked

EVERY = 15  # seconds between two lines of progress


class Progress:
    """Called with a step's output, print a line of its progress bar every few seconds, and every
    `note:`, after the step's name.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.last = time.time()

    def __call__(self, text: str) -> None:
        text = text.strip()
        for note in re.findall(r"(?:^|UserWarning: )note: .*", text, re.M):
            print(f"    {self.title}  {note.removeprefix('UserWarning: ')}", flush=True)
        line = re.split(r"[\r\n]", text)[-1].strip()
        if "%|" in line and time.time() - self.last > EVERY:
            self.last = time.time()
            print(f"    {self.title}  {re.sub(r'[|].*[|]', '', line)}", flush=True)


class _Handler(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress(record.getMessage())


def execute(notebook: Path, output: Path, parameters: dict[str, str], title: str) -> None:
    """Execute a notebook and keep it.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
    """
    failed = output.with_suffix(".failed.ipynb")
    running = output.with_suffix(".running.ipynb")
    source = output.with_suffix(".source.ipynb")
    # a killed engine may have left this step at work: never two writers of one result
    with locked(output.with_suffix(".lock")):
        jupytext.write(jupytext.read(notebook), source)
        logger = logging.getLogger("papermill")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [_Handler(Progress(title))]
        print(f"  ▸ {title}", flush=True)
        try:
            papermill.execute_notebook(
                source,
                running,
                parameters=parameters,
                cwd=notebook.parent,
                progress_bar=False,
                log_output=True,
            )
        except papermill.PapermillExecutionError:
            running.replace(failed)
            raise
        finally:
            source.unlink()
        running.replace(output)
        failed.unlink(missing_ok=True)


def run_notebook(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Execute a notebook, and say how it went; the process ends where a cell failed."""
    title = " · ".join([notebook.stem, *(Path(value).stem for value in parameters.values())])
    start = time.time()
    try:
        execute(notebook, output, parameters, title)
    except papermill.PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        kept = output.with_suffix(".failed.ipynb")
        sys.exit(
            f"  ✗ {notebook} failed in cell {error.exec_count}:\n{plain}\n"
            f"  the executed notebook is kept: {kept}"
        )
    print(f"  ✓ {title}  {time.time() - start:.0f} s", flush=True)
