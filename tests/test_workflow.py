"""The ways in, through `make` and the command line: where results lie and whose they are, names of
files, a copied environment, a terminal that lacks characters.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from faithful_sae.engine import problems as module
from faithful_sae.engine.problems import owner_problems, problems, take_possession
from faithful_sae.files import (
    ROOT,
    Lock,
    ReadOnlyError,
    atomic_path,
    from_root,
    remove,
    write_json,
)
from faithful_sae.runs.params import profile_folder, read_profile
from faithful_sae.runs.schema import ParamsError

SMOKE = ROOT / "params" / "smoke"


def make(*words, **more):
    command = ["make", "-f", str(ROOT / "Makefile"), *words]
    return subprocess.run(command, capture_output=True, text=True, **more)


@pytest.fixture
def own(tmp_path):
    """A folder of parameter files with a space and an accent, and its results."""
    folder = tmp_path / "two words" / "my prófile"
    shutil.copytree(SMOKE, folder)
    results = ROOT / "artifacts" / folder.name
    yield folder, results
    remove(results)
    remove(ROOT / "figures" / folder.name)


# --- make clean -----------------------------------------------------------------------------------


def test_clean_deletes_what_is_the_folder_s_alone(own, tmp_path):
    folder, results = own
    results.mkdir(parents=True)
    (results / "profile.txt").write_text(from_root(folder))
    other = tmp_path / folder.name
    shutil.copytree(folder, other)
    refused = make("clean", f"PARAMS={other}")
    assert refused.returncode != 0
    assert f"holds the results of {folder}" in refused.stderr
    assert results.exists()
    (folder / "broken.yaml").write_text("a: b: c")
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert make("clean", "PARAMS=link", cwd=tmp_path).returncode == 0
    assert not results.exists()


def test_clean_leaves_a_built_in_profile_to_its_own_folder(tmp_path):
    shutil.copytree(SMOKE, tmp_path / "laptop")
    refused = make("clean", f"PARAMS={tmp_path / 'laptop'}")
    assert refused.returncode != 0
    assert f"belongs to {ROOT / 'params' / 'laptop'}" in refused.stderr


# --- whose results --------------------------------------------------------------------------------


def test_the_note_of_the_owner_holds_in_a_moved_pair(tmp_path, monkeypatch, make_run):
    run = make_run()
    here = tmp_path / "root"
    monkeypatch.setattr(module, "ROOT", here)
    monkeypatch.setattr(module, "from_root", lambda path: os.path.relpath(path, here))
    (here / "artifacts" / "handmade").mkdir(parents=True)
    take_possession([run])
    note = here / "artifacts" / "handmade" / "profile.txt"
    assert note.read_text() == "../handmade\n"
    moved = tmp_path / "elsewhere"
    shutil.copytree(here, moved / "root")
    shutil.copytree(run.file.parent, moved / "handmade")
    monkeypatch.setattr(module, "ROOT", moved / "root")
    assert list(owner_problems(moved / "handmade")) == []
    (line,) = owner_problems(run.file.parent)
    assert f"holds the results of {moved / 'handmade'}" in line
    remove(moved / "handmade")
    assert list(owner_problems(run.file.parent)) == [], "renamed: nobody else's any more"


@contextlib.contextmanager
def mounted(place, options):
    """A file system of its own at a place."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs rights")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("write", [Lock, lambda path: write_json(path, 1)])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, write):
    with (
        mounted(tmp_path / "disk", "ro") as disk,
        pytest.raises(ReadOnlyError, match=r"Read-only .*: make it writable for you, or"),
    ):
        write(disk / "mine" / ".lock")


@pytest.mark.parametrize("target", ["paper", "tables", "dry"])
def test_a_checkout_that_cannot_be_written(tmp_path, target):
    """This one, seen from a place where it is read-only, by the environment of this one."""
    place = tmp_path / "read only"
    place.mkdir()
    if subprocess.run(["mount", "--bind", str(ROOT), str(place)], capture_output=True).returncode:
        pytest.skip("mounting a folder needs rights")
    own = {"PYTHONPATH": str(place / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-o", "ready", f"VENV={sys.prefix}", "PROFILE=smoke"]
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        command = ["make", "-f", str(place / "Makefile"), target, *words]
        result = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | own, cwd=tmp_path
        )
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert result.returncode != 0
    line, *others = [line for line in result.stderr.splitlines() if line]
    assert line.startswith(f"  {place}/")
    assert "Read-only file system: results are written here: make it writable for you" in line
    assert all(re.match(r"make(\[\d+\])?: \*\*\*", other) for other in others), result.stderr


def test_what_is_read_from_elsewhere_is_not_blamed_on_what_is_written(tmp_path):
    with pytest.raises(PermissionError), atomic_path(tmp_path / "mine" / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "other" / "b"))


