"""The first cells of a notebook: which run it is of, from anywhere, and what it lacks, in one line
and before anything slow is loaded.
"""

import ast
import subprocess
import sys

import jupytext
import pytest

from conftest import execute
from faithful_sae.files import ROOT, MissingInputError
from faithful_sae.runs.params import load_params
from faithful_sae.runs.registry import stages
from faithful_sae.runs.schema import ParamsError
from faithful_sae.runs.start import start, start_profile

SAYS = {"faithful": [0.5], "pile": [0.4]}


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=folder
    )


@pytest.mark.parametrize("name", stages())
def test_a_notebook_begins_with_its_parameters_and_its_run(name):
    cells = jupytext.read(ROOT / "notebooks" / f"{name}.py").cells
    first, second = [cell for cell in cells if cell.cell_type == "code"][:2]
    assert first.metadata["tags"] == ["parameters"]
    runs = "runs = start_profile(profile)"
    expected = runs if stages()[name].profile else f'run = start("{name}", params)'
    assert ast.unparse(ast.parse(second.source)).splitlines()[1:] == [expected.replace('"', "'")]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("smoke/neox", "smoke/neox.yaml"),
        ("smoke", "smoke/neox.yaml"),
        ("laptop", "laptop/llama.yaml"),
        ("laptop/neox", "laptop/neox.yaml"),
        ("params/laptop/neox.yaml", "laptop/neox.yaml"),
    ],
)
def test_a_run_is_found_by_name_from_any_folder(name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_params(name).file == ROOT / "params" / file


def test_a_file_of_ones_own_comes_before_the_name_of_a_profile(make_run, monkeypatch):
    file = make_run(name="laptop", load=False)
    monkeypatch.chdir(file.parent)
    assert load_params("laptop.yaml").file == file
    assert load_params("laptop").file.parent == ROOT / "params" / "laptop"


@pytest.mark.parametrize("name", ["", ".", "lapdog", "laptop/lama"])
def test_a_name_that_is_none_is_answered_with_those_there_are(name):
    with pytest.raises(ParamsError, match="no such parameter file.* laptop/llama, laptop/neox"):
        load_params(name)


def test_what_is_missing_is_named_with_the_command_that_makes_it(make_run, monkeypatch):
    run = make_run()
    monkeypatch.chdir(ROOT / "notebooks")
    said = (
        "03_sfr needs results of 01_generate_faithful and 02_train_sae, which handmade/tiny lacks: "
        "run that first, or everything from a cell: "
        "!make -C .. paper PARAMS=handmade MODELS=tiny"
    )
    with pytest.raises(MissingInputError) as error:
        start("03_sfr", run.file)
    assert str(error.value) == said


def test_only_what_is_missing_is_named(make_measured_run):
    run = make_measured_run("one", SAYS)
    with pytest.raises(MissingInputError, match="^04_ffr needs results of 01_generate_faithful, "):
        start("04_ffr", run.file)


def test_a_run_whose_rows_are_there_is_opened(make_measured_run, capsys):
    run = make_measured_run("one", SAYS)
    assert start("03_sfr", run.file).file == run.file
    assert capsys.readouterr().out.startswith("handmade/one: Model one. Loading")


def test_the_first_notebook_needs_nothing(make_run):
    run = make_run()
    assert start("01_generate_faithful", run.file).file == run.file


@pytest.mark.parametrize(
    ("notebook", "section"),
    [("09_explore_features", "features"), ("12_evaluation", "evaluation")],
)
def test_a_notebook_whose_section_is_null_says_so(make_run, notebook, section):
    run = make_run()
    with pytest.raises(ParamsError, match=rf"tiny\.yaml: {section} is null.*{notebook}"):
        start(notebook, run.file)


def test_a_profile_is_found_by_name(capsys):
    assert [run.name for run in start_profile("laptop")] == ["llama", "neox"]
    assert capsys.readouterr().out.startswith("laptop: ")


def test_a_notebook_cannot_go_on_without_what_it_needs(make_run):
    with pytest.raises(MissingInputError):
        execute("13_geometry", params=str(make_run().file))


def test_what_is_missing_is_said_before_torch_is_loaded(make_run, tmp_path):
    code = (
        "import sys\nfrom faithful_sae.files import MissingInputError\n"
        "from faithful_sae.runs.start import start\n"
        f"try: start('03_sfr', {str(make_run().file)!r})\n"
        "except MissingInputError: print(sorted({'torch', 'matplotlib'} & {*sys.modules}))"
    )
    assert python(code, tmp_path).stdout == "[]\n"


def test_in_a_notebook_an_error_that_says_all_has_no_traceback(tmp_path):
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(colors='nocolor')\n"
        "start = 'from faithful_sae.runs.start import start; start({!r}, {!r})'\n"
        "assert not shell.run_cell(start.format('03_sfr', 'lapdog')).success\n"
        "print('==')\n"
        "assert not shell.run_cell('1 / 0').success\n"
    )
    result = python(code, tmp_path)
    said, other = result.stdout.split("==")
    assert "ParamsError: lapdog: no such parameter file" in said, result.stderr
    assert "Traceback" not in said
    assert "Traceback" in other
    assert "ZeroDivisionError: division by zero" in other
