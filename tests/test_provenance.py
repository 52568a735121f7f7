"""Whatever has its final name is whole; a result says what made it, and no secret."""

import ast
import errno
import json
import os
import shutil
import subprocess

import pytest

from faithful_sae.files import (
    PACKAGE,
    ROOT,
    DiskFullError,
    atomic_path,
    digest,
    file_hash,
    is_current,
    require_space,
    seal,
    write_csv,
    write_json,
)
from faithful_sae.runs import code
from faithful_sae.runs.code import code_hash, lib_files
from faithful_sae.runs.provenance import provenance

# --- atomic writes --------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as tmp:
        tmp.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as tmp:
        tmp.write_text("half of the ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [f.name for f in path.parent.iterdir()] == ["a.txt"]
    with atomic_path(path) as tmp:
        tmp.write_text("new")
    assert path.read_text() == "new"


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    def fill(names, fail=False):
        with atomic_path(tmp_path / "a") as tmp:
            tmp.mkdir()
            for name in names:
                (tmp / name).write_text(name)
            if fail:
                raise ValueError("stop")

    fill(["x", "y"])
    with pytest.raises(ValueError, match="stop"):
        fill(["z"], fail=True)
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == ["x", "y"]
    fill(["z"])
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["z"]
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_leftovers_of_a_killed_process_are_not_mistaken_for_results(tmp_path):
    (tmp_path / f".a.{os.getpid()}.tmp").mkdir()
    (tmp_path / f".a.{os.getpid()}.tmp" / "x").write_text("x")
    with atomic_path(tmp_path / "a") as tmp:
        tmp.write_text("y")
    assert (tmp_path / "a").read_text() == "y"
    assert len(list(tmp_path.iterdir())) == 1


def test_disk_full_names_the_path(tmp_path):
    with (
        pytest.raises(DiskFullError, match=f"disk full while writing {tmp_path / 'a'}") as error,
        atomic_path(tmp_path / "a") as tmp,
    ):
        tmp.write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
    with pytest.raises(DiskFullError), atomic_path(tmp_path / "a"):
        raise RuntimeError(
            "I/O error: No space left on device (os error 28)"
        )  # as safetensors says it
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")


def test_a_disk_that_is_really_full(tmp_path):
    """On a file system of 256 kB: tensors, csv and json all end in DiskFullError, and what was
    there stays.
    """
    import numpy as np
    import pandas as pd
    import torch

    from faithful_sae import TopKSAE, load_sae

    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs rights")
    try:
        small = TopKSAE(4, 8, 2, 0)
        small.save(disk / "sae")
        with pytest.raises(DiskFullError, match=str(disk / "sae")):
            TopKSAE(64, 1024, 2, 0).save(disk / "sae")
        assert torch.equal(load_sae(disk / "sae").W_dec, small.W_dec)
        with pytest.raises(DiskFullError, match="rows.csv"):
            write_csv(
                disk / "rows.csv", pd.DataFrame({"x": np.random.default_rng(0).random(50_000)})
            )
        with pytest.raises(DiskFullError, match="a.json"):
            write_json(disk / "a.json", {"x": "y" * 500_000})
        with pytest.raises(DiskFullError, match="the weights needs about 1.0 MB"):
            require_space(disk / "deep" / "below", 1_000_000, "the weights")
        require_space(disk, 10_000, "a little")
        assert [f.name for f in disk.iterdir()] == ["sae"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- keys and hashes ------------------------------------------------------------------------------


@pytest.fixture
def artefact(tmp_path):
    folder = tmp_path / "made"
    with atomic_path(folder) as tmp:
        (tmp / "deep").mkdir(parents=True)
        (tmp / "a.bin").write_bytes(bytes(range(256)))
        (tmp / "deep" / "b.txt").write_text("b")
        seal(tmp, "k", provenance(parameters={"seed": 1}, inputs={"x": "y"}, seconds=1.26))
    return folder


def test_current(artefact):
    assert is_current(artefact, "k")
    assert not is_current(artefact, "other")
    assert not is_current(artefact / "nothing", "k")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda f: (f / "a.bin").write_bytes(bytes(range(255)) + b"\0"),
        lambda f: (f / "deep" / "b.txt").unlink(),
        lambda f: (f / "c.txt").write_text(""),
        lambda f: (f / "a.bin").rename(f / "z.bin"),
        lambda f: (f / "provenance.json").unlink(),
        lambda f: (f / "provenance.json").write_text("{"),
        lambda f: (f / "provenance.json").write_text("[]"),
        lambda f: (f / "provenance.json").write_text("{}"),
    ],
)
def test_one_changed_byte_and_it_is_not(artefact, tamper):
    tamper(artefact)
    assert not is_current(artefact, "k")


def test_digest_ignores_the_order_of_keys_alone():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert (
        len(
            {
                digest(x)
                for x in (
                    {"a": 1},
                    {"a": 2},
                    {"a": "1"},
                    {"a": None},
                    {"a": [1]},
                    {"b": 1},
                    {"a": 1.5},
                    [1, 2],
                    [2, 1],
                )
            }
        )
        == 9
    )


