"""Models and datasets of the Hub: one commit of each for all notebooks of a profile, and their
files from the Hub's own cache.

What is looked up first is written to a record (commits, and the files of a dataset's split) and
read from there ever after: a branch that moves while a profile is being made changes nothing, and
`moved` tells. Looking up needs the network, or a cache that was filled before (`hf download`, then
HF_HUB_OFFLINE=1). Tokens are huggingface_hub's business: none is read or written here.
"""

import contextlib
import fnmatch
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

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

from faithful_sae.files import locked, read_json, write_json

# the revision under which the Hub keeps every dataset as parquet, whatever its authors gave it
PARQUET = "refs/convert/parquet"
UNREACHABLE = (OfflineModeIsEnabled, httpx2.TransportError)
# the weights that transformers loads; publishers put other copies of them beside these
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
TOKENIZER_AND_CONFIG = ("*.json", "*.txt", "*.model", "*.jinja")

COMMIT = re.compile(r"[0-9a-f]{40}")

Kind = Literal["model", "dataset"]


class HubError(ValueError):
    """A model or dataset of the Hub cannot be used; the message says which, why and what to do."""


# --- the record -----------------------------------------------------------------------------------


class Record:
    """What was found on the Hub when it was first looked up, kept in a JSON file.

    Args:
        path: the file, e.g. artifacts/<profile>/hub.json; it need not be there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def commit(self, kind: Kind, repository: str, revision: str | None) -> str:
        """The commit of a model or dataset that all readers of this record read; recorded when it
        is first asked for.

        Args:
            kind: of the repository.
            repository: its id, owner/name.
            revision: branch, tag or commit; None is main.

        Raises:
            HubError: as resolve.
        """
        revision = revision or "main"
        return self._recorded(
            f"{kind} {repository} {revision}", lambda: resolve(kind, repository, revision)
        )

    def commits(self) -> dict[str, str]:
        """Every commit recorded, by "<kind> <id> <revision>"."""
        return {name: value for name, value in self._read().items() if isinstance(value, str)}

    def split_files(self, dataset: str, revision: str | None, config: str, split: str) -> list[str]:
        """The parquet files of a split, in order: `<config>/<split>/0000.parquet` as the Hub's own
        parquet form has them (`partial-<split>` where only the first 5 GB were converted), or
        `<config>/<split>-00000-of-00002.parquet`.

        Raises:
            HubError: the dataset has no such files.
        """
        at = self.commit("dataset", dataset, revision)

        def find() -> list[str]:
            files = repository_files("dataset", dataset, at, config)
            wanted = re.compile(
                rf"{re.escape(config)}/(partial-)?{re.escape(split)}(/|-\d).*\.parquet"
            )
            if chosen := sorted(file for file in files if wanted.fullmatch(file)):
                return chosen
            files = files or repository_files("dataset", dataset, at)
            there = sorted({"/".join(file.split("/")[:2]) for file in files})
            raise HubError(
                f"{dataset}: no parquet files of configuration {config!r}, split {split!r} at "
                f"revision {revision}; it has {', '.join(there[:10]) or 'nothing'}: check config "
                f"and split, or read it at revision {PARQUET}"
            )

        return self._recorded(f"dataset {dataset} {at} {config}/{split}", find)

    def moved(self) -> list[str]:
        """A sentence for each recorded branch that now stands for another commit; nothing where the
        Hub cannot be asked.
        """
        notes = []
        for name, at in self.commits().items():
            kind, repository, revision = name.split(" ", 2)
            if revision == at:
                continue
            with contextlib.suppress(HubError):
                if (now := resolve(kind, repository, revision)) != at:
                    notes.append(
                        f"note: {revision} of {repository} has moved from {at} to {now}; "
                        f"{self.path} holds this profile to the former: `make clean` to start "
                        "again with the latter"
                    )
        return notes

    def _read(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.exists() else {}

    def _recorded(self, name: str, find: Callable[[], Any]) -> Any:
        """The value under a name; if there is none, what `find()` returns, from now on. Of two
        processes one looks.
        """
        if name in (record := self._read()):
            return record[name]
        with locked(self.path.with_suffix(".lock")):
            if name not in (record := self._read()):
                record[name] = find()
                write_json(self.path, record)
        return record[name]


# --- the Hub --------------------------------------------------------------------------------------


def resolve(kind: str, repository: str, revision: str) -> str:
    """The commit that a branch, tag or commit stands for now; the cache's if there is no network.

    Raises:
        HubError: no such repository or revision, a repository that has been renamed, or no way to
            look.
    """
    api = HfApi()
    with _explained(kind, repository, revision):
        at = api.resolve_revision(repository, repo_type=kind, revision=revision).resolved
        with contextlib.suppress(*UNREACHABLE):
            name = api.repo_info(repository, repo_type=kind, revision=at, expand="sha").id
            # the Hub redirects
            if name != repository:
                raise HubError(f"{repository}: this {kind} is now called {name}: write that")
        return at


def repository_files(kind: Kind, repository: str, at: str, folder: str | None = None) -> list[str]:
    """Names in a folder of a repository at a commit, with those of its subfolders (at the top:
    without).

    Raises:
        HubError: as fetch.
    """
    with _explained(kind, repository, at):
        try:
            tree = HfApi().list_repo_tree(
                repository, folder, recursive=bool(folder), revision=at, repo_type=kind
            )
            return [entry.path for entry in tree]
        except UNREACHABLE:
            below = f"{folder}/" if folder else ""
            return [file for file in _cached_files(kind, repository, at) if file.startswith(below)]
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


def fetch(kind: Kind, repository: str, at: str, file: str) -> Path:
    """A file of a repository at a commit, from the cache, where it is put if it is not there.

    Raises:
        HubError: gated without access, not there, or out of reach.
    """
    with _explained(kind, repository, at):
        return Path(hf_hub_download(repository, file, repo_type=kind, revision=at))


def fetch_folder(
    kind: Kind, repository: str, at: str, folder: str | None, names: Sequence[str]
) -> Path:
    """A folder of a repository at a commit, with some of its files.

    Args:
        kind: of the repository.
        repository: its id, owner/name.
        at: commit.
        folder: None is the top.
        names: files to fetch, where the folder has them; a name may lead up (`../`).

    Raises:
        HubError: it has none of them, or as `fetch`.
    """
    folder = (folder or "").strip("/")
    there = set(repository_files(kind, repository, at))
    if folder:
        there |= set(repository_files(kind, repository, at, folder.split("/")[0]))
    paths = [posixpath.normpath(posixpath.join(folder, name)) for name in names]
    files = [file for file in paths if file in there]
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


def fetch_model(model: str, at: str) -> Path:
    """The folder of a model at a commit: configuration, weights and tokenizer.

    Raises:
        HubError: as `fetch`.
    """
    with _explained("model", model, at):
        return Path(
            snapshot_download(
                model,
                revision=at,
                allow_patterns=[*WEIGHTS, *TOKENIZER_AND_CONFIG],
                # other forms of the same model
                ignore_patterns=["*/*"],
            )
        )


def has_weights(model: str, at: str) -> bool:
    """Whether all weights of a model at a commit are in the cache."""
    with contextlib.suppress(CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        wanted = [
            file
            for file in _cached_files("model", model, at)
            if any(fnmatch.fnmatch(file, pattern) for pattern in WEIGHTS)
        ]
        return bool(wanted) and all(
            isinstance(try_to_load_from_cache(model, file, revision=at), str) for file in wanted
        )
    return False


@contextlib.contextmanager
def _explained(kind: str, repository: str, revision: str) -> Iterator[None]:
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
