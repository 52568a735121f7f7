"""An instruct model in this process. It is loaded like any model (lm/model.py), at any layer: from
safetensors, without code of its own.

    p(yes) = softmax over the logits of the two answers' tokens, one window in a prompt

The two answers are "[1]" and "[0]", as the chat template writes them behind the question; where
their tokens part is where the model is asked. So no reply is parsed. Keys and values of the worked
examples, with which all questions of a kind begin, are computed once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from faithful_sae.features.index import FeatureError
from faithful_sae.features.language_judges.answers import Answer
from faithful_sae.features.language_judges.judge import NoAnswerError
from faithful_sae.features.language_judges.prompts import Messages, answer_list
from faithful_sae.files import digest, file_hash
from faithful_sae.lm.architectures import not_sampled
from faithful_sae.lm.model import LanguageModel

# some templates write today's date into a prompt, or have the model think first
FIXED = {"date_string": "01 Jan 2025", "enable_thinking": False}
YES, NO = answer_list([1]), answer_list([0])


class LocalModel:
    """A model whose probabilities and greedy texts a LanguageJudge uses.

    Args:
        lm: of load_model, with a chat template.

    Raises:
        FeatureError: no chat template; a past that is not keys and values; answers that are one
            token or none in its tokenizer.
    """

    at_once = 1

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        name = lm.model.name_or_path
        # where a folder is says nothing of what is in it
        self.name = name if lm.revision else Path(name).name
        if not lm.tokenizer.chat_template:
            raise FeatureError(
                f"{self.name}: its tokenizer has no chat template: take an instruct model"
            )
        if why := not_sampled(lm.model.config.to_dict()):
            raise FeatureError(f"{self.name}: {why}")
        self._starts: dict[tuple[int, ...], DynamicCache] = {}
        self._split([{"role": "user", "content": ""}])

    def identity(self) -> dict[str, Any]:
        """Of a Hub model its commit, of a folder its content; and what it computes in."""
        folder = Path(self.lm.model.name_or_path)
        return {
            "kind": "local",
            "model": self.name,
            "revision": self.lm.revision or (file_hash(folder) if folder.is_dir() else None),
            "chat_template": digest(self.lm.tokenizer.chat_template),
            "dtype": str(self.lm.model.dtype).removeprefix("torch."),
        }

    def count(self, messages: Messages) -> int:
        """Tokens that are read, the worked examples apart."""
        ids = self._ids(self._rendered(messages, add_generation_prompt=True))
        return len(ids) - len(self._shared(messages, ids)) if len(messages) > 1 else len(ids)

    @torch.no_grad()
    def write(self, messages: Messages, tokens: int) -> Answer:
        """The likeliest next token, again and again, until the turn ends."""
        ids = self._ids(self._rendered(messages, add_generation_prompt=True))
        self._fits(len(ids) + tokens)
        cache = self._read(ids[:-1])
        ends, written, token = self._ends(), [], ids[-1]
        while len(written) < tokens:
            token = int(self._next([token], cache).argmax())
            if token in ends:
                break
            written.append(token)
        return Answer(self.lm.tokenizer.decode(written, skip_special_tokens=True), self.name)

    @torch.no_grad()
    def decide(self, messages: Messages, n: int) -> Answer:
        """The probability of "yes" for the one window in the last turn."""
        ids, yes, no = self._split(messages)
        self._fits(len(ids))
        shared = self._shared(messages, ids)
        # taken out while it is in use: an interrupted pass leaves it half grown
        cache = self._starts.pop(shared, None)
        cache = self._read([*shared]) if cache is None else cache
        logits = self._next(ids[len(shared) :], cache)
        cache.crop(len(shared) - len(ids))
        self._starts[shared] = cache
        p = torch.softmax(logits[[no, yes]].double(), 0)[1]
        return Answer("", self.name, [p.item()])

    def _split(self, messages):
        """(ids of the prompt, the token that means yes, the one that means no)."""
        yes, no = (
            self._ids(self._rendered([*messages, {"role": "assistant", "content": answer}]))
            for answer in (YES, NO)
        )
        same = _common(yes, no)
        if same in (0, len(yes), len(no)):
            raise FeatureError(
                f"{self.name}: {YES} and {NO} cannot be told apart in its tokenizer and chat "
                "template: take another model"
            )
        return yes[:same], yes[same], no[same]

    def _shared(self, messages, ids):
        """The ids of a prompt that come before its last turn's own words, a tuple."""
        empty = [*messages[:-1], messages[-1] | {"content": ""}]
        before = _common(ids, self._ids(self._rendered(empty, add_generation_prompt=True)))
        return tuple(ids[: min(before, len(ids) - 1)])

    def _read(self, ids):
        """The keys and values of a prompt; no logits, which may be large."""
        # without the configuration a layer with a window keeps all tokens, and can be cut
        cache = DynamicCache()
        if ids:
            inputs = torch.tensor([ids], device=self.lm.model.device)
            self.lm.model.base_model(input_ids=inputs, past_key_values=cache, use_cache=True)
        return cache

    def _next(self, ids, cache):
        """Logits float32 [V] behind some ids, which the cache takes in."""
        inputs = torch.tensor([ids], device=self.lm.model.device)
        logits = self.lm.model(input_ids=inputs, past_key_values=cache, use_cache=True).logits
        return logits[0, -1, : self.lm.vocab_size].float().cpu()

    def _rendered(self, messages, **options):
        special = self.lm.tokenizer.all_special_tokens
        turns = [turn | {"content": _plain(turn["content"], special)} for turn in messages]
        return self.lm.tokenizer.apply_chat_template(turns, tokenize=False, **FIXED, **options)

    def _ids(self, text):
        return self.lm.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _ends(self):
        ends = self.lm.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {*ends, self.lm.tokenizer.eos_token_id}

    def _fits(self, n):
        if self.lm.context is not None and n > self.lm.context:
            raise NoAnswerError(f"a prompt is longer than the context of {self.lm.context} tokens")


def _plain(text: str, special: Sequence[str]) -> str:
    """Text in which no special token is written, which would end the turn."""
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _common(a, b):
    """How many ids two lists begin with alike."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