def test_file_hash_is_sha256(tmp_path):
    import hashlib

    (tmp_path / "a").write_bytes(b"abc")
    assert (
        file_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()[:16] == "ba7816bf8f01cfea"
    )


# --- code -----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the library that a test may edit: edit(module, old, new) -> the hash of the
    training before and after.
    """
    copy = shutil.copytree(
        PACKAGE, tmp_path / "faithful_sae", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(code, "PACKAGE", copy)

    def edit(module, old, new):
        code_hash.cache_clear()
        before = code_hash("sae/train")
        text = (copy / f"{module}.py").read_text()
        assert old in text
        (copy / f"{module}.py").write_text(text.replace(old, new, 1))
        code_hash.cache_clear()
        return before, code_hash("sae/train")

    yield edit
    code_hash.cache_clear()


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("sae/train", '"""One SAE on its way', '"""Another docstring'),
        ("sae/train", "    def finish(self)", "    # a comment\n\n    def finish(self)"),
        ("sae/sae", '"""The sparse autoencoder', '"""Else'),
    ],
)
def test_comments_and_docstrings_do_not_change_the_code_hash(package, module, old, new):
    before, after = package(module, old, new)
    assert before == after


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("sae/train", "self.n_steps // 10", "self.n_steps // 11"),
        # which the training imports, itself or through others
        ("sae/variants/topk", "1 / 32", "1 / 16"),
        ("sae/variants/topk", "if len(dead):", "if len(dead) > 1:"),
        ("sae/sae", "sorted=False", "sorted=True"),
        ("kernels/screen", "2**-8", "2**-9"),
    ],
)
def test_code_changes_the_code_hash(package, module, old, new):
    before, after = package(module, old, new)
    assert before != after


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("paper/plots/paper", "def ", "def x_"),
        ("metrics/sfr", "0.7", "0.8"),
        # how files are written is not what is in them
        ("files/__init__", "needed * 1.1", "needed * 1.2"),
        ("sae/formats/saelens", "6.0.0", "6.0.1"),
    ],
)
def test_unrelated_code_does_not(package, module, old, new):
    before, after = package(module, old, new)
    assert before == after


def bases(node):
    return node.bases if isinstance(node, ast.ClassDef) else []


def imports(file):
    """Modules of the library that a file imports, but for what declarations of stages need."""
    from faithful_sae import PUBLIC

    names = set()
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if "Stage" not in map(ast.unparse, bases(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.name.removeprefix("faithful_sae.")
                for a in node.names
                if a.name.startswith("faithful_sae.")
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "faithful_sae":
            names |= {PUBLIC.get(a.name, a.name) for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("faithful_sae."):
            module = node.module.removeprefix("faithful_sae.")
            names |= {module} | {f"{module}.{a.name}" for a in node.names}
    places = [PACKAGE / name.replace(".", "/") for name in names]
    return {
        f
        for place in places
        for f in (place.with_suffix(".py"), place / "__init__.py")
        if f.is_file()
    }


@pytest.mark.parametrize(
    "file",
    sorted([*(ROOT / "notebooks").glob("*.py"), *PACKAGE.rglob("*.py")]),
    ids=lambda f: f"{f.parent.name}/{f.name}",
)
def test_lib_files_are_all_that_is_imported(file):
    found = set()
    todo = [file]
    while todo:
        new = imports(todo.pop()) - found
        found |= new
        todo += new
    assert set(lib_files(file)) == found


@pytest.mark.parametrize("notebook", ["03_sfr", "04_ffr", "05_fidelity", "06_probing"])
def test_what_measures_does_not_depend_on_how_saes_are_trained(notebook):
    files = lib_files(ROOT / "notebooks" / f"{notebook}.py")
    assert PACKAGE / "sae" / "train.py" not in files


# --- provenance.json ------------------------------------------------------------------------------


def test_record(artefact):
    import torch
    import transformers

    record = json.loads((artefact / "provenance.json").read_text())
    assert record["key"] == "k"
    assert record["parameters"] == {"seed": 1}
    assert record["inputs"] == {"x": "y"}
    assert record["wall_seconds"] == 1.3
    assert record["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert record["packages"]["transformers"] == transformers.__version__
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()
    assert record["parameters_hash"] == digest({"seed": 1})
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if not head.returncode:
        assert record["git_commit"].rstrip("+") == head.stdout.strip()


def test_no_token_in_any_file(make_run, lm, root, monkeypatch):
    """A secret in the environment must not be found in anything that a run writes."""
    from faithful_sae.stages.corpus import corpus_rows, make_faithful

    secret = "hf_" + "Zq9" * 11
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"):
        monkeypatch.setenv(name, secret)
    run = make_run()
    make_faithful(run, lm)
    corpus_rows(run, "text", lm)
    files = [f for f in root.rglob("*") if f.is_file()]
    assert len([f for f in files if f.name == "provenance.json"]) == 2
    assert not [f for f in files if secret.encode() in f.read_bytes()]
