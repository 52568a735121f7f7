"""The whole flow on the smoke profile's parameters, through make, as a user's own folder of
parameter files.

A run from nothing is killed on the way and resumed. It must write the csv files that the notebooks
write whose cells are run one after the other, as `make test` has just done. It has no 08, 09 and
12, which are made of what others have made, and are not what it is killed in.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from faithful_sae.files import ROOT, remove, write_json
from faithful_sae.runs.registry import stages
from test_executed import structure

NAME = "e2e_killed"
LEFT_OUT = {
    "seed_dependence": "08_seed_dependence",
    "features": "09_explore_features",
}
ARTIFACTS, FIGURES = (ROOT / place / NAME for place in ("artifacts", "figures"))


def make(*words, **kwargs):
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), *words], capture_output=True, text=True, **kwargs
    )


def planned(folder):
    """Names of the notebooks a dry run would execute."""
    result = make("dry", f"PARAMS={folder}")
    assert result.returncode == 0, result.stdout + result.stderr
    table = (
        result.stdout.split("Job stats:")[1].split("Reasons")[0]
        if "Job stats:" in result.stdout
        else ""
    )
    return {line.split()[0] for line in table.splitlines() if line[:1].isdigit()}


@pytest.fixture(scope="module")
def whole(request):
    """The smoke profile, not interrupted. Its notebooks have been run if they are among the tests,
    since they stand before these.
    """
    if not any(item.path.suffix == ".ipynb" for item in request.session.items):
        result = make("paper", "PROFILE=smoke")
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return "smoke"


def kill_when(folder, exists, timeout=300):
    """Start `make paper`, and kill its whole process group with SIGKILL once `exists()` is true."""
    process = subprocess.Popen(
        ["make", "-f", str(ROOT / "Makefile"), "paper", f"PARAMS={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + timeout
    while not exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    found = exists()
    # a kernel has a session of its own, so kill the tree and not the process group
    tree = (
        [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        if process.poll() is None
        else []
    )
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    return found


WEIGHTS = ARTIFACTS / "neox" / "saes" / "library" / "seed42" / "sae_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The profile made, after it was killed on the way, when some notebooks were done and others at
    work, and a file was cut short.
    """
    folder = tmp_path_factory.mktemp("profiles") / NAME
    shutil.copytree(ROOT / "params" / "smoke", folder)
    file = folder / "neox.yaml"
    text = file.read_text()
    for section in LEFT_OUT:
        text, found = re.subn(rf"(?ms)^{section}:.*?(?=^\S|\Z)", f"{section}: null\n", text)
        assert found == 1
    file.write_text(text)
    for place in (ARTIFACTS, FIGURES):
        remove(place)
    # the times of an earlier run, without which they would be measured beside the jobs
    times = dict.fromkeys(["documentation", "train_corpus", "site", *stages()], 10.0)
    write_json(ARTIFACTS / "jobs.json", {"seconds": times, "failed": []})
    of_faithful = ARTIFACTS / "neox" / "saes" / "faithful"
    assert kill_when(folder, (ARTIFACTS / "neox" / "rows" / "sfr.csv").exists)
    kept = (of_faithful / "provenance.json").read_bytes()
    WEIGHTS.write_bytes(WEIGHTS.read_bytes()[: WEIGHTS.stat().st_size // 2])
    result = make("paper", f"PARAMS={folder}", cwd=folder.parent)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    # what was done was not done again
    assert (of_faithful / "provenance.json").read_bytes() == kept
    yield folder
    for place in (ARTIFACTS, FIGURES):
        remove(place)


@pytest.mark.parametrize("place", ["artifacts", "figures"])
def test_killed_and_whole_runs_write_the_same_csv_files(folder, whole, place):
    killed = ROOT / place / NAME
    files = sorted(path.relative_to(killed) for path in killed.rglob("*.csv"))
    assert files
    for file in files:
        there = (ROOT / place / whole / file).read_bytes()
        assert (killed / file).read_bytes() == there.replace(whole.encode(), NAME.encode()), file


def test_a_file_that_was_cut_short_is_noticed_and_made_again(folder, whole):
    there = ROOT / "artifacts" / whole / WEIGHTS.relative_to(ARTIFACTS)
    # the same parameters give the same bytes
    assert WEIGHTS.read_bytes() == there.read_bytes()


def test_every_exhibit_is_there_and_says_its_profile(folder):
    from faithful_sae.runs.catalogue import exhibits

    of_studies = {stage.name for stage in stages().values() if stage.study}
    for exhibit in exhibits().values():
        # smoke leaves no massive activations out
        if exhibit.notebook in {*of_studies, *LEFT_OUT.values()} or exhibit.needs == "sae.max_norm":
            continue
        if exhibit.gathers:
            # a table of an earlier run is not written over by one without rows
            assert not (FIGURES / f"{exhibit.id}.csv").exists()
            continue
        for file in exhibit.files("neox"):
            path = FIGURES / file
            assert path.stat().st_size > 0, file
            if path.suffix in (".md", ".tex"):
                assert folder.name in path.read_text().replace("\\_", "_"), file
        assert (FIGURES / f"{exhibit.stem('neox')}.provenance.json").exists()


def test_executed_notebooks_stand_beside_the_figures(folder):
    """As those that are committed: a cell shows as many things of a kind as there."""
    written = sorted((FIGURES / "notebooks").glob("*.ipynb"))
    studies = {stage.name for stage in stages().values() if stage.study}
    assert {path.stem for path in written} == {*stages()} - studies - {*LEFT_OUT.values()}
    for path in written:
        committed = ROOT / "figures" / "laptop" / "notebooks" / path.name
        if committed.exists():
            there, here = structure(committed), structure(path)
            # a profile's one notebook shows its models one after the other
            assert path.stem == "07_paper" or here == there, path.name


def test_a_second_run_does_nothing(folder):
    start = time.time()
    result = make("paper", f"PARAMS={folder}")
    assert result.returncode == 0
    assert "▸" not in result.stdout
    assert time.time() - start < 60


def test_a_changed_value_reruns_what_depends_on_it(folder):
    file = folder / "neox.yaml"
    original = (folder / "neox.yaml").read_text()
    try:
        for old, new, expected in (
            ("threshold: 0.7 ", "threshold: 0.6 ", {"03_sfr", "07_paper"}),
            ("frequency: 0.1 ", "frequency: 0.2 ", {"04_ffr", "07_paper"}),
            ("max_iter: 1000", "max_iter: 2000", {"06_probing", "07_paper"}),
        ):
            assert original.count(old) == 1
            # a comment, which is changed with each, reruns nothing
            file.write_text("# changed, too\n" + original.replace(old, new))
            assert planned(folder) == expected, (old, new)
    finally:
        file.write_text(original)


def test_a_changed_library_file_reruns_what_depends_on_it(folder):
    for module, expected in (
        ("metrics/sfr", {"03_sfr", "07_paper"}),
        ("metrics/probing", {"06_probing", "07_paper"}),
        ("paper/claims", {"07_paper"}),
    ):
        file = ROOT / "lib" / "faithful_sae" / f"{module}.py"
        original = file.read_bytes()
        stamp = file.stat()
        try:
            file.write_bytes(original + b"\n# changed\n")
            assert planned(folder) == expected, module
        finally:
            file.write_bytes(original)
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_failing_cell_shows_its_traceback_and_keeps_the_notebook(tmp_path):
    notebook = tmp_path / "broken.py"
    notebook.write_text(
        Path(ROOT / "notebooks" / "03_sfr.py").read_text().split("# %% [markdown]")[0]
        + "# %% tags=[\"parameters\"]\nparams = 'x'\n\n# %%\nvalue = [1, 2][5]\n"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "faithful_sae",
            "notebook",
            str(notebook),
            str(tmp_path / "out.ipynb"),
            "params=y",
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "IndexError: list index out of range" in result.stderr
    assert "IndexError" in (tmp_path / "out.failed.ipynb").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_a_notebook_opened_too_early_names_the_one_before(tmp_path):
    from faithful_sae.files import MissingInputError
    from faithful_sae.runs.rows import open_run
    from faithful_sae.stages.saes import load_saes

    shutil.copytree(ROOT / "params" / "smoke", tmp_path / "never_run")
    with pytest.raises(MissingInputError, match="02_train_sae"):
        load_saes(open_run(tmp_path / "never_run" / "neox.yaml"))
