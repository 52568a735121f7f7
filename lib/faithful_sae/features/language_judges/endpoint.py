"""A model behind a server that speaks OpenAI's protocol (chat completions), at temperature 0.

    p(yes) of a window = p("1") / (p("0") + p("1"))   at its place in the list that was written

where the server tells probabilities (those of the five likeliest tokens at each place, added by the
digit that they hold), and otherwise the 0 or 1 that stands there. A reply that is no list of as
many digits as windows is a failure either way.

The key is read from the environment at each call. It is written nowhere: not to a file, not into a
message, and not to another server that this one points to.
"""

import contextlib
import email.utils
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from faithful_sae.features.index import FeatureError
from faithful_sae.features.language_judges.answers import Answer
from faithful_sae.features.language_judges.judge import NoAnswerError, list_tokens
from faithful_sae.features.language_judges.prompts import Messages, read_list

# a server may do better later; others that refuse will refuse again
AGAIN = (408, 409, 425, 429)
# seconds before the second try, doubled for each one after it; and that a server may ask for
BACKOFF, LONGEST_BACKOFF, PATIENCE = 1.0, 60.0, 300.0
# prompts in a row without an answer, after which the server is taken to be away
AWAY = 5
LIKELIEST = 5
NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError)
# a token of English or of code, on average
CHARACTERS_PER_TOKEN = 3
# of a turn, beside its text
TURN_TOKENS = 5


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key would go with it."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """A model of a server, as a LanguageJudge asks it.

    Args:
        base_url: up to where /chat/completions follows, for instance http://localhost:8000/v1.
        model: what the server calls it.
        key_variable: name of the environment variable that holds the key; None: none is sent.
        at_once: windows in one prompt.
        timeout: seconds that the server may be silent.
        retries: further tries after 429, 5xx, a time-out or a broken connection.

    Raises:
        FeatureError: a URL that is none, or that holds a secret; a count out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str | None = None,
        at_once: int = 5,
        timeout: float = 120.0,
        retries: int = 5,
    ) -> None:
        try:
            url = urllib.parse.urlsplit(base_url)
            there = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            there = False
        if not there:
            raise FeatureError(
                f"base_url = {base_url!r}: write it as http://localhost:8000/v1 or https://..."
            )
        if url.username or url.password or url.query:
            raise FeatureError(
                f"the URL of {url.hostname} holds a name, a key or a query: give it up to /v1 "
                "alone, and the key in an environment variable"
            )
        if at_once < 1 or retries < 0 or timeout <= 0:
            raise FeatureError(
                f"at_once = {at_once}, retries = {retries}, timeout = {timeout}: at_once and "
                "timeout must be above 0, retries 0 or more"
            )
        self.url = base_url.rstrip("/")
        self.model = model
        self.key_variable = key_variable
        self.at_once = at_once
        self.timeout = timeout
        self.retries = retries
        # what the server has not refused so far
        self.probabilities = True
        self.limit = "max_tokens"
        self.unanswered = 0
        self.noted = False
        self._opener = urllib.request.build_opener(_Stay)

    def identity(self) -> dict[str, Any]:
        """The server and what it is asked for; which weights it has, it alone knows."""
        return {"kind": "endpoint", "model": self.model, "revision": None, "url": self.url}

    def check_key(self) -> None:
        """Raises FeatureError where the environment has no key that a header can carry."""
        self._key()

    def count(self, messages: Messages) -> int:
        """A guess from the number of characters."""
        characters = sum(len(turn["content"]) for turn in messages)
        return TURN_TOKENS * len(messages) + -(-characters // CHARACTERS_PER_TOKEN)

    def write(self, messages: Messages, tokens: int) -> Answer:
        """A text of at most so many tokens.

        Raises:
            NoAnswerError: none after all tries, or none that is a completion.
            FeatureError: the server refuses, is away, or asks to wait long; no key.
        """
        return self._complete(messages, tokens, False)[0]

    def decide(self, messages: Messages, n: int) -> Answer:
        """The probability of "yes" for each of the n windows in the last turn. Raises: as write."""
        answer, logprobs = self._complete(messages, list_tokens(n), True)
        listed = read_list(answer.text, n)
        if listed is None:
            return answer
        p = _probabilities(logprobs, listed)
        if p is None:
            if not self.noted:
                print(f"note: {self.model} tells no probabilities: they are 0 or 1", flush=True)
                self.noted = True
            p = [float(digit) for digit in listed]
        return Answer(answer.text, answer.model, p)

    def _complete(self, messages, tokens, decide):
        """The first choice's answer, without probabilities, and its logprobs as they came."""
        while True:
            asked = {"model": self.model, "messages": messages, "temperature": 0}
            asked[self.limit] = tokens
            if decide and self.probabilities:
                asked |= {"logprobs": True, "top_logprobs": LIKELIEST}
            try:
                reply = self._try(asked)
            except _RefusedError as refused:
                if _is_about_logprobs(refused, asked):
                    self.probabilities = False
                elif self.limit == "max_tokens" and "max_completion_tokens" in refused.said:
                    self.limit = "max_completion_tokens"
                else:
                    raise self._explained(refused) from None
                continue
            self.unanswered = 0
            return self._read(reply)

    def _try(self, asked):
        """The reply's JSON, after as many tries as it takes."""
        why = ""
        for attempt in range(self.retries + 1):
            wait = min(BACKOFF * 2**attempt, LONGEST_BACKOFF)
            try:
                return self._post(asked)
            except _RefusedError as refused:
                # llama.cpp's Python server has 500 for a parameter that it does not take
                if not refused.again or _is_about_logprobs(refused, asked):
                    raise
                why = f"HTTP {refused.status}"
                wait = wait if refused.wait is None else refused.wait
                if wait > PATIENCE:
                    raise FeatureError(
                        f"{self.url} asks to wait {wait:.0f} s: run again then; the answers so far "
                        "are kept"
                    ) from None
            except (OSError, http.client.HTTPException, *NOT_JSON) as error:
                # urllib wraps what happens before the server answers
                cause = getattr(error, "reason", error)
                why = type(cause).__name__ if isinstance(cause, Exception) else str(cause)
            if attempt < self.retries:
                time.sleep(wait)
        raise self._unanswered(f"no answer after {self.retries + 1} tries ({why})")

    def _post(self, asked):
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(asked).encode()
        request = urllib.request.Request(f"{self.url}/chat/completions", data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            # without the escapes in which a key would not be found
            with contextlib.suppress(*NOT_JSON):
                said = json.dumps(json.loads(said), ensure_ascii=False)
            raise _RefusedError(error.code, said, _seconds(error.headers["Retry-After"])) from None

    def _read(self, reply):
        try:
            choice = reply["choices"][0]
            text, model = choice["message"]["content"] or "", reply.get("model") or self.model
            logprobs = choice.get("logprobs")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise NoAnswerError("the reply is no chat completion") from None
        return Answer(self._without_key(str(text)), self._without_key(str(model))), logprobs

    def _explained(self, refused):
        said = " ".join(self._without_key(refused.said).split())[:200]
        if refused.status in (400, 413, 422):
            # one prompt may be too long where others are not
            return self._unanswered(f"HTTP {refused.status}", said)
        remedies = {
            401: f"is the key in {self.key_variable or 'an environment variable'} right?",
            403: f"may the key in {self.key_variable or 'an environment variable'} use the model?",
            404: f"is the URL right up to /v1, and does the server have {self.model!r}?",
        }
        remedy = remedies.get(refused.status, "is the URL right?")
        return FeatureError(f"{self.url} answers HTTP {refused.status} ({said}): {remedy}")

    def _unanswered(self, why, said=""):
        self.unanswered += 1
        if self.unanswered < AWAY:
            return NoAnswerError(why)
        return FeatureError(
            f"{self.url} left {self.unanswered} prompts in a row without an answer ({why}"
            f"{': ' if said else ''}{said}): see to it and run again; the answers so far are kept"
        )

    def _key(self):
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise FeatureError(
                f"the environment variable {self.key_variable} is not set: put the key of "
                f"{self.url} there"
            )
        if not (key.isascii() and key.isprintable()):
            raise FeatureError(
                f"the key in the environment variable {self.key_variable} has a character that no "
                "header can carry: copy it anew"
            )
        return key

    def _without_key(self, text):
        key = self._key()
        return text.replace(key, "(key)") if key else text


class _RefusedError(Exception):
    """An HTTP status that is no success, what the server said to it, and how long it asks to
    wait.
    """

    def __init__(self, status: int, said: str, wait: float | None) -> None:
        super().__init__(status)
        self.status = status
        self.said = said
        self.wait = wait
        self.again = status in AGAIN or status >= 500


def _is_about_logprobs(refused, asked):
    return "logprobs" in asked and "logprobs" in refused.said


def _seconds(after: str | None) -> float | None:
    """Retry-After, which is a number of seconds or a date; None: not there, or neither."""
    try:
        return max(0.0, float(after or "none"))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after or "").timestamp() - time.time())
    except ValueError:
        return None


def _probabilities(logprobs: Any, listed: list[int]) -> list[float] | None:
    """p(yes) at each place of a list; None where the server tells no probabilities, or other tokens
    than stand in the list.
    """
    try:
        places = [token for token in logprobs["content"] if _digit(token) is not None]
        places = places[-len(listed) :]
        if [_digit(token) for token in places] != listed:
            return None
        return [_share(token) for token in places]
    except (KeyError, TypeError, ValueError):
        return None


def _digit(token):
    """The answer that a token holds, if it holds one: a tokenizer may join it with what is
    around.
    """
    text = token["token"].strip(" [],\n")
    return int(text) if text in ("0", "1") else None


def _share(token):
    mass = [0.0, 0.0]
    # the token that was written may be missing among the likeliest
    there = {t["token"]: t for t in (token, *(token.get("top_logprobs") or ()))}
    for other in there.values():
        digit = _digit(other)
        if digit is not None:
            mass[digit] += math.exp(other["logprob"])
    if not 0 < sum(mass) < math.inf:
        raise ValueError("no probability")
    return mass[1] / sum(mass)
