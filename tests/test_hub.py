"""The Hub: a server of our own and a cache laid out as the Hub's. One commit per profile, one clear
line for whatever is wrong.
"""

import json
import os
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from conftest import ARCHITECTURES, VOCABULARY, make_model, make_tokenizer
from faithful_sae.engine.problems import hub_problems, refuse
from faithful_sae.files import ROOT, remove
from faithful_sae.lm.model import load_model
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import corpus_rows, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.text import documents, labelled, text_hash
from faithful_sae.text import hub, read
from fake_hub import TOKEN, Repository, serve

OLD = "a" * 40
NEW = "b" * 40
WEB = {
    "hub": "web/text",
    "revision": hub.PARQUET,
    "config": "default",
    "split": "train",
    "text_key": "text",
}
TASK = {
    "role": "sst2",
    "hub": "web/task",
    "revision": "main",
    "config": "plain",
    "train_split": "train",
    "test_split": "validation",
    "text_key": "sentence",
    "label_key": "label",
}
TEXTS = [" ".join(f"w{2 + (7 * i + j * j) % 60}" for j in range(30)) for i in range(40)]


def write_dataset(folder, texts=TEXTS):
    """Three shards of `default/train`, each of three row groups, and two splits more."""
    for number, part in enumerate(np.array_split(np.array(texts, object), 3)):
        path = folder / "default" / "partial-train" / f"{number:04d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(
            pa.table({"id": range(len(part)), "text": list(part), "more": [None, *part[1:]]}),
            path,
            row_group_size=5,
        )
    for split in ("train_more", "validation"):
        path = folder / "default" / split / "0000.parquet"
        path.parent.mkdir()
        pd.DataFrame({"text": ["not w3 to be read"]}).to_parquet(path)
    return folder


def write_task(folder):
    (folder / "plain").mkdir(parents=True)
    for split in ("train", "validation"):
        pd.DataFrame({"sentence": TEXTS, "label": [i % 2 for i in range(40)]}).to_parquet(
            folder / "plain" / f"{split}-00000-of-00001.parquet"
        )
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory, model_folders):
    """{(kind, id): {commit: folder}}; the models' newer commit has other weights, the datasets'
    other texts.
    """
    root = tmp_path_factory.mktemp("repositories")
    found = {}
    for name in ARCHITECTURES:
        newer = root / f"{name}-new"
        make_model(name, seed=7).save_pretrained(newer)
        make_tokenizer().save_pretrained(newer)
        found["model", f"tiny/{name}"] = {OLD: model_folders[name], NEW: newer}
    found["dataset", "web/text"] = {
        OLD: write_dataset(root / "text"),
        NEW: write_dataset(root / "text-new", TEXTS[::-1]),
    }
    found["dataset", "web/task"] = {OLD: write_task(root / "task")}
    return found


@pytest.fixture
def cache(tmp_path, folders, monkeypatch):
    """A Hub cache that has the older commits; HF_HUB_OFFLINE is 1 in all tests (conftest)."""
    root = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    for (kind, name), commits in folders.items():
        folder = root / f"{kind}s--{name.replace('/', '--')}"
        shutil.copytree(commits[OLD], folder / "snapshots" / OLD)
        for branch in ("main", hub.PARQUET):
            ref = folder / "refs" / branch
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(OLD)
    return root


def hub_run(make_run, architecture="llama", **changes):
    return make_run(
        {"model": f"tiny/{architecture}", "corpora.web": {"role": "fineweb"} | WEB, **changes}
    )


