"""`make check`: everything that is wrong in one list, and an exit status; the Hub's refusals among
it; no token in what it says.
"""

import copy
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig
from yaml import safe_dump, safe_load

from conftest import FEATURES, make_model, make_tokenizer, set_key
from faithful_sae.__main__ import main as command_line
from faithful_sae.engine import check as module
from faithful_sae.engine import timing
from faithful_sae.engine.check import check
from faithful_sae.engine.timing import estimate
from faithful_sae.files import ROOT
from faithful_sae.runs.needs import needs
from faithful_sae.runs.params import load_params
from faithful_sae.runs.registry import model_stages, stages
from faithful_sae.runs.stage import Stage
from faithful_sae.stages.corpus import make_faithful
from faithful_sae.stages.model import model_shape, open_model
from faithful_sae.stages.training import train_all
from fake_hub import TOKEN, Repository, serve
from test_hub import OLD, environment, folders, hub_run  # noqa: F401 - fixtures

TIMED = (
    "01_generate_faithful",
    "02_train_sae",
    "04_ffr",
    "05_fidelity",
    "06_probing",
    "08_seed_dependence",
    "09_explore_features",
)


def main(profile, *options, **more):
    """(exit status, what was printed) of the command."""
    result = subprocess.run(
        [sys.executable, "-m", "faithful_sae", "check", str(profile), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        **more,
    )
    return result.returncode, result.stdout + result.stderr


def another(run, name, **changes):
    """A copy of a run's parameter file beside it, with dotted keys replaced."""
    values = safe_load(run.file.read_text())
    for key, value in ({"label": name} | changes).items():
        set_key(values, key, value)
    file = run.file.with_name(f"{name}.yaml")
    file.write_text(safe_dump(values, sort_keys=False))
    return file


def test_the_smoke_profile_passes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["faithful_sae", "check", "smoke"])
    with pytest.raises(SystemExit) as ended:
        command_line()
    said = capsys.readouterr().out
    assert not ended.value.code, said
    assert said.endswith("\n0 problems\n"), said
    lines = [line.split() for line in said.splitlines() if re.match(r"  \d\d_", line)]
    times = {line[0]: line[-2:] for line in lines}
    shown = [name for name, stage in stages().items() if not stage.profile]
    assert list(times) == shown
    assert {"01", "02", "03", "04", "05", "06", "08", "09"} <= {name[:2] for name in shown}
    estimated = [name for name in shown if name in TIMED or times[name][1] != "-"]
    for name in estimated:
        number, unit = times[name]
        assert unit in ("s", "min"), name
        assert float(number) >= 0, name
    assert "13_geometry" not in estimated
    assert "with random weights" in said
    assert "disk: " in said


def test_every_problem_of_every_file_is_listed(make_run, model_folders):
    run = make_run()
    files = [
        another(run, "b-typo", **{"sae.kk": 3}),
        another(run, "c-k", **{"sae.k": 99}),
        another(run, "d-layers", layer=7, sequence_length=64, **{"probing.max_tokens": 40}),
        another(run, "e-key", **{"corpora.text.text_key": "body"}),
        another(run, "f-gpu", device="cuda"),
        another(run, "g-beside", beside="gpt5"),
        another(run, "h-listed", **{"corpora.text": {"listed": "pyle"}}),
    ]
    (run.file.parent / "test.jsonl").write_text("")
    status, said = main(
        run.file.parent, "--no-probe", env=environment("http://127.0.0.1:9", run.file.parent)
    )
    listed = said[said.index(" problems:") :]
    assert status == 1
    for file, *words in (
        (files[0], "unknown key sae.kk"),
        (files[1], "sae.k = 99 exceeds sae.d_sae"),
        (files[2], "layer = 7 is out of range"),
        (files[2], "sequence_length = 64 exceeds the context"),
        (files[2], "probing.max_tokens = 40 exceeds the context"),
        (files[3], "corpora.text.path", "no key 'body'"),
        (files[5], "beside = 'gpt5'"),
        (files[6], "corpora.text.listed = 'pyle' is not in"),
    ):
        assert any(
            file.name in line and all(word in line for word in words)
            for line in listed.splitlines()
        ), (file.name, words, listed)
    (empty,) = [line for line in listed.splitlines() if "probing.tasks.parity: " in line]
    assert all(name in empty for name in ("tiny.yaml", "d-layers.yaml", "e-key.yaml", "f-gpu.yaml"))
    assert "empty" in empty
    if not torch.cuda.is_available():
        assert any(
            "f-gpu.yaml: device = 'cuda', and there is no GPU here" in line
            and "of 1 GB or more" in line
            for line in listed.splitlines()
        )
    assert (
        int(said[: said.index(" problems:")].rpartition("\n")[2])
        == len(listed.strip().splitlines()) - 1
    )


