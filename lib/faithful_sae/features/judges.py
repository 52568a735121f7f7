"""Two judges that need no language model: they know tokens (ours; what they stand in for is the
judge of Bills et al. 2023 and of Paulo et al. 2024).

    tokens    p(token) = (fired + 1/2) / (seen + 1)
              of the tokens that say most about whether the latent fires: I(token = w; fires) is
              largest (explain.py), and it fires on w more often than on others; 0 elsewhere
    ngram     p(token) = sigmoid(sum of the weights of what holds there)
              of a logistic regression with an L1 penalty on: the token, the token before it, the
              pair of both, and a constant. The penalty is the smallest of a path that leaves at
              most `budget` weights (Tibshirani 1996)

Both count on the windows that are explained from, and at most `budget` numbers are kept, the
constant included. Of a window, p is that of its likeliest token. Of marked tokens, it is the mean.
A token is known by itself and the one before it, and no meaning is. So levels cannot be compared
with those of a large judge; differences between groups of latents can. How far into a window a
token is would tell no windows apart: every window has all places.

The constant is penalised a tenth as much as the other weights, since liblinear penalises it, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from scipy.special import expit

from faithful_sae.features.explain import mutual_information
from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation, Windows
from faithful_sae.features.vocabulary import visible

# where the path begins, and what each step multiplies it by; scikit-learn's C is 1 over it
LEAST_PENALTY, STEP = 2.0, 2**0.5
ALWAYS = ("always",)
INTERCEPT_SCALING = 10


@dataclass(frozen=True)
class _Lookup:
    """A judge that gives every token of a window a probability, [n, W].

    Attributes:
        vocabulary: a string for every token id (vocabulary.display_strings).
    """

    vocabulary: Sequence[str] = field(repr=False)
    kind: ClassVar[str]

    def probabilities(self, explanation: Explanation, ids: np.ndarray) -> np.ndarray:
        """Of each token of ids [n, W]."""
        raise NotImplementedError

    def detect(self, explanation: Explanation, windows: Windows) -> list[float | None]:
        """The probability of each window's likeliest token."""
        return self.probabilities(explanation, windows.ids).max(1).tolist()

    def fuzz(
        self, explanation: Explanation, windows: Windows, marks: np.ndarray
    ) -> list[float | None]:
        """The mean probability of the tokens that are marked; None where none is.

        Args:
            marks: bool [n, W].
        """
        p = self.probabilities(explanation, windows.ids)
        count = marks.sum(1)
        mean = (p * marks).sum(1) / np.maximum(count, 1)
        return [one if n else None for one, n in zip(mean.tolist(), count, strict=True)]

    def identity(self) -> dict[str, Any]:
        """No model and no prompt; the seed is of the order in which liblinear takes weights."""
        return {"kind": self.kind, "model": None, "revision": None, "prompt_hash": None, "seed": 0}

    def _quoted(self, token: int) -> str:
        return f"“{visible(self.vocabulary[token])}”"


@dataclass(frozen=True)
class TokensJudge(_Lookup):
    """Explains a latent by the tokens it fires on; see the module."""

    kind: ClassVar[str] = "tokens"

    def explain(self, windows: Windows, budget: int) -> Explanation:
        """At most `budget` tokens, with the share of each on which the latent fires.

        Raises:
            FeatureError: budget below 1.
        """
        _check(budget, 1)
        fires = windows.activations > 0
        tokens, which, seen = np.unique(windows.ids, return_inverse=True, return_counts=True)
        joint = np.bincount(which.ravel(), fires.ravel(), len(tokens))
        information = mutual_information(joint, fires.sum(), seen, fires.size)
        above = joint * fires.size > fires.sum() * seen
        # equal ones by id
        best = np.lexsort((tokens, -information))
        best = best[above[best]][:budget]
        share = (joint[best] + 0.5) / (seen[best] + 1)
        order = (-share).argsort(kind="stable")
        weights = {int(tokens[best[i]]): float(share[i]) for i in order}
        named = [f"{self._quoted(token)} ({p:.0%})" for token, p in weights.items()]
        return Explanation(
            f"fires on {', '.join(named)}" if named else "fires on no token", weights
        )

    def probabilities(self, explanation: Explanation, ids: np.ndarray) -> np.ndarray:
        """Of each token, float64 [n, W]."""
        p = np.zeros(ids.shape)
        for token, weight in explanation.weights.items():
            p[ids == token] = weight
        return p


