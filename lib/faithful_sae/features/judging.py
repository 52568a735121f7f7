"""What a judge is: it explains a latent from some windows of text, and says of others whether they
fit the explanation (Bills et al. 2023; Paulo et al. 2024).

    detection   does the latent fire in this window?
    fuzzing     does it fire on the tokens of this window that are marked?

A judge sees what the latent does in the windows it explains from alone, never in those it judges.

n windows of W tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

# balanced accuracies of an explanation: features/interpretation.py says which
SCORES = ("detection_random", "detection_hard", "fuzz_random", "fuzz_wrong")


@dataclass(frozen=True)
class Windows:
    """Windows of text, and what one latent does there.

    Attributes:
        ids: int32 [n, W] of tokens.
        activations: float32 [n, W], 0 where the latent is silent.
    """

    ids: np.ndarray
    activations: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def active(self) -> np.ndarray:
        """Whether the latent fires anywhere in each window, bool [n]."""
        return np.any(self.activations > 0, axis=1)


@dataclass(frozen=True)
class Explanation:
    """What a judge says of a latent.

    Attributes:
        text: for a reader, or for a language model that judges.
        weights: of a judge that computes with them, by whatever it calls its parts; at most
            `budget` of them.
    """

    text: str
    weights: Mapping[Any, float] = field(default_factory=dict)


def named(explanation: Explanation, vocabulary: Sequence[str]) -> str:
    """An explanation for another judge: the tokens that its weights are of, by id, or where they
    are of something else its text.

    Args:
        vocabulary: the text of each token id (display_strings).
    """
    tokens = [token for token in explanation.weights if isinstance(token, int)]
    names = [vocabulary[token].strip() for token in tokens]
    return " ".join(filter(None, names)) if names else explanation.text


class Judge(Protocol):
    """Explains latents and judges windows. A probability is 0 to 1, and None where the judge gave
    no answer that can be read; such are counted, and never dropped in silence.
    """

    def explain(self, windows: Windows, budget: int) -> Explanation | None:
        """From windows where the latent fires and windows where it does not; None: no answer.

        Args:
            budget: weights, or words, that an explanation has at most.
        """
        ...

    def detect(self, explanation: Explanation, windows: Windows) -> list[float | None]:
        """How probable it is that the latent fires in each window."""
        ...

    def fuzz(
        self, explanation: Explanation, windows: Windows, marks: np.ndarray
    ) -> list[float | None]:
        """How probable it is that it fires on the tokens that are marked.

        Args:
            marks: bool [n, W].
        """
        ...

    def identity(self) -> dict[str, Any]:
        """Kind, model, revision, prompt_hash, seed: what its answers depend on. It goes into
        provenance, and holds no secret.
        """
        ...
