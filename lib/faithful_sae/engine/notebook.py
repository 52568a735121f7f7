"""Run one notebook as a workflow step: `python -m faithful_sae.engine.notebook NOTEBOOK.py OUTPUT.ipynb
NAME=VALUE ...`

Papermill runs the text notebook; the executed one is kept, whether it succeeded (OUTPUT.ipynb) or
failed (OUTPUT.failed.ipynb, with its traceback, which is printed too). While a cell works, its
progress bar is shown now and then as one line.
"""

import argparse
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

    def __init__(self, title):
        self.title = title
        self.last = time.time()

    def __call__(self, text):
        text = text.strip()
        for note in re.findall(r"(?:^|UserWarning: )note: .*", text, re.M):
            print(f"    {self.title}  {note.removeprefix('UserWarning: ')}", flush=True)
        line = re.split(r"[\r\n]", text)[-1].strip()
        if "%|" in line and time.time() - self.last > EVERY:
            self.last = time.time()
            print(f"    {self.title}  {re.sub(r'[|].*[|]', '', line)}", flush=True)


class _Handler(logging.Handler):
    def __init__(self, progress):
        super().__init__()
        self.progress = progress

    def emit(self, record):
        self.progress(record.getMessage())


def run_notebook(notebook, output, parameters):
    """Execute a notebook and keep it; returns the seconds it took.

    Raises:
        papermill.PapermillExecutionError: a cell failed.
    """
    output = Path(output)
    start = time.time()
    failed, running = (output.with_suffix(f".{word}.ipynb") for word in ("failed", "running"))
    title = " · ".join([Path(notebook).stem, *(Path(value).stem for value in parameters.values())])
    with locked(
        output.with_suffix(".lock")
    ):  # a killed engine may have left this step at work: never two writers of one result
        source = output.with_suffix(".source.ipynb")
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
                cwd=Path(notebook).parent,
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
    return time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook")
    parser.add_argument("output")
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    args = parser.parse_args()
    parameters = dict(word.split("=", 1) for word in args.parameters)
    try:
        seconds = run_notebook(args.notebook, args.output, parameters)
    except papermill.PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        print(
            f"  ✗ {args.notebook} failed in cell {error.exec_count}:\n{plain}\n"
            f"  the executed notebook is kept: {Path(args.output).with_suffix('.failed.ipynb')}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    print(
        f"  ✓ {Path(args.notebook).stem} · "
        f"{' · '.join(Path(v).stem for v in parameters.values())}  {seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
