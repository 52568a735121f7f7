"""What `make paper` prints of its jobs: those begun, done of all and failed, and about how long the
rest takes.

Snakemake tells its logger, and a board takes the place of Snakemake's own account there. How long
the rest takes follows from the times of earlier runs of the profile. In a first run it is measured
beside the jobs (timing.job_seconds), and said as soon as it is known; where the time of one job is
not known nothing is said.
"""

import contextlib
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from faithful_sae.engine.progress import title
from faithful_sae.files import ROOT, DiskFullError, from_root, read_json, write_json

# what Snakemake says of Ctrl-C before it cancels its jobs, and then of a failure
INTERRUPTED = "Terminating processes on user request"
SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\S+) \(log: (.*)\)")


class Board(logging.Handler):
    """A handler of Snakemake's logger.

    Args:
        jobs: (rule, wildcards) of all jobs there are to do; asked when the first begins.
        at_once: jobs that run side by side; None: not known, and no time is estimated.
        file: keeps the seconds of every job, of earlier runs too, and which have failed in this.
        measure: {job: seconds}, which may take a while; asked, in a thread, where no earlier run
            says how long the jobs take.
    """

    def __init__(
        self,
        jobs: Callable[[], Iterable[tuple[str, dict[str, str]]]],
        at_once: int | None,
        file: Path,
        measure: Callable[[], dict[str, float]] = dict,
    ) -> None:
        super().__init__()
        self.jobs = jobs
        self.at_once = at_once
        self.file = file
        self.measure = measure
        self.times: dict[str, float] = kept(file)["seconds"]
        self.estimated: dict[str, float] = {}
        self.left: set[str] = set()
        self.total = 0
        self.running: dict[int, tuple[str, float]] = {}
        self.failed: list[str] = []
        self.interrupted = False
        self._keep()

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        said: Any = record.__dict__
        if event == "run_info":
            self.left = {title(rule, *names.values()) for rule, names in self.jobs()}
            self.total = len(self.left)
            rest = self._rest()
            tell(f"  {self.total} job{'s' if self.total != 1 else ''}{rest}")
            if self.left and not rest and self.at_once:
                threading.Thread(target=self._estimate, name="estimate", daemon=True).start()
        elif event == "job_info" and said["rule_name"] != "all":
            name = title(said["rule_name"], *said["wildcards"].values())
            self.running[said["jobid"]] = name, time.time()
            tell(f"  ▸ {_shown(name)}")
        elif event == "job_finished" and said["job_id"] in self.running:
            self._finished(*self.running.pop(said["job_id"]))
        elif event == "job_error":
            self._failed(said)
        elif submitted := SUBMITTED.match(record.getMessage()):
            job, number, log = submitted.groups()
            tell(f"    {self.running[int(job)][0]}  Slurm job {number}, log: {from_root(log)}")
        elif record.getMessage().startswith(INTERRUPTED):
            self.interrupted = True
        # why a job failed it has said itself, and `make paper` says that it was interrupted
        elif (
            record.levelno >= logging.ERROR
            and said.get("exception") != "RuleException"
            and not self.failed
            and not self.interrupted
        ):
            tell(record.getMessage(), sys.stderr)

    def _estimate(self) -> None:
        estimated = self.measure()
        # by which logging keeps `emit` to one thread at a time
        self.acquire()
        self.estimated = estimated
        if rest := self._rest():
            tell(f"  {rest.removeprefix(', ')}")
        self.release()

    def _finished(self, name: str, start: float) -> None:
        seconds = time.time() - start
        self.left.discard(name)
        self.times[name] = round(seconds, 1)
        self._keep()
        done = f"{self.total - len(self.left)} of {self.total}"
        tell(f"  ✓ {done}  {_shown(name)}  {seconds:.0f} s{self._rest()}")

    def _failed(self, said: dict[str, Any]) -> None:
        """Says why a job failed, and where its log is. On one machine the job itself has said why;
        of a job on a cluster, its log has.
        """
        name = self.running.pop(said["jobid"], (said["rule_name"],))[0]
        logs = [Path(log) for log in said["log"]]
        for log in (log for log in logs if log.suffix == ".log"):
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            error = re.search(r"^(  ✗ |Traceback ).*?(?=^\[\w{3} |\Z)", text, re.M | re.S)
            if error:
                tell(error.group().rstrip(), sys.stderr)
        reason = (said["rule_msg"] or "").partition("For further")[0].strip() or "failed"
        notebooks = [log.with_suffix(".failed.ipynb") for log in logs if log.suffix == ".ipynb"]
        places = [*notebooks, *(log for log in logs if log.suffix != ".ipynb")]
        seen = ", ".join(from_root(place) for place in places if place.exists())
        name = _shown(name)
        self.failed.append(f"{name} ({seen})" if seen else name)
        self._keep()
        tell(f"  ✗ {name}  {reason}{f', see {seen}' if seen else ''}", sys.stderr)

    def _keep(self) -> None:
        # whatever fills the disk says so itself; the jobs go on without their times
        with contextlib.suppress(DiskFullError):
            write_json(self.file, {"seconds": self.times, "failed": self.failed})

    def _rest(self) -> str:
        """How long the jobs that are left take, in words; nothing where one is not known."""
        begun = dict(self.running.values())
        # others use the machine too, and an estimate leaves something out
        done = self.times.keys() & self.estimated.keys()
        took = sum(self.times[name] for name in done)
        slower = took / sum(self.estimated[name] for name in done) if done else 1.0
        expected = {name: slower * seconds for name, seconds in self.estimated.items()}
        rest = []
        for name in self.left:
            rule = name.partition(" ")[0]
            alike = [t for other, t in self.times.items() if other.partition(" ")[0] == rule]
            known = [self.times.get(name), mean(alike) if alike else None, expected.get(name)]
            whole = next((seconds for seconds in known if seconds is not None), None)
            if self.at_once is None or whole is None:
                return ""
            rest.append(max(whole - (time.time() - begun.get(name, time.time())), 0))
        seconds = max(sum(rest) / (self.at_once or 1), *rest, 0)
        return f", about {in_words(seconds)} left" if seconds >= 1 else ""


def kept(file: Path) -> dict[str, Any]:
    """What a board has kept: `seconds` by job, and the jobs that `failed`."""
    try:
        return read_json(file)
    except (OSError, ValueError):
        return {"seconds": {}, "failed": []}


def _shown(name):
    """Without the hash that tells two files of documentation of one kind apart."""
    return re.sub(r"-[0-9a-f]{16}$", "", name)


def measured(
    file: Path, params: Iterable[Path], apart: bool, studies: Iterable[str] = ()
) -> dict[str, float]:
    """{job: seconds} of some runs, as a process of its own measures it, with torch, and leaves it
    in a file; empty where it cannot.

    Args:
        apart: whether the SAEs of each corpus are trained by a job of its own.
        studies: that are made, too.
    """
    command = [sys.executable, "-m", "faithful_sae", "estimate", str(file), *map(str, params)]
    command += ["--apart"] if apart else []
    command += ["--studies", " ".join(studies)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    return {} if done.returncode else read_json(file)


def in_words(seconds: float) -> str:
    """A time that is not known exactly."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def tell(line: str, stream: Any = None) -> None:
    """Print a line at once."""
    print(line, file=stream, flush=True)
