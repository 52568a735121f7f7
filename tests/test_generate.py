"""Sampling follows the model's own distribution, cached decoding equals none, and interruption
leaves no trace.
"""

import copy
import json
import multiprocessing
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from conftest import ARCHITECTURES, BOS, CONTEXT, EOS, make_model, make_tokenizer
from faithful_sae.files import DiskFullError, MissingInputError, is_current
from faithful_sae.lm import sampling
from faithful_sae.lm.decoding import Decoder
from faithful_sae.lm.model import LanguageModel, ModelError
from faithful_sae.stages.corpus import faithful_fingerprint, make_faithful, read_shards
from faithful_sae.stages.model import model_key, open_model

V, DRAWS = 12, 20_000


@pytest.fixture(scope="module")
def small():
    """A Llama with 12 tokens (and 8 padding rows), so that every one of them is drawn often."""
    return LanguageModel(
        make_model("llama", V, seed=1, spread=0.4).eval(), make_tokenizer(V), 1, BOS
    )


def after(lm, ids):
    """The model's float64 distribution of the next token, from a plain forward pass."""
    with torch.no_grad():
        scores = (
            lm.model(torch.tensor([ids]), use_cache=False)
            .logits[0, -1, : lm.vocab_size]
            .double()
            .numpy()
        )
    p = np.exp(scores - scores.max())
    return p / p.sum()


def first_counts(lm, **options):
    documents = sampling.sample(lm, DRAWS, 1, torch.Generator().manual_seed(0), **options)
    assert all(len(d) == 1 and d.dtype == np.int32 for d in documents)
    return np.bincount(np.concatenate(documents), minlength=V)


def fits(counts, p):
    """Chi-square p-value of counts under p; impossible tokens must not occur, rare ones are
    pooled.
    """
    assert len(counts) == V
    assert not counts[p == 0].any()
    common = p * DRAWS >= 5
    seen = counts[common].tolist()
    expected = (p[common] * DRAWS).tolist()
    if (rest := p[~common].sum()) > 0:
        seen.append(counts[~common].sum())
        expected.append(rest * DRAWS)
    return chisquare(seen, expected).pvalue


def test_first_token_follows_the_bos_distribution(small):
    p = after(small, [BOS])
    counts = first_counts(small)
    assert fits(counts, p) > 1e-4
    assert (
        fits(counts, np.full(V, 1 / V)) < 1e-10 and fits(counts, np.roll(p, 1)) < 1e-10
    )  # the test can fail


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(small, temperature):
    p = after(small, [BOS]) ** (1 / temperature)
    counts = first_counts(small, temperature=temperature)
    assert fits(counts, p / p.sum()) > 1e-4 > fits(counts, after(small, [BOS]))


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.6, 0.9])
def test_top_p_keeps_the_smallest_sufficient_set(small, top_p):
    p = after(small, [BOS])
    order = np.argsort(-p)
    n = next(n for n in range(1, V + 1) if p[order[:n]].sum() >= top_p)
    kept = np.where(np.isin(np.arange(V), order[:n]), p, 0)
    counts = first_counts(small, top_p=top_p)
    assert set(np.flatnonzero(counts)) <= set(order[:n])
    assert n < V
    if n > 1:
        assert fits(counts, kept / kept.sum()) > 1e-4


def test_flat_first_token(small):
    assert fits(first_counts(small, first_token="flat"), np.full(V, 1 / V)) > 1e-4
    assert (
        fits(first_counts(small, first_token="flat", temperature=0.2, top_p=0.5), np.full(V, 1 / V))
        > 1e-4
    )


def test_second_token_follows_its_first(small):
    """Transitions of 20,000 documents against a forward pass per first token; also the only place
    where rows drop out.
    """
    documents = sampling.sample(small, DRAWS, 2, torch.Generator().manual_seed(3))
    checked = 0
    for first in range(V):
        seconds = [d[1] for d in documents if d[0] == first and len(d) > 1]
        if first in (BOS, EOS):
            assert not seconds
        elif len(seconds) > 500:
            p = after(small, [BOS, first])
            common = p * len(seconds) >= 5
            counts = np.bincount(seconds, minlength=V)
            seen = np.append(counts[common], counts[~common].sum())
            expected = np.append(p[common], p[~common].sum()) * len(seconds)
            use = expected > 0
            assert chisquare(seen[use], expected[use]).pvalue > 1e-4
            checked += 1
    assert checked >= 4


