"""What a language model is asked, in the structure of Paulo et al. (2024); the words are ours.

    explain   passages in which the latent fires, its tokens between markers, each with a strength
              round(10 z / max z); a description is asked for, on a last line that is tagged
    detect    a description and numbered passages: 1 where the latent fires, else 0
    fuzz      the same, of the tokens that are marked

A question for a list comes after three worked examples, as turns of the same conversation: some of
the passages, none of them, all of them. There is no system turn, which some models refuse.
"""

import re
from collections.abc import Sequence

import numpy as np

from faithful_sae.features.judging import Windows
from faithful_sae.features.vocabulary import visible
from faithful_sae.files import digest

# turns of a conversation, {"role": "user" or "assistant", "content": text}, the last one the user's
Messages = list[dict[str, str]]

OPEN, CLOSE = "«", "»"
STRENGTHS = 10
TAG = "Description:"

EXPLAIN = (
    "One feature of a language model was observed while the model read the passages below. Tokens "
    f"on which the feature was active stand between {OPEN} and {CLOSE}, and the number behind each "
    f"says how strongly, from 0 to {STRENGTHS}.\n\n"
    "{passages}\n\n"
    "What do the marked tokens, or the texts just before them, have in common? Describe the one "
    "property that fits best, as specifically as you can, in at most {budget} words. Do not list "
    "alternatives, and do not mention passages, marks or numbers. End with one line of this form:\n"
    f"{TAG} <the description>"
)
DETECT = (
    "I check descriptions of texts. I give you a description and numbered passages. Decide for "
    "each passage whether what is described occurs anywhere in it: 1 if it does, 0 if it does not. "
    "It may occur in all passages, in some or in none. Answer only with a list that has one 0 or 1 "
    "for each passage, in their order."
)
FUZZ = (
    "I check descriptions of words in texts. I give you a description and numbered passages, with "
    f"some words between {OPEN} and {CLOSE}. Decide for each passage whether the description fits "
    "every word that is marked in it: 1 if it fits them all, 0 if it does not fit one of them. All "
    "passages may be right, or some, or none. Answer only with a list that has one 0 or 1 for each "
    "passage, in their order."
)
QUESTION = "Description: {description}\n\n{passages}"

# description, passages with marks, answers to detect, answers to fuzz
EXAMPLES = (
    (
        "days of the week",
        (
            "we shall meet again on «Tuesday» after lunch",
            "the «bridge» was closed for repairs",
            "on Sunday the paper had the «story» first",
            "two cups, a kettle and no «sugar»",
            "from «Monday» to «Friday» the gates are shut",
        ),
        (1, 0, 1, 0, 1),
        (1, 0, 0, 0, 1),
    ),
    (
        "musical instruments",
        (
            "he paid for the «tickets» in advance",
            "    return «total» / count",
            "rain is «expected» in the north by noon",
            "her «brother» had moved to Lisbon",
            "the second «chapter» deals with soils",
        ),
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
    ),
    (
        "the name of a colour",
        (
            "she wore a «green» scarf",
            "the walls were painted «white» and the doors «blue»",
            "his face turned «red» at the question",
            "color: «black»; margin: 0",
            "a «yellow» leaf lay on the step",
        ),
        (1, 1, 1, 1, 1),
        (1, 1, 1, 1, 1),
    ),
)


def explain(windows: Windows, vocabulary: Sequence[str], budget: int) -> Messages:
    """The question for a description of at most `budget` words; all windows are shown."""
    strengths = windows.activations / max(float(windows.activations.max(initial=0)), 1e-30)
    strengths = np.floor(STRENGTHS * strengths + 0.5).astype(int)
    passages = [
        passage(ids, row > 0, vocabulary, strong)
        for ids, row, strong in zip(windows.ids, windows.activations, strengths, strict=True)
    ]
    return [_turn("user", EXPLAIN.format(passages=_numbered(passages), budget=budget))]


