"""Several workers make the bytes that one process makes, whatever becomes of them, and no two write
the same file.
"""

import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from faithful_sae.engine import gpus
from faithful_sae.engine.plan import activation_marks, text_marks
from faithful_sae.engine.steps import compute_share, keep_activations
from faithful_sae.files import is_current, locked, remove
from faithful_sae.lm import sampling
from faithful_sae.runs.registry import stages
from faithful_sae.stages.corpus import faithful_fingerprint, make_faithful, sample_share
from faithful_sae.stages.model import open_model
from faithful_sae.stages.training import train_all

FORK = multiprocessing.get_context("fork")


def content(folder):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name != "provenance.json"}


def start(function, *args):
    process = FORK.Process(target=function, args=args, daemon=True)
    process.start()
    return process


@pytest.fixture
def one(make_run):
    """A run, and its dataset of 23 shards made by one process, which is then taken away."""
    run = make_run({"generate.tokens": 2000})
    lm = open_model(run)
    files = content(make_faithful(run, lm))
    assert len(files) == 23
    remove(run.artifacts / "faithful")
    return run, lm, files


def noting(monkeypatch, path):
    """generate.sample that writes one line for every shard it samples, whichever process it is in:
    its first random number.
    """
    sample = sampling.sample

    def noted(lm, rows, length, generator, *args):
        with open(path, "a") as log:
            log.write(f"{generator.initial_seed()}\n")
        return sample(lm, rows, length, generator, *args)

    monkeypatch.setattr(sampling, "sample", noted)


@pytest.mark.parametrize("n", [2, 30])
def test_workers_side_by_side_make_the_same_bytes_and_each_shard_once(
    one, monkeypatch, tmp_path, n
):
    run, lm, files = one
    noting(monkeypatch, tmp_path / "log")
    processes = [start(sample_share, run, lm, i, n) for i in range(n)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not (run.artifacts / "faithful").exists(), "01 joins them"
    assert content(make_faithful(run, lm)) == files
    sampled = (tmp_path / "log").read_text().split()
    assert len(sampled) == len(set(sampled)) == 23
    # of a dataset that is there
    compute_share("text", run.file, 0, n, tmp_path / "mark")
    assert (tmp_path / "mark").exists()
    assert len((tmp_path / "log").read_text().split()) == 23


def test_workers_killed_at_random_moments(one):
    """SIGKILL, with two to four workers at a time, and now and then 01, which waits for them."""
    run, lm, files = one
    rng = np.random.default_rng(0)
    left = []
    while not is_current(run.artifacts / "faithful", faithful_fingerprint(run).key):
        n = int(rng.integers(2, 5))
        share = [start(sample_share, run, lm, i, n) for i in range(n)]
        processes = share if len(left) % 4 < 3 else [*share, start(make_faithful, run, lm)]
        time.sleep(rng.uniform(0.1, 0.4))
        for process in processes:
            process.kill()
            process.join()
        left.append(len(list(run.artifacts.glob("faithful*/shard_*.safetensors"))))
        assert len(left) < 100
    assert len(left) >= 3 and left == sorted(left), (
        "it was killed on the way, and lost no finished shard"
    )
    assert content(run.artifacts / "faithful") == files
    assert not list(run.artifacts.glob("*.partial"))


def test_a_shard_that_another_process_is_at_is_left_to_it(one):
    run, lm, _ = one
    shards = run.artifacts / f"faithful-{faithful_fingerprint(run).key}.partial"
    with locked(shards / ".shard_00003.lock"):  # as a worker of a killed run holds it
        start(sample_share, run, lm, 1, 2).join()
        assert sorted(f.name for f in shards.glob("shard_*")) == [
            f"shard_{i:05d}.safetensors" for i in range(1, 23, 2) if i != 3
        ]


def hold(path):
    with locked(path, shared=True):
        time.sleep(600)


def test_01_waits_for_workers_that_are_still_there(one, capfd):
    run, lm, files = one
    worker = start(hold, run.artifacts / ".faithful.lock")
    time.sleep(1)
    process = start(make_faithful, run, lm)
    process.join(2)
    assert process.is_alive()
    assert not list(run.artifacts.glob("faithful*"))
    worker.kill()  # and its lock is gone
    process.join(60)
    assert content(run.artifacts / "faithful") == files
    assert "note: waits for another process" in capfd.readouterr().out


def test_activations_kept_by_workers_are_those_the_training_would_keep(make_run, monkeypatch):
    run = make_run({"sae.tokens": 900, "sae.cache_activations": True})
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    kept = run.artifacts / "activations"
    saes = run.artifacts / "saes"
    folders = {f.name: content(f) for f in kept.iterdir()}
    weights = {name: content(saes / name / "seed42") for name in ("text", "faithful")}
    assert len(folders) == 2
    assert all(len(groups) > 4 for groups in folders.values())
    keep_activations(run, "text", 0, 2)  # SAEs that are there need none
    remove(kept)
    remove(saes)
    # of other parameters: both workers find it in the way
    (kept / "text-layer1-0123456789abcdef").mkdir(parents=True)
    processes = [
        start(keep_activations, run, name, i, 2) for name in ("text", "faithful") for i in range(2)
    ]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {f.name: content(f) for f in kept.iterdir()} == folders
    monkeypatch.setattr(lm, "activations", lambda *_: pytest.fail("computed again"))
    train_all(run, lm)
    assert {name: content(saes / name / "seed42") for name in weights} == weights


def test_who_waits_for_workers(make_run):
    run = make_run()
    caching = run.changed(sae=run.sae.changed(cache_activations=True))
    name = run.sae.train_on[0]
    generating = stages()["01_generate_faithful"]
    assert text_marks(run, generating, 1) == []
    assert activation_marks(caching, name, 1) == []
    assert activation_marks(run, name, 3) == []
    assert text_marks(run, generating, 3) == [
        str(run.artifacts / "workers" / "text" / f"{i}of3") for i in range(3)
    ]
    assert text_marks(caching, stages()["03_sfr"], 3) == []
    assert len(set(activation_marks(caching, name, 3))) == 3


# --- GPUs of one's own ----------------------------------------------------------------------------


def test_two_jobs_never_have_one_gpu(monkeypatch, tmp_path, make_run):
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))

    def visible(n):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
        held = gpus.take(n, seconds=0.01)
        return os.environ["CUDA_VISIBLE_DEVICES"], held

    (first, held), (second, others) = visible(2), visible(1)
    assert (first, second) == ("2,5", "7")
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "2,5,7",
        "TMPDIR": str(tmp_path),
        "FAITHFUL_SAE_GPUS": "own",
    }
    file = make_run({"device": "cuda", "gpus": 2}).file
    command = [
        sys.executable,
        "-m",
        "faithful_sae",
        "with-gpus",
        str(file),
        "sh",
        "-c",
        "echo $CUDA_VISIBLE_DEVICES",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5)  # for two
    others["7"].close()
    held["5"].close()
    assert process.communicate(timeout=60)[0] == "5,7\n"
    with pytest.raises(SystemExit, match="gpus: 4 were asked for, and there are 3 here"):
        visible(4)
    assert visible(0) == ("2,5,7", {}), "nothing is taken, nothing is hidden"
    del environment["FAITHFUL_SAE_GPUS"]
    alone = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert alone.stdout == "2,5,7\n", "a cluster has chosen"


def test_more_gpus_make_room_and_no_other_key(make_run):
    run = make_run({"device": "cuda", "gpus": 2})
    one = run.changed(gpus=1)
    assert faithful_fingerprint(run).key == faithful_fingerprint(one).key
    assert torch.get_num_threads() == 1
