"""The smoke profile through a Slurm started for it, killed and lost on the way: the csv files are
the local run's, byte by byte.

`make test-slurm` runs it, `make test` does not: it takes root, Debian's slurm-wlm and munge, and a
quarter of an hour.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from faithful_sae.engine.cluster import jobs
from faithful_sae.files import ROOT, Lock, remove

HERE = Path(__file__).parent
PROFILES = "on_slurm", "on_this_machine"
SLURM = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
missing = [
    name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name, path=SLURM["PATH"])
]
pytestmark = pytest.mark.skipif(
    bool(missing) or os.getuid() != 0 or os.path.lexists("/etc/slurm/slurm.conf"),
    reason=(
        f"no {', '.join(missing)}: apt-get install slurm-wlm munge"
        if missing
        else "needs root, and no Slurm of the machine's own"
    ),
)


def make(target, name, *words):
    return subprocess.run(
        ["make", "-C", str(ROOT), target, f"PARAMS={folders[name]}", *words],
        capture_output=True,
        text=True,
    )


def sh(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def until(true, seconds=300):
    deadline = time.time() + seconds
    while not true():
        assert time.time() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


def running(rule):
    """Slurm ids of a rule's running jobs."""
    pairs = (
        line.split(maxsplit=1)
        for line in sh("squeue", "--noheader", "--states=RUNNING", "--format=%i %k").splitlines()
    )
    return [job for job, comment in pairs if comment.startswith(f"rule_{rule}")]


def kill(*processes):
    """SIGKILL to processes and all below them, those above first: none is left to report that one
    has ended.
    """
    below = [child for process in processes for child in process.children(recursive=True)]
    for process in (*processes, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


folders = {}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    state, base = tmp_path_factory.mktemp("slurm"), tmp_path_factory.mktemp("profiles")
    for name in PROFILES:
        folders[name] = base / name
        shutil.copytree(ROOT / "params" / "smoke", folders[name])
        for place in ("artifacts", "figures"):
            remove(ROOT / place / name)
    subprocess.run(
        [HERE / "start.sh", state], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield state
    subprocess.run(
        [HERE / "stop.sh", state], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for name in PROFILES:
        for place in ("artifacts", "figures"):
            remove(ROOT / place / name)


def begin(name, log):
    """`make paper ENGINE=slurm`, in the background; what it says goes to the file `log`."""
    with open(log, "w") as output:
        return subprocess.Popen(
            ["make", "-C", str(ROOT), "paper", f"PARAMS={folders[name]}", "ENGINE=slurm"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def test_killed_stopped_and_with_a_lost_node_the_csv_files_are_the_same(slurm, tmp_path):
    name = PROFILES[0]
    state = slurm
    log = tmp_path / "log"

    # the process that submits is killed: its jobs go on, so that no other run may begin, here or on
    # the cluster
    run = begin(name, log)
    until(lambda: running("train_corpus"))
    kill(psutil.Process(run.pid))
    run.wait()
    assert jobs(name)
    assert all(job.isdigit() for job in jobs(name))
    for engine in ("local", "slurm"):
        refused = make("paper", name, f"ENGINE={engine}")
        assert (
            refused.returncode != 0
            and "still queued" in refused.stderr
            and "make stop" in refused.stderr
        ), refused.stderr[-2000:]
    stopped = make("stop", name)
    assert stopped.returncode == 0 and not jobs(name), stopped.stderr

    # the node is lost in the middle of a job: Slurm starts it again when the node is back
    run = begin(name, log)
    until(lambda: running("train_corpus"))
    lost = running("train_corpus")[0]
    steps = [
        process
        for process in psutil.process_iter(["name"])
        if process.info["name"].startswith("slurmstepd")
    ]
    kill(psutil.Process(int((state / "slurmd.pid").read_text())), *steps)
    sh("scontrol", "update", "nodename=node1", "state=down", "reason=lost")
    assert not running("train_corpus")
    subprocess.run(
        ["slurmd", "-N", "node1"],
        env=os.environ | SLURM,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: "Restarts=1" in sh("scontrol", "show", "job", lost) and running("train_corpus"))
    second = make("paper", name)  # while the first is at work
    assert second.returncode != 0
    assert f"process {json.loads(lock(name).read_text())['pid']} on" in second.stderr
    assert run.wait(timeout=1200) == 0, log.read_text()[-3000:]

    assert make("paper", PROFILES[1]).returncode == 0
    for place in ("artifacts", "figures"):
        files = {
            n: sorted(p.relative_to(ROOT / place / n) for p in (ROOT / place / n).rglob("*.csv"))
            for n in PROFILES
        }
        assert files[PROFILES[0]] == files[PROFILES[1]] != []
        for file in files[PROFILES[0]]:
            a, b = ((ROOT / place / n / file).read_bytes() for n in PROFILES)
            assert a.replace(PROFILES[0].encode(), b"") == b.replace(PROFILES[1].encode(), b""), (
                file
            )


def lock(name):
    return ROOT / "artifacts" / name / ".lock"


def test_another_engine_finds_everything_done(slurm):
    assert "▸" not in (result := make("paper", PROFILES[0], "ENGINE=local")).stdout
    assert result.returncode == 0


def test_a_cancelled_job_names_its_log_and_is_submitted_again(slurm, tmp_path):
    artifacts = ROOT / "artifacts" / PROFILES[0] / "neox"
    remove(artifacts / "saes" / "library")
    # the job waits for this lock, so that it is never done before it is cancelled
    lock = Lock(artifacts / "trained" / "library.lock")
    assert lock.take()
    run = begin(PROFILES[0], tmp_path / "log")
    until(lambda: running("train_corpus"))
    (job,) = running("train_corpus")
    sh("scancel", job)
    assert run.wait(timeout=300) != 0
    said = (tmp_path / "log").read_text()
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in said
    assert f"train_corpus/neox_library/{job}.log" in said.split("'CANCELLED'")[1]
    assert "failed: train_corpus · neox · library" in said

    run = begin(PROFILES[0], tmp_path / "log")
    until(lambda: running("train_corpus"))
    os.killpg(run.pid, signal.SIGINT)  # Ctrl-C takes its jobs along
    assert run.wait(timeout=300) != 0
    said = (tmp_path / "log").read_text()
    assert "interrupted: " in said
    assert "WorkflowError" not in said
    until(lambda: not jobs(PROFILES[0]), 60)
    lock.close()