@contextlib.contextmanager
def somebody_else():
    """Without the rights of root, to which everything is open."""
    if os.getuid():
        pytest.skip("only root can be somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("write", [Lock, lambda path: write_json(path, 1)])
def test_a_folder_of_another_user_is_one_line(write):
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        said = f"^{name}/mine: Permission denied: results are written here: make it writable"
        with somebody_else(), pytest.raises(ReadOnlyError, match=said):
            write(f"{name}/mine/a")


NOTEBOOK = """
# %% tags=["parameters"]
params = "x"

# %%
print("x" * {length})
"""


def test_an_executed_notebook_that_does_not_fit_on_the_disk(tmp_path):
    """One line; with room, the same command goes on."""
    header = (ROOT / "notebooks" / "03_sfr.py").read_text().split("# %% [markdown]")[0]
    (tmp_path / "long.py").write_text(header + NOTEBOOK.format(length=400_000))
    command = [sys.executable, "-m", "faithful_sae", "notebook", str(tmp_path / "long.py")]
    with mounted(tmp_path / "disk", "size=256k") as disk:
        command += [str(disk / "out.ipynb"), "params=y"]
        full = subprocess.run(command, capture_output=True, text=True)
        assert full.returncode == 1
        assert full.stderr.strip() == (
            f"disk full while writing {disk / 'out.ipynb'}: free some space and run again; "
            "finished results are kept"
        )
        assert "Traceback" not in full.stdout
        assert not (disk / "out.ipynb").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert sorted(file.name for file in disk.iterdir()) == ["out.ipynb", "out.lock"]


def test_what_a_cell_says_of_itself_comes_without_a_traceback(tmp_path):
    header = (ROOT / "notebooks" / "03_sfr.py").read_text().split("# %% [markdown]")[0]
    text = NOTEBOOK.split("print")[0] + "from faithful_sae.files import DiskFullError\n"
    (tmp_path / "full.py").write_text(
        f"{header}{text}raise DiskFullError(28, 'disk full: free it')"
    )
    command = [sys.executable, "-m", "faithful_sae", "notebook", str(tmp_path / "full.py")]
    command += [str(tmp_path / "out.ipynb"), "params=y"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    said = result.stderr.splitlines()
    assert said[0].endswith("full.py failed in cell 3:"), result.stderr
    assert said[1:] == [
        "  disk full: free it",
        f"  the executed notebook is kept: {tmp_path / 'out.failed.ipynb'}",
    ]


# --- names ----------------------------------------------------------------------------------------


def test_names_of_folders_and_models(tmp_path):
    folder = tmp_path / "pro file"
    shutil.copytree(SMOKE, folder)
    (folder / "neox.yaml").rename(folder / "c++|(a.yaml")
    (folder / "._c.yaml").write_bytes(b"\0\1")
    (folder / ".#c.yaml").symlink_to("nobody@host.1:2")
    runs, found = read_profile(folder)
    assert [run.name for run in runs] == ["c++|(a"]
    assert found == []
    result = make("dry", f"PARAMS={folder}")
    assert result.returncode == 0, result.stderr
    assert "train_corpus" in result.stdout
    (folder / "c++|(a.yaml").rename(folder / "a b.yaml")
    _, (line,) = read_profile(folder)
    assert line == f"{folder}/a b.yaml: a model's name may have no space and no {{ or }}: rename it"
    folder.rename(tmp_path / "{run}")
    with pytest.raises(ParamsError, match="may have no { or }: rename it"):
        profile_folder(tmp_path / "{run}")


def test_braces_in_what_is_read_are_found_before_any_work(make_run):
    run = make_run()
    file = run.file.parent / "text.jsonl"
    file.rename(file.with_name("{text}.jsonl"))
    run = make_run({"corpora.text.path": "{text}.jsonl"})
    (line,) = problems([run])
    assert line.startswith(f"{run.file}: {run.file.parent}/{{text}}.jsonl: ")
    assert "placeholders" in line


def test_a_profile_whose_name_is_a_number(tmp_path):
    shutil.copytree(SMOKE, tmp_path / "2024")
    result = make("dry", "PROFILE=2024", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_engine_that_is_none():
    result = make("dry", "PROFILE=smoke", "ENGINE=slrum")
    assert result.returncode != 0
    assert "ENGINE: 'slrum' must be one of local, slurm" in result.stderr


# --- terminals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters(tmp_path, encoding):
    shutil.copytree(SMOKE, tmp_path / "arrow→")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "faithful_sae", "clean", str(tmp_path / "arrow→")]
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(b"artifacts/arrow?\n")


# --- a copied environment -------------------------------------------------------------------------


def test_a_copied_environment_is_made_this_folder_s(tmp_path):
    """With a `python` and a `pip` that only say what they were asked."""
    here = tmp_path / "a copy"
    (here / "lib").mkdir(parents=True)
    (here / "workflow").mkdir()
    for name in ("environment.sh", "moved.py"):
        shutil.copy(ROOT / "workflow" / name, here / "workflow")
    (here / "environment.yml").touch()
    (here / "lib" / "pyproject.toml").touch()
    scripts = here / ".venv" / "bin"
    scripts.mkdir(parents=True)
    python = scripts / "python"
    python.write_text('#!/bin/sh\necho "$@" >> asked\n')
    python.chmod(0o755)
    (scripts / "pip").write_text("#!/old place/.venv/bin/python\n")
    (here / ".venv" / "pyvenv.cfg").write_text("command = python3 -m venv /old place/.venv\n")
    (here / ".venv" / ".stamp").write_text("/old place\n")

    def ready():
        command = ["sh", str(here / "workflow" / "environment.sh"), ".venv"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert ready() == ".venv is that of /old place: it is made this folder's\n"
    assert (scripts / "pip").read_text() == f"#!{here}/.venv/bin/python\n"
    asked = (here / "asked").read_text()
    assert (
        asked
        == "-m pip install --quiet --disable-pip-version-check --no-compile --no-deps -e ./lib\n"
    )
    assert ready() == ""
    assert (here / "asked").read_text() == asked