def test_gated_renamed_and_of_another_revision_in_one_listing(make_run, folders, root, tmp_path):
    repositories = {
        key: Repository(commits, {"main": OLD, "refs/convert/parquet": OLD})
        for key, commits in folders.items()
    }
    repositories["model", "shut/model"] = Repository(
        repositories["model", "tiny/gpt2"].commits, {"main": OLD}, gated=True
    )
    repositories["dataset", "old/name"] = Repository({}, {}, renamed="web/text")
    run = hub_run(make_run)
    another(run, "b", model="shut/model", **{"corpora.web.hub": "old/name"})
    another(run, "c", revision="nightly", **{"corpora.web.hub": "web/none"})
    # a token is looked up when it is needed
    code = (
        "import os, sys; from pathlib import Path; from faithful_sae.__main__ import main\n"
        f"from faithful_sae.runs import schema; schema.ROOT = Path({str(root)!r})\n"
        f"sys.argv[1:] = ['check', {str(run.file.parent)!r}, '--no-probe']\n"
        "for token in ('', sys.stdin.read()):\n"
        "    if token: os.environ['HF_TOKEN'] = token\n"
        "    try: main()\n"
        "    except SystemExit as ended: print(f'exit status {int(ended.code)}')\n"
    )
    with serve(repositories) as server:
        result = subprocess.run(
            [sys.executable, "-c", code],
            input=TOKEN,
            capture_output=True,
            text=True,
            timeout=200,
            env=environment(server.url, tmp_path / "home"),
        )
        said = result.stdout + result.stderr
        assert said.count("exit status 1\n") == 2, said
        text, with_token, _ = result.stdout.split("exit status 1\n")
        assert " problems:" in text, text
        listed = text[text.index(" problems:") :]
        for words in (
            "b.yaml: model: shut/model: a gated model: accept its licence",
            "b.yaml: corpora.web: old/name: this dataset is now called web/text",
            "c.yaml: model: tiny/llama: this model has no revision 'nightly'",
            "c.yaml: corpora.web: web/none: no such dataset",
        ):
            assert words in listed, (words, listed)
        assert "tiny.yaml" not in listed
        assert f"pin: model tiny/llama, main now: write revision: {OLD}" in text
        assert f"pin: dataset web/text, refs/convert/parquet now: write revision: {OLD}" in text
        assert " problem" in with_token
        assert "shut/model: a gated" not in with_token
        assert TOKEN not in said
    left = [
        path
        for place in (root, tmp_path / "home", run.file.parent)
        for path in place.rglob("*")
        if path.is_file()
    ]
    assert left
    assert not [path for path in left if TOKEN.encode() in path.read_bytes()]


def test_what_is_too_large_for_the_machine(make_run, monkeypatch):
    run = make_run()
    said = []
    monkeypatch.setattr(
        module.psutil,
        "virtual_memory",
        lambda: SimpleNamespace(total=8 * 10**8, available=8 * 10**8),
    )
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    *memory, disk = check(run.file.parent, False, said.append)
    of = {line.split(": ")[1].split()[0]: line for line in memory}
    shape = model_shape(run)
    large = [stage for stage in model_stages(run) if needs(run, shape, stage).memory > 8 * 10**8]
    assert list(of) == [stage.name for stage in large]
    assert {"01", "02", "03", "04", "05", "06"} <= {name[:2] for name in of}
    assert all("of RAM, and this machine has 0.8 GB" in line for line in memory)
    assert of["06_probing"].endswith("lower probing.batch_rows")
    assert "of disk and a tenth to spare" in disk


