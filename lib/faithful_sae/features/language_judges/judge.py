"""A judge made of a language model: prompts, answers kept on disk, calls counted and limited.

Windows are put into prompts in an order drawn from the seed and the number of windows alone, so
that the active ones do not stand together however they are given.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation, Judge, Windows, named
from faithful_sae.features.language_judges import prompts
from faithful_sae.features.language_judges.answers import Answer, Answers
from faithful_sae.features.language_judges.calls import Estimate, Tally
from faithful_sae.features.language_judges.prompts import Messages
from faithful_sae.files import digest

# tokens that a reply may have: some thought and the description; brackets and a few around a list
EXPLANATION_TOKENS = 256
LIST_TOKENS = 16


class NoAnswerError(RuntimeError):
    """A model gave no answer this time; another try may succeed, so nothing is kept."""


class Model(Protocol):
    """What answers prompts.

    Attributes:
        at_once: windows in one prompt, at most.
    """

    at_once: int

    def write(self, messages: Messages, tokens: int) -> Answer:
        """A text of at most so many tokens. Raises NoAnswerError."""
        ...

    def decide(self, messages: Messages, n: int) -> Answer:
        """The probability of "yes" for each of the n windows in the last turn. Raises
        NoAnswerError.
        """
        ...

    def count(self, messages: Messages) -> int:
        """How many tokens it reads, or about as many."""
        ...

    def identity(self) -> dict[str, Any]:
        """Kind, model, revision, and whatever else its answers depend on."""
        ...


class LanguageJudge:
    """A judge (features/judging.py) that asks a language model.

    Args:
        model: LocalModel or Endpoint.
        vocabulary: the text of each token id (display_strings).
        answers: where answers are kept.
        latents: how many are to be judged, for the estimate that is printed before the first call.
        windows: how many each is judged by, in each of the two questions, for the same.
        max_calls: of the model; questions beyond them are answered None, and counted.
        shown: windows that an explanation is made from, at most; spread evenly over the peaks.
        prices: of a million tokens read and of a million written.
        seed: of the order of windows in prompts.
        words: explains in the model's place, and the model is told its words: what small models
            write of a latent is none. None: the model explains.

    Raises:
        FeatureError: counts or prices that are none.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Sequence[str],
        answers: Answers,
        latents: int,
        windows: int,
        max_calls: int = 1000,
        shown: int = 40,
        prices: tuple[float, float] | None = None,
        seed: int = 0,
        words: Judge | None = None,
    ) -> None:
        for name, value in (("latents", latents), ("windows", windows), ("shown", shown)):
            if value < 1:
                raise FeatureError(f"{name} = {value}: must be at least 1")
        if max_calls < 0 or min(prices or (0,)) < 0:
            raise FeatureError(
                f"max_calls = {max_calls}, prices = {prices}: must be 0 or more, each"
            )
        self.model = model
        self.vocabulary = vocabulary
        self.answers = answers
        self.latents = latents
        self.windows = windows
        self.max_calls = max_calls
        self.shown = shown
        self.prices = prices
        self.seed = seed
        self.words = words
        self.tally = Tally()
        self.announced = False
        self._identity = model.identity() | {"prompt_hash": prompts.prompt_hash(), "seed": seed}

    def identity(self) -> dict[str, Any]:
        """Kind, model, revision, prompt_hash, seed, and what else its answers depend on."""
        own = {"shown": self.shown, "windows_per_prompt": self.model.at_once}
        return self._identity | own | ({"words": self.words.identity()} if self.words else {})

    def explain(self, windows: Windows, budget: int) -> Explanation | None:
        """A description in at most `budget` words, from the windows where the latent fires; those
        where it is silent are not shown.

        Raises:
            FeatureError: it fires in none of them; a budget below 1; an id without a text; the
                model cannot be asked.
        """
        self._check(windows)
        if budget < 1:
            raise FeatureError(f"budget = {budget}: an explanation needs at least 1 word")
        if not windows.active.any():
            raise FeatureError(
                f"the latent fires in none of the {len(windows)} windows: give some where it does"
            )
        if self.words:
            told = self.words.explain(windows, budget)
            words = named(told, self.vocabulary) if told else ""
            return Explanation(words) if words else None
        messages = self._explain(windows, budget)
        answer = self._ask(
            messages, windows, lambda: self.model.write(messages, EXPLANATION_TOKENS)
        )
        text = None if answer is None else prompts.read_description(answer.text, budget)
        if answer and text is None:
            self._failed("no description in the reply")
        return None if text is None else Explanation(text)

    def detect(self, explanation: Explanation, windows: Windows) -> list[float | None]:
        """How probable it is that the latent fires in each window.

        Raises:
            FeatureError: an id without a text; the model cannot be asked.
        """
        return self._decide(
            windows,
            lambda part, _: prompts.detect(explanation.text, part, self.vocabulary),
        )

    def fuzz(
        self, explanation: Explanation, windows: Windows, marks: np.ndarray
    ) -> list[float | None]:
        """How probable it is that it fires on the tokens that are marked, bool [n, W].

        Raises:
            FeatureError: as detect; marks of another shape.
        """
        if marks.shape != windows.ids.shape:
            raise FeatureError(
                f"marks of shape {marks.shape} for windows of shape {windows.ids.shape}: give one "
                "for each token"
            )
        return self._decide(
            windows,
            lambda part, at: prompts.fuzz(explanation.text, part, marks[at], self.vocabulary),
        )

    def estimate(self, windows: Windows) -> Estimate:
        """What it costs to explain and judge `latents`, if their windows are as long as these."""
        self._check(windows)
        some = windows_at(windows, np.arange(max(self.shown, self.model.at_once)) % len(windows))
        parts = -(-self.windows // self.model.at_once)
        part = windows_at(some, np.arange(min(self.model.at_once, self.windows)))
        asked = Explanation("a description of about ten words, as they often are")
        questions = (
            prompts.detect(asked.text, part, self.vocabulary),
            prompts.fuzz(asked.text, part, part.activations > 0, self.vocabulary),
        )
        read = parts * sum(map(self.model.count, questions))
        written = len(questions) * parts * list_tokens(len(part))
        if not self.words:
            first = prompts.explain(windows_at(some, np.arange(self.shown)), self.vocabulary, 10)
            read += self.model.count(first)
            written += EXPLANATION_TOKENS
        cost = np.nan
        if self.prices is not None:
            cost = self.latents * np.dot(self.prices, (read, written)) / 1e6
        calls = self.latents * ((not self.words) + len(questions) * parts)
        return Estimate(calls, self.latents * read, self.latents * written, float(cost))

    def _explain(self, windows, budget):
        peaks = windows.activations.max(1)
        # the strongest first; windows alike stay in their order
        order = np.argsort(-peaks, kind="stable")[: int((peaks > 0).sum())]
        chosen = np.linspace(0, len(order) - 1, min(self.shown, len(order))).round().astype(int)
        return prompts.explain(windows_at(windows, order[chosen]), self.vocabulary, budget)

    def _decide(self, windows, question: Callable[[Windows, np.ndarray], Messages]):
        found: list[float | None] = [None] * len(windows)
        if not len(windows):
            return found
        self._check(windows)
        order = np.random.default_rng(self.seed).permutation(len(windows))
        for start in range(0, len(order), self.model.at_once):
            at = order[start : start + self.model.at_once]
            messages, n = question(windows_at(windows, at), at), len(at)
            answer = self._ask(messages, windows, lambda m=messages, n=n: self.model.decide(m, n))
            if answer and len(answer.p) != n:
                self._failed("not a list of as many 0s and 1s as windows")
            elif answer:
                for i, p in zip(at, answer.p, strict=True):
                    found[i] = p
        return found

    def _ask(self, messages, windows, call: Callable[[], Answer]) -> Answer | None:
        key = digest([self._identity, messages])
        answer = self.answers.get(key)
        if answer:
            self.tally.kept += 1
        else:
            answer = self._call(windows, call)
            if answer:
                self.answers.put(key, answer)
        if answer and answer.model not in self.tally.models:
            if self.tally.models:
                print(f"note: another model answers now: {answer.model}", flush=True)
            self.tally.models.add(answer.model)
        return answer

    def _call(self, windows, call):
        if not self.announced:
            print(f"{self._identity['model']}: {self.estimate(windows)}", flush=True)
            self.announced = True
        if self.tally.called >= self.max_calls:
            if not self.tally.unasked:
                print(
                    f"note: max_calls = {self.max_calls} is reached: the rest is not asked; what "
                    f"was answered is in {self.answers.path}: raise it and run again",
                    flush=True,
                )
            self.tally.unasked += 1
            return None
        self.tally.called += 1
        try:
            return call()
        except NoAnswerError as error:
            self._failed(str(error))
            return None

    def _failed(self, why):
        if why not in self.tally.failed:
            print(f"note: {self._identity['model']}: {why}: counted, and answered None", flush=True)
        self.tally.failed[why] += 1

    def _check(self, windows):
        if not windows.ids.size:
            raise FeatureError(f"windows of shape {windows.ids.shape}: give at least one")
        highest = int(windows.ids.max())
        if highest >= len(self.vocabulary):
            raise FeatureError(
                f"token {highest} has no text in a vocabulary of {len(self.vocabulary)}: give "
                "display_strings of the tokenizer that the windows were made with"
            )


def list_tokens(n: int) -> int:
    """Tokens that a list of n answers may take."""
    return LIST_TOKENS + 3 * n


def windows_at(windows: Windows, at: np.ndarray) -> Windows:
    """Some of the windows, int [m]."""
    return Windows(windows.ids[at], windows.activations[at])
