"""The embedded language models: exact resumption, what the optimiser computes, formats."""

import filecmp
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.lm import embedded
from faithful_sae.lm.embedded import evaluate, initialise, train_language_model, train_tokenizer
from faithful_sae.stages.s01_generate_faithful import Embedded

TEXTS = [
    "the sum of the array along the axis",
    "the mean of the array along an axis",
    "naïve ☃ text\n\twith >>> code(x)",
] * 3


def config(**changes):
    return Embedded(
        **dict(
            corpus="text",
            architecture="gpt_neox",
            vocab_size=260,
            d_model=16,
            d_mlp=32,
            n_layers=2,
            n_heads=2,
            context=16,
            train_tokens=640,
            steps=30,
            batch_rows=4,
            lr=2e-2,
            warmup_steps=5,
            weight_decay=0.1,
            seed=0,
        )
        | changes
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 260)


@pytest.fixture(scope="module")
def rows():
    """Rows a model can learn: after BOS, every token is the one before plus one."""
    starts = np.random.default_rng(0).integers(1, 200, size=40)
    return np.column_stack([np.zeros(40, np.int64), starts[:, None] + np.arange(15)])


def test_tokenizer_round_trips_and_reloads(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab() == train_tokenizer(TEXTS, 260).get_vocab()
    assert len(again) == 260
    for text in [*TEXTS, "an unseen é字 character , with spaces  ."]:
        ids = again(text).input_ids
        assert again.decode(ids) == text
        assert again.bos_token_id not in ids
    assert again.bos_token == again.eos_token == "<|endoftext|>"
    assert again.bos_token_id == again.eos_token_id == 0


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_learns_and_saves_what_it_measured(tmp_path, tokenizer, rows, architecture):
    c = config(architecture=architecture, steps=60)
    log = train_language_model(
        c, rows[:32], rows[32:], tokenizer, tmp_path / "lm", 0, "key", progress=False
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert model.config.model_type == architecture
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert evaluate(model, torch.as_tensor(rows[32:]), 3) == pytest.approx(
        log.heldout_ce.iloc[-1], rel=1e-5
    )
    assert log.train_ce.iloc[0] == pytest.approx(math.log(260), rel=0.05)
    assert log.heldout_ce.iloc[-1] < 0.75 * math.log(260)
    assert log.tokens.iloc[-1] == 60 * 4 * 16
    assert list(log.columns) == [
        "step",
        "tokens",
        "train_ce",
        "heldout_ce",
    ]
    assert log.heldout_ce.notna().sum() == 5
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_killed_run_resumes_to_the_same_bytes(tmp_path, tokenizer, rows, architecture, monkeypatch):
    arguments = config(architecture=architecture), rows[:32], rows[32:], tokenizer
    train_language_model(*arguments, tmp_path / "whole", 0, "key", progress=False)
    loss = embedded.cross_entropy
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) == 30:  # in the middle, and not at a checkpoint
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(embedded, "cross_entropy", killed)
    with pytest.raises(KeyboardInterrupt):
        train_language_model(*arguments, tmp_path / "resumed", 0, "key", progress=False)
    assert (tmp_path / "resumed.partial").exists()
    assert not (tmp_path / "resumed").exists()
    train_language_model(*arguments, tmp_path / "resumed", 0, "key", progress=False)
    assert (
        len(calls) < 30 + 30
    )  # it did not start again: 30 steps and 10 evaluation batches make 40
    files = [
        "model.safetensors",
        "config.json",
        "training.csv",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (
        filecmp.cmpfiles(tmp_path / "whole", tmp_path / "resumed", files, shallow=False)[0] == files
    )


def test_checkpoint_of_another_run_is_not_resumed(tmp_path, tokenizer, rows):
    c = config()
    model = initialise(c, 0)
    state = embedded._state(model, embedded.optimisers(model, c))
    numbers = {"log": [], "losses": []}
    Checkpoint(tmp_path / "lm.partial", "another").save(29, state, numbers)
    log = train_language_model(
        c, rows[:32], rows[32:], tokenizer, tmp_path / "lm", 0, "key", progress=False
    )
    assert log.step.iloc[0] == 1


def test_seed_decides_weights_and_order():
    weights = [initialise(config(), seed).get_input_embeddings().weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    order = embedded._order(10, config(steps=5, batch_rows=4), 0)
    assert (
        sorted(order.flatten()[:10].tolist())
        == sorted(order.flatten()[10:].tolist())
        == list(range(10))
    )
    assert not torch.equal(order, embedded._order(10, config(steps=5, batch_rows=4), 1))


def test_orthogonalise_moves_singular_values_to_one():
    x = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    for matrices in (x, x.mT):
        y = embedded.orthogonalise(matrices)
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        values = torch.linalg.svdvals(y)
        assert values.min() > 0.6
        assert values.max() < 1.3
        cosine = torch.cosine_similarity(y.flatten(1), (u @ v).flatten(1))
        assert cosine.min() > 0.95


def test_muon_step_is_that_of_torch():
    """torch.optim.Muon orthogonalises in bfloat16; otherwise the two must take the same steps."""
    torch.manual_seed(0)
    ours = [
        torch.randn(12, 20, requires_grad=True),
        torch.randn(20, 12, requires_grad=True),
        torch.randn(12, 20, requires_grad=True),
    ]
    theirs = [w.detach().clone().requires_grad_() for w in ours]
    start = [w.detach().clone() for w in ours]
    a = embedded.Muon(ours, lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(3):
        for w, v in zip(ours, theirs, strict=True):
            w.grad = torch.randn(w.shape)
            v.grad = w.grad.clone()
        a.step()
        b.step()
    for w, v, s in zip(ours, theirs, start, strict=True):
        assert (w - v).norm() < 0.02 * (w - s).norm()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c, r: train_language_model(c, r[:0], r, None, "lm", 0, "key"),
            r"rows must have shape.*\[0, 16\]",
        ),
        (
            lambda c, r: train_language_model(c, r, np.tile(r, 2), None, "lm", 0, "key"),
            "heldout_rows must have shape",
        ),
        (
            lambda c, r: train_language_model(c, r + 250, r, None, "lm", 0, "key"),
            "rows must hold ids in 0..259",
        ),
        (
            # which Embedded refuses by itself
            lambda c, r: initialise(c.model_copy(update={"architecture": "gpt2"}), 0),
            "gpt_neox or llama.*gpt2",
        ),
        (lambda c, r: train_tokenizer(TEXTS, 100), "vocab_size = 100 must be at least 257"),
    ],
)
def test_bad_input(rows, change, message):
    with pytest.raises(ValueError, match=message):
        change(config(), rows)
