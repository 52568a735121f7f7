"""One run of a profile at a time, on this machine and on a cluster: who holds it, which of its
Slurm jobs are left, what they ask for.

The process behind `make paper` holds artifacts/<profile>/.lock, which also says where it runs. A
run whose process was killed may have left Slurm jobs that still write: they carry the profile's
name, and as long as one is queued no other run begins. `python -m faithful_sae.engine.cluster prefix|stop
PROFILE` is what make calls.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from faithful_sae.files import ROOT, digest
from faithful_sae.runs.needs import PROCESS, needs
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.schema import PROFILE_STAGE, ParamsError

# bytes of RAM of a job beside its notebook: two processes of Snakemake, 0.2 GB each, and papermill
SNAKEMAKE = 600_000_000
STEPS = {
    "faithful_sae.engine.notebook",
    "faithful_sae.engine.train_corpus",
    "faithful_sae.engine.workers",
}  # what the workflow starts
STOPPING = 120  # seconds that Slurm is given to end cancelled jobs


class BusyError(RuntimeError):
    """Another run of the profile, or jobs of one, are at work."""


# --- what a job asks for --------------------------------------------------------------------------


def minutes(run, stage) -> int:
    """Wall-clock limit of a job: the run's `hours`."""
    h = run.hours
    return math.ceil(
        60
        * {
            "01_generate_faithful": h.generate,
            "02_train_sae": h.train,
            "08_seed_dependence": h.train,
        }.get(stage, h.measure)
    )


def megabytes(run, stage) -> int:
    """RAM of a job: the stage's `needs`, and the engine's own. Reads the configuration of the run's
    language model.
    """
    from faithful_sae.stages.model import (
        model_shape,
    )  # with torch and transformers, for which a dry run does not wait

    notebook = PROCESS if stage == PROFILE_STAGE else needs(run, model_shape(run), stage).memory
    return math.ceil((notebook + SNAKEMAKE) / 1e6)


class Failures(logging.Handler):
    """Prints why a Slurm job failed, what its cell said, and where its log is; Snakemake's own
    account of it fills a screen.
    """

    def emit(self, record):
        for log in (Path(log) for log in getattr(record, "log", ()) if str(log).endswith(".log")):
            said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            error = re.search(r"^(  ✗ |Traceback ).*?(?=^\[\w{3} |\Z)", said, re.M | re.S)
            reason = (record.rule_msg or "").partition("For further")[0].strip()
            print(
                f"{error.group().rstrip()}\n" if error else "",
                f"  ✗ {record.rule_name}: {reason or 'failed'} log: {log}",
                sep="",
                file=sys.stderr,
                flush=True,
            )


# --- one run at a time ----------------------------------------------------------------------------


def claim(profile, engine):
    """Hold a profile for as long as the returned file is open.

    Args:
        engine: "local", or another name of a folder in workflow/profiles: jobs then go to Slurm.

    Raises:
        BusyError: another run holds it; Slurm jobs of an earlier run are still queued, or Slurm
            cannot be asked about them.
    """
    path = _lock(profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path, "a+")
    if not _acquired(lock):
        holder = _holder(lock)
        raise BusyError(
            f"another `make paper` is running on profile {profile} ({_where(holder)}): wait for "
            "it, or `make stop` it there"
        )
    # nobody holds the lock, yet jobs of a run whose process was killed may be at work on other
    # machines
    if "local" != engine or "local" != _holder(lock).get("engine", "local"):
        if left := jobs(profile):
            raise BusyError(
                f"Slurm jobs of an earlier run of profile {profile} are still queued "
                f"({', '.join(left)}): wait for them, or "
                "`make stop`"
            )
    lock.truncate(0)
    lock.write(json.dumps({"engine": engine, "host": socket.gethostname(), "pid": os.getpid()}))
    lock.flush()
    return lock


def prefix(profile) -> str:
    """What the names of a profile's Slurm jobs begin with: its name, and a mark of this copy of the
    repository.
    """
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', profile)[:30]}_{digest([str(ROOT), profile])[:8]}"


def jobs(profile) -> list[str]:
    """Ids of the profile's Slurm jobs that have not ended.

    Raises:
        BusyError: Slurm does not answer, so that nobody knows.
    """
    try:
        listed = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i %j"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise BusyError(
            f"cannot ask Slurm whether jobs of profile {profile} are at work: {why}"
        ) from None
    pairs = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
    return [job for job, name in pairs if name.startswith(f"{prefix(profile)}_")]


def stop(profile):
    """End the run of a profile: its process and all it started on this machine, also what outlived
    it, and its Slurm jobs.

    Raises:
        BusyError: it runs on another machine; Slurm does not answer, or jobs do not end.
    """
    if not _lock(profile).exists():
        return
    with open(_lock(profile), "a+") as lock:
        holder = _holder(lock)
        if not _acquired(lock):
            if holder.get("host") != socket.gethostname():
                raise BusyError(
                    f"profile {profile} is being made by {_where(holder)}: `make stop` it there"
                )
            _kill(holder["pid"])
            fcntl.flock(lock, fcntl.LOCK_EX)
        # with the lock held nobody submits another job meanwhile
        if holder.get("engine", "local") != "local":
            deadline = time.time() + STOPPING
            while left := jobs(profile):
                if time.time() > deadline:
                    raise BusyError(
                        f"Slurm jobs {', '.join(left)} do not end: try again, or ask whoever runs "
                        "the cluster"
                    )
                subprocess.run(["scancel", *left], check=False)
                time.sleep(1)
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if STEPS & set(words) and any(f"{_lock(profile).parent}/" in w for w in words):
                _kill(process.pid)


def _lock(profile):
    return ROOT / "artifacts" / profile / ".lock"


def _acquired(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock):
    lock.seek(0)
    try:
        return json.loads(lock.read())
    except ValueError:
        return {}


def _where(holder):
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _kill(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [
            process,
            *process.children(recursive=True),
        ]:  # the parent first: it starts nothing more
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def main():
    parser = argparse.ArgumentParser(description="The Slurm jobs of a profile.")
    parser.add_argument("what", choices=("prefix", "stop"))
    parser.add_argument("profile", help="folder of parameter files, or the name of one in params/")
    args = parser.parse_args()
    try:
        profile = load_profile(args.profile)[0].profile
        print(
            prefix(profile)
            if args.what == "prefix"
            else stop(profile) or f"stopped: nothing of profile {profile} is running"
        )
    except (BusyError, ParamsError) as error:
        sys.exit(f"\n  {error}\n")


if __name__ == "__main__":
    main()
