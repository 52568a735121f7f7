"""One run of a profile at a time, on this machine and on a cluster: who holds it, which of its
Slurm jobs are left, what they ask for.

The process behind `make paper` holds artifacts/<profile>/.lock, which also says where it runs. A
run whose process was killed may have left Slurm jobs that still write: they carry the profile's
name, and as long as one is queued no other run begins.
"""

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import psutil

from faithful_sae.files import ROOT, Lock, digest
from faithful_sae.runs.schema import Run
from faithful_sae.runs.stage import Stage

# bytes of RAM of a job beside its notebook: two processes of Snakemake, 0.2 GB each, and papermill
SNAKEMAKE = 600_000_000
STEPS = {"notebook", "train-corpus", "share", "estimate"}  # commands that the workflow starts
STOPPING = 120  # seconds that Slurm is given to end cancelled jobs


class BusyError(RuntimeError):
    """Another run of the profile, or jobs of one, are at work."""


# --- what a job asks for --------------------------------------------------------------------------


def minutes(run: Run, stage: Stage) -> int:
    """Wall-clock limit of a job: the run's `hours`."""
    return math.ceil(60 * getattr(run.hours, stage.hours))


def megabytes(run: Run, stage: Stage) -> int:
    """RAM of a job: the stage's `needs`, and the engine's own. Reads the configuration of the run's
    language model.
    """
    # with torch and transformers, for which a dry run does not wait
    from faithful_sae.runs.needs import PROCESS, needs
    from faithful_sae.stages.model import model_shape

    notebook = PROCESS if stage.profile else needs(run, model_shape(run), stage).memory
    return math.ceil((notebook + SNAKEMAKE) / 1e6)


# --- one run at a time ----------------------------------------------------------------------------


def claim(profile: str, engine: str) -> Lock:
    """Hold a profile for as long as the returned lock is kept.

    Args:
        engine: "local", or another name of a folder in workflow/profiles: jobs then go to Slurm.

    Raises:
        BusyError: another run holds it; Slurm jobs of an earlier run are still queued, or Slurm
            cannot be asked about them.
    """
    lock = Lock(_path(profile))
    free = lock.take()
    holder = _holder(lock)
    if not free:
        raise BusyError(
            f"another `make paper` is running on profile {profile} ({_where(holder)}): wait for "
            "it, or `make stop` it there"
        )
    # nobody holds the lock, yet jobs of a run that was killed may be at work on other machines
    on_cluster = {engine, holder.get("engine", "local")} != {"local"}
    if on_cluster and (left := jobs(profile)):
        raise BusyError(
            f"Slurm jobs of an earlier run of profile {profile} are still queued "
            f"({', '.join(left)}): wait for them, or `make stop`"
        )
    me = {"engine": engine, "host": socket.gethostname(), "pid": os.getpid()}
    lock.file.truncate(0)
    lock.file.write(json.dumps(me))
    lock.file.flush()
    return lock


def prefix(profile: str) -> str:
    """What the names of a profile's Slurm jobs begin with: its name, and a mark of this copy of the
    repository.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", profile)[:30]
    return f"{name}_{digest([str(ROOT), profile])[:8]}"


def jobs(profile: str) -> list[str]:
    """Ids of the profile's Slurm jobs that have not ended.

    Raises:
        BusyError: Slurm does not answer, so that nobody knows.
    """
    command = ["squeue", "--me", "--noheader", "--format=%i %j"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise BusyError(
            f"cannot ask Slurm whether jobs of profile {profile} are at work: {why}"
        ) from None
    pairs = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
    return [job for job, name in pairs if name.startswith(f"{prefix(profile)}_")]


def stop(profile: str) -> bool:
    """End the run of a profile: its process and all it started on this machine, also what outlived
    it, and its Slurm jobs. Whether there was any of it.

    Raises:
        BusyError: it runs on another machine; Slurm does not answer, or jobs do not end.
    """
    path = _path(profile)
    if not path.exists():
        return False
    lock = Lock(path)
    holder = _holder(lock)
    found = not lock.take()
    if found:
        if holder.get("host") != socket.gethostname():
            raise BusyError(
                f"profile {profile} is being made by {_where(holder)}: `make stop` it there"
            )
        kill(holder["pid"])
        lock.take(wait=True)
    # with the lock held nobody submits another job meanwhile
    if holder.get("engine", "local") != "local":
        found |= _cancel_jobs(profile)
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        step = "faithful_sae" in words and STEPS & set(words)
        # jobs are given paths as seen from the repository
        places = [Path(process.info["cwd"] or ROOT, word) for word in words if step]
        if any(place.is_relative_to(path.parent) for place in places):
            kill(process.pid)
            found = True
    lock.close()
    return found


def _cancel_jobs(profile):
    """Whether there were any."""
    found = False
    deadline = time.time() + STOPPING
    while left := jobs(profile):
        if time.time() > deadline:
            raise BusyError(
                f"Slurm jobs {', '.join(left)} do not end: try again, or ask whoever runs the "
                "cluster"
            )
        subprocess.run(["scancel", *left], check=False)
        found = True
        time.sleep(1)
    return found


def _path(profile):
    return ROOT / "artifacts" / profile / ".lock"


def _holder(lock):
    lock.file.seek(0)
    try:
        return json.loads(lock.file.read())
    except ValueError:
        return {}


def _where(holder):
    return f"process {holder.get('pid')} on {holder.get('host')}"


def kill(pid: int) -> None:
    """End a process and all below it at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # the parent first: it starts nothing more
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