# --- from a cache, without a network --------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_by_its_id_is_the_one_in_the_folder_and_stays_at_its_commit(
    make_run, cache, folders, architecture
):
    run = hub_run(make_run, architecture)
    refuse(hub_problems([run]))
    lm = open_model(run)
    local = load_model(folders["model", f"tiny/{architecture}"][OLD], 1, "cpu", "float32")
    ids = torch.randint(2, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    assert lm.revision == OLD
    assert load_model(f"tiny/{architecture}", 1, "cpu", "float32").revision == OLD
    assert torch.equal(lm.activations(ids), local.activations(ids))
    record = json.loads((make_faithful(run, lm) / "provenance.json").read_text())
    assert record["inputs"]["commit"] == OLD
    moved = cache / f"models--tiny--{architecture}"
    shutil.copytree(folders["model", f"tiny/{architecture}"][NEW], moved / "snapshots" / NEW)
    (moved / "refs" / "main").write_text(NEW)
    assert open_model(run).revision == OLD
    assert torch.equal(open_model(run).activations(ids), local.activations(ids))
    assert run.hub.moved() == [
        f"note: main of tiny/{architecture} has moved from {OLD} to {NEW}; "
        f"{run.artifacts.parent / 'hub.json'} holds this "
        "profile to the former: `make clean` to start again with the latter"
    ]
    remove(run.artifacts.parent / "hub.json")
    assert open_model(run).revision == NEW
    assert not torch.equal(open_model(run).activations(ids), local.activations(ids))


def test_a_dataset_gives_the_rows_of_its_texts(make_run, cache, lm):
    run = hub_run(make_run)
    local, web = (
        corpus_rows(run, "text", lm),
        corpus_rows(run, "web", lm),
    )  # the fixture's text.jsonl has the same texts
    assert np.array_equal(local.train, web.train)
    assert np.array_equal(local.heldout, web.heldout)
    record = json.loads((run.artifacts / "corpora" / "web" / "provenance.json").read_text())
    assert record["inputs"]["commit"] == OLD
    assert record["parameters"]["corpora.web"]["hub"] == "web/text"
    assert not list((run.artifacts / "corpora").glob("*.partial"))


def test_documents_are_those_that_the_datasets_library_reads(make_run, cache):
    run = hub_run(make_run)
    files = sorted(map(str, cache.rglob("default/partial-train/*.parquet")))
    expected = [
        row["text"]
        for row in datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    ]
    assert list(documents(run, "web")) == expected == TEXTS


def test_several_columns_are_joined_where_they_have_text(make_run, cache):
    run = hub_run(make_run, **{"corpora.web.text_key": ["text", "more"]})
    assert [text.count("\n\n") for text in documents(run, "web")] == [0] + [1] * 13 + [0] + [
        1
    ] * 12 + [0] + [1] * 12
    assert next(documents(run, "web")) == TEXTS[0]
    assert list(documents(run, "web"))[1] == f"{TEXTS[1]}\n\n{TEXTS[1]}"


def test_a_task_of_the_hub(make_run, cache):
    run = make_run(
        {"probing.tasks": {"hubs": TASK}, "probing.max_train": 10, "probing.max_test": 7}
    )
    (texts, labels), (test_texts, _) = labelled(run, "hubs")
    assert len(texts) == 10
    assert len(test_texts) == 7
    assert labels == [str(TEXTS.index(text) % 2) for text in texts]
    assert max(map(TEXTS.index, texts)) >= 20  # not of the first records alone


def test_a_newer_commit_is_other_text(make_run, cache, lm):
    run = hub_run(make_run)
    before = text_hash(run, "web")
    remove(run.artifacts.parent / "hub.json")
    folder = cache / "datasets--web--text"
    (folder / "snapshots" / OLD).rename(folder / "snapshots" / NEW)
    (folder / "refs" / hub.PARQUET).write_text(NEW)
    assert text_hash(run, "web") != before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_after", [1, 4, 5, 9])
def test_a_killed_reading_goes_on_where_it_was(make_run, cache, lm, monkeypatch, killed_after):
    run = hub_run(make_run, corpus_tokens=1200)
    batches = []
    whole = corpus_rows(run, "web", lm)
    expected = np.concatenate([whole.train, whole.heldout])
    remove(run.artifacts / "corpora")
    monkeypatch.setattr(read, "PART_DOCUMENTS", 3)
    original = read.tokenize

    def tokenize(texts, tokenizer):
        batches.append(texts := list(texts))
        if len(batches) == killed_after:
            raise Killed
        return original(texts, tokenizer)

    monkeypatch.setattr(read, "tokenize", tokenize)
    with pytest.raises(Killed):
        corpus_rows(run, "web", lm)
    opened = []
    original_records = read._numbered_records
    monkeypatch.setattr(
        read,
        "_numbered_records",
        lambda path, keys, start: (
            opened.append((path.name, start)) or original_records(path, keys, start)
        ),
    )
    again = corpus_rows(run, "web", lm)
    assert np.array_equal(np.concatenate([again.train, again.heldout]), expected)
    done = 3 * (killed_after - 1)
    # nothing twice, nothing left out
    finished = batches[: killed_after - 1] + batches[killed_after:]
    assert [text for batch in finished for text in batch] == TEXTS[: 3 * (len(batches) - 1)]
    assert opened[0] == (("0000.parquet", done) if done < 14 else ("0001.parquet", done - 14))


@pytest.mark.parametrize("at_once", [2, 10_000])
def test_parquet_row_groups_that_were_read_are_not_read_again(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(read, "RECORDS_AT_ONCE", at_once)
    path = (
        write_dataset(tmp_path) / "default" / "partial-train" / "0000.parquet"
    )  # 14 records in groups of 5
    taken = []
    original = pa.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pa.parquet.ParquetFile,
        "iter_batches",
        lambda self, **kwargs: taken.append(kwargs["row_groups"]) or original(self, **kwargs),
    )
    for start in range(15):
        assert [text for (text,) in read.read_records(path, ["text"], start)] == TEXTS[start:14]
    assert taken == [[0, 1, 2]] * 5 + [[1, 2]] * 5 + [[2]] * 4 + [[]]


def refused(run, *words):
    with pytest.raises(ParamsError) as error:
        refuse(hub_problems([run]))
    message = str(error.value)
    assert all(line.startswith(f"{run.file}: ") for line in message.split("\n  "))
    for word in words:
        assert word in message, message


def test_without_network_and_without_cache(make_run, cache):
    refused(
        hub_run(make_run, model="tiny/absent"),
        "model: tiny/absent",
        "cannot be reached",
        "hf download",
    )
    refused(
        hub_run(make_run, **{"corpora.web.hub": "web/absent"}),
        "corpora.web: web/absent",
        "cannot be reached",
        hub.PARQUET,
    )
    refused(hub_run(make_run, revision="nightly"), "model: tiny/llama", "nightly")


def test_an_incomplete_cache(make_run, cache, lm):
    run = hub_run(make_run)
    refuse(hub_problems([run]))
    shutil.rmtree(cache / "datasets--web--text" / "snapshots")
    with pytest.raises(
        hub.HubError, match="web/text: the Hub cannot be reached, and its cache does not have"
    ):
        corpus_rows(run, "web", lm)


def test_what_can_be_wrong_with_a_dataset(make_run, cache):
    refused(
        hub_run(make_run, **{"corpora.web.config": "other"}),
        "corpora.web: web/text: no parquet files of configuration 'other'",
        "it has default",
    )
    refused(
        hub_run(make_run, **{"corpora.web.split": "test"}),
        "corpora.web",
        "split 'test'",
        "default/partial-train, default/train_more, default/validation",
    )
    refused(
        hub_run(make_run, **{"corpora.web.text_key": "body"}),
        "corpora.web",
        "0000.parquet: no column 'body'",
        "'text'",
        "text_key",
    )
    refused(
        hub_run(make_run, **{"corpora.web.text_key": "id"}),
        "corpora.web",
        "'id' holds int, not text",
    )
    refused(
        make_run({"probing.tasks": {"hubs": TASK | {"label_key": "class"}}}),
        "probing.tasks.hubs",
        "no column 'class'",
    )


def test_what_can_be_wrong_with_a_model(make_run, cache):
    refused(hub_run(make_run, layer=3), "layer = 3 is out of range: tiny/llama has blocks 0 to 2")
    files = cache / "models--tiny--llama" / "snapshots" / OLD
    (files / "model.safetensors").rename(files / "pytorch_model.bin")
    refused(hub_run(make_run), "model = 'tiny/llama': no *.safetensors weights")


# --- with a server --------------------------------------------------------------------------------


@pytest.fixture
def server(folders):
    with serve(
        {
            key: Repository(commits, {"main": OLD, hub.PARQUET: OLD})
            for key, commits in folders.items()
        }
    ) as running:
        yield running


def environment(url, home, **more):
    return (
        os.environ
        | {
            "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        | more
    )


def online(code, server, home, **more):
    """Run code in a process that is not offline: (what it printed, its last line of errors)."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(server.url, home, **more),
        timeout=120,
    )
    return result.stdout, (result.stderr.strip().splitlines() or [""])[-1]


CHECK = """
import sys
from faithful_sae.runs.params import load_params
from faithful_sae.engine.problems import hub_problems, refuse
from faithful_sae.runs import schema
from pathlib import Path
schema.ROOT = Path(sys.argv[1]) if len(sys.argv) > 1 else schema.ROOT
for file in FILES:
    try:
        run = load_params(file)
        refuse(hub_problems([run]))
        for note in run.hub.moved():
            print(note)
        print("ok")
    except schema.ParamsError as error:
        print(str(error).replace(file + ": ", "", 1))
"""


def check(files, server, root, home, **more):
    """What hub_problems says of each file, in one process."""
    printed, error = online(
        f"import sys; sys.argv.append({str(root)!r}); FILES = {list(map(str, files))!r}\n" + CHECK,
        server,
        home,
        **more,
    )
    assert printed, error
    return printed.splitlines()


def test_errors_of_the_hub_are_one_line_each(make_run, server, tmp_path, root):
    repositories = server.repositories
    repositories["model", "shut/model"] = Repository(
        repositories["model", "tiny/gpt2"].commits, {"main": OLD}, gated=True
    )
    repositories["dataset", "shut/text"] = Repository(
        repositories["dataset", "web/text"].commits, {hub.PARQUET: OLD}, gated=True
    )
    repositories["dataset", "old/name"] = Repository({}, {}, renamed="web/text")
    cases = {
        "fine": ({}, "ok"),
        "gated model": (
            {"model": "shut/model"},
            "model: shut/model: a gated model: accept its licence on its Hub page, then `hf auth "
            "login`",
        ),
        "gated dataset": (
            {"corpora.web.hub": "shut/text"},
            "corpora.web: shut/text: a gated dataset: accept its licence",
        ),
        "renamed": (
            {"corpora.web.hub": "old/name"},
            "corpora.web: old/name: this dataset is now called web/text: write that",
        ),
        "no such model": (
            {"model": "tiny/none"},
            "model: tiny/none: no such model on the Hub: check the id",
        ),
        "no such dataset": (
            {"corpora.web.hub": "web/none"},
            "corpora.web: web/none: no such dataset on the Hub",
        ),
        "no such branch": (
            {"revision": "nightly"},
            "model: tiny/llama: this model has no revision 'nightly'",
        ),
        "no such commit": (
            {"corpora.web.revision": "c" * 40},
            f"corpora.web: web/text: this dataset has no revision '{'c' * 40}'",
        ),
        "no id": (
            {"model": "tiny/llama/3"},
            "model: tiny/llama/3: not the id of a model on the Hub",
        ),
        "no such split": (
            {"corpora.web.split": "test"},
            "corpora.web: web/text: no parquet files of configuration 'default', split 'test'",
        ),
        "no such configuration": (
            {"corpora.web.config": "x"},
            "corpora.web: web/text: no parquet files of configuration 'x'",
        ),
    }
    files = [
        hub_run(make_run, **changes).file.rename(tmp_path / "handmade" / f"case{i}.yaml")
        for i, (changes, _) in enumerate(cases.values())
    ]
    said = check(files, server, root, tmp_path / "home")
    for (name, (_, start)), line in zip(cases.items(), said, strict=True):
        assert line.startswith(start), (name, line)
    assert check(files[1:3], server, root, tmp_path / "home", HF_TOKEN=TOKEN) == ["ok", "ok"]
    assert (
        "is the token still valid? `hf auth login`"
        in check(files[:1], server, root, tmp_path / "elsewhere", HF_TOKEN="hf_old")[0]
    )
    server.url = "http://127.0.0.1:9"  # nobody listens there
    remove(root / "artifacts")
    assert check(files[:1], server, root, tmp_path / "elsewhere")[0].startswith(
        "model: tiny/llama: the Hub cannot be reached"
    )


def test_loading_a_model_of_the_hub_says_in_one_line_what_is_wrong(server, tmp_path):
    commits = server.repositories["model", "tiny/gpt2"].commits
    server.repositories["model", "shut/model"] = Repository(commits, {"main": OLD}, gated=True)
    # a token is looked up when it is needed
    code = (
        "import os; from faithful_sae import load_model\n"
        "for name in ('shut/model', 'tiny/none', 'shut/model'):\n"
        "    try: print(load_model(name, 0, 'cpu').revision)\n"
        "    except Exception as error: print(f'{type(error).__name__}: {error}')\n"
        f"    if name == 'tiny/none': os.environ['HF_TOKEN'] = {TOKEN!r}"
    )
    shut, none, opened = online(code, server, tmp_path / "home")[0].splitlines()
    assert shut == (
        "ModelError: shut/model: a gated model: accept its licence "
        "on its Hub page, then `hf auth login` (and there is no such folder)"
    )
    assert "no such model on the Hub" in none
    assert opened == OLD


def test_two_notebooks_of_a_run_read_one_commit_and_leave_no_token(make_run, server, tmp_path):
    """01 and 02 as `make paper` runs them; between them the branches of model and dataset move."""
    folder = tmp_path / "e2e_hub"
    run = hub_run(
        make_run,
        **{
            "sae.train_on": ["faithful", "web"],
            "fidelity.corpora": ["web"],
            "generate.tokens": 3000,
            "generate.shard_tokens": 1500,
            "generate.batch_rows": 64,
        },
    )
    shutil.copytree(run.file.parent, folder)
    for repository in server.repositories.values():
        repository.gated = True
    artifacts = ROOT / "artifacts" / folder.name
    figures = ROOT / "figures" / folder.name
    home = tmp_path / "home"
    try:
        assert check([folder / "tiny.yaml"], server, ROOT, home, HF_TOKEN=TOKEN) == ["ok"]
        for notebook in ("01_generate_faithful", "02_train_sae"):
            result = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "faithful_sae",
                    "notebook",
                    str(ROOT / "notebooks" / f"{notebook}.py"),
                    str(artifacts / f"{notebook}.ipynb"),
                    f"params={folder / 'tiny.yaml'}",
                ],
                capture_output=True,
                text=True,
                env=environment(server.url, home, HF_TOKEN=TOKEN),
                timeout=300,
            )
            assert result.returncode == 0, result.stderr[-3000:]
            for repository in server.repositories.values():
                repository.branches = {
                    branch: max(repository.commits) for branch in repository.branches
                }
        records = [
            artifacts / "tiny" / name / "provenance.json"
            for name in ("faithful", "corpora/web", "saes/faithful", "saes/web")
        ]
        assert [json.loads(path.read_text())["inputs"]["commit"] for path in records] == [OLD] * 4
        exhibit = json.loads((figures / "training_tiny.provenance.json").read_text())["inputs"]
        assert exhibit["model tiny/llama main"] == exhibit[f"dataset web/text {hub.PARQUET}"] == OLD
        assert set(json.loads((artifacts / "hub.json").read_text())) == {
            "model tiny/llama main",
            f"dataset web/text {hub.PARQUET}",
            f"dataset web/text {OLD} default/train",
        }
        assert not any(NEW in path for path in server.asked if "resolve" in path)
        left = [
            path
            for place in (artifacts, figures, folder, home)
            for path in place.rglob("*")
            if path.is_file()
        ]
        assert len(left) > 30
        assert not [path for path in left if TOKEN.encode() in path.read_bytes()]
        (note,) = check([folder / "tiny.yaml"], server, ROOT, home, HF_TOKEN=TOKEN)[:1]
        assert note.strip().startswith("note: main of tiny/llama has moved from ")
    finally:
        remove(artifacts)
        remove(figures)
