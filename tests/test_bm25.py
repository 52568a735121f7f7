"""Retrieval by BM25: by hand, and as a corpus of a run."""

import math
from pathlib import Path

import numpy as np
import pytest

from conftest import VALUES
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.text import documents, source_problems, text_hash
from faithful_sae.text.bm25 import BM25, most_like

THREE = ["the cat sat", "The dog, the cat!", "a bird flew over the old stone house"]


def test_three_documents_by_hand():
    """15 words in 3 documents; `cat` stands in 2 of them, `dog` in one."""
    found = [BM25(THREE, "cat dog fish").score(document) for document in THREE]
    idf = {"cat": math.log(1 + 1.5 / 2.5), "dog": math.log(1 + 2.5 / 1.5)}
    first = idf["cat"] * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 5))
    weight = 2.2 / (1 + 1.2 * (0.25 + 0.75 * 4 / 5))
    assert found == pytest.approx([first, (idf["cat"] + idf["dog"]) * weight, 0])


def test_a_word_that_stands_twice_counts_less_than_twice():
    once, twice, of_others = (BM25(["a b", "a a", "c d"], "a").score(d) for d in ("a b", "a a", ""))
    assert once < twice < 2 * once
    assert of_others == 0


def test_how_often_the_text_says_a_word_does_not_matter():
    assert BM25(THREE, "cat cat").score(THREE[0]) == BM25(THREE, "Cat").score(THREE[0])


def test_a_word_of_all_documents_still_counts_for_something():
    assert BM25(THREE, "the").score(THREE[0]) > 0


@pytest.mark.parametrize("share, chosen", [(0.3, [1]), (0.5, [0, 1]), (0.99, [0, 1])])
def test_the_most_like_are_taken_and_none_without_a_word_of_it(share, chosen):
    wanted = most_like(lambda: THREE, "cat dog", share)
    assert [i for i, document in enumerate(THREE) if wanted(document)] == chosen


# --- a corpus -------------------------------------------------------------------------------------


@pytest.fixture
def subject(tmp_path):
    """Of the 40 texts of make_run, w7 and w9 stand in few."""
    (tmp_path / "subject.txt").write_text("w7 w9")
    return {"like": str(tmp_path / "subject.txt"), "share": 0.25}


def test_a_corpus_of_a_subject_holds_the_documents_most_like_it_in_their_order(make_run, subject):
    run = make_run({"corpora.text.retrieve": subject, "heldout": 0.5})
    all_texts = [*documents(make_run(), "text")]
    scores = np.array([BM25(all_texts, "w7 w9").score(text) for text in all_texts])
    chosen = [*documents(run, "text")]
    least = np.sort(scores)[-10]
    assert chosen == [text for text, score in zip(all_texts, scores, strict=True) if score >= least]
    lm = open_model(run)
    rows = corpus(run, "text", lm)
    ids = np.concatenate([rows.train, rows.heldout])[:, 1:].ravel()
    joined = [id for text in chosen for id in [*(int(word[1:]) for word in text.split()), 0]]
    assert ids.tolist() == joined[: len(ids)]


def test_another_subject_is_another_text(make_run, subject, tmp_path):
    run = make_run({"corpora.text.retrieve": subject})
    before = text_hash(run, "text")
    assert before != text_hash(make_run(), "text")
    (tmp_path / "subject.txt").write_text("w8")
    # files are read again when they change
    assert before != text_hash(make_run({"corpora.text.retrieve": subject}), "text")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such file"),
        (b"--- !", "it holds no word"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_a_subject_that_cannot_be_is_refused_before_any_work(make_run, tmp_path, text, message):
    if text is not None:
        (tmp_path / "subject.txt").write_bytes(text)
    retrieve = {"like": str(tmp_path / "subject.txt"), "share": 0.5}
    with pytest.raises(ParamsError, match=rf"corpora\.text\.retrieve\.like.*{message}"):
        make_run({"corpora.text.retrieve": retrieve})


def test_a_subject_without_a_word_of_the_corpus_is_found_before_any_work(make_run, subject):
    (Path(subject["like"])).write_text("elsewhere")
    run = make_run({"corpora.text.retrieve": subject})
    (said,) = source_problems(run)
    assert "corpora.text.retrieve.like" in said and "has a word of it" in said


def test_another_share_is_another_text(make_run, subject):
    hashes = {
        text_hash(make_run({"corpora.text.retrieve": subject | {"share": share}}), "text")
        for share in (0.25, 0.5)
    }
    assert len(hashes) == 2


def test_generated_text_is_not_retrieved(make_run, subject):
    assert VALUES["corpora"]["faithful"]["faithful"] == "self"
    with pytest.raises(ParamsError, match=r"corpora\.faithful\.retrieve goes through all"):
        make_run({"corpora.faithful.retrieve": subject})