def with_varied_ends(architecture):
    """The first random model whose greedy documents have four different lengths."""
    return next(
        lm
        for seed in range(100)
        for lm in [
            LanguageModel(
                make_model(architecture, 24, seed, 0.5).eval(), make_tokenizer(24), 1, BOS
            )
        ]
        if len({len(rollout(lm, first)) for first in range(24)}) >= 4
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_decoding_equals_none(architecture):
    """Greedy (temperature near 0) from a uniform first token: rows end at different times, as a
    plain rollout of each says.
    """
    lm = with_varied_ends(architecture)
    documents = sampling.sample(
        lm, 20, 14, torch.Generator().manual_seed(1), temperature=1e-4, first_token="flat"
    )
    expected = [rollout(lm, d[0]) for d in documents]
    assert [d.tolist() for d in documents] == expected
    assert (
        len({len(e) for e in expected}) >= 3 and max(map(len, expected)) > 8
    )  # Gemma's window of 6 is passed


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: MistralForCausalLM(MistralConfig(num_key_value_heads=1, sliding_window=6, **o)),
        lambda **o: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **o)),
        lambda **o: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=1, head_dim=12, **o)),
    ],
    ids=["mistral", "qwen2", "qwen3"],
)
def test_other_models_that_decode_alike(make):
    torch.manual_seed(2)
    model = make(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    lm = LanguageModel(model.eval(), make_tokenizer(24), 1, BOS)
    documents = sampling.sample(
        lm, 24, 14, torch.Generator().manual_seed(1), temperature=1e-4, first_token="flat"
    )
    assert [d.tolist() for d in documents] == [rollout(lm, d[0]) for d in documents]
    assert max(map(len, documents)) > 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_gets_its_attention_back(architecture):
    model = make_model(architecture, 24).eval()
    own = model.config._attn_implementation
    with pytest.raises(KeyboardInterrupt), Decoder(model, 2, 5):
        assert model.config._attn_implementation == "one_token"
        raise KeyboardInterrupt
    assert model.config._attn_implementation == own != "one_token"


def test_a_model_whose_attention_is_not_known(small):
    model = copy.deepcopy(small.model)
    model.config.model_type = "gpt_oss"
    with pytest.raises(
        ModelError,
        match=r"the attention of a model of type 'gpt_oss' is not known to be the one computed her",
    ):
        Decoder(model, 2, 5)


def test_a_document_that_ends_makes_room_for_the_next(monkeypatch):
    """Rows at places of their own: every document is what its ids alone lead to, no row waits for
    another, first come, first given.
    """
    lm = with_varied_ends("llama")
    passes = []
    rows = 7
    drawn = []
    draw = sampling.draw_tokens
    monkeypatch.setattr(
        sampling, "draw_tokens", lambda *a: drawn.append(draw(*a)) or drawn[-1].clone()
    )
    documents = sampling.sample(
        lm,
        rows,
        14,
        torch.Generator().manual_seed(4),
        temperature=1e-4,
        first_token="flat",
        tokens=300,
        progress=passes.append,
    )
    assert [d.tolist() for d in documents] == [rollout(lm, d[0]) for d in documents]
    assert len(documents) > 3 * rows
    assert sum(passes) == sum(map(len, documents)) >= 300
    assert len({len(d) for d in documents}) >= 3
    assert [d[0] for d in documents[:rows]] == drawn[0].flatten().tolist()
    assert [len(d) for d in documents] != sorted(map(len, documents))
    full = -(-300 // rows)
    assert passes[:full] == [rows] * full
    assert sorted(passes[full:], reverse=True) == passes[full:]
    assert len(passes) <= full + 14


def test_lengths_are_those_of_the_model(small):
    """What is begun is finished: with a budget, long documents are neither more nor less frequent
    than one at a time.
    """
    refilled = [
        d
        for seed in range(60)
        for d in sampling.sample(small, 20, 9, torch.Generator().manual_seed(seed), tokens=300)
    ]
    alone = sampling.sample(small, DRAWS, 9, torch.Generator().manual_seed(100))
    counts = np.array(
        [np.bincount([len(d) for d in ds], minlength=10)[1:] for ds in (refilled, alone)]
    )
    assert chi2_contingency(counts).pvalue > 1e-4
    assert (counts > 20).all()


def test_logits_that_are_not_numbers_stop_the_sampling(small):
    model = make_model("gpt2", 24).eval()
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        sampling.sample(
            LanguageModel(model, make_tokenizer(24), 1, BOS), 3, 4, torch.Generator().manual_seed(0)
        )


def rollout(lm, first, length=14):
    """Arg-max continuation of [BOS, first], each step a full forward pass without cache."""
    ids = [BOS, int(first)]
    while len(ids) <= length and ids[-1] not in (BOS, EOS):
        ids.append(int(after(lm, ids).argmax()))
    return ids[1:]


def test_documents_end_at_eos_or_bos(small):
    documents = sampling.sample(small, 500, 9, torch.Generator().manual_seed(2))
    for d in documents:
        assert 1 <= len(d) <= 9
        assert not np.isin(d[:-1], (BOS, EOS)).any()
        assert (d >= 0).all()
        assert (d < V).all()
        assert len(d) == 9 or d[-1] in (BOS, EOS)
    assert {BOS, EOS} <= {d[-1] for d in documents}
    assert len({len(d) for d in documents}) > 5


def test_the_generator_is_the_only_source_of_randomness(small):
    def draw(seed):
        return [
            d.tolist() for d in sampling.sample(small, 20, 9, torch.Generator().manual_seed(seed))
        ]

    torch.manual_seed(0)
    first = draw(5)
    torch.manual_seed(1)
    assert draw(5) == first != draw(6)


# --- the dataset ----------------------------------------------------------------------------------


def content(folder):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.name != "provenance.json"}


@pytest.fixture
def finished(make_run, lm):
    """A run, and the files of a generation that nothing interrupted (300 tokens in shards of 90:
    four shards).
    """
    run = make_run()
    folder = make_faithful(run, lm)
    files = content(folder)
    assert sorted(files) == [f"shard_0000{i}.safetensors" for i in range(4)]
    assert is_current(folder, faithful_fingerprint(run).key)
    return run, files


def test_documents_come_back_as_sampled(finished, lm):
    run, _ = finished
    g = run.generate
    expected = []
    for shard, wanted in enumerate((90, 90, 90, 30)):
        seed = int(np.random.SeedSequence([g.seed, shard]).generate_state(1, np.uint64)[0] >> 1)
        expected += sampling.sample(
            lm, g.batch_rows, g.max_new_tokens, torch.Generator().manual_seed(seed), tokens=wanted
        )
    got = list(read_shards(run))
    assert [d.tolist() for d in got] == [d.tolist() for d in expected]
    assert sum(map(len, got)) >= g.tokens


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_killed_in_the_middle(finished, lm, root, monkeypatch, calls):
    run, files = finished
    folder = run.artifacts / "faithful"
    for f in folder.iterdir():
        f.unlink()
    folder.rmdir()
    sample = sampling.sample
    left = [calls]

    def dies(*args, **options):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return sample(*args, **options)

    monkeypatch.setattr(sampling, "sample", dies)
    with pytest.raises(KeyboardInterrupt):
        make_faithful(run, lm)
    assert not folder.exists()
    monkeypatch.setattr(sampling, "sample", sample)
    assert content(make_faithful(run, lm)) == files
    assert sorted(p.name for p in run.artifacts.iterdir()) == [
        ".faithful.lock",
        "faithful",
    ]  # nothing partial is left


def test_killed_at_random_moments(make_run, lm):
    """SIGKILL, so that no handler can tidy up, while some twenty shards are sampled and written."""
    whole = make_run({"generate.tokens": 2000}, "whole")
    files = content(make_faithful(whole, lm))
    run = make_run({"generate.tokens": 2000}, "killed")
    rng = np.random.default_rng(0)
    left = []
    longest = 0.15
    while not is_current(run.artifacts / "faithful", faithful_fingerprint(run).key):
        process = multiprocessing.get_context("fork").Process(target=make_faithful, args=(run, lm))
        process.start()
        process.join(rng.uniform(0.02, longest))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        assert len(left) < 500
        # on a busy machine nothing is done so soon
        if len(left) >= 10 and len({*left[-10:]}) == 1:
            longest *= 2
        left.append(len(list(run.artifacts.glob("faithful*/shard_*.safetensors"))))
    assert (
        len(left) >= 3 and left == sorted(left) and len(set(left)) > 2
    )  # it was killed on the way, and lost no finished shard
    assert content(run.artifacts / "faithful") == files
    assert len(files) == 23


def test_a_lost_shard_alone_is_made_again(finished, lm, monkeypatch):
    run, files = finished
    folder = run.artifacts / "faithful"
    partial = folder.rename(folder.with_name(f"faithful-{faithful_fingerprint(run).key}.partial"))
    (partial / "provenance.json").unlink()
    (partial / "shard_00002.safetensors").unlink()
    calls = []
    sample = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *a, **o: calls.append(1) or sample(*a, **o))
    assert content(make_faithful(run, lm)) == files
    assert len(calls) == 1


