"""`make publish`: the SAEs and the faithful datasets of a profile as repositories of the Hub, one
of each per run.

All that would be uploaded is written under artifacts/<profile>/publish/ and listed; nothing leaves
the machine unless asked for.

    <profile>-<run>-saes   <corpus>/seed<n>/ in SAELens' layout, <corpus>/provenance.json,
                           results/*.csv, README.md
    <profile>-<run>-faithful   data/train-<i>-of-<n>.parquet (ids, text, length), provenance.json,
                               README.md

SAEs that were read instead of trained (`sae.published`) are others' to publish, and left out.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from pyarrow import parquet
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from faithful_sae.files import (
    DiskFullError,
    MissingInputError,
    atomic_path,
    is_current,
    read_json,
    remove,
    require_space,
)
from faithful_sae.paper import cards
from faithful_sae.paper.tables import sae_corpora
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import writer
from faithful_sae.runs.rows import lacking, run_first
from faithful_sae.runs.schema import ParamsError, Run
from faithful_sae.sae.sae import SAEError
from faithful_sae.stages.corpus import faithful_fingerprint
from faithful_sae.stages.model import model_commit
from faithful_sae.stages.saes import load_saes
from faithful_sae.text import hub

NAMESPACE = "NAMESPACE"  # stands for the owner in what is written before one is named
RESULTS = ("sfr", "ffr", "fidelity", "probing")


class PublishError(ValueError):
    """Something cannot be published; the message says what, why and what to do."""


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub, as a folder on this machine."""

    kind: str  # "model" (SAEs) or "dataset"
    id: str
    folder: Path  # what it is to hold

    def files(self) -> list[Path]:
        """All files that are uploaded."""
        return sorted(
            file
            for file in self.folder.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        )


def publish(
    profile: str | Path,
    namespace: str | None = None,
    push: bool = False,
    public: bool = False,
    api: HfApi | None = None,
) -> list[Repository]:
    """Write and list the repositories of a profile; with `push` upload them. A killed upload goes
    on when it is started again: huggingface_hub sees to that.

    Args:
        profile: name or folder of a profile.
        namespace: user or organisation of the Hub.
        push: upload.
        public: for everybody to see, and not only for who may see the namespace's private
            repositories.
        api: the Hub's; a new one by default.

    Raises:
        PublishError: nothing made yet; no namespace, no token, or one that may not; a repository
            that is public against `public`.
        SAEError, MissingInputError: an SAE or dataset that is damaged or made with other
            parameters. ParamsError, DiskFullError.
    """
    runs = load_profile(profile)
    if push and not namespace:
        raise PublishError(
            "NAMESPACE is missing: the user or organisation of the Hub that the repositories are "
            "to belong to"
        )
    if push and not get_token():
        raise PublishError(
            "no token for the Hub: `hf auth login` with one that may write, then again"
        )
    prepared = [
        prepare(run, namespace or NAMESPACE)
        for run in runs
        for prepare in (prepare_dataset, prepare_saes)
    ]
    repositories = [repository for repository in prepared if repository]
    if not repositories:
        folder = runs[0].file.parent
        raise PublishError(f"{folder}: nothing to publish yet: `make paper PARAMS={folder}` first")
    for repository in repositories:
        show(repository)
        if push:
            upload(repository, public, api or HfApi())
    if not push:
        print(
            f"nothing was uploaded; all of it is under {repositories[0].folder.parent}\n"
            "to upload it: PUSH=1 NAMESPACE=<user or organisation>, with PUBLIC=1 for everybody "
            "to see"
        )
    return repositories


def _repository(run, namespace, kind, what):
    name = f"{run.profile}-{run.name}-{what}"
    try:
        validate_repo_id(f"{namespace}/{name}")
    except HFValidationError:
        raise PublishError(
            f"{namespace}/{name} cannot be the id of a repository: letters, digits, - _ . alone, "
            f"at most 96: rename {run.file}, its folder or the namespace"
        ) from None
    return Repository(kind, f"{namespace}/{name}", run.artifacts.parent / "publish" / name)


# --- SAEs -----------------------------------------------------------------------------------------


def prepare_saes(run: Run, namespace: str) -> Repository | None:
    """Write the repository of the SAEs that a run trained; None where there are none (yet)."""
    names = [name for name in sae_corpora(run) if name not in run.published]
    if not names or not (run.artifacts / "rows" / "saes.csv").exists():
        return None
    repository = _repository(run, namespace, "model", "saes")
    dataset = _repository(run, namespace, "dataset", "faithful")
    # refuses what is damaged or out of date
    loaded = load_saes(run)
    results = _results(run)
    saes = run.artifacts / "saes"
    with atomic_path(repository.folder) as tmp:
        for name, seed in loaded:
            if name in names:
                _copy_sae(run, saes / name / f"seed{seed}", tmp / name / f"seed{seed}")
        for name in names:
            shutil.copyfile(saes / name / "provenance.json", tmp / name / "provenance.json")
        (tmp / "results").mkdir()
        for rows in results:
            shutil.copyfile(run.artifacts / "rows" / f"{rows}.csv", tmp / "results" / f"{rows}.csv")
        card = cards.sae_card(run, names, repository.id, dataset.id, results)
        card.save(tmp / "README.md")
    return repository


