"""Executed notebooks to read on the web: figures/<profile>/notebooks/, of the profile's first
language model.

The notebooks that one edits have no outputs, so that they change with their sources alone and say
the same as the .py beside them. These change with the numbers, as figures do. Of what a run prints
they leave out all that would differ in the next one: progress, times, addresses, places.
"""

import base64
import io
import json
import os
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from PIL import Image

from faithful_sae.files import ROOT, atomic_path
from faithful_sae.paper.links import EXPLORER
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import stages
from faithful_sae.runs.schema import Run
from faithful_sae.runs.stage import Stage

# of a picture, whose lines and areas have few
COLOURS = 128
LIVE = "application/vnd.jupyter.widget-view+json"
PLAIN = "text/plain"


def executed_file(run: Run, stage: Stage) -> Path | None:
    """Where a notebook that a run has executed is; None where it has not. Of one that failed there
    may be an empty file.
    """
    folder = run.artifacts.parent if stage.profile else run.artifacts
    file = folder / "notebooks" / f"{stage.name}.ipynb"
    return file if file.exists() and file.stat().st_size else None


def write_executed(profile: str | Path) -> list[Path]:
    """Write the executed notebooks of what a profile has so far; their paths.

    One that was run before its cells were changed is left out, and a line says so.

    Args:
        profile: a folder of parameter files, or the name of one in params/.

    Raises:
        ParamsError: as load_profile. DiskFullError, ReadOnlyError.
    """
    run = load_profile(profile)[0]
    written = []
    for name, stage in stages().items():
        executed = executed_file(run, stage)
        if executed is None:
            continue
        source = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        explorer = os.path.relpath(run.artifacts.parent / "explorer", run.figures / "notebooks")
        try:
            notebook = cleaned(nbformat.read(executed, as_version=4), source, explorer)
        except ValueError as error:
            print(f"note: {executed}: {error}")
            continue
        written.append(run.figures / "notebooks" / executed.name)
        with atomic_path(written[-1]) as tmp:
            nbformat.write(notebook, tmp)
    return written


def cleaned(executed: NotebookNode, source: NotebookNode, explorer: str = EXPLORER) -> NotebookNode:
    """An executed notebook with the cells of its source, the values of parameters it was run with,
    and those outputs that another run would repeat.

    Args:
        executed: as papermill leaves it.
        source: as it is committed; neither is changed.
        explorer: where that of the profile is, as seen from where the result will be.

    Raises:
        ValueError: its cells are not those of the source.
    """
    ran = [cell for cell in executed.cells if "injected-parameters" not in _tags(cell)]
    if [cell.source for cell in ran] != [cell.source for cell in source.cells]:
        raise ValueError("it was run before its cells were changed: `make paper` runs it again")
    given = executed.metadata.get("papermill", {}).get("parameters", {})
    cells = []
    count = 0
    for cell, done in zip(source.cells, ran, strict=True):
        kept = NotebookNode(id=cell.id, cell_type=cell.cell_type, metadata={}, source=cell.source)
        if "parameters" in _tags(cell):
            kept.metadata = {"tags": ["parameters"]}
            kept.source = _with_values(cell.source, given)
        if cell.cell_type == "code":
            count += 1
            kept.execution_count = count
            kept.outputs = _repeated(done.outputs, count, explorer)
        cells.append(kept)
    # not that it is one of a pair: JupyterLab would write the other one beside it
    metadata = {"kernelspec": source.metadata.kernelspec, "language_info": {"name": "python"}}
    return NotebookNode(nbformat=4, nbformat_minor=5, metadata=metadata, cells=cells)


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _with_values(source: str, given: dict[str, str]) -> str:
    """The cell of parameters with other values, each a text."""
    for name, value in given.items():
        literal = re.search(rf'^{name} = ("[^"]*")', source)
        source = source.replace(literal[1], json.dumps(value), 1) if literal else source
    return source


def _repeated(outputs: list[NotebookNode], count: int, explorer: str) -> list[NotebookNode]:
    """What another run of a cell would show again: what it printed, in one piece, then the rest."""
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    kept = [new_output("stream", text=_here(printed))] if printed else []
    for output in outputs:
        data = _shown(output.get("data", {}), explorer)
        if not data:
            continue
        about = {kind: about for kind, about in output.metadata.items() if kind in data}
        shown = new_output(output.output_type, data=data, metadata=about)
        if output.output_type == "execute_result":
            shown.execution_count = count
        kept.append(shown)
    return kept


def _shown(data: dict[str, str], explorer: str) -> dict[str, str]:
    """The richest forms of an output. Plain text is there beside them for terminals, with addresses
    in it; and a live bar has nothing but that.
    """
    rich = {kind: said for kind, said in data.items() if kind not in (PLAIN, LIVE)}
    if not rich and LIVE not in data:
        rich = {PLAIN: data[PLAIN]} if PLAIN in data else {}
    return {
        kind: _small(said)
        if kind == "image/png"
        else _here(said).replace(f'href="{EXPLORER}/', f'href="{explorer}/')
        for kind, said in rich.items()
    }


def _small(encoded: str) -> str:
    """A picture in as few bytes as its colours need; its size on a screen stands beside it."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    written = io.BytesIO()
    palette = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def _here(text: str) -> str:
    """A text without the places of this machine."""
    for place, said in ((f"{ROOT}/", ""), (str(ROOT), "."), (str(Path.home()), "~")):
        text = text.replace(place, said)
    return text
