"""What documents are sampled after (generate.start): BOS, any text, a chat turn; and a flat first
token behind each.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import chisquare

from conftest import BOS, EMBEDDED, EOS, make_tokenizer
from faithful_sae.engine.problems import problems
from faithful_sae.lm.model import ModelError
from faithful_sae.lm.sampling import end_ids, sample, start_ids
from faithful_sae.runs.keys import settings
from faithful_sae.runs.rows import read_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import (
    corpus,
    make_faithful,
    read_shards,
    sampled_documents,
    start_of,
)
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s05_fidelity import corpus_cross_entropy
from test_all_models import PNG, execute
from test_any_model import make, rollout, sample_likeliest

MANY = {"generate.tokens": 3000, "generate.batch_rows": 64, "generate.shard_tokens": 3000}
TEMPLATE = (
    "{% for m in messages %}<bos> w3 {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> w4{% endif %}"
)
CHAT = [BOS, 3, EOS, BOS, 4]


def tokenizer(chat=False, **special):
    made = make_tokenizer(64, **special)
    if chat:
        made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize(
    ("start", "ids"),
    [
        (None, [7]),
        ("bos", [BOS]),
        ("<eos>", [EOS]),
        ("w5", [5]),
        ("<bos> w9 w5", [BOS, 9, 5]),
        ("chat", CHAT),
    ],
)
def test_the_ids_of_a_start(start, ids):
    assert start_ids(tokenizer(chat=True), 7, start, "model") == ids


@pytest.mark.parametrize(
    ("start", "special", "said"),
    [
        (
            "bos",
            {"eos_token": "<eos>"},
            "its tokenizer has no BOS: write a token .* start: '<eos>'",
        ),
        ("chat", {}, "its tokenizer has no chat template"),
        ("\t", {}, r"generate\.start = '\\t' has no token"),
    ],
)
def test_a_start_that_a_tokenizer_has_not(start, special, said):
    with pytest.raises(ModelError, match=f"^model: .*{said}"):
        start_ids(tokenizer(**special), 0, start, "model")


def test_a_single_special_token_ends_a_document_where_it_begins_one():
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["w9"]})
    assert end_ids(made, [9]) == {BOS, EOS, 9}
    assert end_ids(made, [9, 5]) == {BOS, EOS}
    assert end_ids(made, [5]) == {BOS, EOS}


@pytest.mark.parametrize("kind", ["llama", "opt", "bloom"])
@pytest.mark.parametrize("start", [[5, BOS, 9], [BOS, 3, EOS, BOS, 4]])
def test_documents_go_on_from_a_start(kind, start):
    """Rows end, begin anew, and drop out at different times, each behind the whole start."""
    lm = make(kind)
    documents = sample_likeliest(lm, 5, 8, start=start)
    assert sum(map(len, documents)) >= 70
    assert len(documents) > 8
    assert [d.tolist() for d in documents] == [rollout(lm, int(d[0]), 8, start) for d in documents]


def test_a_start_of_bos_is_the_default():
    lm = make("llama", spread=0.3)
    plain, given = (
        sample(lm, 6, 12, torch.Generator().manual_seed(3), tokens=200, start=start)
        for start in (None, [BOS])
    )
    assert [d.tolist() for d in plain] == [d.tolist() for d in given]


@pytest.mark.parametrize("first_token", ["bos", "flat"])
def test_first_tokens_follow_the_models_distribution_after_the_start(first_token):
    """A vocabulary of 24, and a chi-square of 20,000 first tokens; after BOS alone they differ."""
    lm = make("llama", spread=0.3)
    start = [BOS, 7, 11]
    documents = sample(
        lm, 20_000, 1, torch.Generator().manual_seed(2), first_token=first_token, start=start
    )
    counts = np.bincount(np.concatenate(documents), minlength=24)
    p = lm.next_distribution(start).numpy()
    with torch.no_grad():
        logits = lm.model(torch.tensor([start]), use_cache=False).logits[0, -1].double()
    np.testing.assert_allclose(p, logits.softmax(-1).numpy(), rtol=1e-6)
    p = np.full(24, 1 / 24) if first_token == "flat" else p
    assert chisquare(counts, p * 20_000).pvalue > 1e-4
    assert chisquare(counts, lm.bos_distribution().numpy() * 20_000).pvalue < 1e-10


def with_tokenizer(make_run, tmp_path, made, changes):
    """A run on the tiny Llama with another tokenizer."""
    run = make_run(changes)
    lm = open_model(run)
    folder = tmp_path / "model"
    lm.model.save_pretrained(folder)
    made.save_pretrained(folder)
    return make_run(changes | {"model": str(folder)})


def test_a_runs_text_after_a_start(make_run):
    run = make_run(MANY | {"generate.start": "w5 w6", "generate.tokens": 600})
    lm = open_model(run)
    assert start_of(run, lm) == [5, 6]
    make_faithful(run, lm)
    documents = list(read_shards(run))
    assert sum(map(len, documents)) >= 600
    kept = list(sampled_documents(run, lm))
    assert len(kept) <= len(documents)
    rows = corpus(run, "faithful", lm)
    assert (rows.train[:, 0] == BOS).all()
    # as it was sampled: after the start, whose own tokens are not measured
    measured = corpus_cross_entropy(run, lm).set_index("corpus")
    losses = []
    for ids in documents[: run.fidelity.ce_rows]:
        with torch.no_grad():
            logits = lm.model(torch.tensor([[5, 6, *ids]]), use_cache=False).logits[0].double()
        log_p = logits.log_softmax(-1)[2:-1]
        before = torch.tensor(ids[:-1].astype(np.int64)) != BOS
        losses += (-log_p.gather(-1, torch.tensor(ids[1:, None].astype(np.int64)))[:, 0])[
            before
        ].tolist()
    assert measured.ce_as_sampled["faithful"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_start_is_in_the_key_of_the_text_and_its_absence_is_not(make_run):
    assert "start" not in settings(make_run(), ("generate",))["generate"]
    run = make_run({"generate.start": "chat"})
    assert settings(run, ("generate",))["generate"]["start"] == "chat"


@pytest.mark.parametrize(
    "changes",
    [
        {"generate.start": "chat"},
        {"generate.start": "<eos> w8", "generate.first_token": "flat"},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_table_1_and_the_first_token_hold_after_each_start(
    make_run, tmp_path, monkeypatch, changes
):
    """The notebook with its check: a chi-square against what first tokens are drawn from."""
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: Path(file).write_bytes(PNG))
    made = tokenizer(chat=True)
    run = with_tokenizer(make_run, tmp_path, made, changes | MANY)
    assert list(problems([run])) == []
    execute("01_generate_faithful", params=str(run.file))
    tokens = read_rows(run, "first_token")
    lm = open_model(run)
    start = start_of(run, lm)
    assert start == start_ids(made, BOS, changes.get("generate.start"), "")
    np.testing.assert_allclose(tokens.model, lm.next_distribution(start), rtol=1e-6)
    firsts = np.bincount([d[0] for d in read_shards(run)], minlength=len(tokens))
    np.testing.assert_allclose(tokens.dataset, firsts / firsts.sum())
    seen = tokens.dataset > 0
    kept = tokens.model[seen] / tokens.model[seen].sum()
    kl = (kept * np.log(kept / tokens.dataset[seen])).sum()
    assert read_rows(run, "dataset").kl[0] == pytest.approx(kl, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "special", "said"),
    [
        (
            {"generate.start": "bos"},
            {"eos_token": "<eos>", "bos_token": None},
            "generate.start = 'bos': the tokenizer of {model} has no BOS: write a token that its "
            "documents begin after",
        ),
        (
            {"generate.start": "chat"},
            {},
            "generate.start = 'chat': the tokenizer of {model} has no chat template: write a text "
            "that stands before an answer",
        ),
        (
            {"sequence_length": 40},
            {},
            "sequence_length = 40 exceeds the context of {model}, 32 tokens",
        ),
    ],
)
def test_what_a_model_has_not_is_one_line_before_any_work(
    make_run, tmp_path, changes, special, said
):
    run = with_tokenizer(make_run, tmp_path, make_tokenizer(64, **special), {})
    if special:
        file = tmp_path / "model" / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | special))
    run = make_run(changes | {"model": run.model})
    assert list(problems([run])) == [f"{run.file}: {said.format(model=run.model)}"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["bos", "chat"])
def test_what_a_tokenizer_has_not_is_one_line_of_the_sampling_too(make_run, tmp_path, start):
    made = make_tokenizer(64, eos_token="<eos>")
    run = with_tokenizer(make_run, tmp_path, made, {"generate.start": start})
    with pytest.raises(ModelError, match=rf"tiny\.yaml: .*generate\.start is {start}, and its tok"):
        make_faithful(run, open_model(run))


def test_a_start_that_does_not_fit(make_run):
    run = make_run({"generate.start": "w2 " * 30})
    with pytest.raises(
        ModelError,
        match=r"max_new_tokens = 10 and the 30 tokens of generate\.start exceed the context",
    ):
        make_faithful(run, open_model(run))


def test_flat_is_a_first_token(make_run):
    with pytest.raises(
        ParamsError, match=r"generate\.start = 'flat' is no start but a first token"
    ):
        make_run({"generate.start": "flat"})


def test_the_embedded_model_does_not_chat(make_run):
    with pytest.raises(
        ParamsError, match=r"generate\.start = 'chat': the embedded model has no ch"
    ):
        make_run({"generate.start": "chat", "model": "embedded", "embedded": EMBEDDED})