def test_a_finished_dataset_is_not_made_again(finished, lm, monkeypatch):
    run, files = finished
    monkeypatch.setattr(sampling, "sample", lambda *a, **o: pytest.fail("sampled again"))
    assert content(make_faithful(run, lm)) == files


def test_another_key_or_a_damaged_shard_makes_it_again(make_run, finished, lm):
    run, files = finished
    shard = run.artifacts / "faithful" / "shard_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert not is_current(shard.parent, faithful_fingerprint(run).key)
    assert content(make_faithful(run, lm)) == files
    other = make_run({"generate.seed": 6})
    assert other.artifacts == run.artifacts
    assert content(make_faithful(other, lm)) != files


def test_provenance_says_how(finished):
    run, _ = finished
    record = json.loads((run.artifacts / "faithful" / "provenance.json").read_text())
    assert record["key"] == faithful_fingerprint(run).key
    assert record["parameters"]["generate"]["seed"] == 5
    assert record["inputs"] == {"model": model_key(run)}


def test_missing_dataset_names_the_notebook(make_run):
    with pytest.raises(MissingInputError, match="01_generate_faithful for handmade/tiny"):
        next(read_shards(make_run()))


def test_context_leaves_room_for_bos(make_run):
    too_long = rf"max_new_tokens = {CONTEXT} exceeds the context of .*, {CONTEXT} tokens: BOS takes"
    with pytest.raises(ModelError, match=too_long):
        open_model(make_run({"generate.max_new_tokens": CONTEXT}))
    run = make_run({"generate.max_new_tokens": CONTEXT - 1})
    make_faithful(run, open_model(run))


