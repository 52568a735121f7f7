"""Near-copies by hand, and what is taken against the rule applied to every division of it."""

import numpy as np
import pytest

from faithful_sae.text.near_copies import COPIED, SHINGLE, Distinct, near_copies, shingles

WORDS = [f"w{i}" for i in range(24)]


def text(*parts):
    return " ".join(word for part in parts for word in part)


def test_sequences_by_hand():
    assert shingles("a b c d e f") == {tuple("abcde"), tuple("bcdef")}
    assert shingles("a  b\nc") == {tuple("abc")}
    assert SHINGLE == 5


@pytest.mark.parametrize("old, share", [(13, 0), (14, 1), (24, 1)])
def test_half_of_the_sequences_make_a_near_copy(old, share):
    """24 words are 20 sequences, of which the first `old` words hold old - 4."""
    assert COPIED == 0.5
    fresh = [f"new{i}" for i in range(24 - old)]
    assert near_copies([text(WORDS)], [text(WORDS[:old], fresh)]) == share


def test_sequences_may_stand_in_different_texts():
    train = [text(WORDS[:9]), text(WORDS[15:])]
    assert near_copies(train, [text(WORDS)]) == 1
    assert near_copies(train[:1], [text(WORDS)]) == 0


def test_the_share_is_of_the_test_texts_and_case_does_not_matter():
    test = [text(WORDS).upper(), "nothing like it at all", text(WORDS[:8]), "w1 w2"]
    assert near_copies([text(WORDS)], test) == 0.5


def near(texts):
    """Those that are near-copies of all others together, the worst that a division can do."""
    return [
        one for i, one in enumerate(texts) if near_copies(texts[:i] + texts[i + 1 :], [one]) > 0
    ]


def test_what_is_taken_has_no_near_copies_and_what_is_not_would_make_one():
    """Texts cut from one stream of words overlap in all ways."""
    rng = np.random.default_rng(0)
    stream = [f"w{i}" for i in range(400)]
    texts = [
        text(stream[start : start + length])
        for start, length in zip(
            rng.integers(0, 370, 200).tolist(), rng.integers(1, 30, 200).tolist(), strict=True
        )
    ]
    distinct = Distinct()
    taken = []
    for one in texts:
        if distinct.take(one):
            taken.append(one)
            assert not near(taken)
        else:
            assert near([*taken, one])
    assert 10 < len(taken) < 100