@dataclass(frozen=True)
class NgramJudge(_Lookup):
    """Explains a latent by tokens and those before them; see the module. Weights are called
    ("token", w), ("before", v), ("pair", v, w) and ("always",).
    """

    kind: ClassVar[str] = "ngram"

    def explain(self, windows: Windows, budget: int) -> Explanation | None:
        """The least penalised regression with at most `budget` weights; None where the latent fires
        on all tokens or on none, or where nothing is seen often enough.

        Raises:
            FeatureError: budget below 2.
        """
        from sklearn.linear_model import LogisticRegression

        _check(budget, 2)
        fires = (windows.activations > 0).ravel()
        names, x = _design(windows.ids)
        if fires.all() or not fires.any() or not names:
            return None
        fit = LogisticRegression(
            l1_ratio=1,
            solver="liblinear",
            C=1 / LEAST_PENALTY,
            intercept_scaling=INTERCEPT_SCALING,
            random_state=0,
            max_iter=1000,
        )
        # a penalty that is large enough leaves the constant alone
        while np.count_nonzero(fit.fit(x, fires).coef_) >= budget:
            fit.set_params(C=fit.C / STEP)
        found = np.ravel(fit.coef_)
        kept = np.flatnonzero(found)
        weights: dict[tuple, float] = {ALWAYS: np.ravel(fit.intercept_).item()}
        for i in kept[(-found[kept]).argsort(kind="stable")]:
            weights[names[i]] = float(found[i])
        return Explanation(self._text(weights), weights)

    def probabilities(self, explanation: Explanation, ids: np.ndarray) -> np.ndarray:
        """Of each token, float64 [n, W]."""
        logits = np.zeros(ids.shape)
        before = np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        for (kind, *parts), weight in explanation.weights.items():
            if kind == "always":
                logits += weight
            elif kind == "token":
                logits[ids == parts[0]] += weight
            elif kind == "before":
                logits[before == parts[0]] += weight
            else:
                logits[(before == parts[0]) & (ids == parts[1])] += weight
        return expit(logits)

    def _text(self, weights):
        said = {
            "token": lambda w: f"on {self._quoted(w)}",
            "before": lambda v: f"after {self._quoted(v)}",
            "pair": lambda v, w: f"on {self._quoted(w)} after {self._quoted(v)}",
        }
        named = [
            (f"{said[kind](*parts)} ({weight:+.1f})", weight)
            for (kind, *parts), weight in weights.items()
            if kind != "always"
        ]
        more = [name for name, weight in named if weight > 0]
        less = [name for name, weight in reversed(named) if weight < 0]
        clauses = [
            f"{how} {', '.join(part)}" for how, part in (("more", more), ("less", less)) if part
        ]
        return f"fires {'; '.join(clauses) or 'alike on all tokens'}"


def _design(ids):
    """What holds at each token of ids [n, W]: (names, sparse float64 [n W, names])."""
    ids = ids.astype(np.int64)
    before, size = ids[:, :-1], ids.max() + 1
    at = np.arange(ids.size).reshape(ids.shape)
    names, columns = [], []
    for kind, value, rows in (
        ("token", ids, at),
        ("before", before, at[:, 1:]),
        ("pair", before * size + ids[:, 1:], at[:, 1:]),
    ):
        found, which, seen = np.unique(value, return_inverse=True, return_counts=True)
        entries = (np.ones(value.size), (rows.ravel(), which.ravel()))
        # the gradient of a weight is smaller than that, so others stay 0
        often = seen > LEAST_PENALTY
        columns.append(sparse.csc_matrix(entries, shape=(ids.size, len(found)))[:, often])
        found = found[often]
        parts = np.divmod(found, size) if kind == "pair" else (found,)
        names += [(kind, *one) for one in zip(*(part.tolist() for part in parts), strict=True)]
    return names, sparse.hstack(columns, format="csr")


def _check(budget, least):
    if budget < least:
        raise FeatureError(f"budget = {budget} must be at least {least}: weights of an explanation")
