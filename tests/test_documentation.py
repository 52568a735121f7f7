"""Text from installed packages: extraction against a small package written here, properties of the
real ones.
"""

import json
import re
import sys
from collections import Counter

import pytest

from faithful_sae.text import documentation
from faithful_sae.text.documentation import extract, label_names, labelled
from faithful_sae.text.near_copies import near_copies

LONG, OTHER, THIRD = (
    " ".join(f"{word}{i}" for i in range(16)) for word in ("first", "second", "third")
)
MODULE = f'''"""Module. {LONG}"""
import os

class Thing:
    """A thing. {OTHER}

    Parameters
    ----------
    size : int, optional
        Number of things in the box at the start.
    name : str
        What the thing is called by others,
        and by itself.
    """
    # a comment

    @property
    def inner(self):
        """Inner. {THIRD}

        >>> 1 + 1  # a sum that is long enough to be kept: documents have eighty characters or more
        2

        Prose in between.

        >>> print("two",
        ...       "lines")
        two lines
        """
        return "not a docstring"

def short():
    """Short."""
    return os.getcwd() + "{LONG}"
'''
HEADER = (
    "/* Copyright someone */\n// License: none\n\n#pragma once\n\n"
    + "int f(int x);  // a declaration\n" * 5
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `boxes` that fails if it is imported."""
    for name, text in {
        "__init__.py": "raise ImportError('extraction must not import')\n",
        "mod.py": MODULE,
        "copy.py": MODULE,
        "broken.py": "def (:\n",
        "tests/test_mod.py": MODULE.replace("0", "Tests"),
        "test_b.py": MODULE.replace("0", "Tests"),
        "conftest.py": MODULE.replace("0", "Tests"),
        "include/box.h": HEADER,
    }.items():
        path = tmp_path / "boxes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "boxes"


def test_docstrings(package):
    documents = extract("docstrings", [package], 10**6)
    assert len(documents) == 3
    assert documents[0].strip() == f"Module. {LONG}".strip()
    assert documents[1].startswith(
        f"A thing. {OTHER}\n\nParameters\n----------\nsize : int, optional\n    Number"
    )
    assert documents[2].startswith("Inner.")
    assert package not in sys.modules


def test_doctests_hold_sessions_alone(package):
    (session,) = extract("doctests", [package], 10**6)
    assert session.split("\n\n")[1] == '>>> print("two",\n...       "lines")\ntwo lines'
    assert session.startswith(">>> 1 + 1")
    assert session.split("\n\n")[0].endswith("\n2")
    assert "Prose" not in session


def test_source_has_no_docstrings(package):
    thing, short = extract("source", [package], 10**6)
    assert (
        thing
        == "class Thing:\n    # a comment\n\n    @property\n    def inner(self):\n        return "
        '"not a docstring"'
    )
    assert short == f'def short():\n    return os.getcwd() + "{LONG}"'


def test_headers_have_no_licence(package):
    assert extract("headers", [package], 10**6) == [HEADER[HEADER.index("#pragma") :].strip()]


def test_near_copies_are_dropped():
    """A paragraph goes when half of its five-word sequences stood earlier; short ones stay."""
    words = [f"word{i:02}" for i in range(24)]  # 20 sequences of five words
    seen = set()
    assert documentation._without_repeats(" ".join(words), seen) == " ".join(words)
    fresh = [f"new{i}" for i in range(24)]
    half, less = (
        words[:16] + fresh[:8],
        words[:10] + fresh[8:22],
    )  # 12 and 6 of 20 sequences are old
    document = "\n\n".join(map(" ".join, ([*half], [*less], words[:5])))
    assert documentation._without_repeats(document, seen) == " ".join(less) + "\n\n" + " ".join(
        words[:5]
    )


def test_smaller_corpus_is_head_of_larger():
    large = extract("docstrings", ["numpy", "scipy"], 300_000)
    small = extract("docstrings", ["numpy", "scipy"], 100_000)
    assert large[: len(small)] == small
    assert sum(map(len, small)) <= 100_000 < sum(map(len, large[: len(small) + 1]))
    assert 290_000 < sum(map(len, large)) <= 300_000
    assert len(set(large)) == len(large)
    assert min(map(len, large)) >= 80


def test_topics_are_the_language_reference():
    text = "\n".join(extract("topics", [], 10**6))
    assert len(text) > 200_000
    assert 'The "while" statement is used for repeated execution' in text


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: extract("poems", ["numpy"], 100), "unknown kind.*poems"),
        (lambda: extract("docstrings", ["no_such_package"], 100), "no_such_package.*not installed"),
        (lambda: extract("topics", ["numpy"], 100), "no packages"),
        (lambda: extract("headers", ["pandas"], 10**6), "no headers"),
        (lambda: labelled("poems", ["numpy"], 100, 0), "unknown task.*poems"),
        (lambda: labelled("library", ["numpy"], 0, 0), "no example of numpy"),
        (lambda: documentation.versions(["no_such_package"]), "not installed"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module", params=documentation.TASKS)
def task(request):
    packages = ["numpy", "scipy"]
    return request.param, packages, labelled(request.param, packages, 200, seed=0)


def test_tasks_are_balanced_and_unique(task):
    name, packages, examples = task
    counts = Counter(label for _, label in examples)
    assert sorted(counts) == list(range(len(label_names(name, packages))))
    assert len(set(counts.values())) == 1
    assert len({text.casefold() for text, _ in examples}) == len(examples) <= 200
    assert all(20 <= len(text) <= 400 for text, _ in examples)
    assert (
        labelled(name, packages, 200, seed=0) == examples != labelled(name, packages, 200, seed=1)
    )


def test_library_names_are_masked():
    examples = labelled("library", ["numpy", "scipy"], 400, seed=0)
    assert not [t for t, _ in examples if re.search(r"\b(numpy|np|scipy|ndarray)\b", t, re.I)]
    assert any("_" in t for t, _ in examples)


def test_sentences_are_in_the_documentation_intact_or_reversed():
    examples = labelled("word_order", ["numpy"], 200, seed=0)
    names = label_names("word_order", ["numpy"])
    source = numpys_prose()

    def again(text):
        first, *words = text[:-1].split(" ")
        return " ".join([first, *words[::-1]]) + "."

    intact = [text for text, label in examples if names[label] == "intact"]
    turned = [text for text, label in examples if names[label] == "reversed"]
    assert not [text for text in intact if text not in source]
    assert not [text for text in turned if again(text) not in source]
    assert not [text for text in turned if text in source]
    assert not {again(text) for text in turned} & {*intact}


def numpys_prose():
    """Of any length, and with all repeats, which a corpus drops."""
    documents = documentation._stream("docstrings", ["numpy"])
    return " ".join(" ".join(document.split()) for _, document in documents)


def test_sentences_with_swapped_words_are_not_in_the_documentation_and_others_are():
    examples = labelled("word_swap", ["numpy"], 200, seed=0)
    intact = label_names("word_swap", ["numpy"]).index("intact")
    source = numpys_prose()
    assert [text in source for text, _ in examples] == [label == intact for _, label in examples]


def test_one_pair_of_neighbours_in_four_is_swapped():
    sentence = "The a b c d e f g h i j k l m n o p q."
    words, altered = (text[:-1].split(" ") for text in (sentence, _swapped(sentence)))
    assert altered[0] == "The"
    pairs = [slice(i, i + 2) for i in range(1, 17, 2)]
    moved = [pair for pair in pairs if altered[pair] != words[pair]]
    assert len(moved) == 2
    assert all(altered[pair] == words[pair][::-1] for pair in moved)
    assert altered[17:] == words[17:]


def test_a_short_sentence_has_a_pair_that_is_swapped():
    assert _swapped("The a b.") == "The b a."


def test_equal_neighbours_are_not_what_is_swapped():
    assert _swapped("The a a b c d d.") == "The a a c b d d."


def test_other_sentences_have_other_pairs_swapped():
    sentences = [f"{first} a b c d e f g h i j k l m n o p." for first in "TUVWXYZ"]
    assert len({_swapped(s)[1:] for s in sentences}) > 1


def _swapped(sentence):
    return documentation._altered("word_swap", sentence)


def test_no_text_of_a_task_is_a_near_copy_of_the_others(task):
    _, _, examples = task
    texts = [text for text, _ in examples]
    for number, text in enumerate(texts):
        assert near_copies(texts[:number] + texts[number + 1 :], [text]) == 0, text


def test_planted_near_copies_are_left_out_of_a_task(tmp_path, monkeypatch):
    def described(kind):
        words = [f"{kind}{i}" for i in range(12)]
        others = [f"o-{word}" for word in words]
        more = [f"m-{word}-{i}" for word in words for i in range(3)]
        return {
            "first": words,
            "but for a word": [*words[:11], "last"],
            "twice": [*words, *words],
            "second": others,
            "in capitals": [word.upper() for word in words],
            "holds the second": [*others, *more],
            "third": more,
        }

    source = '"""Do.'
    for section in ("Parameters", "Returns"):
        source += f"\n\n{section}\n{'-' * len(section)}\n"
        source += "\n".join(
            f"x{i} : int\n    {' '.join(words)}"
            for i, words in enumerate(described(section[0]).values())
        )
    (tmp_path / "crates").mkdir()
    (tmp_path / "crates" / "__init__.py").write_text(source + '\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    examples = labelled("parameter_or_return", ["crates"], 14, seed=0)
    assert sorted(examples) == sorted(
        (" ".join(described(section[0])[which]), label)
        for label, section in enumerate(("Parameters", "Returns"))
        for which in ("first", "second", "third")
    )


def test_parameter_types_are_the_declared_ones(package):
    examples = documentation._examples(
        "parameter_type",
        package,
        extract("docstrings", [package], 10**6)[1],
        list(documentation.TYPES),
    )
    names = label_names("parameter_type", [package])
    assert [(text, names[label]) for text, label in examples] == [
        ("Number of things in the box at the start.", "int"),
        ("What the thing is called by others, and by itself.", "str"),
    ]


def test_files_are_jsonl(package, tmp_path):
    documentation.write("docstrings", [package], 10**6, tmp_path / "corpus.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == extract("docstrings", [package], 10**6)
    documentation.write("word_order", ["numpy"], 50, tmp_path / "task.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "task.jsonl").read_text().splitlines()]
    assert [(row["text"], row["label"]) for row in rows] == labelled("word_order", ["numpy"], 50, 0)
