"""Models and datasets of the Hub: one commit of each for all notebooks of a profile, and their
files from the Hub's own cache.

What is looked up first is written to `artifacts/<profile>/hub.json` (commits, and the files of a
dataset's split) and read from there ever after: a branch that moves while a profile is being made
changes nothing, and `moved` tells. Looking up needs the network, or a cache that was filled before
(`hf download`, then HF_HUB_OFFLINE=1). Tokens are huggingface_hub's business: none is read or
written here.
"""

import contextlib
import fcntl
import json
import posixpath
import re
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfApi,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from faithful_sae.files import write_json

# the revision under which the Hub keeps every dataset as parquet, whatever its authors gave it
PARQUET = "refs/convert/parquet"
UNREACHABLE = (OfflineModeIsEnabled, httpx2.TransportError)


class HubError(ValueError):
    """A model or dataset of the Hub cannot be used; the message says which, why and what to do."""


def commit(run, kind, repository, revision) -> str:
    """The commit of a "model" or "dataset" that all notebooks of the run's profile read; recorded
    when it is first asked for.

    Args:
        revision: branch, tag or commit; None is main.

    Raises:
        HubError: no such repository or revision, a repository that has been renamed, or no way to
            look.
    """
    revision = revision or "main"
    return _recorded(
        run, f"{kind} {repository} {revision}", lambda: _commit_now(kind, repository, revision)
    )


def commits(run) -> dict[str, str]:
    """Every commit recorded for the run's profile, by "<kind> <id> <revision>"."""
    return {name: value for name, value in _read(run).items() if isinstance(value, str)}


def split_files(run, dataset, revision, config, split) -> list[str]:
    """The parquet files of a split, in order: `<config>/<split>/0000.parquet` as the Hub's own
    parquet form has them (`partial-<split>` where only the first 5 GB were converted), or
    `<config>/<split>-00000-of-00002.parquet`.

    Raises:
        HubError: the dataset has no such files.
    """
    at = commit(run, "dataset", dataset, revision)

    def find():
        files = repository_files("dataset", dataset, at, config)
        wanted = re.compile(rf"{re.escape(config)}/(partial-)?{re.escape(split)}(/|-\d).*\.parquet")
        if chosen := sorted(file for file in files if wanted.fullmatch(file)):
            return chosen
        there = sorted(
            {
                "/".join(file.split("/")[:2])
                for file in files or repository_files("dataset", dataset, at)
            }
        )
        raise HubError(
            f"{dataset}: no parquet files of configuration {config!r}, split {split!r} at "
            f"revision {revision}; it has "
            f"{', '.join(there[:10]) or 'nothing'}: check config and split, or read it at "
            f"revision {PARQUET}"
        )

    return _recorded(run, f"dataset {dataset} {at} {config}/{split}", find)


def repository_files(kind, repository, at, folder=None) -> list[str]:
    """Names in a folder of a repository at a commit, with those of its subfolders (at the top:
    without).
    """
    with _explained(kind, repository, at):
        try:
            tree = HfApi().list_repo_tree(
                repository, folder, recursive=bool(folder), revision=at, repo_type=kind
            )
            return [entry.path for entry in tree]
        except UNREACHABLE:
            return [
                file
                for file in _cached_files(kind, repository, at)
                if file.startswith(f"{folder}/" if folder else "")
            ]
        except EntryNotFoundError:
            return []


def _cached_files(kind, repository, at):
    try:
        return [file.path for file in get_cached_repo_tree(repository, repo_type=kind, revision=at)]
    except CachedRepoTreeNotFoundError:
        folder = Path(
            snapshot_download(repository, repo_type=kind, revision=at, local_files_only=True)
        )
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def fetch(kind, repository, at, file) -> Path:
    """A file of a repository at a commit, from the cache, where it is put if it is not there.

    Raises:
        HubError: gated without access, not there, or out of reach.
    """
    with _explained(kind, repository, at):
        return Path(hf_hub_download(repository, file, repo_type=kind, revision=at))