def detect(description: str, windows: Windows, vocabulary: Sequence[str]) -> Messages:
    """The question in which of the windows the latent fires."""
    silent = np.zeros(windows.ids.shape[1], bool)
    passages = [passage(ids, silent, vocabulary) for ids in windows.ids]
    examples = [
        (about, [text.replace(OPEN, "").replace(CLOSE, "") for text in texts], answers)
        for about, texts, answers, _ in EXAMPLES
    ]
    return _conversation(DETECT, examples, description, passages)


def fuzz(
    description: str, windows: Windows, marks: np.ndarray, vocabulary: Sequence[str]
) -> Messages:
    """The question in which of the windows the latent fires on all that is marked, bool [n, W]."""
    passages = [passage(ids, row, vocabulary) for ids, row in zip(windows.ids, marks, strict=True)]
    examples = [(about, texts, answers) for about, texts, _, answers in EXAMPLES]
    return _conversation(FUZZ, examples, description, passages)


def passage(
    ids: np.ndarray,
    marks: np.ndarray,
    vocabulary: Sequence[str],
    strengths: np.ndarray | None = None,
) -> str:
    """One window as a line of text, with its marked tokens between markers.

    Args:
        ids: int [W].
        marks: bool [W].
        vocabulary: the text of each id.
        strengths: int [W], shown behind the marked tokens; None: pieces of one word share markers.
    """
    shown = ""
    for i, (token, marked) in enumerate(zip(ids, marks, strict=True)):
        # a marker of the text's own would read as ours
        text = re.sub(f"[{OPEN}{CLOSE}]", '"', visible(vocabulary[int(token)], blanks=False))
        if marked and text:
            word = text.lstrip(" ") or text
            behind = "" if strengths is None else f"({strengths[i]})"
            text = text[: len(text) - len(word)] + OPEN + word + CLOSE + behind
        shown += text
    # a text that looks like the end of a turn would be one
    return shown.replace(CLOSE + OPEN, "").replace("<|", "< |")


def read_description(reply: str, budget: int) -> str | None:
    """The description in a reply, cut to `budget` words; None: none behind the tag."""
    found = re.findall(rf"^\W*{TAG[:-1]}\W*:(.*)$", reply, re.IGNORECASE | re.MULTILINE)
    words = found[-1].strip(" *_`\"'\r").split() if found else []
    return " ".join(words[:budget]) or None


def read_list(reply: str, n: int) -> list[int] | None:
    """The list of n zeros and ones that a reply ends with, in brackets or without; None: there is
    none, or one of another length.
    """
    lists = re.findall(r"\[([^\[\]]*)\]", reply) or [reply]
    parts = re.split(r"\s*,\s*", lists[-1].strip())
    return [int(part) for part in parts] if len(parts) == n and {*parts} <= {"0", "1"} else None


def answer_list(answers: Sequence[int]) -> str:
    """Answers as they are asked for: [1, 0, 1]."""
    return f"[{', '.join(map(str, answers))}]"


def prompt_hash() -> str:
    """Of all that is asked but a latent's own description and windows."""
    ids, marks = np.arange(2)[None], np.array([[True, False]])
    windows, vocabulary = Windows(ids, marks.astype(np.float32)), ["a", " b"]
    asked = [
        explain(windows, vocabulary, 1),
        detect("", windows, vocabulary),
        fuzz("", windows, marks, vocabulary),
    ]
    return digest(asked)


def _conversation(task, examples, description, passages):
    turns = []
    for about, texts, answers in examples:
        turns += [
            _turn("user", QUESTION.format(description=about, passages=_numbered(texts))),
            _turn("assistant", answer_list(answers)),
        ]
    turns[0]["content"] = f"{task}\n\n{turns[0]['content']}"
    question = QUESTION.format(description=description, passages=_numbered(passages))
    return [*turns, _turn("user", question)]


def _numbered(passages):
    return "\n".join(f"{i}. {text}" for i, text in enumerate(passages, 1))


def _turn(role, content):
    return {"role": role, "content": content}