def _copy_sae(run, source, target):
    """Weights are linked where the disk can do that: files are replaced, and never written to."""
    target.mkdir(parents=True)
    for file in source.glob("*.safetensors"):
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)
    config = read_json(source / "cfg.json")
    # no path of this machine
    config["metadata"] |= dict.fromkeys(("model", "model_name"), cards.model_name(run))
    (target / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _results(run):
    """The rows that are of the SAEs there are; the others are named."""
    found = []
    for rows in RESULTS:
        why = lacking(run, rows)
        if why:
            stage = writer(rows).name
            print(f"note: {run.name}: results of {stage} are {why}, so that the card has none")
        else:
            found.append(rows)
    return found


# --- the faithful dataset -------------------------------------------------------------------------


def prepare_dataset(run: Run, namespace: str) -> Repository | None:
    """Write the repository of a run's faithful dataset, a shard at a time; None where there is none
    yet. Shards that are there are kept.
    """
    source = run.artifacts / "faithful"
    if not (source / "provenance.json").exists():
        return None
    if not is_current(source, faithful_fingerprint(run).key):
        raise MissingInputError(
            f"{source} is damaged or was made with other parameters: {run_first(run, 'dataset')}"
        )
    repository = _repository(run, namespace, "dataset", "faithful")
    record = (source / "provenance.json").read_bytes()
    mine = repository.folder / "provenance.json"
    if mine.exists() and mine.read_bytes() != record:  # of another dataset
        remove(repository.folder)
    data = repository.folder / "data"
    for unfinished in data.glob(".*"):  # of a process killed while it wrote
        remove(unfinished)
    shards = sorted(source.glob("shard_*.safetensors"))
    tokenizer = _tokenizer(run)
    size = 2 * sum(shard.stat().st_size for shard in shards)
    require_space(repository.folder, size, f"{run.name}: the faithful dataset as parquet")
    data.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(record)
    for number, shard in enumerate(shards):
        path = data / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        if not path.exists():
            with atomic_path(path) as tmp:
                parquet.write_table(_table(load_file(shard), tokenizer), tmp)
    cards.dataset_card(run, repository.id).save(repository.folder / "README.md")
    return repository


def _tokenizer(run):
    folder = run.artifacts / "lm" if run.embedded else run.model_folder
    at = model_commit(run)
    return AutoTokenizer.from_pretrained(str(folder or run.model_name), revision=at)


def _table(shard, tokenizer):
    """The documents of a shard: `ids` of all, one after the other, and their `lengths`."""
    ids = shard["ids"]
    lengths = shard["lengths"]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    texts = tokenizer.batch_decode(
        np.split(ids, offsets[1:-1]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return pa.table(
        {
            "ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
            "text": pa.array(texts, pa.string()),
            "length": pa.array(lengths),
        }
    )


# --- the Hub --------------------------------------------------------------------------------------


def show(repository: Repository) -> None:
    """List what a repository is to hold: number and size of the files of each folder."""
    print(f"{repository.kind} {repository.id}  {_size(repository.files())}")
    folders: dict[Path, list[Path]] = {}
    for file in repository.files():
        folders.setdefault(file.parent.relative_to(repository.folder), []).append(file)
    for folder, files in folders.items():
        place = f"{folder.as_posix()}/" if folder.name else ""
        number = f"{len(files)} files" if len(files) > 1 else "1 file"
        names = ", ".join(file.name for file in files[:4])
        more = ", ..." if len(files) > 4 else ""
        print(f"    {place}  {number}, {_size(files)}: {names}{more}")


def _size(files):
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def upload(repository: Repository, public: bool, api: HfApi) -> None:
    """Make the repository if it is not there, and upload its folder.

    Args:
        repository: as prepared.
        public: whether everybody is to see it.
        api: the Hub's.

    Raises:
        PublishError: the Hub cannot be reached or refuses; the repository is public and `public` is
            false.
    """
    kind = repository.kind
    try:
        api.create_repo(repository.id, repo_type=kind, private=not public, exist_ok=True)
        private = api.repo_info(repository.id, repo_type=kind).private
        if not (private or public):
            raise PublishError(
                f"{repository.id}: is there already, and public: PUBLIC=1 to upload to it all "
                "the same"
            )
        # parquet files of a dataset that had another number of shards would be read with these
        api.upload_folder(
            repo_id=repository.id,
            repo_type=kind,
            folder_path=repository.folder,
            commit_message="FaithfulSAE companion",
            delete_patterns="data/*.parquet",
        )
    except HfHubHTTPError as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise PublishError(
            f"{repository.id}: the Hub refuses ({reason}): may the token of `hf auth whoami` "
            "write there?"
        ) from error
    except hub.UNREACHABLE as error:
        raise PublishError(
            f"{repository.id}: the Hub cannot be reached ({type(error).__name__}): try again, "
            "with HF_HUB_OFFLINE unset"
        ) from error
    print(f"    uploaded, {'private' if private else 'public'}")


# what `publish` raises, and says in one line
FAILURES = (
    PublishError,
    SAEError,
    MissingInputError,
    ParamsError,
    hub.HubError,
    DiskFullError,
)
