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

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from faithful_sae.files import (
    DiskFullError,
    MissingInputError,
    atomic_path,
    is_current,
    remove,
    require_space,
)
from faithful_sae.paper import cards
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.rows import lacking
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.sae import SAEError
from faithful_sae.stages.faithful import faithful_key
from faithful_sae.stages.model import model_commit
from faithful_sae.stages.saes import load_saes
from faithful_sae.text import hub

NAMESPACE = "NAMESPACE"  # stands for the owner in what is written before one is named
RESULTS = {
    "sfr": "03_sfr",
    "ffr": "04_ffr",
    "fidelity": "05_fidelity_matrix",
    "probing": "06_probing",
}


class PublishError(ValueError):
    """Something cannot be published; the message says what, why and what to do."""


@dataclass(frozen=True)
class Repository:
    """kind: "model" (SAEs) or "dataset". folder: what it is to hold."""

    kind: str
    id: str
    folder: Path

    def files(self):
        return sorted(
            file
            for file in self.folder.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        )


def publish(profile, namespace=None, push=False, public=False, api=None):
    """Write and list the repositories of a profile; with `push` upload them.

    Args:
        profile: as load_profile. namespace: user or organisation of the Hub. public: else only who
            may see the namespace's private
        repositories sees them. api: a HfApi. A killed upload goes on when it is started again:
            huggingface_hub sees to that.

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
    repositories = [
        repository
        for run in runs
        for prepare in (prepare_dataset, prepare_saes)
        if (repository := prepare(run, namespace or NAMESPACE))
    ]
    if not repositories:
        raise PublishError(
            f"{runs[0].file.parent}: nothing to publish yet: `make paper "
            f"PARAMS={runs[0].file.parent}` first"
        )
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
            "at most 96: rename "
            f"{run.file}, its folder or the namespace"
        ) from None
    return Repository(kind, f"{namespace}/{name}", run.artifacts.parent / "publish" / name)


# --- SAEs -----------------------------------------------------------------------------------------


def prepare_saes(run, namespace) -> Repository | None:
    """Write the repository of the SAEs that a run trained; None where it trained none, or not yet."""
    names = [name for name in run.sae.train_on if name not in run.published] if run.sae else []
    if not names or not (run.artifacts / "rows" / "saes.csv").exists():
        return None
    repository = _repository(run, namespace, "model", "saes")
    load_saes(run)  # refuses what is damaged or out of date
    saes = run.artifacts / "saes"
    with atomic_path(repository.folder) as tmp:
        for name in names:
            for seed in run.sae.seeds:
                _copy_sae(run, saes / name / f"seed{seed}", tmp / name / f"seed{seed}")
            shutil.copyfile(saes / name / "provenance.json", tmp / name / "provenance.json")
        results = {
            rows: file
            for rows, notebook in RESULTS.items()
            if (file := _results(run, rows, notebook))
        }
        (tmp / "results").mkdir()
        for file in results.values():
            shutil.copyfile(file, tmp / "results" / file.name)
        cards.sae_card(
            run,
            names,
            repository.id,
            _repository(run, namespace, "dataset", "faithful").id,
            set(results),
        ).save(tmp / "README.md")
    return repository


def _copy_sae(run, source, target):
    """Weights are linked where the disk can do that: they are only ever replaced, never written to."""
    target.mkdir(parents=True)
    for file in source.glob("*.safetensors"):
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)
    config = json.loads((source / "cfg.json").read_text(encoding="utf-8"))
    config["metadata"] |= {
        "model": cards.model_name(run),
        "model_name": cards.model_name(run),
    }  # no path of this machine
    (target / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _results(run, rows, notebook):
    """The csv file of a notebook's rows, if it is of these SAEs."""
    if not (why := lacking(run, rows)):
        return run.artifacts / "rows" / f"{rows}.csv"
    print(f"note: {run.name}: results of {notebook} are {why}, so that the card has none")
    return None


# --- the faithful dataset -------------------------------------------------------------------------


def prepare_dataset(run, namespace) -> Repository | None:
    """Write the repository of a run's faithful dataset, a shard at a time; None where there is none
    yet. What is there is kept.
    """
    source = run.artifacts / "faithful"
    if not (source / "provenance.json").exists():
        return None
    if not is_current(source, faithful_key(run)):
        raise MissingInputError(
            f"{source} is damaged or was made with other parameters: run "
            "notebooks/01_generate_faithful for "
            f"{run.profile}/{run.name} again"
        )
    repository = _repository(run, namespace, "dataset", "faithful")
    record = (source / "provenance.json").read_bytes()
    mine = repository.folder / "provenance.json"
    if mine.exists() and mine.read_bytes() != record:
        remove(repository.folder)  # of another dataset
    for unfinished in repository.folder.glob("data/.*"):  # of a process killed while it wrote
        remove(unfinished)
    shards = sorted(source.glob("shard_*.safetensors"))
    tokenizer = _tokenizer(run)
    require_space(
        repository.folder,
        2 * sum(shard.stat().st_size for shard in shards),
        f"{run.name}: the faithful dataset as parquet",
    )
    (repository.folder / "data").mkdir(parents=True, exist_ok=True)
    mine.write_bytes(record)
    for number, shard in enumerate(shards):
        path = repository.folder / "data" / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        if not path.exists():
            with atomic_path(path) as tmp:
                pa.parquet.write_table(_table(load_file(shard), tokenizer), tmp)
    cards.dataset_card(run, repository.id).save(repository.folder / "README.md")
    return repository


def _tokenizer(run):
    folder = run.artifacts / "lm" if run.embedded else run.model_folder
    at = model_commit(run)
    return AutoTokenizer.from_pretrained(str(folder or run.model), revision=at)


def _table(shard, tokenizer):
    ids, lengths = shard["ids"], shard["lengths"]
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


def show(repository):
    """List what a repository is to hold: number and size of the files of each folder."""
    folders = {}
    for file in repository.files():
        folders.setdefault(file.parent.relative_to(repository.folder).as_posix(), []).append(file)
    print(f"{repository.kind} {repository.id}  {_size(repository.files())}")
    for folder, files in folders.items():
        names = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
        print(
            f"    {folder + '/' if folder != '.' else ''}  {len(files)} "
            f"file{'s' * (len(files) > 1)}, {_size(files)}: {names}"
        )


def _size(files):
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def upload(repository, public, api):
    """Make the repository if it is not there, and upload its folder.

    Raises:
        PublishError: the Hub cannot be reached or refuses; the repository is public and `public` is
            false.
    """
    kind = {"repo_id": repository.id, "repo_type": repository.kind}
    try:
        api.create_repo(**kind, private=not public, exist_ok=True)
        private = api.repo_info(**kind).private
        if not (private or public):
            raise PublishError(
                f"{repository.id}: is there already, and public: PUBLIC=1 to upload to it all the "
                "same"
            )
        # parquet files of a dataset that had another number of shards would be read with these
        api.upload_folder(
            **kind,
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile")
    parser.add_argument("--namespace")
    parser.add_argument("--push", action="store_true")
    parser.add_argument("--public", action="store_true")
    args = parser.parse_args()
    try:
        publish(args.profile, args.namespace, args.push, args.public)
    except (
        PublishError,
        SAEError,
        MissingInputError,
        ParamsError,
        hub.HubError,
        DiskFullError,
    ) as error:
        sys.exit(f"\n  {error}\n")


if __name__ == "__main__":
    main()
