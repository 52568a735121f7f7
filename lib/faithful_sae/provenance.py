"""Atomic writes, content hashes and `provenance.json`: how a result says where it came from.

An artefact (a folder or a file) is written under a temporary name and renamed when complete, so
whatever has its final name is whole. Its key is the hash of everything that determines it:
parameters, inputs and the code that computed it. A stage that finds an artefact with the key it
would produce reuses it; that is the whole of the resume mechanism.
"""

import ast
import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from faithful_sae import PUBLIC

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent.parent
STARTED = time.time()
PLUMBING = (
    "provenance",
    "schema",
    "params",
    "checkpoints",
    "formats",
    "hub",
    "needs",
)  # they move and check; no number comes from them
ARITHMETIC = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "numba",
)  # another version of one may compute another last digit
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


class DiskFullError(OSError):
    """No space left: says which file, and that nothing complete was lost."""


class MissingInputError(FileNotFoundError):
    """An earlier notebook has not made what this one reads; the message names it."""


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`; on success it becomes `path` (a file or a folder), on
    failure it is removed.

    Raises:
        DiskFullError: the disk filled up while writing; what stood at `path` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        if (
            temporary.is_dir() and path.exists()
        ):  # os.replace cannot replace a folder that has something in it
            remove(path)
        os.replace(temporary, path)
    except BaseException as error:
        remove(temporary)
        # safetensors and arrow wrap the system's error, so its text is all there is to go by
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise DiskFullError(
                errno.ENOSPC,
                f"disk full while writing {path}: free some space and run again; finished "
                "results are kept",
            ) from error
        raise


@contextlib.contextmanager
def locked(path, shared=False, wait=True):
    """Hold a lock, alone or `shared` with others that share it; it ends with the process, however
    that ends. The file stays.

    Yields True; without `wait`, False when another process is in the way.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            print(f"note: waits for another process that holds {path}", flush=True)
            fcntl.flock(file, kind)
        yield True


def remove(path):
    """Delete a file or folder if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_others(mine, suffix=".partial"):
    """Forget what stands beside `mine`, a path that ends in -<key><suffix>, under the same name
    with another key.
    """
    name = mine.name.rpartition("-")[0]
    for path in mine.parent.glob(f"*-*{suffix}"):
        if (
            path != mine
            and path.name.rpartition("-")[0] == name
            and path.name.rpartition("-")[2].partition(".")[2] == suffix[1:]
        ):
            remove(path)


def require_space(folder, needed, what):
    """Stop before long work whose result would not fit on the disk. `needed`: bytes, to which a
    tenth is added.

    Raises:
        DiskFullError: with the bytes needed and free.
    """
    folder = Path(folder)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise DiskFullError(
            errno.ENOSPC,
            f"{what} needs about {needed / 1e6:,.1f} MB under {folder}, where "
            f"{free / 1e6:,.1f} MB are free: free some space and run again",
        )


def write_json(path, record):
    """Write a record as readable JSON, atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(
            json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
        )


def write_csv(path, rows):
    """Write a DataFrame as csv, atomically and with as many digits as identify a float64."""
    with atomic_path(path) as tmp:
        rows.to_csv(tmp, index=False, lineterminator="\n")


def digest(record) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-serialisable record, independent of the order of its
    keys.
    """
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_hash(path) -> str:
    """SHA-256 (first 16 hex digits) of a file, or of a folder's files and their names (hidden ones
    and provenance apart).
    """
    path = Path(path)
    if path.is_dir():
        return digest(
            {
                str(f.relative_to(path)): file_hash(f)
                for f in sorted(path.rglob("*"))
                if f.is_file() and not f.name.startswith(".") and f.name != "provenance.json"
            }
        )
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


# --- code -----------------------------------------------------------------------------------------


def lib_files(path, but=()) -> list[Path]:
    """The files of this library that a notebook (.py) or module uses, directly or through another
    not named in `but`, sorted.
    """
    found = set()
    todo = [Path(path)]
    while todo:
        source = todo.pop().read_text(encoding="utf-8")
        names = re.findall(r"^\s*import faithful_sae\.([\w.]+)", source, re.M)
        for package, group in re.findall(
            r"^\s*from faithful_sae((?:\.\w+)*) import ([\w, ]*)", source, re.M
        ):
            names += [
                package,
                *(
                    f"{package}.{PUBLIC.get(name.strip(), name.strip())}"
                    for name in group.split(",")
                ),
            ]
        places = [PACKAGE / name.strip(".").replace(".", "/") for name in names if name]
        new = {
            file
            for place in places
            for file in (place.with_suffix(".py"), place / "__init__.py")
            if file.exists()
        } - found
        found |= new
        todo += [file for file in new if _module(file) not in but]
    return sorted(found)


@functools.cache
def code_hash(*modules) -> str:
    """Hash of what the named modules and all they import compute, and of the libraries under them:
    a changed comment or docstring leaves it as it is. Plumbing counts only where it is named.
    """
    named = {PACKAGE / f"{module}.py" for module in modules}
    files = named.union(*(lib_files(file, PLUMBING) for file in named))
    versions = {name: importlib.metadata.version(name) for name in ARITHMETIC}
    return digest(
        versions
        | {
            str(file.relative_to(PACKAGE)): ast.dump(_without_docstrings(file))
            for file in files
            if file in named or _module(file) not in PLUMBING
        }
    )


def _module(file):
    """Of a file of this library, its module or the folder that this is in."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def _without_docstrings(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            ast.get_docstring(node, clean=False)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            else None
        ):
            node.body = node.body[1:]
    return tree


# --- provenance -----------------------------------------------------------------------------------


def is_current(folder, key) -> bool:
    """Whether `folder` holds a finished artefact made from exactly what `key` names, and every byte
    of it is as written.
    """
    try:
        record = json.loads((Path(folder) / "provenance.json").read_text(encoding="utf-8"))
        return record["key"] == key and record["content"] == file_hash(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
