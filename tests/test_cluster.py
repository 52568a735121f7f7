"""One run of a profile at a time, with Slurm's commands replaced by scripts; a real Slurm:
tests/slurm/smoke.py.
"""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from faithful_sae.engine import cluster, plan, problems
from faithful_sae.engine.cluster import BusyError, claim, jobs, megabytes, minutes, prefix, stop
from faithful_sae.files import ROOT, seal
from faithful_sae.runs.keys import workflow_settings
from faithful_sae.runs.needs import needs
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import model_stages, stages
from faithful_sae.runs.rows import rows_file
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.model import model_shape
from faithful_sae.stages.s02_train_sae import trained_file


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Locks lie in an empty folder, and Slurm's commands are `squeue`, which lists queue.txt, and
    `scancel`, which empties it.
    """
    monkeypatch.setattr(cluster, "ROOT", tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    (tmp_path / "queue.txt").write_text("")
    for name, text in (
        ("squeue", f"cat {tmp_path}/queue.txt"),
        ("scancel", f"echo $* >> {tmp_path}/cancelled; : > {tmp_path}/queue.txt"),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return tmp_path


def queue(here, *names):
    (here / "queue.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 11)))


HOLD = """
import subprocess, sys, time
from faithful_sae.engine import cluster
from pathlib import Path
cluster.ROOT = Path(sys.argv[1])
lock = cluster.claim("mine", sys.argv[2])
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def hold(here, engine):
    """A process that holds profile `mine`, and the pid of one that it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(here), engine], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


def test_a_profile_has_one_run_at_a_time(here):
    held = claim("mine", "local")
    assert json.loads((here / "artifacts" / "mine" / ".lock").read_text())["pid"] == os.getpid()
    claim("another", "local").close()
    with pytest.raises(BusyError, match=f"process {os.getpid()} on"):
        claim("mine", "slurm")
    held.close()
    claim("mine", "local").close()


def test_jobs_that_a_killed_run_left_refuse_the_next(here):
    claim("mine", "slurm").close()
    queue(here, f"{prefix('mine')}_3f", f"{prefix('mine2')}_3f", "mine", f"{prefix('mine')}_4a")
    assert jobs("mine") == ["11", "14"]
    for engine in ("local", "slurm"):
        with pytest.raises(BusyError, match=r"still queued \(11, 14\).*make stop"):
            claim("mine", engine)
    assert (
        json.loads((here / "artifacts" / "mine" / ".lock").read_text())["engine"] == "slurm"
    )  # so it is asked again
    stop("mine")
    assert (here / "cancelled").read_text() == "11 14\n"
    claim("mine", "local").close()


def test_slurm_that_does_not_answer_is_asked_only_where_jobs_may_be(here):
    (here / "bin" / "squeue").write_text(
        "#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    claim("mine", "local").close()
    stop("mine")
    with pytest.raises(BusyError, match=r"cannot ask Slurm.*Unable to contact"):
        claim("mine", "slurm")
    (here / "artifacts" / "mine" / ".lock").write_text(
        '{"engine": "slurm", "host": "gone", "pid": 1}'
    )
    for attempt in (lambda: claim("mine", "local"), lambda: stop("mine")):
        with pytest.raises(BusyError, match="cannot ask Slurm"):
            attempt()


@pytest.mark.parametrize("engine", ["local", "slurm"])
def test_stop_ends_a_run_and_all_it_started(here, engine):
    process, child = hold(here, engine)
    queue(here, f"{prefix('mine')}_1")
    assert stop("mine")
    assert process.wait(timeout=10) == -9
    deadline = time.time() + 10
    while (
        psutil.pid_exists(child)
        and psutil.Process(child).status() != "zombie"
        and time.time() < deadline
    ):
        time.sleep(0.05)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"
    assert (here / "cancelled").exists() == (engine == "slurm")
    claim("mine", "local").close()
    assert not stop("mine"), "nothing is left to stop"


def test_stop_ends_what_outlived_its_run_but_no_other_profile_s(here):
    step = "import sys, time; print('up', flush=True); time.sleep(600)"
    steps = {
        name: subprocess.Popen(
            [
                sys.executable,
                "-c",
                step,
                "faithful_sae",
                "notebook",
                f"artifacts/{name}/x.ipynb",
            ],
            cwd=here,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("mine", "mine2")
    }
    try:
        for name, process in steps.items():
            process.stdout.readline()
            claim(name, "local").close()
        assert stop("mine")
        assert steps["mine"].wait(timeout=10) == -9
        assert steps["mine2"].poll() is None
    finally:
        for process in steps.values():
            process.kill()
            process.wait()


def test_a_run_on_another_machine_is_stopped_there(here):
    held = claim("mine", "local")
    (here / "artifacts" / "mine" / ".lock").write_text(
        '{"engine": "slurm", "host": "login7", "pid": 12}'
    )
    with pytest.raises(BusyError, match="process 12 on login7"):
        stop("mine")
    held.close()


def test_names_of_jobs_are_what_slurm_and_its_plugin_take():
    for profile in ("laptop", "my profile.v2", "p" * 200):
        assert len(prefix(profile)) <= 50
        assert set(prefix(profile)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    assert prefix("a.b") != prefix("a_b")


def test_what_a_job_asks_for(make_run):
    run = make_run({"hours": {"generate": 1.5, "train": 2.0, "measure": 0.01}})
    long = {"01_generate_faithful": 90}
    trained = (
        "02_train_sae",
        "08_seed_dependence",
        "10_architectures",
        "11_layer_groups",
        "16_learning",
        "17_consensus",
        "18_text_choice",
        "19_domain",
        "20_tuned_model",
    )
    long |= dict.fromkeys(trained, 120)
    assert {name: minutes(run, stage) for name, stage in stages().items()} == {
        name: long.get(name, 1) for name in stages()
    }
    shape = model_shape(run)
    for stage in model_stages(run):
        most = needs(run, shape, stage).memory + cluster.SNAKEMAKE
        assert megabytes(run, stage) * 1_000_000 >= most
    assert megabytes(run, stages()["07_paper"]) == 1400


def test_hours_are_positive_and_nothing_depends_on_them(make_run):
    with pytest.raises(ParamsError, match=r"hours\.train = 0 must be above 0"):
        make_run({"hours.train": 0})
    a = make_run()
    b = make_run({"hours": {"generate": 9.0, "train": 9.0, "measure": 9.0}}, name="b")
    for stage in stages().values():
        assert workflow_settings(a, stage) == workflow_settings(b, stage)
    assert plan.corpus_settings(a, "text") == plan.corpus_settings(b, "text")


def test_a_corpus_waits_only_for_what_it_is_made_of(make_run):
    make_run(name="other")
    run = make_run(
        {
            "corpora.theirs": {"role": None, "faithful": "other"},
            "sae.train_on": ["faithful", "text", "theirs"],
        }
    )
    folder = run.artifacts.parent
    assert plan.corpus_inputs(run, "text") == [str(run.resolve("text.jsonl"))]
    assert plan.corpus_inputs(run, "faithful") == [str(folder / "tiny" / "rows" / "dataset.csv")]
    assert plan.corpus_inputs(run, "theirs") == [str(folder / "other" / "rows" / "dataset.csv")]
    trained = {str(trained_file(run, name)) for name in run.sae.train_on}
    gathering = stages()["02_train_sae"]
    assert trained <= set(plan.stage_inputs(run, gathering))
    # it trains them itself where jobs of their own would be no faster
    together = {path for name in run.sae.train_on for path in plan.corpus_inputs(run, name)}
    assert set(plan.stage_inputs(run, gathering, apart=False)) == together


def test_what_training_on_a_corpus_depends_on(make_run):
    def settings(changes, corpus="text"):
        return plan.corpus_settings(make_run(changes), corpus)

    assert (
        settings({})
        == settings({"label": "B"})
        == settings({"sae.train_on": ["text"]})
        == settings({"corpora.faithful.role": None})
    )
    assert (
        len(
            {
                settings({}),
                settings({"sae.k": 3}),
                settings({"layer": 2}),
                settings({"corpora.text.text_key": "t"}),
            }
        )
        == 4
    )


def test_the_laptop_s_embedded_models_are_trained_first():
    run = {run.name: run for run in load_profile("laptop")}["neox"]
    inputs = plan.corpus_inputs(run, "faithful-llama")
    assert inputs == [
        str(ROOT / "artifacts" / "laptop" / name / "rows" / "dataset.csv")
        for name in ("llama", "neox")
    ]


def test_only_the_corpus_whose_saes_are_damaged_is_trained_again(make_run, monkeypatch):
    run = make_run()
    monkeypatch.setattr(problems, "ROOT", run.artifacts.parents[2])
    markers = {name: run.artifacts / "trained" / f"{name}.txt" for name in run.sae.train_on}
    for name, marker in markers.items():
        weights = run.artifacts / "saes" / name / "seed42" / "sae_weights.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"whole")
        seal(run.artifacts / "saes" / name, "k", {})
        marker.parent.mkdir(exist_ok=True)
        marker.write_text("hash")
    rows = rows_file(run, "saes")
    rows.parent.mkdir()
    rows.write_text("corpus\n")
    problems.take_possession([run])
    assert all(marker.exists() for marker in (rows, *markers.values()))
    weights.write_bytes(b"who")
    problems.take_possession([run])
    assert [name for name, marker in markers.items() if marker.exists()] == ["faithful"]
    assert not rows.exists()  # without which Snakemake would have no use for a new mark
