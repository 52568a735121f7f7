"""`provenance.json`: how a result says where it came from."""

import importlib.metadata
import subprocess
import time
from pathlib import Path

from faithful_sae.files import ROOT, digest, file_hash, write_json

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


def write_provenance(
    path, *, key=None, parameters=None, inputs=None, seconds=None, device="auto", missing=None
):
    """Write what made a result: parameters and their hash, input hashes, versions, device, commit,
    wall time.

    Args:
        path: the `provenance.json` (or `<exhibit>.provenance.json`) to write.
        key: an artefact's; its folder, complete but for this file, is then hashed as well.
        parameters: the resolved parameters (seeds among them), JSON-serialisable. They never hold a
            token: tokens for the Hub are read by its own library from its own place.
        inputs: {name: hash} of what was read.
        seconds: wall time; by default that of this process so far. device: "auto" is the GPU if
            there is one.
        missing: of a profile's exhibit, what had not been measured when it was made
            (exhibits.unmeasured).
    """
    import torch

    parameters = parameters or {}
    write_json(
        path,
        {
            "key": key,
            "content": file_hash(Path(path).parent) if key else None,
            "parameters": parameters,
            "parameters_hash": digest(parameters),
            "inputs": inputs or {},
            **({} if missing is None else {"missing": missing}),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": "cpu"
            if str(device) == "cpu" or not torch.cuda.is_available()
            else torch.cuda.get_device_name(),
            "threads": torch.get_num_threads(),
            "git_commit": git_commit(),
            "wall_seconds": round(time.time() - STARTED if seconds is None else seconds, 1),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
    )


def git_commit() -> str | None:
    """The commit of this repository, with `+` when tracked files differ from it; None outside git."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
