"""Executed notebooks that are committed beside the figures: what is kept of a run, and that those
there are say what the notebooks say now.
"""

import base64
import io
import json
import re

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from faithful_sae.files import ROOT, write_json
from faithful_sae.paper import executed
from faithful_sae.paper.executed import cleaned, write_executed
from faithful_sae.runs.params import load_profile

FOLDERS = [ROOT / "figures" / profile / "notebooks" for profile in ("laptop", "smollm2")]
COMMITTED = [path for folder in FOLDERS for path in sorted(folder.glob("*.ipynb"))]
MOST = 1_000_000  # bytes
WIDGET = "application/vnd.jupyter.widget-view+json"
LITERAL = re.compile(r'^(params|profile) = "[^"]*"')
# of this machine or another, of an object, of a moment, of a bar
UNREPEATED = re.compile(
    r"/home/|/Users/|/root/|/tmp/|[A-Z]:\\|site-packages| at 0x[0-9a-f]{6}|\b20\d\d-\d\d-\d\dT|"
    r"\d+%\||it/s\]"
)


def structure(path):
    """Of each cell, the kinds of what it shows. What is printed may hang on sizes: notes do."""
    return [
        [sorted(o.data) for o in cell.get("outputs", []) if o.output_type != "stream"]
        for cell in read(path).cells
    ]


def read(path):
    return nbformat.read(path, as_version=4)


def png(width=60, height=40):
    """A picture as matplotlib's: few colours, and smooth edges."""
    colours = np.full((height, width, 4), 255, np.uint8)
    colours[10:30, 10:50, :3] = (31, 119, 180)
    colours[9, 10:50, :3] = (143, 187, 217)
    written = io.BytesIO()
    Image.fromarray(colours).save(written, "PNG", compress_level=0)
    return base64.b64encode(written.getvalue()).decode()


PARAMETERS = 'params = "smoke/neox"  # or another'
SOURCES = [PARAMETERS, "run = 1", "run"]
HTML = {"text/html": "<table>", "text/plain": "a table"}


def source():
    cells = [new_markdown_cell("# 03", id="a"), *(new_code_cell(s) for s in SOURCES)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    cells[1].metadata.tags = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3"}
    metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": kernel}
    return new_notebook(cells=cells, metadata=metadata)


def ran(*outputs, value="params/laptop/llama.yaml", when="12:00"):
    """The source as papermill leaves it; `outputs` are those of its last cell."""
    notebook = new_notebook(
        cells=[new_markdown_cell("# 03"), *(new_code_cell(s) for s in SOURCES)],
        metadata={
            "papermill": {"parameters": {"params": value}, "start_time": when},
            "widgets": {"state": {"abc": when}},
            "language_info": {"name": "python", "version": "3.11.9"},
        },
    )
    notebook.cells[1].metadata.tags = ["parameters"]
    given = new_code_cell(f'# Parameters\nparams = "{value}"')
    given.metadata.tags = ["injected-parameters"]
    notebook.cells.insert(2, given)
    for number, cell in enumerate(notebook.cells[1:]):
        cell.execution_count = number + 7
        cell.metadata.papermill = {"start_time": when}
    notebook.cells[-1].outputs = list(outputs)
    return notebook


def last(*outputs):
    """What is kept of some outputs."""
    return cleaned(ran(*outputs), source()).cells[-1].outputs


def test_cells_are_the_sources_with_the_values_they_were_run_with():
    notebook = cleaned(ran(), source())
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in source().cells]
    there = [cell.source for cell in notebook.cells]
    assert there == ["# 03", 'params = "params/laptop/llama.yaml"  # or another', *SOURCES[1:]]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]


def test_links_lead_to_the_explorer_from_where_the_notebook_is_kept():
    shown = new_output("display_data", {"text/html": '<a href="../explorer/index.html#/a/b/c/1">'})
    (kept,) = cleaned(ran(shown), source(), "../../x/explorer").cells[-1].outputs
    assert kept.data["text/html"] == '<a href="../../x/explorer/index.html#/a/b/c/1">'
    assert last(shown)[0].data["text/html"] == shown.data["text/html"]


def test_a_run_without_values_keeps_the_sources():
    notebook = ran()
    del notebook.metadata["papermill"]
    assert cleaned(notebook, source()).cells[1].source == PARAMETERS


def test_no_pair_of_it_is_written():
    assert cleaned(ran(), source()).metadata.keys() == {"kernelspec", "language_info"}


def test_another_run_at_another_time_writes_the_same():
    outputs = new_output("display_data", {"image/png": png()}), new_output("stream", text="3 SAEs")
    one, other = (
        nbformat.writes(cleaned(ran(*outputs, when=when), source())) for when in ("12:00", "13:37")
    )
    assert one == other


def test_neither_notebook_is_changed():
    executed, committed = ran(new_output("stream", text=f"{ROOT}/x")), source()
    before = nbformat.writes(executed), nbformat.writes(committed)
    cleaned(executed, committed)
    assert (nbformat.writes(executed), nbformat.writes(committed)) == before


