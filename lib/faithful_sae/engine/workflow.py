"""Starting Snakemake: `make paper`, `tables` and `dry`.

The process that `make` starts only waits for Snakemake's, so that something is left to say how it
ended, whatever ends it.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from faithful_sae.engine.board import kept
from faithful_sae.engine.cluster import kill, prefix
from faithful_sae.files import ROOT, Lock
from faithful_sae.runs.params import profile_folder
from faithful_sae.runs.schema import ParamsError

PROFILES = ROOT / "workflow" / "profiles"
# as `-m snakemake`, but it does not say which profile it uses
SNAKEMAKE = "from snakemake import cli; cli.print = lambda *_, **__: None; cli.main()"
REFUSED = 3  # the Snakefile's exit code where nothing was begun
GOES_ON = "what is finished is kept, and the same command goes on from there"


@dataclass(frozen=True)
class Workflow:
    """What is made, and where: the variables of `make`.

    Args:
        folder: of the profile.
        engine: a folder in workflow/profiles.
        cores: of this machine, that jobs share.
        gpus: of this machine; None: what the engine says.
        models: names of some language models, with spaces between them; without any, all.
        studies: sections of the studies that are made, too, with spaces between them.
        workers: jobs that share the sampling of a text.
        verbose: whether Snakemake and the kernels may speak too.
    """

    folder: Path
    engine: str
    cores: str
    gpus: str | None
    models: str | None
    studies: str | None
    workers: int | None
    verbose: bool

    def command(self, *words: str, **config: Any) -> list[str]:
        """Snakemake's command line, with its options `words` and keys of its config besides."""
        if not (PROFILES / self.engine).is_dir():
            known = ", ".join(sorted(path.name for path in PROFILES.iterdir()))
            raise ParamsError(f"ENGINE: {self.engine!r} must be one of {known}")
        name = self.folder.name
        if self.engine == "local":
            where = ["--cores", self.cores]
            where += ["--resources", f"gpu={self.gpus}"] if self.gpus else []
        else:
            where = ["--slurm-logdir", str(ROOT / "artifacts" / name / "slurm")]
            where += ["--slurm-jobname-prefix", prefix(name)]
        config |= {
            "profile": str(self.folder),
            "engine": self.engine,
            "models": self.models,
            "studies": self.studies,
            "workers": self.workers,
            "verbose": self.verbose or None,
        }
        # as JSON: of a bare word Snakemake guesses the type
        said = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in config.items() if v]
        return [
            *(sys.executable, "-c", SNAKEMAKE, "--snakefile", "workflow/Snakefile"),
            *("--profile", f"workflow/profiles/{self.engine}", *where),
            *(*words, "--config", *said),
        ]

    def paper(self) -> None:
        """Make everything, and say how it went; the process ends where it went wrong."""
        start = time.time()
        code = self._run(self.command())
        if code == 0:
            print(f"done: tables and figures in {ROOT / 'figures' / self.folder.name}")
            print(f"to read in a browser: {self._site()}")
            return
        file = ROOT / "artifacts" / self.folder.name / "jobs.json"
        begun = file.exists() and file.stat().st_mtime > start
        failed = kept(file)["failed"] if begun else []
        if code != REFUSED:
            self._run(self._tables())
        if failed:
            sys.exit(f"failed: {'; '.join(failed)}. When it is repaired: {GOES_ON}")
        sys.exit(code)

    def tables(self) -> None:
        """Make the tables and figures of what there is."""
        if code := self._run(self._tables()):
            sys.exit(code)
        print(f"done: {ROOT / 'figures' / self.folder.name}/missing.md says what is not there yet")
        print(f"to read in a browser: {self._site()}")

    def dry(self) -> None:
        """Show what there is to do, and why."""
        sys.exit(self._run(self.command("--dry-run", "--quiet", "rules")))

    def _site(self) -> Path:
        return ROOT / "site" / self.folder.name / "index.html"

    def _tables(self) -> list[str]:
        return self.command("--forcerun", "07_paper", tables=True)

    def _run(self, command: list[str]) -> int:
        """Snakemake's exit code; the process ends where it was interrupted or killed.

        Raises:
            DiskFullError, ReadOnlyError: Snakemake could not keep its own notes.
        """
        Lock(ROOT / ".snakemake" / ".writable").close()
        local = self.engine == "local"
        # on one machine it is killed: what its jobs write is whole or not there. On a cluster it is
        # asked, since it must cancel them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN if local else signal.SIG_DFL)
        child = subprocess.Popen(command, cwd=ROOT)
        signal.signal(signal.SIGINT, before)

        def terminate(*_: Any) -> NoReturn:
            child.send_signal(signal.SIGINT)
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, terminate)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if local:
                kill(child.pid)
            child.wait()
            sys.exit(f"interrupted: {GOES_ON}")
        if code < 0:
            sys.exit(f"killed, by `make stop` or for want of memory: {GOES_ON}")
        return code


def workflow(profile: str, **choices: Any) -> Workflow:
    """The workflow of a profile.

    Args:
        profile: a folder, or the name of one in params/.
        choices: the other fields of a Workflow.

    Raises:
        ParamsError: as profile_folder.
    """
    return Workflow(profile_folder(profile), **choices)
