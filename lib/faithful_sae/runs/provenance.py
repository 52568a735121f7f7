"""`provenance.json`: how a result says where it came from."""

import importlib.metadata
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faithful_sae.files import ROOT, digest, write_json

STARTED = time.time()
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "matplotlib",
)
# how it came about that it was made: another run makes the same and differs in these
CIRCUMSTANCES = ("device", "threads", "git_commit", "wall_seconds", "written")


def provenance(
    *,
    parameters: Mapping | None = None,
    inputs: Mapping[str, str] | None = None,
    seconds: float | None = None,
    device: object = "auto",
    missing: object = None,
    note: str = "",
) -> dict[str, object]:
    """What made a result: parameters and their hash, input hashes, versions, device, commit, wall
    time.

    Args:
        parameters: the resolved parameters (seeds among them), JSON-serialisable. They never hold a
            token: tokens for the Hub are read by its own library from its own place.
        inputs: {name: hash} of what was read.
        seconds: wall time; by default that of this process so far.
        device: "auto" is the GPU if there is one.
        missing: of a profile's exhibit, what had not been measured when it was made
            (exhibits.unmeasured).
        note: of an exhibit, what its caption says of these numbers alone.
    """
    import torch

    parameters = parameters or {}
    on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
    return {
        "parameters": parameters,
        "parameters_hash": digest(parameters),
        "inputs": inputs or {},
        **({} if missing is None else {"missing": missing}),
        **({"note": note} if note else {}),
        # without the suffix of a build, which the device stands for
        "packages": {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES},
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "wall_seconds": round(time.time() - STARTED if seconds is None else seconds, 1),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_provenance(path: Path, beside: Path, **made: Any) -> None:
    """Write the `provenance` of an exhibit.

    Args:
        path: the `<exhibit>.provenance.json` to write. It may be committed, so another run that
            makes the same exhibit writes the same bytes.
        beside: a file for the circumstances of this run.
        made: as provenance.
    """
    record = provenance(**made)
    write_json(beside, {name: record.pop(name) for name in CIRCUMSTANCES})
    write_json(path, record)


def git_commit() -> str | None:
    """The commit of this repository, with `+` when tracked files differ; None outside git."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