@pytest.fixture
def card(monkeypatch):
    """A GPU of 1 GB, as far as this check sees."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=10**9)
    )


def test_a_card_that_is_too_small_for_some_stages(make_run, card):
    run = make_run(
        {"device": "cuda", "generate.batch_rows": 20_000, "corpora.text.text_key": "text"}
    )
    (line,) = check(run.file.parent, False, lambda line: None)
    shape = model_shape(run)
    need = needs(run, shape, stages()["01_generate_faithful"]).device_memory
    assert (
        f"01_generate_faithful needs {need / 1e9:.1f} GB of GPU memory, and there are 1.0 GB: "
        "lower generate.batch_rows" in line
    )


def test_more_gpus_than_there_are(make_run, card):
    (line,) = check(
        make_run({"device": "cuda", "gpus": 2, "corpora.text.text_key": "text"}).file.parent,
        False,
        lambda line: None,
    )
    assert "gpus = 2, and there are 1 here" in line


def test_what_is_there_and_current_needs_no_disk(make_run):
    run = make_run()
    lm = open_model(run)
    text = stages()["01_generate_faithful"]
    saes = stages()["02_train_sae"]
    assert module._to_write(run, text, 10**6) == 10**6
    assert module._to_write(run, saes, 10**6) == 10**6
    make_faithful(run, lm)
    train_all(run, lm)
    assert module._to_write(run, text, 10**6) == 0
    assert module._to_write(run, saes, 10**6) == 0
    other = run.file.with_name("tiny.yaml")
    values = safe_load(other.read_text())
    set_key(values, "sae.lr", 2e-3)
    other.write_text(safe_dump(values))
    assert module._to_write(load_params(other), saes, 10**6) == 10**6


def test_an_estimate_grows_with_the_work(make_run, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.1)
    monkeypatch.setattr(timing, "SHORT", 0.05)
    little, much = (
        estimate(
            make_run(
                {
                    "sae.tokens": n,
                    "ffr.tokens": n,
                    "generate.tokens": n,
                    "corpus_tokens": n,
                    "generate.shard_tokens": n,
                }
            )
        )
        for n in (100_000, 1_000_000)
    )
    timed = {s.name for s in model_stages(make_run()) if type(s).seconds is not Stage.seconds}
    assert set(little.seconds) == timed
    assert timed >= {name for name in TIMED if name[:2] < "07"}
    assert "13_geometry" not in timed
    assert "the model itself" in little.how
    for stage in ("01_generate_faithful", "02_train_sae", "04_ffr"):
        assert 4 < much.seconds[stage] / little.seconds[stage] < 25, stage


def test_jobs_of_make_paper_have_the_times_of_their_stages(make_run, monkeypatch):
    """Notebook 02 gathers what a job for each corpus has trained; where memory is short nothing is
    measured.
    """
    run = make_run({"features": FEATURES})
    seconds = {"01_generate_faithful": 5.0, "02_train_sae": 8.0, "09_explore_features": 1.0}
    by_hand = timing.Estimate(seconds, "by hand")
    monkeypatch.setattr(timing, "estimate", lambda run, studies: copy.deepcopy(by_hand))
    start = timing.START
    without = ("03_sfr", "04_ffr", "05_fidelity", "06_probing", "13_geometry", "02_train_sae")
    assert timing.job_seconds([run]) == {
        "07_paper": start,
        "site": timing.SITE,
        "train_corpus · tiny · faithful": start + 4,
        "train_corpus · tiny · text": start + 4,
        "01_generate_faithful · tiny": start + 5,
        "09_explore_features · tiny": start + 1,
        **{f"{name} · tiny": start for name in without},
    }
    monkeypatch.setattr(timing, "free_memory", lambda run: 0)
    assert timing.job_seconds([run]) == {"07_paper": start, "site": timing.SITE}


def test_one_seed_is_noted(make_run):
    said = []
    check(str(make_run({"sae.seeds": [42]}).file.parent), probe=False, show=said.append)
    assert "note: tiny.yaml: one seed: SFR is not measured, nothing has an interval" in said


def test_models_that_cannot_be_used_are_named_before_any_work(make_run, tmp_path):
    """From config.json and tokenizer.json alone, a line each; sizes that nobody knows stop
    nothing.
    """
    gemma3 = AutoConfig.for_model("gemma3")
    mamba = AutoConfig.for_model("mamba", num_hidden_layers=3)
    longer = make_tokenizer()
    longer.add_tokens(["w64"])
    for name, config in (
        ("gemma3", gemma3),
        ("mamba", mamba),
        ("longer", make_model("gpt2").config),
    ):
        config.save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").touch()
        tokenizer = longer if name == "longer" else make_tokenizer()
        tokenizer.save_pretrained(tmp_path / name)
    make_run({"model": str(tmp_path / "gemma3"), "label": "Gemma"}, "gemma3")
    make_run({"model": str(tmp_path / "mamba"), "label": "Mamba"}, "mamba")
    run = make_run({"model": str(tmp_path / "longer")}, "longer")
    found = check(run.file.parent, probe=False, show=lambda line: None)
    assert len(found) == 3
    for line, name in zip(found, ("gemma3", "longer", "mamba"), strict=True):
        assert line.startswith(f"{run.file.with_name(name)}.yaml: model = ")
    assert "a model of type 'gemma3' has its text model inside a larger one" in found[0]
    assert "ids up to 64, but its embedding has 64 rows" in found[1]
    assert "cannot sample from a model of type 'mamba', whose past is a state" in found[2]


def test_threads_that_wait_for_each_other_are_noted(make_run, monkeypatch):
    """`threads` times jobs at once: 2 times 2 of 4 cores is room enough on 4 cores, not on 2."""

    def noted(cores, **changes):
        lines = []
        monkeypatch.setattr(module, "CORES", cores)
        folder = make_run(changes).file.parent
        assert check(str(folder), False, lines.append, cores=4) == []
        return [line for line in lines if "wait for each other" in line]

    assert noted(4, threads=2) == []
    assert noted(4, threads=1) == []
    (line,) = noted(2, threads=2)
    assert line.startswith("note: tiny.yaml: 2 jobs of 2 threads")
    (line,) = noted(2, threads=3)
    assert line.startswith("note: tiny.yaml: 1 job of 3 threads")


def write_mamba(folder):
    AutoConfig.for_model("mamba", num_hidden_layers=3).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    make_tokenizer().save_pretrained(folder)


def test_ten_faults_at_once_are_ten_lines(make_run, tmp_path):
    run = make_run()
    places = run.file.parent
    write_mamba(tmp_path / "mamba")
    (places / "commas.csv").write_text("text\nHello, world\n")
    (places / "half.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    (places / "null.csv").write_text("text,label\na,x\nb,\n")
    (places / "sorted.csv").write_text("text,label\na,x\nb,x\n")
    task = run.tasks["parity"].model_dump(exclude_defaults=True)
    corpus = {"role": "pile", "text_key": "text"}
    faults = {
        "csv": ({"corpora.text": corpus | {"path": "commas.csv"}}, "line 2 has 2 fields"),
        "surrogate": ({"corpora.text": corpus | {"path": "half.jsonl"}}, "record 2: its text"),
        "label": ({"probing.tasks": {"t": task | {"train": "null.csv"}}}, "record 2: 'label'"),
        "class": ({"probing.tasks": {"t": task | {"train": "sorted.csv"}}}, "two classes"),
        "missing": ({"corpora.text": corpus | {"path": "no.jsonl"}}, "no such file"),
        "model": ({"model": str(tmp_path / "mamba")}, "cannot sample from a model of type 'mamba'"),
        "seed": ({"sae.seeds": [42, 2**70]}, "sae.seeds is too large"),
        "blank": ({"label": " "}, "label"),
        "key": ({"sae.kk": 3}, "unknown key sae.kk"),
        "layer": ({"layer": 7}, "layer = 7 is out of range"),
    }
    for name, (changes, _) in faults.items():
        another(run, name, **changes)
    found = check(str(places), probe=False, show=lambda line: None)
    assert len(found) == 10, found
    for name, (_, said) in faults.items():
        (line,) = [line for line in found if f"/{name}.yaml: " in line]
        assert said in line