def test_a_notebook_that_was_run_before_its_cells_were_changed_is_refused():
    executed = ran()
    executed.cells[-1].source = "run + 1"
    with pytest.raises(ValueError, match="run before its cells were changed"):
        cleaned(executed, source())


def test_what_was_printed_is_one_piece_without_progress():
    outputs = last(
        new_output("stream", text="one\n"),
        new_output("stream", name="stderr", text="\r 50%|█████ | 1/2 [00:01<00:01]"),
        new_output("stream", text="two\n"),
    )
    assert [(o.output_type, o.name, o.text) for o in outputs] == [
        ("stream", "stdout", "one\ntwo\n")
    ]


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (HTML, {"text/html": "<table>"}),
        ({"text/plain": "0.25"}, {"text/plain": "0.25"}),
        # a live bar, and a widget with what it leaves for pages
        ({WIDGET: {"model_id": "1f"}, "text/plain": "Loading: 0%"}, None),
        ({WIDGET: {"model_id": "1f"}} | HTML, {"text/html": "<table>"}),
    ],
)
def test_of_an_output_its_richest_forms_are_kept(data, kept):
    outputs = last(new_output("execute_result", data, execution_count=9))
    assert [o.data for o in outputs] == ([kept] if kept else [])
    assert [o.execution_count for o in outputs] == ([3] if kept else [])


def test_a_picture_looks_the_same_in_fewer_bytes_at_its_size_on_the_screen():
    about = {"image/png": {"width": 30, "height": 20}}
    (output,) = last(new_output("display_data", {"image/png": png()}, metadata=about))
    assert output.metadata == about
    assert len(output.data["image/png"]) < len(png()) / 4
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), int)
        for data in (png(), output.data["image/png"])
    )
    assert abs(before - after).max() <= 2


def test_places_of_this_machine_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(executed.Path, "home", lambda: tmp_path)
    said = f"{ROOT}/figures/a.md, {ROOT} and {tmp_path}/b"
    printed, shown = last(
        new_output("stream", text=said), new_output("display_data", {"text/markdown": said})
    )
    assert printed.text == shown.data["text/markdown"] == "figures/a.md, . and ~/b"


def run_of(name, text, **values):
    notebook = read(ROOT / "notebooks" / f"{name}.ipynb")
    notebook.metadata["papermill"] = {"parameters": values}
    notebook.cells[-1].outputs = [new_output("stream", text=text)]
    return notebook


def test_those_of_the_first_model_and_of_the_profile_are_written(make_run, capsys):
    folder = make_run({"label": "A"}, "a").file.parent
    make_run({"label": "B"}, "b")
    first, second = load_profile(folder)
    for run in (first, second):
        write_json(
            run.artifacts / "notebooks" / "03_sfr.ipynb", run_of("03_sfr", run.name, params="x")
        )
    stale = run_of("04_ffr", "")
    stale.cells[-1].source = "changed"
    write_json(first.artifacts / "notebooks" / "04_ffr.ipynb", stale)
    whole = first.artifacts.parent / "notebooks" / "07_paper.ipynb"
    write_json(whole, run_of("07_paper", "all", profile="y"))
    written = write_executed(folder)
    there = first.figures / "notebooks"
    assert written == [there / "03_sfr.ipynb", there / "07_paper.ipynb"]
    assert read(written[0]).cells[-1].outputs[0].text == "a"
    assert read(written[1]).cells[-1].outputs[0].text == "all"
    assert "04_ffr.ipynb: it was run before its cells were changed" in capsys.readouterr().out
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_executed(folder)] == before


# --- those that are committed ---------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
class TestCommitted:
    """Each that is there; a profile may have none yet."""

    def test_it_has_the_cells_of_its_notebook(self, path):
        there, committed = (
            [(cell.id, cell.cell_type, LITERAL.sub(r"\1", cell.source)) for cell in notebook.cells]
            for notebook in (read(path), read(ROOT / "notebooks" / path.name))
        )
        assert there == committed, "make paper runs it again"

    def test_it_was_run_to_its_end_for_its_profile(self, path):
        code = [cell for cell in read(path).cells if cell.cell_type == "code"]
        assert f"params/{path.parts[-3]}" in code[0].source
        assert code[1].outputs[0].text.startswith(path.parts[-3])
        assert {o.output_type for cell in code for o in cell.outputs} <= {
            *("stream", "display_data", "execute_result")
        }

    def test_it_is_small_and_says_nothing_of_a_machine_or_a_moment(self, path):
        assert path.stat().st_size < MOST
        notebook = read(path)
        assert notebook.metadata.keys() == {"kernelspec", "language_info"}
        for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
            output.get("data", {}).pop("image/png", None)
        for cell in notebook.cells:
            assert not UNREPEATED.search(json.dumps(cell.get("outputs", []))), cell.source
