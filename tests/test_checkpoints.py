"""A training that is killed, at any moment and any number of times, ends with the bytes of one that
was not.
"""

import multiprocessing
import re
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch

from faithful_sae import train_saes
from faithful_sae.files import DiskFullError, remove_others
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.sae.activations import ActivationStream

D, TOKENS, BATCH = 8, 8_000, 40
ROWS = np.random.default_rng(0).integers(1, 60, (40, 20)).astype(np.int32)


class Embedding(Any):
    """Stands in for a language model: the activation of a token is a random vector of its own."""

    d_model = D
    device = torch.device("cpu")
    bos_id = 0
    table = torch.randn(60, D, generator=torch.Generator().manual_seed(0))

    def activations(self, ids):
        return self.table[ids]


def train(checkpoint, lr=5e-3):
    stream = ActivationStream(
        Embedding(),
        ROWS,
        n_tokens=TOKENS,
        batch_tokens=BATCH,
        buffer_tokens=300,
        lm_batch_rows=4,
        include_bos=False,
        seed=1,
    )
    return train_saes(
        stream,
        D,
        [24, 400, 24],
        [2, 1, 2],
        [5, 5, 6],
        lr,
        [TOKENS, TOKENS, 2690],
        BATCH,
        checkpoint=checkpoint,
    )


def everything(sae):
    return [w.numpy().tobytes() for w in (*sae.weights.values(), sae.firing)] + [
        sae.training_log.to_csv()
    ]


@pytest.fixture(scope="module")
def uninterrupted():
    """Of an SAE that has dead latents nearly all the time, so that what it learns depends on which
    they are, and two that have not.
    """
    saes = train(None)
    assert (saes[1].training_log.dead > 0).mean() > 0.5
    return [everything(sae) for sae in saes]


def test_killed_at_random_moments(tmp_path, uninterrupted):
    """SIGKILL, so that no handler can tidy up; a child that gets to its end saves the SAEs."""

    def child():
        for sae in train(Checkpoint(tmp_path / "checkpoint", "key", every=0)):
            sae.save(tmp_path / "done" / f"{sae.metadata['seed']}-{sae.d_sae}")

    rng = np.random.default_rng(0)
    kills = 0
    steps = []
    while True:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(rng.uniform(0.02, 0.25))
        if process.exitcode == 0:
            break
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        assert kills < 500
        saved = Checkpoint(tmp_path / "checkpoint", "key").load()
        steps.append(saved[0] if saved else 0)
        if process.exitcode == 0:
            break
    assert (
        kills >= 3 and steps == sorted(steps) and len(set(steps)) > 2
    )  # it was killed on the way, and never fell back
    resumed = train(
        Checkpoint(tmp_path / "checkpoint", "key", every=0)
    )  # from the last checkpoint on
    assert [everything(sae) for sae in resumed] == uninterrupted


def test_every_checkpoint_leads_to_the_same_end(tmp_path, uninterrupted, monkeypatch):
    """Broken off right after each of several savings."""

    class Broken(Exception):
        pass

    save = Checkpoint.save
    count = []

    def save_and_break(self, *args):
        save(self, *args)
        count.append(args[0])
        if len(count) % 3 == 0:
            raise Broken

    monkeypatch.setattr(Checkpoint, "save", save_and_break)
    # however long the last saving took
    monkeypatch.setattr(Checkpoint, "due", True)
    saes = []
    for _ in range(100):
        try:
            saes = train(Checkpoint(tmp_path / "checkpoint", "key", every=0))
            break
        except Broken:
            continue
    assert len(count) > 9
    assert count == sorted(set(count))
    assert [everything(sae) for sae in saes] == uninterrupted


def test_a_checkpoint_of_another_training_is_not_used(tmp_path, uninterrupted):
    train(Checkpoint(tmp_path / "checkpoint", "key", every=0), lr=1e-2)
    assert Checkpoint(tmp_path / "checkpoint", "other").load() is None
    assert [
        everything(sae) for sae in train(Checkpoint(tmp_path / "checkpoint", "other"))
    ] == uninterrupted


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"\xff" * len(b),
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b.replace(b'"step"', b'"stop"'),
        # another number, whichever checkpoint was the last
        lambda b: re.sub(rb'(\\"given\\": )(\d)', lambda m: m[1] + b"%d" % (9 - int(m[2])), b),
    ],
)
def test_a_damaged_checkpoint_starts_again_and_says_so(tmp_path, uninterrupted, capsys, damage):
    path = tmp_path / "checkpoint"
    train(Checkpoint(path, "key", every=0))
    path.write_bytes(damage(path.read_bytes()))
    assert [everything(sae) for sae in train(Checkpoint(path, "key"))] == uninterrupted
    assert "damaged" in capsys.readouterr().out


def test_checkpoints_of_other_corpora_are_left_alone(tmp_path):
    """`faithful` starts anew: its old checkpoint goes, those of `faithful-neox`, whose name begins
    alike, stay.
    """
    names = [
        "faithful-0123.partial",
        "faithful-4567.partial",
        "faithful-neox-0123.partial",
        "library-0123.partial",
        "faithful-0123",
        "c4.en-layer1-0123",
        "c4.en-layer2-0123",
        "c4.en-layer1-4567",
    ]
    for name in names:
        (tmp_path / name).touch()
    remove_others(tmp_path / "faithful-4567.partial")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])
    remove_others(tmp_path / "c4.en-layer1-4567", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {*names[1:]} - {"c4.en-layer1-0123"}
    )


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "checkpoint", "key")
    checkpoint.save(3, {"a": torch.arange(4)}, {"x": [0.1]})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("faithful_sae.files.checkpoint.save_file", full)
    with pytest.raises(DiskFullError):
        checkpoint.save(4, {"a": torch.arange(5)}, {})
    saved = Checkpoint(tmp_path / "checkpoint", "key").load()
    assert saved is not None
    step, tensors, numbers = saved
    assert step == 3
    assert torch.equal(tensors["a"], torch.arange(4))
    assert numbers == {"x": [0.1]}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_loss_that_is_not_finite_names_the_checkpoint(tmp_path, monkeypatch):
    """A window is 12 rows in 3 groups, 240 activations, 6 batches; the third window is bad."""
    checkpoint = Checkpoint(tmp_path / "checkpoint", "key", every=0)
    read = Embedding.activations
    calls = []

    def broken(self, ids):
        calls.append(ids)
        # finite, but their squares are not
        return read(self, ids) * (1 if len(calls) <= 6 else 1e30)

    monkeypatch.setattr(Embedding, "activations", broken)
    with pytest.raises(
        FloatingPointError,
        match=r"seed 5: the loss is (inf|nan) at step 12: .*the last good checkpoint is "
        ".*checkpoint, step",
    ) as error:
        train(checkpoint)
    saved = Checkpoint(tmp_path / "checkpoint", "key").load()
    assert saved is not None
    assert saved[0] in (6, 12)
    assert str(error.value).endswith(f"step {saved[0]}")


def test_savings_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "checkpoint", "key", every=60)
    assert not checkpoint.due
    now[0] = 61
    assert checkpoint.due
    monkeypatch.setattr(
        "faithful_sae.files.checkpoint.save_file",
        lambda tensors, path, about: (path.write_bytes(b""), now.__setitem__(0, now[0] + 30)),
    )
    checkpoint.save(1, {}, {})
    now[0] += 599
    assert not checkpoint.due  # it took 30 s: 600 s from one to the next
    now[0] += 2
    assert checkpoint.due
