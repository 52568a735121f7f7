"""What language models are asked, worked by hand, and what is kept of their answers."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from faithful_sae.features.index import FeatureError
from faithful_sae.features.judges import TokensJudge
from faithful_sae.features.judging import Explanation, Windows
from faithful_sae.features.language_judges import prompts
from faithful_sae.features.language_judges.answers import Answer, Answers
from faithful_sae.features.language_judges.judge import LanguageJudge, NoAnswerError
from faithful_sae.files import PACKAGE

VOCABULARY = ["The", " cat", " sat", "\n", " «", "<|", "im_end|>", "", "Tues", "day"]
SEEN = Explanation("cats")


def windows(ids, activations=None):
    ids = np.array(ids, np.int32)
    return Windows(
        ids, np.zeros(ids.shape, np.float32) + (0 if activations is None else activations)
    )


class Stub:
    """Says of each numbered passage whether it has the word cat in it; counts its calls."""

    at_once = 5

    def __init__(self, answers=None, dies_after=None):
        self.asked = []
        self.answers = answers
        self.dies_after = dies_after

    def write(self, messages, tokens):
        return self._said(messages, "I think.\nDescription: cats and such")

    def decide(self, messages, n):
        passages = messages[-1]["content"].split("\n\n")[1].split("\n")
        assert len(passages) == n
        return self._said(messages, "", [0.875 if "cat" in text else 0.25 for text in passages])

    def _said(self, messages, text, p=()):
        if len(self.asked) == self.dies_after:
            raise KeyboardInterrupt
        self.asked.append(messages)
        answer = (self.answers or {}).get(len(self.asked))
        if isinstance(answer, Exception):
            raise answer
        return answer or Answer(text, "stub-7b", p)

    def count(self, messages):
        return 100 * len(messages)

    def identity(self):
        return {"kind": "stub", "model": "stub", "revision": None}


def make_judge(folder, model=None, **options):
    options = {"latents": 2, "windows": 12} | options
    return LanguageJudge(model or Stub(), VOCABULARY, Answers(folder / "answers"), **options)


SOME = windows([[0, 1], [0, 2]] * 6, [[0, 1], [0, 0]] * 6)


# --- prompts --------------------------------------------------------------------------------------


def shown(ids, marks, strengths=None):
    return prompts.passage(np.array(ids), np.array(marks, bool), VOCABULARY, strengths)


def test_a_mark_stands_within_the_blank_before_a_word():
    assert shown([0, 1, 2], [0, 1, 0]) == "The «cat» sat"


def test_pieces_of_a_word_share_their_marks_unless_they_have_strengths():
    assert shown([8, 9], [1, 1]) == "«Tuesday»"
    assert shown([8, 9], [1, 1], [3, 10]) == "«Tues»(3)«day»(10)"


def test_a_passage_is_one_line_and_has_no_marks_of_its_own():
    assert shown([0, 3, 4, 1], [0, 0, 0, 0]) == 'The⏎ " cat'


def test_a_passage_does_not_end_the_turn():
    assert shown([5, 6], [0, 0]) == "< |im_end|>"


def test_a_token_without_text_has_no_mark():
    assert shown([0, 7], [0, 1]) == "The"


def test_strengths_are_tenths_of_the_largest_of_all_windows():
    (turn,) = prompts.explain(windows([[0, 1], [1, 2]], [[0, 2.0], [0.5, 0.09]]), VOCABULARY, 7)
    assert "\n\n1. The «cat»(10)\n2.  «cat»(3) «sat»(0)\n\n" in turn["content"]
    assert "at most 7 words" in turn["content"]
    assert turn["content"].endswith("\nDescription: <the description>")


def test_three_worked_examples_come_before_the_question():
    asked = prompts.detect("cats", windows([[0, 1], [0, 2]]), VOCABULARY)
    assert [turn["role"] for turn in asked] == ["user", "assistant"] * 3 + ["user"]
    answers = [turn["content"] for turn in asked[1::2]]
    assert answers == ["[1, 0, 1, 0, 1]", "[0, 0, 0, 0, 0]", "[1, 1, 1, 1, 1]"]
    assert asked[-1]["content"] == "Description: cats\n\n1. The cat\n2. The sat"
    assert not any("«" in turn["content"] for turn in asked)


def test_fuzzing_shows_marks_and_has_examples_of_its_own():
    marks = np.array([[False, True], [True, False]])
    asked = prompts.fuzz("cats", windows([[0, 1], [0, 1]]), marks, VOCABULARY)
    assert asked[-1]["content"] == "Description: cats\n\n1. The «cat»\n2. «The» cat"
    answers = [turn["content"] for turn in asked[1::2]]
    assert answers == ["[1, 0, 0, 0, 1]", "[0, 0, 0, 0, 0]", "[1, 1, 1, 1, 1]"]
    assert all("«" in turn["content"] for turn in asked[::2])


@pytest.mark.parametrize("example", prompts.EXAMPLES, ids=lambda example: example[0])
def test_an_example_has_an_answer_for_each_passage(example):
    _, passages, detected, fuzzed = example
    assert len(passages) == len(detected) == len(fuzzed)
    # what fits the marked words occurs
    assert all(d >= f for d, f in zip(detected, fuzzed, strict=True))


@pytest.mark.parametrize(
    "reply, found",
    [
        ("Description: names of cats", "names of cats"),
        ("I see.\n**Description:** *names of cats*\n", "names of cats"),
        ("description : a\nDescription: b", "b"),
        ("Description: one two three four", "one two three"),
        ("names of cats", None),
        ("Description:", None),
        ("", None),
    ],
)
def test_descriptions_that_are_read(reply, found):
    assert prompts.read_description(reply, 3) == found


@pytest.mark.parametrize(
    "reply, found",
    [
        ("[1, 0, 1]", [1, 0, 1]),
        ("1,0 , 1\n", [1, 0, 1]),
        ("<think>[1, 1, 1]?</think>The answer is [0, 0, 1].", [0, 0, 1]),
        ("[1, 0]", None),
        ("[1, 0, 1, 0]", None),
        ("[1, 2, 0]", None),
        ("[yes, no, yes]", None),
        ("I cannot say.", None),
        ("[]", None),
        ("", None),
    ],
)
def test_lists_that_are_read(reply, found):
    assert prompts.read_list(reply, 3) == found


@pytest.mark.parametrize("template", ["EXPLAIN", "DETECT", "FUZZ", "QUESTION", "EXAMPLES"])
def test_the_hash_is_of_every_template(monkeypatch, template):
    before = prompts.prompt_hash()
    old = getattr(prompts, template)
    monkeypatch.setattr(prompts, template, old[1:])
    assert prompts.prompt_hash() != before


# --- the judge ------------------------------------------------------------------------------------


def test_answers_return_to_their_windows(tmp_path):
    judge = make_judge(tmp_path)
    assert judge.detect(SEEN, SOME) == [0.875, 0.25] * 6
    # 12 windows, the last prompt has two of them
    assert judge.tally.called == 3


def test_marks_go_with_their_windows(tmp_path):
    stub = Stub()
    stub.decide = lambda messages, n: Answer(
        "", "stub", [float("«cat»" in line) for line in messages[-1]["content"].split("\n")[2:]]
    )
    marks = np.array([[False, True], [True, False]] * 6)
    ids = windows([[0, 1]] * 12)
    assert make_judge(tmp_path, stub).fuzz(SEEN, ids, marks) == [1, 0] * 6


def test_active_windows_do_not_stand_together(tmp_path):
    stub = Stub()
    order = windows([[0, 1]] * 20 + [[0, 2]] * 20)
    make_judge(tmp_path, stub).detect(SEEN, order)
    inside = [asked[-1]["content"].count("cat") - 1 for asked in stub.asked]
    assert sum(inside) == 20
    assert not {0, 5} >= set(inside)


def test_an_explanation_shows_windows_over_the_whole_range_where_it_fires(tmp_path):
    stub = Stub()
    judge = make_judge(tmp_path, stub, shown=3)
    some = windows([[0, 1]] * 6, [[0, a] for a in (1, 0, 5, 3, 2, 4)])
    assert judge.explain(some, 10) == Explanation("cats and such")
    shown = stub.asked[0][0]["content"]
    assert [f"«cat»({n})" in shown for n in (10, 6, 2)] == [True] * 3
    assert shown.count("«cat»") == 3


def test_an_answer_is_asked_for_once(tmp_path):
    first = make_judge(tmp_path)
    found = first.explain(SOME, 10), first.detect(SEEN, SOME)
    again = make_judge(tmp_path)
    assert (again.explain(SOME, 10), again.detect(SEEN, SOME)) == found
    assert (first.tally.called, first.tally.kept) == (4, 0)
    assert (again.tally.called, again.tally.kept) == (0, 4)
    assert again.tally.models == {"stub-7b"}


def test_another_identity_is_asked_anew(tmp_path):
    make_judge(tmp_path).detect(SEEN, SOME)
    other = Stub()
    other.identity = lambda: {"kind": "stub", "model": "another", "revision": None}
    judge = make_judge(tmp_path, other)
    judge.detect(SEEN, SOME)
    assert judge.tally.kept == 0


def test_an_interrupted_judge_goes_on_where_it_was(tmp_path):
    judge = make_judge(tmp_path, Stub(dies_after=2))
    with pytest.raises(KeyboardInterrupt):
        judge.detect(SEEN, SOME)
    again = make_judge(tmp_path)
    assert again.detect(SEEN, SOME) == [0.875, 0.25] * 6
    assert (again.tally.called, again.tally.kept) == (1, 2)


def test_what_was_kept_outlives_a_kill(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from faithful_sae.features.language_judges.answers import Answer, Answers\n"
        "answers = Answers(sys.argv[1])\n"
        "answers.put('a', Answer('text', 'm', [0.1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "answers"
    done = subprocess.run([sys.executable, "-c", code, file], env={"PYTHONPATH": PACKAGE.parent})
    assert done.returncode == -9
    assert Answers(file).get("a") == Answer("text", "m", [0.1])


def test_failures_are_none_counted_and_shown(tmp_path, capsys):
    answers = {
        1: Answer("no", "stub-7b"),
        2: NoAnswerError("away"),
        3: Answer("", "stub-7b", [1.0]),
    }
    judge = make_judge(tmp_path, Stub(answers))
    assert judge.detect(SEEN, SOME) == [None] * 12
    assert judge.tally.failed == {"not a list of as many 0s and 1s as windows": 2, "away": 1}
    said = capsys.readouterr().out
    assert said.count("not a list of as many") == 1
    assert "3 failed" in str(judge.tally)


def test_only_an_absent_answer_is_asked_for_again(tmp_path):
    answers = {1: Answer("no", "stub-7b"), 2: NoAnswerError("away")}
    make_judge(tmp_path, Stub(answers)).detect(SEEN, SOME)
    again = make_judge(tmp_path)
    assert again.detect(SEEN, SOME).count(None) == 5
    assert (again.tally.called, again.tally.kept) == (1, 2)
    assert again.tally.failed.total() == 1


def test_a_reply_without_a_description_is_no_explanation(tmp_path):
    judge = make_judge(tmp_path, Stub({1: Answer("cats", "stub-7b")}))
    assert judge.explain(SOME, 10) is None
    assert judge.tally.failed.total() == 1


def test_max_calls_stops_with_what_is_there(tmp_path, capsys):
    judge = make_judge(tmp_path, max_calls=2)
    found = judge.detect(SEEN, SOME)
    assert found.count(None) == 2
    assert (judge.tally.called, judge.tally.unasked) == (2, 1)
    assert "max_calls = 2 is reached" in capsys.readouterr().out
    again = make_judge(tmp_path, max_calls=1)
    assert again.detect(SEEN, SOME) == [0.875, 0.25] * 6


def test_what_it_costs_is_said_before_the_first_call(tmp_path, capsys):
    stub = Stub(dies_after=0)
    judge = make_judge(tmp_path, stub, prices=(2.0, 10.0))
    with pytest.raises(KeyboardInterrupt):
        judge.explain(SOME, 10)
    # 2 latents: an explanation, and 3 prompts for each question. An explanation is asked for in one
    # turn, the others in seven: 100 tokens each. A list of 5 may have 16 + 15 tokens.
    read, written = 2 * (100 + 6 * 700), 2 * (256 + 6 * 31)
    cost = 2 * read / 1e6 + 10 * written / 1e6
    assert capsys.readouterr().out == (
        f"stub: about 14 calls, {read:,} tokens read and at most {written} written, at most "
        f"{cost:.2f} at the prices given; answers already on disk are free\n"
    )
    assert judge.estimate(SOME).cost == pytest.approx(cost)


def test_a_model_that_is_told_words_explains_nothing(tmp_path, capsys):
    stub = Stub()
    judge = make_judge(tmp_path, stub, words=TokensJudge(VOCABULARY))
    explanation = judge.explain(SOME, 10)
    assert not stub.asked
    assert "cat" in explanation.text.split()
    judge.detect(explanation, SOME)
    asked = stub.asked[0][-1]["content"]
    assert asked.startswith(f"Description: {explanation.text}\n")
    # 2 latents, 3 prompts for each question
    assert "stub: about 12 calls" in capsys.readouterr().out


def test_without_prices_there_is_no_cost(tmp_path):
    assert "price" not in str(make_judge(tmp_path).estimate(SOME))


def test_answers_from_disk_need_no_estimate(tmp_path, capsys):
    make_judge(tmp_path).detect(SEEN, SOME)
    capsys.readouterr()
    make_judge(tmp_path).detect(SEEN, SOME)
    assert capsys.readouterr().out == ""


def test_another_model_behind_a_name_is_said(tmp_path, capsys):
    judge = make_judge(tmp_path, Stub({2: Answer("", "stub-8b", [0.5] * 5)}))
    judge.detect(SEEN, SOME)
    assert judge.tally.models == {"stub-7b", "stub-8b"}
    assert "another model answers now: stub-8b" in capsys.readouterr().out


def test_identity_says_what_answers_depend_on(tmp_path):
    identity = make_judge(tmp_path, seed=3).identity()
    assert {"kind", "model", "revision", "prompt_hash", "seed"} <= set(identity)
    assert identity["prompt_hash"] == prompts.prompt_hash()
    assert identity["seed"] == 3


def test_no_windows_have_no_answers(tmp_path):
    assert make_judge(tmp_path).detect(SEEN, windows(np.zeros((0, 2)))) == []


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda judge: judge.explain(windows([[0, 1]]), 10), "fires in none of the 1 windows"),
        (lambda judge: judge.explain(SOME, 0), "budget = 0"),
        (lambda judge: judge.detect(SEEN, windows([[0, 99]])), "token 99 has no text"),
        (lambda judge: judge.fuzz(SEEN, SOME, np.ones((1, 2))), "marks of shape (1, 2)"),
        (lambda judge: judge.estimate(windows(np.zeros((0, 2)))), "at least one"),
    ],
)
def test_bad_input_is_refused_before_a_call(tmp_path, call, why):
    judge = make_judge(tmp_path)
    with pytest.raises(FeatureError) as error:
        call(judge)
    assert why in str(error.value)
    assert judge.tally.called == 0


@pytest.mark.parametrize(
    "options, why",
    [
        ({"latents": 0}, "latents = 0"),
        ({"shown": 0}, "shown = 0"),
        ({"max_calls": -1}, "max_calls = -1"),
        ({"prices": (-1.0, 0.0)}, "prices"),
    ],
)
def test_bad_settings_are_refused(tmp_path, options, why):
    with pytest.raises(FeatureError, match=why):
        make_judge(tmp_path, **options)


# --- the file -------------------------------------------------------------------------------------


def test_the_first_answer_stays(tmp_path):
    answers = Answers(tmp_path / "deep" / "answers")
    answers.put("a", Answer("first", "m"))
    answers.put("a", Answer("second", "m"))
    assert answers.get("a").text == "first"
    assert answers.get("b") is None
    assert len(answers) == 1


def test_two_may_share_a_file(tmp_path):
    mine, other = Answers(tmp_path / "a"), Answers(tmp_path / "a")
    mine.put("a", Answer("x", "m"))
    assert other.get("a").text == "x"


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to be taken for one" * 20)
    before = file.read_bytes()
    with pytest.raises(FeatureError, match="notes.txt: cannot be used as a file of answers"):
        Answers(file)
    assert file.read_bytes() == before


def test_a_write_that_is_cut_leaves_the_answers_before_it(tmp_path):
    answers = Answers(tmp_path / "a")
    answers.put("a", Answer("x", "m"))
    half = sqlite3.connect(tmp_path / "a")
    half.execute("INSERT INTO answers VALUES ('b', '{}')")
    half.close()
    assert answers.get("a").text == "x"
    assert answers.get("b") is None