def fetch_folder(kind, repository, at, folder, names) -> Path:
    """A folder of a repository at a commit (None: its top), with those of the named files that it
    has; a name may lead up (`../`).

    Raises:
        HubError: it has none of them, or as `fetch`.
    """
    folder = (folder or "").strip("/")
    there = {
        *repository_files(kind, repository, at),
        *(repository_files(kind, repository, at, folder.split("/")[0]) if folder else ()),
    }
    files = [
        file
        for name in names
        if (file := posixpath.normpath(posixpath.join(folder, name))) in there
    ]
    found = [
        fetch(kind, repository, at, file) for file in files if posixpath.dirname(file) == folder
    ]
    if not found:
        raise HubError(
            f"{repository}: no SAE in {folder or 'its top folder'} at {at}: it has none of "
            + ", ".join(name for name in names if "/" not in name)
        )
    for file in files:
        fetch(kind, repository, at, file)
    return found[0].parent


def has_weights(model, at) -> bool:
    """Whether all weights of a model at a commit are in the cache."""
    with contextlib.suppress(CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        wanted = [
            file for file in _cached_files("model", model, at) if file.endswith(".safetensors")
        ]
        return bool(wanted) and all(
            isinstance(try_to_load_from_cache(model, file, revision=at), str) for file in wanted
        )
    return False


def moved(run) -> list[str]:
    """A sentence for each recorded branch that now stands for another commit; nothing where the Hub
    cannot be asked.
    """
    notes = []
    for name, at in commits(run).items():
        kind, repository, revision = name.split(" ", 2)
        if revision != at:
            with contextlib.suppress(HubError):
                if (now := _commit_now(kind, repository, revision)) != at:
                    notes.append(
                        f"note: {revision} of {repository} has moved from {at} to {now}; "
                        f"{_file(run)} holds this profile to the "
                        "former: `make clean` to start again with the latter"
                    )
    return notes


# --- the record -----------------------------------------------------------------------------------


def _file(run):
    return run.artifacts.parent / "hub.json"


def _read(run):
    return json.loads(_file(run).read_text(encoding="utf-8")) if _file(run).exists() else {}


def _recorded(run, name, find):
    """The value recorded under a name; if there is none, what `find()` returns, from now on. Of two
    processes one looks.
    """
    if name in (record := _read(run)):
        return record[name]
    _file(run).parent.mkdir(parents=True, exist_ok=True)
    with open(_file(run).with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if name not in (record := _read(run)):
            record[name] = find()
            write_json(_file(run), record)
    return record[name]


# --- the Hub --------------------------------------------------------------------------------------


def _commit_now(kind, repository, revision):
    api = HfApi()
    with _explained(kind, repository, revision):
        at = api.resolve_revision(
            repository, repo_type=kind, revision=revision
        ).resolved  # the cache's if there is no network
        with contextlib.suppress(*UNREACHABLE):
            name = api.repo_info(repository, repo_type=kind, revision=at, expand=["sha"]).id
            if name != repository:  # the Hub redirects
                raise HubError(f"{repository}: this {kind} is now called {name}: write that")
        return at


@contextlib.contextmanager
def _explained(kind, repository, revision):
    """Turn what huggingface_hub raises into one line that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise HubError(
            f"{repository}: a gated {kind}: accept its licence on its Hub page, then `hf auth "
            "login`"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{repository}: this {kind} has no revision {revision!r}: give a branch, tag or full "
            "commit hash"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{repository}: no such {kind} on the Hub: check the id, or `hf auth login` if it is "
            "private"
        ) from error
    except (*UNREACHABLE, LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise HubError(
            f"{repository}: the Hub cannot be reached, and its cache does not have this {kind} at "
            f"{revision}: run once "
            "online, `hf download` it where there is a network, or give a local one"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(
            f"{repository}: this {kind} lacks a file at {revision} ({_first_line(error)})"
        ) from error
    except HFValidationError as error:
        raise HubError(
            f"{repository}: not the id of a {kind} on the Hub: that is owner/name"
        ) from error
    except HfHubHTTPError as error:
        remedy = (
            "is the token still valid? `hf auth login`"
            if error.response.status_code in (401, 403)
            else "try again later"
        )
        raise HubError(
            f"{repository}: the Hub does not give this {kind} ({_first_line(error)}): {remedy}"
        ) from error


def _first_line(error):
    return str(error).strip().split("\n")[0][:160]
