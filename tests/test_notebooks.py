"""Notebooks keep to the house: short cells that call the library, literal parameters, and a twin
that says the same.
"""

import ast
import re

import jupytext
import pytest
from jupytext.compare import compare_notebooks

from faithful_sae.files import ROOT
from faithful_sae.runs.catalogue import exhibits
from faithful_sae.runs.registry import stages

FILES = sorted((ROOT / "notebooks").glob("*.py"))
EACH = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)


def code_cells(file):
    return [cell for cell in jupytext.read(file).cells if cell.cell_type == "code"]


def test_there_is_one_per_stage():
    assert [f.stem for f in FILES] == list(stages())


@EACH
def test_the_pair_says_the_same(file):
    twin = file.with_suffix(".ipynb")
    assert twin.exists(), "make sync"
    text, notebook = jupytext.read(file), jupytext.read(twin)
    compare_notebooks(notebook, text, fmt="py:percent", allow_expected_differences=True)
    assert [(c.cell_type, c.source, c.metadata.get("tags")) for c in text.cells] == [
        (c.cell_type, c.source, c.metadata.get("tags")) for c in notebook.cells
    ]
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@EACH
def test_kernel(file):
    kernel = jupytext.read(file).metadata["kernelspec"]
    assert kernel["name"] == "python3"
    assert kernel["language"] == "python"


@EACH
def test_cells_are_short_and_define_nothing(file):
    for cell in code_cells(file):
        assert sum(bool(line.strip()) for line in cell.source.splitlines()) <= 15, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While)
            ), cell.source


@EACH
def test_parameters_are_literals(file):
    cells = [cell for cell in code_cells(file) if "parameters" in cell.metadata.get("tags", ())]
    assert len(cells) == 1
    names = {}
    for node in ast.parse(cells[0].source).body:
        assert isinstance(node, ast.Assign)
        assert len(node.targets) == 1
        names[node.targets[0].id] = ast.literal_eval(node.value)
    # the defaults are the smoke run, which nbval executes
    if stages()[file.stem].profile:
        assert names == {"profile": "smoke"}
    else:
        assert names == {"params": "smoke/neox"}


@EACH
def test_a_notebook_explains_checks_and_never_loops_over_training(file):
    cells = jupytext.read(file).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith(f"# {file.stem[:2]} ")
    assert re.search(r"^(assert |np.testing.assert_)", code_cells(file)[-1].source, re.M), (
        "the last cell asserts"
    )
    source = "\n".join(cell.source for cell in code_cells(file))
    for word in (".backward(", "optim.", ".step("):
        assert word not in source
    if file.stem[:2] in ("03", "04", "05", "06", "07"):
        assert not re.search(
            r"train_(saes|all|corpus|embedded|language)|make_faithful|generate_dataset", source
        )


@EACH
def test_a_notebook_writes_the_exhibits_it_is_listed_for(file):
    source = "\n".join(cell.source for cell in code_cells(file))
    for exhibit in exhibits().values():
        assert (f'"{exhibit.id}"' in source) or exhibit.notebook != file.stem, exhibit.id