def test_no_room_on_the_disk(make_run, lm):
    with pytest.raises(DiskFullError, match="faithful dataset needs about"):
        make_faithful(make_run({"generate.tokens": 10**17}), lm)


def test_no_room_in_memory(make_run, lm, monkeypatch):
    """Llama: 3 + 2 layers x 1 head x 8 numbers x 2 (keys, values) x 4 bytes x 64 tokens (a tile) =
    20,480 bytes a row; 24 a logit.
    """
    run = make_run({"generate.batch_rows": 100})
    per_row = 20480 + 24 * lm.model.config.vocab_size
    monkeypatch.setattr(
        sampling.psutil, "virtual_memory", lambda: SimpleNamespace(available=99 * per_row / 0.9 + 1)
    )
    with pytest.raises(
        MemoryError, match=r"generate.batch_rows = 100 needs .* at most 99 rows fit"
    ):
        make_faithful(run, lm)
    assert not list(run.artifacts.glob("faithful*/shard*"))


# --- drawing tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [1, 5, 256, 257, 1000, 49_152])
@pytest.mark.parametrize("sharpness", [0.0, 3.0, 15.0])
def test_a_token_is_where_the_distribution_function_passes_the_random_number(vocabulary, sharpness):
    """Against numpy, in one sum over the whole vocabulary; some tokens cannot be drawn."""
    rng = np.random.default_rng(vocabulary)
    p = np.exp(sharpness * rng.normal(size=(64, vocabulary))).astype(np.float32)
    p[:, rng.random(vocabulary) < 0.3] = 0
    p[:, vocabulary // 2] += 1e-3
    drawn = sampling.draw_tokens(torch.from_numpy(p), torch.Generator().manual_seed(3))
    u = torch.rand(64, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    cdf = p.astype(float).cumsum(1)
    expected = [
        np.searchsorted(row, x[0] * row[-1], side="right") for row, x in zip(cdf, u, strict=True)
    ]
    assert drawn[:, 0].tolist() == expected
    assert drawn.shape == (64, 1)
    assert (p[np.arange(64), drawn[:, 0]] > 0).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_are_tokens_that_can_be_drawn(monkeypatch, u):
    p = torch.zeros(1, 1000)
    p[0, [300, 600]] = torch.tensor([0.1, 0.2])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[u]], dtype=torch.float64))
    drawn = sampling.draw_tokens(p, torch.Generator())
    assert drawn.item() == (300 if u == 0 else 600)


def test_logits_that_are_not_finite_are_refused():
    p = torch.ones(2, 300)
    p[1, 299] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        sampling.draw_tokens(p, torch.Generator())
