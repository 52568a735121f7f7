"""How well an explanation tells where its latent fires (detection and fuzzing: Paulo et al. 2024,
arXiv 2410.13928).

    balanced accuracy = (share of the right that are above the threshold
                         + share of the wrong that are not) / 2
    AUC = P(p of a right one > p of a wrong one) + P(they are equal) / 2

                        right                       wrong
    detection_random    active windows              silent windows
    detection_hard      active windows              silent windows with the latent's top token
    fuzz_random         active windows, marked on   silent windows, as many tokens marked at random
                        the tokens that count
    fuzz_wrong          the same                    active windows, marked on as many silent tokens

A token counts if its activation is at least 0.3 of the window's largest. Scores are of the test
side. Of the explanation side, which the judge has seen, are the thresholds: those of the best
balanced accuracy, one for detection and one for fuzzing, against wrong ones of all kinds. Guessing
scores 0.5, and so does whoever knows only how often the latent fires. All hard windows have the top
token and not all active ones do, so whoever knows that token alone may score below 0.5.

Beside each score there are two that it should be above:

    permuted    with the explanation of another latent that fires about as often
    token       with the one token that says most, by TokensJudge
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from tqdm import tqdm

from faithful_sae.features.codes import Codes
from faithful_sae.features.index import FeatureError
from faithful_sae.features.judges import TokensJudge
from faithful_sae.features.judging import SCORES, Explanation, Judge, Windows
from faithful_sae.features.windows import LatentWindows, Pieces, windows_of

COUNTS = 0.3
# groups of latents that fire about as often
GROUPS = 10


@dataclass(frozen=True)
class Interpretation:
    """One explanation of one latent.

    Attributes:
        density: share of tokens on which the latent fires, 0 to 1.
        n_active, n_random, n_hard: windows of the test side.
        detection_random, detection_hard, fuzz_random, fuzz_wrong: balanced accuracies, 0 to 1; NaN
            where there is no right one or no wrong one, or no answer.
        detection_random_auc, ...: areas, 0 to 1, which need no threshold; NaN likewise.
        failed: answers that could not be read, on both sides; 1 where there is no explanation. The
            scores are of the others.
        text: of the explanation; "" where there is none.
    """

    latent: int
    density: float
    n_active: int
    n_random: int
    n_hard: int
    detection_random: float
    detection_hard: float
    fuzz_random: float
    fuzz_wrong: float
    detection_random_auc: float
    detection_hard_auc: float
    fuzz_random_auc: float
    fuzz_wrong_auc: float
    failed: int
    text: str


def interpret(
    judge: Judge,
    windows: LatentWindows,
    budget: int = 10,
    seed: int = 0,
    threshold: float | None = None,
) -> Interpretation:
    """Explain a latent and score the explanation.

    Args:
        windows: of windows_of.
        budget: weights, or words, that the explanation has at most.
        seed, threshold: as `score`.
    """
    return score(judge, judge.explain(windows.explanation, budget), windows, seed, threshold)


def score(
    judge: Judge,
    explanation: Explanation | None,
    windows: LatentWindows,
    seed: int = 0,
    threshold: float | None = None,
) -> Interpretation:
    """Score an explanation on the windows of a latent, its own or another one.

    Args:
        seed: of the tokens that are marked at random.
        threshold: probability above which an answer is yes, for judges whose 0.5 means it; None:
            the best on the explanation side, for which the judge is asked about these windows, too.
    """
    counts = (len(windows.active), len(windows.random), len(windows.hard))
    about = (windows.latent, windows.density, *counts)
    if explanation is None:
        return Interpretation(*about, *[np.nan] * 2 * len(SCORES), failed=1, text="")
    failed = 0

    def asked(part: Windows, marks: np.ndarray | None = None) -> np.ndarray:
        nonlocal failed
        if not len(part):
            return np.empty(0)
        # what the latent does there is what the judge is asked
        hidden = Windows(part.ids, np.zeros_like(part.activations))
        given = (
            judge.detect(explanation, hidden)
            if marks is None
            else judge.fuzz(explanation, hidden, marks)
        )
        p = np.array(given, float)
        failed += int(np.isnan(p).sum())
        return p[~np.isnan(p)]

    rng = np.random.default_rng([seed, windows.latent])
    items = _marked(windows.active, windows.random, rng)
    detection = fuzz = threshold
    if threshold is None:
        fires = windows.explanation.active
        shown, silent = (_some(windows.explanation, which) for which in (fires, ~fires))
        detection = _best_threshold(asked(shown), asked(silent))
        right, *wrong = (asked(*item) for item in _marked(shown, silent, rng))
        fuzz = _best_threshold(right, np.concatenate(wrong))
    active, random, hard = map(asked, (windows.active, windows.random, windows.hard))
    right, elsewhere, wrong = (asked(*item) for item in items)
    pairs = (
        (active, random, detection),
        (active, hard, detection),
        (right, elsewhere, fuzz),
        (right, wrong, fuzz),
    )
    accuracies = [_balanced_accuracy(*pair) for pair in pairs]
    areas = [_auc(a, b) for a, b, _ in pairs]
    return Interpretation(*about, *accuracies, *areas, failed=failed, text=explanation.text)


def _some(windows, which):
    return Windows(windows.ids[which], windows.activations[which])


def _marked(active, silent, rng):
    """Three times (windows, marks): marked on what counts; silent windows marked at random; active
    ones marked on silent tokens, without those that have none.
    """
    a = active.activations
    right = (a > 0) & (a >= COUNTS * a.max(1, keepdims=True))
    count = right.sum(1)
    anywhere = np.ones(silent.ids.shape, bool)
    random = _at_random(anywhere, np.resize(count, len(silent)), rng)
    wrong = _at_random(a == 0, count, rng)
    some = wrong.any(1)
    return (active, right), (silent, random), (_some(active, some), wrong[some])


def _at_random(allowed, count, rng):
    """bool [n, W]: so many of the allowed tokens of each window, or all of them."""
    order = np.where(allowed, rng.random(allowed.shape), np.inf).argsort(1).argsort(1)
    return allowed & (order < count[:, None])


def _best_threshold(right, wrong):
    """Halfway between two values of p, where the balanced accuracy is largest; the lowest of equal
    ones. NaN without answers of both kinds.
    """
    if not len(right) or not len(wrong):
        return np.nan
    values = np.unique(np.concatenate([right, wrong]))
    # where all p are one, no answer is above it
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    below = [np.searchsorted(np.sort(p), cuts, side="right") for p in (right, wrong)]
    # in whole numbers, in which equal ones are equal
    return cuts[(below[1] * len(right) - below[0] * len(wrong)).argmax()]


def _balanced_accuracy(right, wrong, threshold):
    if not len(right) or not len(wrong) or np.isnan(threshold):
        return np.nan
    return float(((right > threshold).mean() + (wrong <= threshold).mean()) / 2)


def _auc(right, wrong):
    if not len(right) or not len(wrong):
        return np.nan
    n = len(right)
    outranked = rankdata(np.concatenate([right, wrong]))[:n].sum() - n * (n + 1) / 2
    return float(outranked / (n * len(wrong)))


def interpret_all(
    judge: Judge,
    codes: Codes,
    pieces: Pieces,
    vocabulary: Sequence[str],
    latents: Sequence[int] | None = None,
    budget: int = 10,
    n: int = 50,
    least: int | None = None,
    seed: int = 0,
    threshold: float | None = None,
) -> pd.DataFrame:
    """Interpret the latents of an SAE, with the baselines beside each.

    Windows are made twice instead of kept: memory does not grow with the latents.

    Args:
        codes, pieces: of the same rows.
        vocabulary: a string for every token id.
        latents: None: all.
        budget, threshold: as `interpret`.
        n, least: as windows_of.
        seed: of windows, marks and permutation.

    Returns:
        a row per latent: the fields of Interpretation; judge, its kind; scored, False where the
        latent has too few windows, and then all scores are NaN; token, the best single token's
        explanation; each of SCORES with _permuted and with _token. Where no other latent is scored,
        _permuted is NaN.

    Raises:
        FeatureError: no latents; as windows_of and the judge.
    """
    latents = range(codes.d_sae) if latents is None else latents
    if not len(latents):
        raise FeatureError("no latents to interpret: name some, or give None for all")
    kind = judge.identity()["kind"]
    single = TokensJudge(vocabulary)
    rows = {}
    explanations = {}
    for latent in tqdm(latents, desc=f"judge {kind}", unit="latent"):
        row = {"latent": latent, "density": codes.density[latent], "judge": kind, "scored": False}
        rows[latent] = row | {"n_active": 0, "n_random": 0, "n_hard": 0, "failed": 0, "text": ""}
        windows = windows_of(codes, pieces, latent, n, least, seed)
        if windows is None:
            continue
        explanations[latent] = judge.explain(windows.explanation, budget)
        own = score(judge, explanations[latent], windows, seed, threshold)
        token = interpret(single, windows, 1, seed)
        rows[latent] |= asdict(own) | {"scored": True, "token": token.text}
        rows[latent] |= _columns(token, "token")
    donors = permuted([*explanations], codes.density, seed)
    for latent, donor in tqdm(donors.items(), desc=f"judge {kind}, permuted", unit="latent"):
        windows = windows_of(codes, pieces, latent, n, least, seed)
        assert windows is not None, "it was scored"
        other = score(judge, explanations[donor], windows, seed, threshold)
        rows[latent] |= _columns(other, "permuted")
    suffixed = [f"{name}_{suffix}" for suffix in ("permuted", "token") for name in SCORES]
    fields = [*Interpretation.__dataclass_fields__]
    columns = [*fields, "judge", "scored", "token", *suffixed]
    return pd.DataFrame([*rows.values()]).reindex(columns=columns)


def _columns(interpretation, suffix):
    return {f"{name}_{suffix}": getattr(interpretation, name) for name in SCORES}


def permuted(latents: Sequence[int], density: np.ndarray, seed: int = 0) -> dict[int, int]:
    """For each latent another one, whose explanation it gets: each is taken once, from the same
    tenth by density (larger parts, where tenths would be of one latent).

    Args:
        latents: one alone has no other, and gets none.
        density: float [F], of all latents.
        seed: of the permutation.
    """
    if len(latents) < 2:
        return {}
    ordered = np.array(sorted(latents, key=lambda latent: (density[latent], latent)))
    rng = np.random.default_rng(seed)
    donors = {}
    for group in np.array_split(ordered, min(GROUPS, len(ordered) // 2)):
        group = rng.permutation(group)
        # a cycle: none gets its own
        donors |= dict(zip(group.tolist(), np.roll(group, 1).tolist(), strict=True))
    return donors
