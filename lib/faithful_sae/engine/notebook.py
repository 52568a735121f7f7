"""Run one notebook as a workflow step.

Papermill runs the text notebook; the executed one is kept, whether it succeeded (OUTPUT.ipynb) or
failed (OUTPUT.failed.ipynb, with its traceback, which is printed too). While a cell works, its
progress bar is shown now and then as one line.
"""

import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import TextIO

import jupytext
import papermill

from faithful_sae.files import ROOT, from_root, locked

EVERY = 15  # seconds between two lines of progress


BAR = re.compile(r"\[\d+:\d\d(:\d\d)?[<,]")  # of a progress bar's line: its time, [01:23<04:56,
NOTE = re.compile(r"(?:^|UserWarning: )(note: .*)", re.M)


class Progress:
    """Called with a step's output, print a line of its progress bar every few seconds, and every
    `note:`, after the step's name.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.stream = stream
        self.last = time.time()

    def __call__(self, text: str) -> None:
        text = text.strip()
        for note in NOTE.findall(text):
            self._tell(note)
        line = re.split(r"[\r\n]", text)[-1].strip()
        # not before it knows its rate
        if BAR.search(line) and "?" not in line and time.time() - self.last > EVERY:
            self.last = time.time()
            self._tell(re.sub(r"[|].*[|]", "", line))

    def _tell(self, line: str) -> None:
        print(f"    {self.title}  {line}", file=self.stream, flush=True)


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
        try:
            papermill.execute_notebook(
                source,
                running,
                parameters=parameters,
                cwd=notebook.parent,
                progress_bar=False,
                log_output=True,
                # it warns of its own transport, and of the interrupt that ends it
                extra_arguments=["--log-level=CRITICAL"],
            )
        except papermill.PapermillExecutionError:
            running.replace(failed)
            raise
        finally:
            source.unlink()
        running.replace(output)
        failed.unlink(missing_ok=True)


def run_notebook(notebook: Path, output: Path, parameters: dict[str, str]) -> None:
    """Execute a notebook; the process ends where a cell failed."""
    model = parameters.get("params")  # not where it is one of a profile
    title = f"{notebook.stem} · {Path(model).stem}" if model else notebook.stem
    # another of the user's own would come first
    os.environ["JUPYTER_PATH"] = os.path.join(sys.prefix, "share", "jupyter")
    try:
        execute(notebook, output, {k: _shown(v) for k, v in parameters.items()}, title)
    except papermill.PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        kept = output.with_suffix(".failed.ipynb")
        sys.exit(
            f"  ✗ {notebook} failed in cell {error.exec_count}:\n{plain}\n"
            f"  the executed notebook is kept: {kept}"
        )


def _shown(place):
    """A file or folder of parameters, as an executed notebook says it: it runs elsewhere, and what
    lies in the repository may move with it.
    """
    path = Path(place).resolve()
    return from_root(path) if path.is_relative_to(ROOT) else str(path)
