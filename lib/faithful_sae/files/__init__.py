"""Files that are whole or not there: atomic writes, locks, content hashes, and sealed artefacts.

An artefact (a folder or a file) is written under a temporary name and renamed when complete, so
whatever has its final name is whole. Its key is the hash of everything that determines it:
parameters, inputs and the code that computed it. A stage that finds an artefact with the key it
would produce reuses it; that is the whole of the resume mechanism.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent.parent


# what a full disk says, and a place that is not one's own
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class DiskFullError(OSError):
    """No space left: says which file, and that nothing complete was lost."""

    def __str__(self) -> str:
        return str(self.strerror)


class ReadOnlyError(RuntimeError):
    """Results cannot be written for want of rights; the message names the place."""


class MissingInputError(FileNotFoundError):
    """An earlier notebook has not made what this one reads; the message names it."""


def from_root(path: str | Path) -> str:
    """A path as seen from the repository: it still holds when both have moved together."""
    return os.path.relpath(path, ROOT)


def folder_of(path: str | Path) -> Path:
    """A folder, by its own path or by that of a file in it."""
    path = Path(path)
    return path.parent if path.is_file() else path


def speak_anywhere() -> None:
    """Let this process print to a terminal that lacks a character: `?` stands for it there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a notebook or a test takes it
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """While `path` is written: what the system refuses is one line.

    Raises:
        DiskFullError: the disk filled up.
        ReadOnlyError: it cannot be written for want of rights.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        # safetensors and arrow wrap the system's error, so its text is all there is to go by
        if number in FULL or "No space left" in str(error):
            raise DiskFullError(
                errno.ENOSPC,
                f"disk full while writing {path}: free some space and run again; finished "
                "results are kept",
            ) from error
        # not what is read meanwhile from elsewhere
        place = Path(path).absolute()
        refused = Path(str(getattr(error, "filename", None) or os.sep)).absolute()
        here = place.is_relative_to(refused) or refused.is_relative_to(place.parent)
        if number in FORBIDDEN and refused != Path(os.sep) and here:
            raise ReadOnlyError(
                f"{refused}: {os.strerror(number)}: results are written here: make it writable "
                "for you, or work in a copy of your own"
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path` (a file or a folder), on
    failure it is removed.

    Raises:
        DiskFullError, ReadOnlyError: as `writing`; what stood at `path` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        try:
            yield temporary
            # os.replace cannot replace a folder that has something in it
            if temporary.is_dir() and path.exists():
                remove(path)
            os.replace(temporary, path)
        except BaseException:
            remove(temporary)
            raise


class Lock:
    """A lock file that one process holds, or several that share it. It ends with the process,
    however that ends; the file stays, and may hold what its owner says of itself.

    Raises:
        DiskFullError, ReadOnlyError: as `writing`.
    """

    def __init__(self, path: str | Path) -> None:
        with writing(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # open for as long as the lock is held
            self.file = open(path, "a+", encoding="utf-8")  # noqa: SIM115

    def take(self, shared: bool = False, wait: bool = False) -> bool:
        """Take it; False where another process is in the way, unless this waits for it."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self.file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        self.file.close()


@contextlib.contextmanager
def locked(path: str | Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, alone or `shared` with others that share it.

    Yields True; without `wait`, False when another process is in the way.
    """
    lock = Lock(path)
    try:
        free = lock.take(shared)
        if not free and wait:
            print(f"note: waits for another process that holds {path}", flush=True)
            free = lock.take(shared, wait=True)
        yield free
    finally:
        lock.close()


def remove(path: str | Path) -> None:
    """Delete a file or folder if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_others(mine: Path, suffix: str = ".partial") -> None:
    """Forget what stands beside `mine`, a path that ends in -<key><suffix>, under the same name
    with another key.
    """
    mine_is = mine.name.rpartition("-")[0]
    for path in mine.parent.glob(f"*-*{suffix}"):
        name, _, key = path.name.rpartition("-")
        if path != mine and name == mine_is and key.partition(".")[2] == suffix[1:]:
            remove(path)


def require_space(folder: str | Path, needed: float, what: str) -> None:
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


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: str | Path, record: Any) -> None:
    """Write a record as readable JSON, atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(
            json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
        )


def write_csv(path: str | Path, rows: Any) -> None:
    """Write a DataFrame as csv, atomically and with as many digits as identify a float64."""
    with atomic_path(path) as tmp:
        rows.to_csv(tmp, index=False, lineterminator="\n")


def text_columns(rows: Any) -> list[str]:
    """The columns of a DataFrame that hold nothing but text, and some."""
    found = {name: values.dropna() for name, values in rows.select_dtypes(exclude="number").items()}
    return [
        name
        for name, values in found.items()
        if len(values) and all(isinstance(value, str) for value in values)
    ]


def read_csv(path: str | Path, text: Iterable[str]) -> Any:
    """The DataFrame that `write_csv` wrote. `text`: its `text_columns`, which stay text, though
    they look like numbers: a corpus may be called 2023.
    """
    import pandas as pd

    # a lone carriage return is a character like others: to_csv does not quote it
    return pd.read_csv(
        path,
        keep_default_na=False,
        na_values=[""],
        dtype=dict.fromkeys(text, str),
        lineterminator="\n",
    )


def digest(record: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-serialisable record, independent of the order of its
    keys.
    """
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
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


def seal(folder: str | Path, key: str, record: Mapping[str, object]) -> None:
    """Write the provenance.json of a finished folder, which makes it an artefact that `is_current`.

    Args:
        folder: complete but for this file.
        key: of all it depends on.
        record: what else is said of how it was made, JSON-serialisable.
    """
    about = {"key": key, "content": file_hash(folder), **record}
    write_json(Path(folder) / "provenance.json", about)


def is_current(folder: str | Path, key: str | None = None) -> bool:
    """Whether `folder` holds a finished artefact made from exactly what `key` names (None: from
    whatever it was), and every byte of it is as written.
    """
    try:
        record = read_json(Path(folder) / "provenance.json")
        return key in (None, record["key"]) and record["content"] == file_hash(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False
