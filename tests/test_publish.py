"""`make publish`: what would be uploaded is what the run made, with valid cards; uploading asks a
Hub for it, in this order, or says why not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import httpx2
import pandas as pd
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from faithful_sae.files import MissingInputError, remove
from faithful_sae.paper.publish import NAMESPACE, PublishError, publish
from faithful_sae.runs.rows import write_rows
from faithful_sae.sae.sae import SAEError, load_sae
from faithful_sae.stages.corpus import make_faithful, read_shards
from faithful_sae.stages.model import open_model
from faithful_sae.stages.training import train_all
from fake_hub import TOKEN

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture
def make_made(make_run):
    """A tiny run after 01 and 02, with rows as 03, 04 and 05 write them."""

    def make(**changes):
        run = make_run(changes)
        lm = open_model(run)
        make_faithful(run, lm)
        write_rows(
            run,
            "dataset",
            pd.DataFrame(
                [
                    {
                        "documents": 1234,
                        "tokens": 300,
                        "vocab_size": 64,
                        "all_token_coverage": 87.5,
                        "first_token_coverage": 12.5,
                        "kl": 0.25,
                        "missing_mass": 0.0,
                    }
                ]
            ),
        )
        train_all(run, lm)
        corpora = [name for name in run.sae.train_on for _ in run.sae.seeds]
        write_rows(run, "sfr", pd.DataFrame({"corpus": corpora, "sfr": 0.123456, "sfr_alive": 0.5}))
        write_rows(run, "ffr", pd.DataFrame({"corpus": corpora, "ffr": range(len(corpora))}))
        write_rows(
            run,
            "fidelity",
            pd.DataFrame(
                [
                    {
                        "trained_on": name,
                        "evaluated_on": "text",
                        "include_bos": bos,
                        "ce_recovered": 0.9 if bos else 0.75,
                        "explained_variance": 0.5,
                    }
                    for name in corpora
                    for bos in (True, False)
                ]
            ),
        )
        return run

    return make


@pytest.fixture
def made(make_made):
    return make_made()


def card_of(repository):
    return (DatasetCard if repository.kind == "dataset" else ModelCard).load(
        repository.folder / "README.md"
    )


# --- a dry run ------------------------------------------------------------------------------------


def test_the_dataset_is_the_runs_own_by_the_datasets_library(made, tmp_path, monkeypatch):
    dataset, _ = publish(made.file.parent)
    rows = datasets.load_dataset(
        str(dataset.folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    documents = list(read_shards(made))
    tokenizer = open_model(made).tokenizer
    assert len(list(dataset.folder.glob("data/*.parquet"))) == 4
    assert rows.column_names == [
        "ids",
        "text",
        "length",
    ]
    assert list(rows["ids"]) == [document.tolist() for document in documents]
    assert list(rows["length"]) == [len(document) for document in documents]
    assert list(rows["text"]) == [
        " ".join(f"w{i}" for i in document if i > 1) for document in documents
    ]  # tests' words, no BOS, no EOS
    assert tokenizer.decode(documents[0], skip_special_tokens=True) == rows[0]["text"]


def test_the_saes_are_the_runs_own_and_name_no_folder_of_this_machine(made, tmp_path):
    dataset, saes = publish(made.file.parent)
    for name in ("faithful", "text"):
        for seed in (42, 49):
            source, target = (
                place / name / f"seed{seed}" for place in (made.artifacts / "saes", saes.folder)
            )
            assert (source / WEIGHTS).read_bytes() == (target / WEIGHTS).read_bytes()
            x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
            assert torch.equal(load_sae(source).encode(x), load_sae(target).encode(x))
            assert torch.equal(load_sae(source).firing, load_sae(target).firing)
            assert load_sae(target).metadata["model"] == "llama"
            assert load_sae(target).metadata["hook_name"] == "blocks.1.hook_resid_pre"
    assert {file.name for file in (saes.folder / "results").iterdir()} == {
        "sfr.csv",
        "ffr.csv",
        "fidelity.csv",
    }
    for repository in (dataset, saes):
        assert not [
            file for file in repository.files() if str(tmp_path).encode() in file.read_bytes()
        ]


def test_the_cards_say_what_was_measured_and_the_papers_beside_it(make_made):
    run = make_made(beside="gpt2")
    dataset, saes = publish(run.file.parent, "somebody")
    card = card_of(saes)
    assert "\n# TopK sparse autoencoders of Tiny\n" in card.text
    assert card.data.to_dict() == {
        "license": "other",
        "library_name": "saelens",
        "datasets": ["somebody/handmade-tiny-faithful"],
        "tags": ["sparse-autoencoder", "interpretability", "faithful-sae"],
    }
    assert saes.id == "somebody/handmade-tiny-saes"
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in card.text.splitlines()
        if line.startswith("|")
    }
    header = [
        "SFR",
        "SFR, paper",
        "SFR, alive",
        "FFR, %",
        "FFR, %, paper",
        "CE recovered",
        "explained variance",
    ]
    assert header in [
        [cell.strip() for cell in line.split("|")[2:-1]]
        for line in card.text.splitlines()
        if line.startswith("|")
    ]
    assert lines["Faithful"] == ["0.1235", "0.5258", "0.5000", "0.50", "0.1139", "0.7500", "0.5000"]
    assert lines["text (Pile)"] == [
        "0.1235",
        "0.5405",
        "0.5000",
        "2.50",
        "0.118",
        "0.7500",
        "0.5000",
    ]
    assert "those of its GPT-2 Small" in card.text
    assert "d_sae: 24" in card.text
    assert 'allow_patterns="faithful/seed42/*"' in card.text
    record = json.loads((run.artifacts / "saes" / "faithful" / "provenance.json").read_text())
    assert f"torch {record['packages']['torch']}" in card.text
    assert str(record["git_commit"]) in card.text
    card = card_of(dataset)
    assert card.data.to_dict()["size_categories"] == ["1K<n<10K"]
    assert card.data.to_dict()["configs"][0]["data_files"][0]["split"] == "train"
    assert "87.5" in card.text
    assert "99.8" in card.text
    assert "max_new_tokens: 10" in card.text
    assert "1,234" in card.text


def test_results_of_other_saes_are_left_out(made, capsys):
    rows = made.artifacts / "rows"
    (rows / "ffr.json").write_text('{"made_with": "another threshold"}')
    (rows / "fidelity.csv").unlink()
    _, saes = publish(made.file.parent)
    assert [file.name for file in (saes.folder / "results").iterdir()] == ["sfr.csv"]
    assert "FFR" not in card_of(saes).text
    said = capsys.readouterr().out
    assert "results of 04_ffr are made with other parameters" in said
    assert "results of 05_fidelity are not made" in said
    assert "nothing was uploaded" in said
    assert f"model {NAMESPACE}/handmade-tiny-saes" in said
    assert "faithful/seed42/  3 files" in said


def test_what_is_there_is_kept_and_what_changed_is_made_again(made, make_run):
    dataset, _ = publish(made.file.parent)
    shard = dataset.folder / "data" / "train-00000-of-00004.parquet"
    (shard.parent / ".train-00001-of-00004.parquet.7.tmp").write_bytes(b"half")
    before = shard.stat().st_mtime_ns
    again, _ = publish(made.file.parent)
    assert shard.stat().st_mtime_ns == before
    assert len(again.files()) == 6
    assert not list(shard.parent.glob(".*"))
    other = make_run({"generate.seed": 6, "generate.shard_tokens": 300})
    make_faithful(other, open_model(other))
    train_all(other, open_model(other))
    again, _ = publish(other.file.parent)
    assert [file.name for file in (again.folder / "data").iterdir()] == [
        "train-00000-of-00001.parquet"
    ]


def test_saes_of_others_are_not_ours_to_publish(made, make_run):
    theirs = made.file.parent / "theirs"
    for seed in (42, 49):
        load_sae(made.artifacts / "saes" / "text" / f"seed{seed}").save(theirs / f"seed{seed}")
    run = make_run({"sae.published": {"text": {"path": "theirs/seed{seed}"}}})
    train_all(run, open_model(run))
    _, saes = publish(run.file.parent)
    assert (saes.folder / "faithful").is_dir()
    assert not (saes.folder / "text").exists()
    assert "text (Pile)" not in card_of(saes).text
    run = make_run(
        {"sae.train_on": ["text"], "sae.published": {"text": {"path": "theirs/seed{seed}"}}}
    )
    train_all(run, open_model(run))
    assert [repository.kind for repository in publish(run.file.parent)] == ["dataset"]


# --- what can be wrong ----------------------------------------------------------------------------


def test_nothing_made_yet(make_run):
    run = make_run()
    with pytest.raises(
        PublishError, match=f"{run.file.parent}: nothing to publish yet: `make paper"
    ):
        publish(run.file.parent)


def test_damaged_saes_and_datasets_are_refused(made):
    file = made.artifacts / "saes" / "text" / "seed49" / WEIGHTS
    original = file.read_bytes()
    remove(file)
    file.write_bytes(original[:-100])
    with pytest.raises(SAEError, match=f"{file}: truncated"):
        publish(made.file.parent)
    file.write_bytes(original)
    shard = next((made.artifacts / "faithful").glob("shard_*"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(
        MissingInputError,
        match="faithful is damaged or was made with other parameters: run notebooks/01",
    ):
        publish(made.file.parent)


def test_an_owner_that_cannot_be_one(made):
    with pytest.raises(
        PublishError, match="some body/handmade-tiny-faithful cannot be the id of a repository"
    ):
        publish(made.file.parent, "some body")


# --- uploading ------------------------------------------------------------------------------------


class Api:
    """Records what a HfApi is asked for; repositories it has already are in `public`."""

    def __init__(self, public=(), fails=None):
        self.calls = []
        self.public = set(public)
        self.fails = fails

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        if self.fails:
            raise self.fails
        assert exist_ok
        self.calls.append(("create", repo_type, repo_id, private))
        self.public |= set() if private else {repo_id}

    def repo_info(self, repo_id, *, repo_type):
        return SimpleNamespace(private=repo_id not in self.public)

    def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message, delete_patterns):
        assert commit_message
        assert delete_patterns == "data/*.parquet"
        self.calls.append(
            (
                "upload",
                repo_type,
                repo_id,
                sorted(
                    f.relative_to(folder_path).as_posix() for f in Path(folder_path).rglob("*.md")
                ),
            )
        )


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_both_repositories_are_made_and_filled_private_unless_asked_for(made, token):
    ids = {"dataset": "me/handmade-tiny-faithful", "model": "me/handmade-tiny-saes"}
    for public in (False, True):
        api = Api()
        publish(made.file.parent, "me", push=True, public=public, api=api)
        assert api.calls == [
            call
            for kind, name in ids.items()
            for call in (("create", kind, name, not public), ("upload", kind, name, ["README.md"]))
        ]


def test_without_push_nothing_is_asked_of_the_hub(made, token):
    api = Api()
    publish(made.file.parent, "me", api=api)
    assert api.calls == []


def test_a_repository_that_is_public_already_is_not_added_to_unasked(made, token):
    api = Api(public=["me/handmade-tiny-faithful"])
    with pytest.raises(
        PublishError, match="me/handmade-tiny-faithful: is there already, and public: PUBLIC=1"
    ):
        publish(made.file.parent, "me", push=True, api=api)
    assert [call[0] for call in api.calls] == ["create"]


def test_no_namespace_and_no_token(made, monkeypatch):
    with pytest.raises(PublishError, match="NAMESPACE is missing"):
        publish(made.file.parent, push=True)
    monkeypatch.setattr("faithful_sae.paper.publish.get_token", lambda: None)
    with pytest.raises(PublishError, match="no token for the Hub: `hf auth login`"):
        publish(made.file.parent, "me", push=True)
    assert not (made.artifacts.parent / "publish").exists()  # before any work


def test_a_hub_that_refuses_or_is_out_of_reach(made, token):
    response = httpx2.Response(403, request=httpx2.Request("POST", "http://hub"))
    with pytest.raises(
        PublishError,
        match=r"me/handmade-tiny-faithful: the Hub refuses \(no right to create\): may the token",
    ):
        publish(
            made.file.parent,
            "me",
            push=True,
            api=Api(fails=HfHubHTTPError("no right to create\nmore", response=response)),
        )
    for error in (OfflineModeIsEnabled("offline"), httpx2.ConnectError("no route")):
        with pytest.raises(
            PublishError, match="me/handmade-tiny-faithful: the Hub cannot be reached"
        ):
            publish(made.file.parent, "me", push=True, api=Api(fails=error))


def test_the_command_says_one_line_and_leaves_no_token(made, root):
    code = (
        "import sys; from pathlib import Path; "
        "from faithful_sae.__main__ import main; from faithful_sae.runs import schema; "
        "schema.ROOT = Path(sys.argv[1]); sys.argv[1:2] = ['publish']; main()"
    )

    result = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(root),
            str(made.file.parent),
            "--push",
            "--namespace",
            "me",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 1
    assert "the Hub cannot be reached" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    files = [file for file in root.rglob("*") if file.is_file()]
    assert len(files) > 30
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
